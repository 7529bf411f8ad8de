"""Parts of the suite side by side: on all GPUs of a host, and in no more time than is given."""

import csv
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from .families import ROOT, fail
from .parts import LIMIT
from .results import RESULTS, STAMPS, TABLE, kind_of, read_stamps, write_rows, write_stamp

Part = tuple[str, str]
# What needs a GPU to itself.
TIMED = ("bench", "peers")
# What waits until all is compiled that is compiled at first: PyTorch and its libraries take longest.
PREPARED = ("peers",)


@dataclass(frozen=True)
class Lane:
    """What runs one part after another on a GPU, beside others or alone."""

    number: int
    gpu: int
    kinds: str  # "timed" or "tests"
    cores: tuple[int, ...]


def phases(gpus: int, side_by_side: int, cores: int, chosen: list[Part]) -> list[list[Lane]]:
    """The lanes of a host, those of a phase at once. Times are taken on a GPU that has nothing else to do: the first, while others are
    tested on the rest, or, where there is but one, after all tests. They have some processors to themselves."""
    has_timed = any(kind in TIMED for _, kind in chosen)
    has_tests = any(kind not in TIMED for _, kind in chosen)
    own = tuple(range(max(cores // 4, 1)))
    rest = tuple(range(len(own), cores)) or own
    everything = tuple(range(cores))

    def testing(which: range, of: tuple[int, ...], first: int) -> list[Lane]:
        pairs = [(gpu, i) for gpu in which for i in range(side_by_side)]
        return [Lane(first + n, gpu, "tests", of) for n, (gpu, _) in enumerate(pairs)]

    timed = [Lane(0, 0, "timed", everything if gpus == 1 or not has_tests else own)] if has_timed else []
    if not has_tests:
        return [timed] if timed else []
    if not timed:
        return [testing(range(gpus), everything, 1)]
    if gpus == 1:
        return [testing(range(1), everything, 1), timed]
    return [timed + testing(range(1, gpus), rest, 1)]


class Queue:
    """Parts that are to be run: the longest first, of those that are expected to end in time; peers after all else that is timed."""

    def __init__(self, chosen: list[Part], stamps: dict) -> None:
        self.lock = threading.Lock()
        self.left = sorted(chosen, key=lambda part: (part[1] in PREPARED, -expected_seconds(stamps, part)))
        self.stamps = stamps

    def take(self, kinds: str, seconds: float) -> Part | None:
        with self.lock:
            for part in self.left:
                if (part[1] in TIMED) == (kinds == "timed") and expected_seconds(self.stamps, part) <= seconds:
                    self.left.remove(part)
                    return part
        return None


def expected_seconds(stamps: dict, part: Part) -> float:
    """What a part took when it was last run, with what had to be compiled before."""
    stamp = stamps.get(part[0], {}).get(part[1], {})
    return stamp.get("seconds", LIMIT) + stamp.get("prepare_seconds", 0.0)


class SideBySide:
    """A run of parts in lanes. `command`: what runs a part by itself, and takes its name, --output and --limit."""

    def __init__(self, chosen: list[Part], out: Path, limit: float, seconds: float | None, command: list[str]) -> None:
        self.out, self.limit, self.command = out, limit, command
        self.began, self.seconds = time.monotonic(), seconds or float("inf")
        self.queue = Queue(chosen, read_stamps(RESULTS / STAMPS))
        self.count, self.passed, self.failed = len(chosen), [], []
        self.running: dict[Part, subprocess.Popen] = {}
        self.lock = threading.Lock()
        self.logs = Path(tempfile.mkdtemp(prefix="gpu-suite-"))

    def remaining(self) -> float:
        return self.seconds - (time.monotonic() - self.began)

    def run(self, visible: list[str], side_by_side: int) -> bool:
        """Whether all parts were run and passed, on the GPUs of these names."""
        self.visible, gpus = visible, len(visible)
        print(f"{self.count} parts; their output goes to {self.logs}", flush=True)
        watch = threading.Timer(self.seconds, self.stop) if self.seconds < float("inf") else None
        if watch:
            watch.daemon = True
            watch.start()
        # On the last GPU, since the first may have times to take.
        preparing = threading.Thread(target=self.prepare, args=(gpus - 1, list(self.queue.left)))
        preparing.start()
        for lanes in phases(gpus, side_by_side, os.cpu_count() or 1, list(self.queue.left)):
            if gpus == 1 and lanes[0].kinds == "timed":
                preparing.join()
            threads = [threading.Thread(target=self.work, args=(lane, preparing)) for lane in lanes]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        if watch:
            watch.cancel()
        not_run = [":".join(part) for part in self.queue.left]
        print(f"\n{len(self.passed)} of {self.count} parts passed", end="")
        print(f"; failed: {', '.join(self.failed)}" if self.failed else "", end="")
        print(f"; not begun, for want of time: {', '.join(not_run)}" if not_run else "", flush=True)
        return len(self.passed) == self.count

    def stop(self) -> None:
        """Ends what is still running when the time is up."""
        with self.lock:
            for process in self.running.values():
                # It ends what it has begun.
                process.terminate()

    def prepare(self, gpu: int, chosen: list[Part]) -> None:
        """Has all be compiled that parts compile at first, while others run. What goes wrong shows in those parts."""
        names = [":".join(part) for part in chosen]
        with (self.logs / "prepare.txt").open("w") as log:
            self.wait_for(("", "prepare"), [*self.command, *names, "--prepare"], log, gpu)

    def work(self, lane: Lane, preparing: threading.Thread) -> None:
        while part := self.queue.take(lane.kinds, self.remaining()):
            if part[1] in PREPARED:
                preparing.join()
            began, name = time.monotonic(), ":".join(part)
            is_passed = self.run_part(lane, part)
            seconds = time.monotonic() - began
            with self.lock:
                (self.passed if is_passed else self.failed).append(name)
                done = len(self.passed) + len(self.failed)
                verdict = "passed" if is_passed else "FAILED"
                total = time.monotonic() - self.began
                print(f"{total:5.0f} s  {done:2} of {self.count}  {name} {verdict} in {seconds:.0f} s on GPU {lane.gpu}", flush=True)
                if not is_passed:
                    print("".join(f"    {line}\n" for line in self.log(part).read_text().splitlines()[-12:]), end="", flush=True)

    def log(self, part: Part) -> Path:
        return self.logs / f"{'.'.join(part)}.txt"

    def run_part(self, lane: Lane, part: Part) -> bool:
        folder = self.logs / f"lane{lane.number}"
        folder.mkdir(exist_ok=True)
        pinned = ["taskset", "--cpu-list", ",".join(map(str, lane.cores))] if shutil.which("taskset") else []
        command = [*pinned, *self.command, ":".join(part), "--output", str(folder), "--limit", str(self.limit)]
        # What is not waited for prepares itself.
        command += ["--prepared"] if part[1] in PREPARED else []
        with self.log(part).open("w") as log:
            status = self.wait_for(part, command, log, lane.gpu)
        with self.lock:
            self.merge(folder, part)
        return status == 0

    def wait_for(self, part: Part, command: list[str], log: IO[str], gpu: int) -> int:
        """The exit status of a command on a GPU, which is ended when the time is up."""
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": self.visible[gpu]}
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=ROOT)
        with self.lock:
            self.running[part] = process
        if self.remaining() <= 0:
            self.stop()
        status = process.wait()
        with self.lock:
            del self.running[part]
        return status

    def merge(self, folder: Path, part: Part) -> None:
        """Takes over what a lane has written of a part."""
        name, kind = part
        stamp = read_stamps(folder / STAMPS).get(name, {}).get(kind)
        if stamp is None or stamp == read_stamps(RESULTS / STAMPS).get(name, {}).get(kind):
            return
        write_stamp(self.out, name, kind, stamp)
        if kind in TIMED and (folder / TABLE).is_file():
            with (folder / TABLE).open(newline="") as file:
                rows = [row for row in csv.DictReader(file) if (row["family"], kind_of(row)) == part]
            write_rows(self.out, name, kind, rows)


def visible_gpus() -> list[str]:
    """The GPUs of this host that programs may see, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False).stdout
    return [str(number) for number in range(len(listed.splitlines()))]


def run_side_by_side(chosen: list[Part], out: Path, side_by_side: int, limit: float | None, seconds: float | None) -> bool:
    visible = visible_gpus()
    if not visible:
        fail("no GPU: CUDA_VISIBLE_DEVICES is empty, or nvidia-smi lists none")
    command = [sys.executable, str(ROOT / "scripts" / "gpu-suite")]
    # Beside others a part takes longer.
    return SideBySide(chosen, out, limit or LIMIT * side_by_side, seconds, command).run(visible, side_by_side)
