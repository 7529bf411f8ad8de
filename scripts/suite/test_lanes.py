"""Tests of parts that run side by side, without a GPU."""

import contextlib
import io
import json
import os
import shutil
import sys
import tempfile
import textwrap
import time
import unittest
from pathlib import Path
from unittest import mock

from suite import lanes, parts, results

TESTS = [("decode", "tests"), ("decode", "sanitizer"), ("rotary", "tests"), ("cache", "tests")]
TIMED = [("decode", "bench"), ("decode", "peers"), ("rotary", "bench")]


class Phases(unittest.TestCase):
    def test_one_gpu_is_timed_after_all_tests(self):
        tests, timed = lanes.phases(1, 3, 16, TESTS + TIMED)
        self.assertEqual([(lane.gpu, lane.kinds) for lane in tests], [(0, "tests")] * 3)
        self.assertEqual([(lane.gpu, lane.kinds, len(lane.cores)) for lane in timed], [(0, "timed", 16)])

    def test_the_first_of_several_gpus_is_timed_while_others_are_tested_with_other_processors(self):
        (both,) = lanes.phases(3, 2, 16, TESTS + TIMED)
        self.assertEqual([(lane.gpu, lane.kinds) for lane in both], [(0, "timed")] + [(1, "tests")] * 2 + [(2, "tests")] * 2)
        self.assertFalse(set(both[0].cores) & set(both[1].cores))
        self.assertEqual(len({lane.number for lane in both}), 5)

    def test_without_times_to_take_all_gpus_are_tested(self):
        ((a, b),) = lanes.phases(2, 1, 1, TESTS)
        self.assertEqual([a.gpu, b.gpu], [0, 1])
        self.assertEqual(lanes.phases(2, 4, 8, TIMED), [[lanes.Lane(0, 0, "timed", tuple(range(8)))]])


class Queues(unittest.TestCase):
    STAMPS = {"decode": {"tests": {"seconds": 60.0}, "sanitizer": {"seconds": 55.0, "prepare_seconds": 20.0}}}

    def test_the_longest_part_comes_first_of_those_that_end_in_time(self):
        queue = lanes.Queue(TESTS[:2] + TIMED[:1], self.STAMPS)
        self.assertEqual(queue.take("tests", 70), ("decode", "tests"))
        self.assertEqual(queue.take("tests", 74), None)
        self.assertEqual(queue.take("tests", 75), ("decode", "sanitizer"))
        self.assertEqual(queue.take("tests", 1000), None)
        # One that was never run is expected to take as long as it may.
        self.assertEqual(queue.take("timed", parts.LIMIT - 1), None)
        self.assertEqual(queue.take("timed", parts.LIMIT), ("decode", "bench"))


class Gpus(unittest.TestCase):
    def test_those_that_the_environment_names_are_used_by_these_names(self):
        for value, names in (("2,3", ["2", "3"]), ("GPU-ab", ["GPU-ab"]), ("", [])):
            with mock.patch.dict("os.environ", {"CUDA_VISIBLE_DEVICES": value}):
                self.assertEqual(lanes.visible_gpus(), names)

    def test_none_is_an_error(self):
        with mock.patch.dict("os.environ", {"CUDA_VISIBLE_DEVICES": ""}), self.assertRaisesRegex(SystemExit, "no GPU"):
            lanes.run_side_by_side(TESTS, Path("/nowhere"), 2, None, None)


class Runs(unittest.TestCase):
    """The suite that runs a part is a script of the test."""

    def setUp(self):
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        (self.folder / "kept").mkdir()
        for module in (lanes, results):
            patch = mock.patch.object(module, "RESULTS", self.folder / "kept")
            patch.start()
            self.addCleanup(patch.stop)

    def run_with(self, script, chosen, gpus=2, seconds=None):
        path = self.folder / "suite.py"
        begin = """
            import os, sys, json, time, pathlib
            if "--prepare" in sys.argv:
                time.sleep(1)
                pathlib.Path(__file__).with_name("prepared").write_text(" ".join(sys.argv[1:-1]))
                sys.exit()
            part, out = sys.argv[1], pathlib.Path(sys.argv[3])
        """
        path.write_text(textwrap.dedent(begin) + textwrap.dedent(script))
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            run = lanes.SideBySide(chosen, self.folder, 9.0, seconds, [sys.executable, str(path)])
            self.addCleanup(shutil.rmtree, run.logs)
            passed = run.run([str(gpu) for gpu in range(gpus)], 2)
        return passed, output.getvalue()

    STAMP = """
        name, kind = part.split(":")
        path = out / "stamps.json"
        stamps = json.loads(path.read_text()) if path.is_file() else {}
        gpu, cores = os.environ["CUDA_VISIBLE_DEVICES"], sorted(os.sched_getaffinity(0))
        stamps.setdefault(name, {})[kind] = {"gpu": gpu, "cores": cores, "limit": sys.argv[5]}
        path.write_text(json.dumps(stamps))
    """

    def stamps(self):
        return json.loads((self.folder / "stamps.json").read_text())

    def test_every_part_is_run_once_and_its_stamp_taken_over(self):
        passed, output = self.run_with(self.STAMP, TESTS + TIMED)
        self.assertTrue(passed, output)
        found = {(name, kind): stamp for name, kinds in self.stamps().items() for kind, stamp in kinds.items()}
        self.assertEqual(found.keys(), set(TESTS + TIMED))
        for part, stamp in found.items():
            self.assertEqual(stamp["gpu"], "0" if part in TIMED else "1")
            self.assertEqual(stamp["limit"], "9.0")
            self.assertLessEqual(set(stamp["cores"]), set(range(os.cpu_count())))
        self.assertIn("7 of 7 parts passed", output)

    def test_peers_wait_for_what_is_compiled_at_first(self):
        script = textwrap.dedent(self.STAMP) + textwrap.dedent("""
            is_there = pathlib.Path(__file__).with_name("prepared").exists()
            sys.exit("--prepared" in sys.argv and not is_there)
        """)
        for gpus in (1, 2):
            (self.folder / "prepared").unlink(missing_ok=True)
            passed, output = self.run_with(script, TIMED, gpus=gpus)
            self.assertTrue(passed, output)
            self.assertEqual(sorted((self.folder / "prepared").read_text().split()), sorted(map(":".join, TIMED)))

    def test_rows_of_what_was_timed_are_taken_over(self):
        rows = """
            columns = "family,op,shape,unit,ours,peer,peer_value,ratio,goal,note"
            peer = "cuDNN" if kind == "peers" else "read ceiling"
            other = "decode,cold,s1,us,9,goal,10,1,,"
            (out / "h100.csv").write_text(f"{columns}\\n{name},op,s1,GB/s,1,{peer},2,0.5,,\\n{other}\\n")
        """
        script = textwrap.dedent(self.STAMP) + textwrap.dedent(rows)
        passed, output = self.run_with(script, [("decode", "peers"), ("rotary", "bench")])
        self.assertTrue(passed, output)
        table = (self.folder / "h100.csv").read_text().splitlines()[1:]
        self.assertEqual(table, ["rotary,op,s1,GB/s,1,read ceiling,2,0.5,,", "decode,op,s1,GB/s,1,cuDNN,2,0.5,,"])

    def test_a_part_that_fails_is_told_with_the_end_of_its_output(self):
        script = textwrap.dedent(self.STAMP) + "print('what went wrong')\nsys.exit(part == 'rotary:tests')\n"
        passed, output = self.run_with(script, TESTS)
        self.assertFalse(passed)
        self.assertIn("rotary:tests FAILED", output)
        self.assertIn("    what went wrong", output)
        self.assertIn("3 of 4 parts passed; failed: rotary:tests", output)

    def test_when_the_time_is_up_what_runs_is_ended_and_the_rest_named(self):
        stamps = {"decode": {"tests": {"seconds": 1.0}, "sanitizer": {"seconds": 50.0}}}
        (self.folder / "kept" / "stamps.json").write_text(json.dumps(stamps))
        began = time.monotonic()
        passed, output = self.run_with("time.sleep(60)", TESTS[:2], seconds=2.0)
        self.assertFalse(passed)
        self.assertLess(time.monotonic() - began, 20)
        self.assertIn("failed: decode:tests; not begun, for want of time: decode:sanitizer", output)

    def test_a_stamp_of_before_is_not_taken_for_a_new_one(self):
        stamps = {"decode": {"tests": {"seconds": 1.0}}}
        (self.folder / "kept" / "stamps.json").write_text(json.dumps(stamps))
        self.run_with(f"(out / 'stamps.json').write_text({json.dumps(stamps)!r})", TESTS[:1])
        self.assertFalse((self.folder / "stamps.json").exists())


if __name__ == "__main__":
    unittest.main()
