"""Steps made of the drivers' programs, which can be cut short and go on: what scripts/smollm2-results and
scripts/pipeline-results share."""

import argparse
import fcntl
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
Command = list[str] | Callable[[], None]


@dataclass
class Step:
    """What is done under a name: programs by their names and flags, or functions."""

    name: str
    what: str
    # By an estimate, on an H100.
    seconds: float
    commands: list[Command]
    # Whether it is done anew every time.
    always: bool = False


def option(command: list[str], flag: str) -> str:
    """The value of a flag."""
    return command[command.index(flag) + 1]


class Runner:
    """Runs steps, and keeps what was done in steps.json of the output folder."""

    def __init__(self, name: str, output: Path, programs: Path, limit: float) -> None:
        self.name, self.output, self.programs, self.limit = name, output, programs, limit
        self.until = float("inf")

    def record(self) -> Path:
        return self.output / "steps.json"

    def done(self) -> dict:
        """The steps that were done, by their names."""
        return json.loads(self.record().read_text()) if self.record().exists() else {}

    def note(self, name: str, entry: dict) -> None:
        """Adds a step to those that were done. Another process may do so at the same time, for a step on another GPU."""
        with open(self.output / "steps.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            aside = self.record().with_suffix(".new")
            aside.write_text(json.dumps(self.done() | {name: entry}, indent=2) + "\n")
            aside.rename(self.record())

    def full(self, command: list[str]) -> list[str]:
        """With the program's path, and --resume where an earlier run left something to go on with."""
        program, *flags = command
        resume = []
        if "--output" in flags:
            output = Path(option(flags, "--output"))
            left = {"search": output.glob("checkpoint.json"), "finetune": output.glob("checkpoint-*")}
            if program == "evaluate" or any(left.get(program, [])):
                resume = ["--resume"]
        return [str(self.programs / program), *flags, *resume]

    def program(self, command: list[str]) -> None:
        """Runs a program; after the seconds of a step it is asked to stop, which keeps what it has."""
        left = self.until - time.monotonic()
        process = subprocess.Popen(self.full(command))
        try:
            code = process.wait(timeout=max(left, 1))
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            process.send_signal(signal.SIGINT)
            process.wait()
            sys.exit(f"{self.name}: cut short; run the step again to go on")
        if code != 0:
            sys.exit(f"{self.name}: {' '.join(command)}: status {code}")

    def run(self, step: Step) -> None:
        """Does a step, unless it was done by the same commands before."""
        self.output.mkdir(parents=True, exist_ok=True)
        done = self.done()
        words = [" ".join(command) for command in step.commands if isinstance(command, list)]
        if not step.always and done.get(step.name, {}).get("commands") == words:
            print(f"{step.name}: done before")
            return
        print(f"{step.name}:", flush=True)
        started = time.monotonic()
        self.until = started + self.limit
        for command in step.commands:
            self.program(command) if isinstance(command, list) else command()
        seconds = round(time.monotonic() - started, 1)
        self.note(step.name, {"commands": words, "seconds": seconds})
        print(f"{step.name}: {seconds} s", flush=True)


def arguments(parser: argparse.ArgumentParser, output: str) -> None:
    """The flags that both scripts have."""
    parser.add_argument("step", nargs="*", help="steps to run, or all")
    parser.add_argument("--plan", action="store_true", help="print the steps and how long each would take")
    parser.add_argument("--output", default=output, help="folder for all files [%(default)s]")
    parser.add_argument("--programs", default="candle-bundle", help="folder of the programs [%(default)s]")
    parser.add_argument("--limit", type=float, default=480, help="seconds of a step [%(default)s]")
    parser.add_argument("--model", default="data/cache/smollm2-135m-instruct.gguf", help="[%(default)s]")
    parser.add_argument("--original", type=int, default=8192, help="the model's own context [%(default)s]")
    parser.add_argument("--device", default="cuda", help="[%(default)s]")


def main(given: argparse.Namespace, runner: Runner, steps: Callable[[], list[Step]]) -> None:
    """Prints the plan, or runs the steps that are asked for. `steps` is asked anew before each, since what one finds depends on
    those before it."""
    if given.plan or not given.step:
        total = 0.0
        for step in steps():
            total += step.seconds
            print(f"{step.name:<38} {step.seconds:6.0f} s {total:7.0f} s  {step.what}")
        return
    known = [step.name for step in steps()]
    for name in given.step:
        if name not in [*known, "all"]:
            sys.exit(f"{runner.name}: {name} is not valid; expected some of {' '.join(known)}, or all")
    for name in known if given.step == ["all"] else given.step:
        runner.run(next(step for step in steps() if step.name == name))
