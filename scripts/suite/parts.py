"""The kinds of parts: what each runs, and what makes it count as failed."""

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from .families import FAMILIES, ROOT, Family, called, fail
from .results import judge_rows, parse_rows, rows_of_absent, write_rows

BUNDLE = ROOT / "gpu-bundle"
TOOLS = ["memcheck", "racecheck", "initcheck", "synccheck"]
# What a run of one part may take, in seconds.
LIMIT = 90.0
# Whether there may be something to compile still.
PREPARES = True
# What may be taken before it, for what drivers and peers compile at the first use, and keep.
PREPARE_LIMIT = 300.0


class Deadline:
    """What is left of a part's time."""

    def __init__(self, limit: float = LIMIT) -> None:
        self.start, self.limit = time.monotonic(), limit

    def spent(self) -> float:
        return time.monotonic() - self.start

    def run(self, command: list[str], **variables: str) -> tuple[int | None, str]:
        """Exit status (None: out of time) and output of a command, which is also shown."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PROPTEST_")}
        environment |= {"LONGROPE_REQUIRE_GPU": "1", **variables}
        print("$", " ".join(command), flush=True)
        with tempfile.TemporaryFile("w+", errors="replace") as output:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                status = process.wait(max(1.0, self.limit - self.spent()))
            except BaseException as reason:
                # With what it has begun: a sanitizer's program would go on, and hold the GPU.
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                if not isinstance(reason, subprocess.TimeoutExpired):
                    raise
                status = None
            output.seek(0)
            text = output.read()
        print(text, end="" if text.endswith("\n") else "\n", flush=True)
        return status, text

    def problem(self, status: int | None) -> list[str]:
        """What an exit status says against a command."""
        if status is None:
            return [f"not done after {self.limit:.0f} s"]
        return [f"exit status {status}"] if status else []


def prepare(deadline: Deadline, *commands: list[str], **variables: str) -> tuple[list[str], float]:
    """Runs what leaves nothing to compile, then starts a part's own time. Problems, and the seconds it took."""
    preparing, problems = Deadline(PREPARE_LIMIT), []
    for command in commands if PREPARES else ():
        status, _ = preparing.run(command, **variables)
        problems += [f"preparing: {problem}" for problem in preparing.problem(status)]
    deadline.start = time.monotonic()
    return problems, round(preparing.spent(), 1)


def counts(output: str) -> dict[str, int]:
    """What libtest-mimic's closing line counts."""
    pattern = r"^test result: \S+ (\d+) passed; (\d+) failed; (\d+) ignored; (\d+) measured; (\d+) filtered out"
    lines = re.findall(pattern, output, re.MULTILINE)
    names = ["passed", "failed", "ignored", "measured", "filtered"]
    return dict(zip(names, map(int, lines[-1]))) if lines else {}


def judge(deadline: Deadline, status: int | None, found: dict[str, int]) -> list[str]:
    """Why a run of the tests does not count as passed."""
    if status is None:
        return deadline.problem(status)
    if not found:
        return [f"no closing line, exit status {status}"]
    reasons = [f"{found[what]} {what}" for what in ("failed", "ignored") if found[what]]
    if found["passed"] == 0:
        reasons.append("no test was run")
    return reasons or deadline.problem(status)


def preparation(kind: str, family: Family) -> tuple[list[list[str]], dict[str, str]]:
    """The commands that leave a part nothing to compile, and their environment."""
    if kind == "peers":
        return [[*peers_command(family), "--prepare"]], {}
    if kind == "sanitizer" or not family.environment:
        return [], {}
    # The kernels are loaded, and so compiled, before tests are listed or cases run.
    program = [str(BUNDLE / family.bench), "--test"] if kind == "bench" else [str(BUNDLE / "gpu"), "--list"]
    return [program], family.environment


def peers_command(family: Family) -> list[str]:
    program = ["python3", str(ROOT / family.peers[0])]
    return [*program, "--library", str(BUNDLE / "liblongrope.so"), *family.peers_arguments]


def prepare_part(kind: str, family: Family, deadline: Deadline, **variables: str) -> tuple[list[str], float]:
    commands, environment = preparation(kind, family)
    return prepare(deadline, *commands, **environment, **variables)


def prepare_all(chosen: list[tuple[str, str]]) -> list[str]:
    """Does for several parts at once what each would do before its time. Problems."""
    problems, done = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name, kind in chosen:
            if preparation(kind, FAMILIES[name]) in done:
                continue
            done.append(preparation(kind, FAMILIES[name]))
            found, _ = prepare_part(kind, FAMILIES[name], Deadline(), CRITERION_HOME=folder)
            problems += [f"{name}:{kind}: {problem}" for problem in found]
    return problems


def run_tests(name: str, family: Family, deadline: Deadline, out: Path) -> dict:
    """All tests of a family but those of its lengths."""
    problems, seconds = prepare_part("tests", family, deadline)
    skipped = [argument for test in family.lengths for argument in ("--skip", f"{called(name)}::{test}")]
    cases, total = family.cases_tests, {}
    for program in family.programs:
        command = [str(BUNDLE / program), f"{called(name)}::", *skipped]
        variables = {"PROPTEST_CASES": str(cases), "LONGROPE_BUNDLE": str(BUNDLE), **family.environment}
        status, output = deadline.run(command, **variables)
        found = counts(output)
        problems += judge(deadline, status, found)
        total = {what: total.get(what, 0) + count for what, count in found.items()}
    return {"counts": total, "proptest_cases": cases, "prepare_seconds": seconds, "problems": problems}


def run_lengths(name: str, family: Family, deadline: Deadline, out: Path) -> dict:
    """The tests that `run_tests` leaves out. The program takes one filter at a time."""
    problems, seconds = prepare_part("lengths", family, deadline)
    passed = {}
    for test in family.lengths:
        status, output = deadline.run([str(BUNDLE / "gpu"), f"{called(name)}::{test}"], **family.environment)
        found = counts(output)
        passed[test] = found.get("passed", 0)
        problems += [f"{test}: {reason}" for reason in judge(deadline, status, found)]
    return {"counts": passed, "prepare_seconds": seconds, "problems": problems}


def find_sanitizer() -> str:
    homes = [os.environ.get(name, "") for name in ("CUDA_HOME", "CUDA_PATH")] + ["/usr/local/cuda"]
    folders = [os.environ.get("PATH", "")] + [str(Path(home) / "bin") for home in homes if home]
    found = shutil.which("compute-sanitizer", path=os.pathsep.join(folders))
    return found or fail("compute-sanitizer was not found by PATH, CUDA_HOME or CUDA_PATH, nor in /usr/local/cuda")


def run_sanitizer(name: str, family: Family, deadline: Deadline, out: Path) -> dict:
    tests, tools = str(BUNDLE / "gpu"), {}
    commands = {tool: [find_sanitizer(), "--tool", tool, "--error-exitcode", "1", tests] for tool in TOOLS}
    problems = []
    skipped = [argument for test in family.large for argument in ("--skip", test)]
    for tool, command in commands.items():
        began = deadline.spent()
        status, output = deadline.run(
            [*command, f"{called(name)}::", *skipped],
            PROPTEST_CASES=str(family.cases_sanitizer),
            **family.sanitizer_environment,
        )
        # Racecheck: "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)".
        summaries = re.findall(r"(?:ERROR SUMMARY: |hazards? displayed \()(\d+) errors?", output)
        errors = sum(map(int, summaries)) if summaries else None
        found = counts(output)
        tools[tool] = {"errors": errors, "tests": found.get("passed", 0), "seconds": round(deadline.spent() - began, 1)}
        reasons = judge(deadline, status, found)
        if errors is None:
            reasons.append("no summary")
        elif errors:
            reasons.append(f"{errors} errors")
        problems += [f"{tool}: {reason}" for reason in reasons]
    return {
        "tools": tools,
        "proptest_cases": family.cases_sanitizer,
        "skipped": list(family.large),
        "problems": problems,
    }


def collect(name: str, kind: str, output: str, problems: list[str], out: Path, absent: list[str] | None = None) -> dict:
    """Judges and records the rows that a program printed. `absent`: what it did not measure, for want of the peer."""
    rows = parse_rows(name, output)
    found, missed = judge_rows(name, kind, rows)
    # Rows that are not sound must not replace those that are.
    if rows and not found:
        write_rows(out, name, kind, rows + rows_of_absent(name, kind, rows, absent or []))
    for line in missed:
        print(f"missed: {line}")
    return {"counts": {"rows": len(rows), "missed": len(missed)}, "missed": missed, "problems": problems + found}


def run_bench(name: str, family: Family, deadline: Deadline, out: Path) -> dict:
    program = str(BUNDLE / family.bench)
    with tempfile.TemporaryDirectory() as folder:
        # Criterion keeps its own record, and would compare with it.
        problems, seconds = prepare_part("bench", family, deadline, CRITERION_HOME=folder)
        status, output = deadline.run([program, "--bench"], CRITERION_HOME=folder, **family.environment)
        problems += deadline.problem(status)
    return {"prepare_seconds": seconds, **collect(name, "bench", output, problems, out)}


def run_peers(name: str, family: Family, deadline: Deadline, out: Path) -> dict:
    problems, seconds = prepare_part("peers", family, deadline)
    status, output = deadline.run(peers_command(family))
    problems += deadline.problem(status)
    oracles = re.findall(r"^oracle: (.*)", output, re.MULTILINE)
    if not oracles:
        problems.append("no oracle was asked")
    # A peer that is not installed is no fault of ours, but is not to go unsaid.
    absent = re.findall(r"^not measured: (.*)", output, re.MULTILINE)
    result = collect(name, "peers", output, problems, out, absent)
    return {"oracles": oracles, "not_measured": absent, "prepare_seconds": seconds, **result}


RUN = {"tests": run_tests, "lengths": run_lengths, "sanitizer": run_sanitizer, "bench": run_bench, "peers": run_peers}


def run(name: str, kind: str, out: Path, limit: float | None = None) -> dict:
    """Runs a part. What was found, the seconds it took, and the problems: it has passed if there is none."""
    deadline = Deadline(limit) if limit else Deadline()
    result = RUN[kind](name, FAMILIES[name], deadline, out)
    family = FAMILIES[name]
    environment = {"peers": {}, "sanitizer": family.sanitizer_environment}.get(kind, family.environment)
    if environment:
        result["environment"] = environment
    return {"seconds": round(deadline.spent(), 1), **result}
