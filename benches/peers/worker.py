"""A peer in a process of its own, for a framework that does not share PyTorch's memory or stream.

The two processes take turns: the asking one waits for its own GPU work, sends one line of JSON, and reads one line when
the peer's turn is over. A worker is a program that calls `serve` with a function that opens a case. Lines to it are
`{"open": CASE}`, `{"turn": LAUNCHES}` and `{"close": true}`; it answers `{"ready": WHO}` at its start, then
`{"milliseconds": T}` (of one launch) to the first two and `{}` to the last, or `{"error": WHY}` to any.
"""

import json
import os
import select
import subprocess
import sys
import time

# Longest wait for an answer, in seconds: a framework starts and compiles within it.
PATIENCE = 60.0


class WorkerError(Exception):
    """Why the worker could not do what it was asked."""


class Worker:
    """The asking side."""

    def __init__(self, program, **variables):
        self.process = subprocess.Popen(
            [sys.executable, str(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # `select` does not see what a buffer holds
            env={**os.environ, **variables},
        )
        self.pending = b""
        try:
            self.who = self.answer()["ready"]
        except Exception:
            self.stop()
            raise

    def answer(self):
        limit = time.monotonic() + PATIENCE
        while b"\n" not in self.pending:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, limit - time.monotonic()))
            if not ready:
                raise WorkerError(f"no answer within {PATIENCE:.0f} s")
            part = self.process.stdout.read(1 << 16)
            if not part:
                raise WorkerError(f"the worker ended with status {self.process.wait()}")
            self.pending += part
        line, self.pending = self.pending.split(b"\n", 1)
        reply = json.loads(line)
        if "error" in reply:
            raise WorkerError(reply["error"])
        return reply

    def ask(self, **request):
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
        except BrokenPipeError:
            raise WorkerError(f"the worker ended with status {self.process.wait()}") from None
        return self.answer()

    def open(self, case):
        """Makes the inputs of a case and runs it until it is warm. Milliseconds of a launch."""
        return self.ask(open=case)["milliseconds"]

    def turn(self, launches):
        """Milliseconds of a launch, the mean of so many in a row."""
        return self.ask(turn=launches)["milliseconds"]

    def close(self):
        """Frees the memory of the case."""
        self.ask(close=True)

    def stop(self):
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


def serve(who, open_case):
    """The worker's side, until stdin ends. `open_case(case)` gives a function that makes launches and waits."""
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def say(**reply):
        answers.write(json.dumps(reply) + "\n")

    def timed(work, launches):
        start = time.perf_counter()
        work(launches)
        return (time.perf_counter() - start) * 1e3 / launches

    try:
        name = who()
    except Exception as error:
        return say(error=f"{type(error).__name__}: {error}")
    say(ready=name)
    work = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "open" in request:
                work = open_case(request["open"])
                # The first launch compiles.
                work(1)
                say(milliseconds=timed(work, 1))
            elif "turn" in request:
                say(milliseconds=timed(work, request["turn"]))
            else:
                work = None
                say()
        except Exception as error:
            work = None
            say(error=f"{type(error).__name__}: {error}")
