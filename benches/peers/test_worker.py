"""Tests of the worker mechanism, without PyTorch or a GPU: python3 -m unittest discover -s benches/peers"""

import tempfile
import textwrap
import unittest
import unittest.mock
from pathlib import Path

import worker
from worker import Worker, WorkerError


class Workers(unittest.TestCase):
    def start(self, script):
        """A worker that does as a script says, which has `serve` and `time`."""
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        program = Path(folder.name) / "peer.py"
        path = f"sys.path.insert(0, {str(Path(worker.__file__).parent)!r})"
        head = f"import os, sys, time\n{path}\nfrom worker import serve\n"
        program.write_text(head + textwrap.dedent(script))
        started = Worker(program)
        self.addCleanup(started.stop)
        return started

    def test_turns_are_timed_and_what_a_peer_prints_is_no_answer(self):
        peer = self.start("""
            def open_case(case):
                os.write(1, b"compiling\\n")
                return lambda launches: time.sleep(launches * case["seconds"])
            serve(lambda: "a peer 1.0", open_case)""")
        self.assertEqual(peer.who, "a peer 1.0")
        for milliseconds in (peer.open({"seconds": 0.1}), peer.turn(3)):
            self.assertTrue(100 <= milliseconds < 200, milliseconds)
        peer.close()
        with self.assertRaisesRegex(WorkerError, "TypeError"):
            peer.turn(1)

    def test_a_case_that_cannot_be_run_says_why_and_the_next_one_runs(self):
        peer = self.start("""
            def open_case(case):
                if case["dim"] != 128:
                    raise ValueError("head dimension 128 only")
                return lambda launches: None
            serve(lambda: "a peer", open_case)""")
        with self.assertRaisesRegex(WorkerError, "ValueError: head dimension 128 only"):
            peer.open({"dim": 64})
        self.assertLess(peer.open({"dim": 128}), 1000)

    def test_a_peer_that_is_not_installed_is_known_at_the_start(self):
        with self.assertRaisesRegex(WorkerError, "No module named 'no_such_peer'"):
            self.start("serve(lambda: __import__('no_such_peer').__version__, None)")

    def test_a_peer_that_dies_is_an_error_now_and_later(self):
        peer = self.start("serve(lambda: 'a peer', lambda case: lambda launches: os._exit(3))")
        for _ in range(2):
            with self.assertRaisesRegex(WorkerError, "ended with status 3"):
                peer.open({})

    def test_a_peer_that_does_not_answer_is_given_up(self):
        peer = self.start("serve(lambda: 'a peer', lambda case: lambda launches: time.sleep(case['seconds']))")
        with (
            unittest.mock.patch.object(worker, "PATIENCE", 0.2),
            self.assertRaisesRegex(WorkerError, "no answer within"),
        ):
            peer.open({"seconds": 1})


if __name__ == "__main__":
    unittest.main()
