"""Tests of resumable.py and pipeline-results, with programs that only leave the files that the next step asks for."""

import contextlib
import importlib.machinery
import importlib.util
import io
import json
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from resumable import Runner, Step, option  # noqa: E402

SCRIPT = Path(__file__).resolve().parent / "pipeline-results"

# Appends its command to a log; leaves what the real program would. Fails where the log says so.
FAKE = """#!{python}
import json, pathlib, sys
name, flags = pathlib.Path(sys.argv[0]).name, sys.argv[1:]
with open({log!r}, "a") as log:
    log.write(json.dumps([name, *flags]) + "\\n")
output = pathlib.Path(flags[flags.index("--output") + 1])
output.mkdir(parents=True, exist_ok=True)
inputs = ["--adapter", "--rope-scaling", "--multiply", "--start", "--recover", "--schedule"]
for flag, value in zip(flags, flags[1:]):
    path = value.split("=")[-1]
    if flag in inputs and not pathlib.Path(path).exists():
        sys.exit(flag + " " + path + " is not there")
length = int(flags[flags.index("--length") + 1]) if "--length" in flags else 0
scaling = {{"long_factor": [1.0, 2.0]}} if length == 2048 else {{"attention_factor": 1.25, "long_factor": [1.0, 2.0]}}
bucket = {{"max_length": length, "attention_factor": 1.0, "n_hat": 0, "factors": [1.0, 1.5]}}
if name == "search" and "--recover" in flags:
    given = json.loads(pathlib.Path(flags[flags.index("--recover") + 1]).read_text())
    buckets = given.get("buckets") or [dict(bucket, max_length=given["max_position_embeddings"])]
    (output / "schedule.json").write_text(json.dumps({{"buckets": [bucket, *buckets]}}))
elif name == "search":
    (output / "rope_scaling.json").write_text(json.dumps({{"max_position_embeddings": length, "rope_scaling": scaling}}))
elif name == "finetune":
    (output / "adapter").mkdir(exist_ok=True)
elif name == "evaluate":
    methods = flags[flags.index("--methods") + 1].split(",")
    kind = "passkeys" if "--passkeys" in flags else "choices" if "--choices" in flags else "windows"
    rows = "".join("8," + method + ",t,0,1.0,1.0\\n" for method in methods)
    (output / (kind + ".csv")).write_text("header\\n" + rows)
"""


def load() -> object:
    loader = importlib.machinery.SourceFileLoader("pipeline_results", str(SCRIPT))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("pipeline_results", loader))
    loader.exec_module(module)
    return module


class Pipeline(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.path = Path(self.folder.name)
        self.log = self.path / "log"
        for name in ("search", "finetune", "evaluate", "tabulate"):
            program = self.path / name
            program.write_text(FAKE.format(python=sys.executable, log=str(self.log)))
            program.chmod(0o755)
        self.module = load()

    def run_script(self, *arguments: str) -> str:
        flags = ["--programs", str(self.path), "--output", str(self.path / "out"), "--lengths", "512,1024,4096"]
        flags += ["--original", "256", "--evaluations", "8,4,16"]
        out = io.StringIO()
        before, sys.argv = sys.argv, ["pipeline-results", *flags, *arguments]
        try:
            with contextlib.redirect_stdout(out):
                self.module.main()
        finally:
            sys.argv = before
        return out.getvalue()

    def commands(self) -> list[list[str]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def test_every_step_finds_what_the_ones_before_it_left(self) -> None:
        self.run_script("all")
        commands = self.commands()
        tunes = [command for command in commands if command[0] == "finetune"]
        self.assertEqual([option(tune, "--length") for tune in tunes], ["512", "1024", "1024"])
        self.assertTrue(option(tunes[1], "--adapter").endswith("tune-512/adapter"))
        self.assertNotIn("--adapter", tunes[2])
        # The second search: at each doubling an eighth of the evaluations, from what was found before.
        searches = [command for command in commands if command[0] == "search" and "--recover" not in command]
        told = [(option(search, "--length"), option(search, "--evaluations")) for search in searches]
        self.assertEqual(told, [("512", "8"), ("1024", "4"), ("2048", "16"), ("4096", "2")])
        self.assertTrue(option(searches[3], "--start").endswith("factors-2048/rope_scaling.json"))
        self.assertTrue(option(searches[3], "--multiply").endswith("factors-1024/rope_scaling.json"))
        schedule = json.loads((self.path / "out/schedule.json").read_text())
        lengths = [bucket["max_length"] for bucket in schedule["buckets"]]
        self.assertEqual(lengths, [64, 128, 256, 1024, 2048, 4096])
        # Where a configuration names no attention factor it is that of LongRoPE's rule: 8 times 256 tokens.
        factors = [bucket["attention_factor"] for bucket in schedule["buckets"]]
        self.assertEqual(factors[3], 1.25)
        self.assertAlmostEqual(factors[4], (1 + 3 / 8) ** 0.5)
        # The report has a row for each model and method, of every kind that was measured.
        report = next(command for command in commands if command[0] == "tabulate")
        rows = {source.split("=")[0] for source in report[1:] if "@" in source}
        self.assertIn("LongRoPE, fine-tuned, recovered", rows)
        self.assertEqual(len(rows), 7)

    def test_a_step_that_was_done_is_not_done_again_and_other_flags_are_another_step(self) -> None:
        self.run_script("factors-512")
        self.assertIn("done before", self.run_script("factors-512"))
        self.assertEqual(len(self.commands()), 1)
        self.run_script("--evaluations", "9,4,16", "factors-512")
        self.assertEqual(len(self.commands()), 2)

    def test_what_is_kept_is_no_checkpoint_of_what_was_done(self) -> None:
        self.run_script("factors-512", "tune-512")
        for folder in ("tune-512", "tune-1024"):
            checkpoint = self.path / "out" / folder / "checkpoint-4"
            checkpoint.mkdir(parents=True)
            (checkpoint / "tensors").touch()
        kept = self.run_script("keep")
        self.assertIn("tune-1024/checkpoint-4/tensors", kept)
        self.assertNotIn("tune-512/checkpoint-4", kept)

    def test_steps_of_two_processes_are_both_told(self) -> None:
        # The one on another GPU ends while a step of this one runs.
        runner = Runner("test", self.path / "out", self.path, 60)
        runner.run(Step("outer", "", 1, [lambda: runner.run(Step("inner", "", 1, []))]))
        self.assertEqual(set(runner.done()), {"inner", "outer"})

    def test_what_is_missing_stops_the_steps(self) -> None:
        with self.assertRaisesRegex(SystemExit, "tune-512.*status 1"), contextlib.redirect_stderr(io.StringIO()):
            self.run_script("tune-512")

    def test_a_step_and_lengths_that_are_not_valid_are_named(self) -> None:
        with self.assertRaisesRegex(SystemExit, "tune-7 is not valid; expected some of factors-512"):
            self.run_script("tune-7")
        with self.assertRaisesRegex(SystemExit, "--lengths: 2,1,3 is not valid"):
            self.run_script("--lengths", "2,1,3", "all")

    def test_the_plan_runs_nothing(self) -> None:
        lines = self.run_script("--plan").splitlines()
        self.assertTrue(lines[0].startswith("factors-512 "))
        self.assertFalse(self.log.exists())


class Resumed(unittest.TestCase):
    def test_programs_go_on_where_something_was_left(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder)
            runner = Runner("test", path, path, 60)
            command = {name: [name, "--output", str(path / name)] for name in ("search", "finetune", "evaluate", "compare")}
            resumed = lambda name: "--resume" in runner.full(command[name])  # noqa: E731
            self.assertEqual([resumed(name) for name in command], [False, False, True, False])
            (path / "search").mkdir()
            (path / "search/checkpoint.json").touch()
            (path / "finetune/checkpoint-4").mkdir(parents=True)
            self.assertEqual([resumed(name) for name in command], [True, True, True, False])

    def test_a_step_is_cut_at_its_limit(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder)
            program = path / "slow"
            program.write_text("#!/bin/sh\nexec sleep 60\n")
            program.chmod(0o755)
            runner = Runner("test", path / "out", path, 0)
            with self.assertRaisesRegex(SystemExit, "cut short"), contextlib.redirect_stdout(io.StringIO()):
                runner.run(Step("slow", "sleeps", 60, [["slow"]]))
            self.assertFalse((path / "out/steps.json").exists())


if __name__ == "__main__":
    unittest.main()
