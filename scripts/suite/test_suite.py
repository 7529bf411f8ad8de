"""Tests of scripts/gpu-suite without a GPU: python3 -m unittest discover -s scripts -t scripts"""

import contextlib
import csv
import dataclasses
import io
import shutil
import stat
import tempfile
import textwrap
import time
import unittest
from pathlib import Path
from unittest import mock

from suite import families, parts, results

HEADER = "family,op,shape,unit,ours,peer,peer_value,ratio"
CLOSING = "test result: ok. {} passed; {} failed; {} ignored; 0 measured; 3 filtered out; finished in 0.1s"
FAMILY = families.Family(
    device=("cuda/rotary.cu",),
    launch=(),
    tests=(),
    bench="bench",
    abi=(),
    peers=("benches/peers/rotary.py",),
    large=("huge",),
)


class Suite(unittest.TestCase):
    """Runs a part of a family `rotary` whose programs are scripts of the test, with goals and known values to it."""

    def setUp(self):
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.out = self.folder / "out"
        self.out.mkdir()
        self.write("goals.csv", "family,op,shape,unit,goal,peer\nrotary,fast,s1,GB/s,0.9,\nrotary,node,s1,us,2.0,\n")
        known = (
            'family,op,shape,unit,peer,value,source\nrotary,fast,s1,GB/s,"Liger, table",2000,"one H100, 2026-11-23"\n'
        )
        self.write("known.csv", known)
        replaced = [
            mock.patch.object(families, "GOALS", self.folder / "goals.csv"),
            mock.patch.object(families, "KNOWN", self.folder / "known.csv"),
            mock.patch.object(results, "RESULTS", self.folder),
            mock.patch.object(parts, "BUNDLE", self.folder),
            mock.patch.dict(families.FAMILIES, {"rotary": FAMILY}),
            mock.patch.dict("os.environ", {"PATH": f"{self.folder}:/usr/bin:/bin"}),
        ]
        for patch in replaced:
            patch.start()
            self.addCleanup(patch.stop)

    def write(self, name, text):
        (self.folder / name).write_text(text)

    def program(self, name, script):
        """A program that does as a shell script says, and keeps its arguments."""
        path = self.folder / name
        path.write_text(f'#!/bin/sh\necho "$@" >> {self.folder}/{name}.arguments\n{textwrap.dedent(script)}')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def arguments(self, name):
        return (self.folder / f"{name}.arguments").read_text().splitlines()

    def run_part(self, kind):
        with contextlib.redirect_stdout(io.StringIO()):
            return parts.run("rotary", kind, self.out)

    def table(self):
        with (self.out / "h100.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    def rows(self, *rows):
        return "\n".join(["cat <<'END'", "Benchmarking rotary/fast", HEADER, *rows, "END", ""])


class Tests(Suite):
    def test_a_part_runs_the_tests_of_its_family(self):
        self.program("gpu", f"echo '{CLOSING.format(5, 0, 0)}'")
        found = self.run_part("tests")
        self.assertEqual((found["problems"], found["counts"]["passed"]), ([], 5))
        self.assertEqual(self.arguments("gpu"), ["rotary::"])

    def test_no_test_an_ignored_one_and_a_failed_one_are_refused(self):
        for counts, problems in (
            ((0, 0, 0), ["no test was run"]),
            ((4, 0, 1), ["1 ignored"]),
            ((4, 2, 0), ["2 failed"]),
        ):
            self.program("gpu", f"echo '{CLOSING.format(*counts)}'")
            self.assertEqual(self.run_part("tests")["problems"], problems)

    def test_a_program_that_ends_early_or_badly_is_refused(self):
        self.program("gpu", "exit 139")
        self.assertEqual(self.run_part("tests")["problems"], ["no closing line, exit status 139"])
        self.program("gpu", f"echo '{CLOSING.format(4, 0, 0)}'; exit 7")
        self.assertEqual(self.run_part("tests")["problems"], ["exit status 7"])

    def test_a_part_ends_at_its_limit(self):
        self.program("gpu", "exec sleep 30")
        with mock.patch.object(parts.Deadline.__init__, "__defaults__", (1.0,)):
            self.assertEqual(self.run_part("tests")["problems"], ["not done after 1 s"])

    def test_what_a_program_has_begun_ends_with_it(self):
        self.program("gpu", f"sleep 30 & echo $! > {self.folder}/child; wait")
        with contextlib.redirect_stdout(io.StringIO()):
            parts.run("rotary", "tests", self.out, 1.0)
        child = Path("/proc", (self.folder / "child").read_text().strip())
        deadline = time.monotonic() + 5
        # What is left of it may wait to be asked how it ended.
        while child.exists() and "zombie" not in (child / "status").read_text():
            self.assertLess(time.monotonic(), deadline, "the child goes on")
            time.sleep(0.05)

    def test_a_limit_may_be_given(self):
        self.program("gpu", "exec sleep 30")
        with contextlib.redirect_stdout(io.StringIO()):
            found = parts.run("rotary", "tests", self.out, 1.5)
        self.assertEqual(found["problems"], ["not done after 2 s"])


class Lengths(Suite):
    """A family with a part for its longest tests."""

    def setUp(self):
        super().setUp()
        family = dataclasses.replace(FAMILY, lengths=("million_", "prefill_"))
        patch = mock.patch.dict(families.FAMILIES, {"rotary": family})
        patch.start()
        self.addCleanup(patch.stop)

    def test_each_is_run_once_in_one_of_two_parts(self):
        self.program("gpu", f"echo '{CLOSING.format(2, 0, 0)}'")
        self.assertEqual(self.run_part("tests")["problems"], [])
        found = self.run_part("lengths")
        self.assertEqual((found["problems"], found["counts"]), ([], {"million_": 2, "prefill_": 2}))
        left_out = "rotary:: --skip rotary::million_ --skip rotary::prefill_"
        self.assertEqual(self.arguments("gpu"), [left_out, "rotary::million_", "rotary::prefill_"])

    def test_a_failed_one_and_a_name_of_none_are_told(self):
        failing, none = CLOSING.format(1, 1, 0), CLOSING.format(0, 0, 0)
        self.program("gpu", f"case $1 in *million_) echo '{failing}'; exit 101;; *) echo '{none}';; esac")
        expected = ["million_: 1 failed", "prefill_: no test was run"]
        self.assertEqual(self.run_part("lengths")["problems"], expected)

    def test_only_a_family_that_has_some_has_the_part(self):
        self.assertIn("lengths", families.kinds("rotary"))
        with mock.patch.dict(families.FAMILIES, {"rotary": FAMILY}):
            self.assertNotIn("lengths", families.kinds("rotary"))


class Environment(Suite):
    """A family whose programs call it otherwise, and which has an environment of its own."""

    ROW = "shared,{},s1,GB/s,95.0,device copy,100.0,0.9500"

    def setUp(self):
        super().setUp()
        family = dataclasses.replace(
            FAMILY,
            called="shared",
            environment={"FORCED": "1"},
            sanitizer_environment={"GENTLE": "1"},
            peers_arguments=("--portable",),
        )
        patch = mock.patch.dict(families.FAMILIES, {"rotary": family})
        patch.start()
        self.addCleanup(patch.stop)

    def test_tests_are_those_of_its_other_name_after_a_run_that_lists_them(self):
        self.program("gpu", f"test \"$FORCED\" = 1 || exit 3; echo '{CLOSING.format(5, 0, 0)}'")
        found = self.run_part("tests")
        self.assertEqual((found["problems"], found["environment"]), ([], {"FORCED": "1"}))
        self.assertEqual(self.arguments("gpu"), ["--list", "shared::"])

    def test_what_is_compiled_first_is_not_of_the_parts_time(self):
        self.program("gpu", f"case $1 in --list) sleep 1.2;; *) echo '{CLOSING.format(5, 0, 0)}';; esac")
        with mock.patch.object(parts.Deadline.__init__, "__defaults__", (1.0,)):
            found = self.run_part("tests")
        self.assertEqual(found["problems"], [])
        self.assertLess(found["seconds"], 1.0)
        self.assertGreater(found["prepare_seconds"], 1.0)

    def test_the_tools_have_an_environment_of_their_own(self):
        self.program("gpu", "")
        self.program(
            "compute-sanitizer",
            f"test \"$GENTLE$FORCED\" = 1 || exit 3; echo 'ERROR SUMMARY: 0 errors'; echo '{CLOSING.format(5, 0, 0)}'",
        )
        found = self.run_part("sanitizer")
        self.assertEqual((found["problems"], found["environment"]), ([], {"GENTLE": "1"}))
        seen = self.arguments("compute-sanitizer")
        self.assertEqual([line.endswith("shared:: --skip huge") for line in seen], [True] * 4)

    def test_rows_are_recorded_under_the_family_that_ran(self):
        rows = self.rows(self.ROW.format("fast"), self.ROW.format("node").replace("GB/s", "us"))
        self.program("bench", f"test \"$FORCED\" = 1 || exit 3\n{rows}")
        self.assertEqual(self.run_part("bench")["problems"], [])
        self.assertEqual(self.arguments("bench"), ["--test", "--bench"])
        self.assertEqual([row["family"] for row in self.table()], ["rotary", "rotary"])

    def test_peers_have_arguments_and_not_the_environment(self):
        row = self.rows('shared,fast,s1,GB/s,2100.0,"Liger, table",2000,1.0500')
        self.program("python3", f"test -z \"$FORCED\" || exit 3\necho 'oracle: a: within 0.1'\n{row}")
        self.assertEqual(self.run_part("peers")["problems"], [])
        ends = [line.split("liblongrope.so ")[1] for line in self.arguments("python3")]
        self.assertEqual(ends, ["--portable --prepare", "--portable"])

    def test_all_parts_may_be_prepared_before_any_is_run(self):
        self.program("gpu", "test \"$FORCED\" = 1 || exit 3")
        self.program("bench", "test \"$FORCED\" = 1 || exit 3")
        self.program("python3", "exit 5")
        kinds = ("tests", "lengths", "sanitizer", "bench", "peers")
        with contextlib.redirect_stdout(io.StringIO()):
            problems = parts.prepare_all([("rotary", kind) for kind in kinds])
        self.assertEqual(problems, ["rotary:peers: preparing: exit status 5"])
        # Tests and those of lengths load the same kernels.
        self.assertEqual([self.arguments(name) for name in ("gpu", "bench")], [["--list"], ["--test"]])
        self.assertTrue(self.arguments("python3")[0].endswith("--portable --prepare"))


class Sanitizer(Suite):
    def test_every_tool_must_have_found_nothing_in_some_test(self):
        self.program("gpu", "")
        self.program(
            "compute-sanitizer",
            f"""
            echo '{CLOSING.format(5, 0, 0)}'
            case $2 in
            racecheck) echo 'RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)'; exit 1 ;;
            initcheck) ;;
            *) echo 'ERROR SUMMARY: 0 errors' ;;
            esac""",
        )
        found = self.run_part("sanitizer")["problems"]
        self.assertEqual(found, ["racecheck: exit status 1", "racecheck: 1 errors", "initcheck: no summary"])
        self.assertIn("rotary:: --skip huge", self.arguments("compute-sanitizer")[0])


class Bench(Suite):
    FAST = "rotary,fast,s1,GB/s,95.0,device copy,100.0,0.9500"
    NODE = "rotary,node,s1,us,2.500,goal,2.000,0.8000"

    def test_rows_get_goals_and_a_missed_one_is_recorded(self):
        self.program("bench", self.rows(self.FAST, self.NODE))
        found = self.run_part("bench")
        self.assertEqual((found["problems"], found["missed"]), ([], ["node, s1, goal: 0.8000 of 2.0"]))
        self.assertEqual([row["goal"] for row in self.table()], ["0.9", "2.0"])
        self.assertEqual(self.arguments("bench"), ["--bench"])

    def test_a_goal_without_a_row_is_refused_and_writes_nothing(self):
        self.program("bench", self.rows(self.FAST))
        self.assertEqual(self.run_part("bench")["problems"], ["no row for the goal node, s1, us"])
        self.assertFalse((self.out / "h100.csv").exists())

    def test_a_bench_that_measured_nothing_is_refused(self):
        self.program("bench", "echo 'rotary: not measured: no GPU' >&2")
        self.assertIn("nothing was measured", self.run_part("bench")["problems"])

    def test_rows_of_a_family_that_is_no_more_go(self):
        (self.out / "h100.csv").write_text(f"{','.join(results.COLUMNS)}\nformer,fast,s1,GB/s,1,,,,,\n")
        self.program("bench", self.rows(self.FAST, self.NODE))
        self.assertEqual(self.run_part("bench")["problems"], [])
        self.assertEqual([row["op"] for row in self.table()], ["fast", "node"])

    def test_a_torn_row_and_a_foreign_peer_are_refused(self):
        self.program("bench", self.rows("rotary,fast,s1,GB/s,95.0,de", self.NODE))
        self.assertIn("a row that has not 8 fields: fast, s1", self.run_part("bench")["problems"])
        self.program("bench", self.rows(self.FAST.replace("device copy", "Liger"), self.NODE))
        problems = self.run_part("bench")["problems"]
        self.assertEqual(problems, ["fast, s1: the peer 'Liger' is not one of the part bench"])


class Peers(Suite):
    LIGER = 'rotary,fast,s1,GB/s,2100.0,"Liger, table",{},1.0500'

    def python(self, script):
        self.program("python3", f'case "$*" in *--prepare) exit 0;; esac\n{script}')

    def test_peers_stand_beside_the_rows_of_the_bench(self):
        self.program("bench", self.rows(Bench.FAST, Bench.NODE))
        self.run_part("bench")
        self.python(
            "echo 'oracle: a: within 0.1'; echo 'not measured: FlashInfer (no module)'\n"
            + self.rows(self.LIGER.format(2000))
        )
        found = self.run_part("peers")
        self.assertEqual((found["problems"], found["not_measured"]), ([], ["FlashInfer (no module)"]))
        self.assertEqual([row["peer"] for row in self.table()], ["device copy", "goal", "Liger, table"])
        # Again: each part puts its rows in place of its own.
        self.run_part("peers")
        self.run_part("bench")
        self.assertEqual([row["peer"] for row in self.table()], ["device copy", "goal", "Liger, table"])
        self.assertEqual([row["goal"] for row in self.table()], ["0.9", "2.0", ""])

    def test_a_peer_that_is_not_installed_keeps_its_last_rows_with_a_note(self):
        header, old = ",".join(results.COLUMNS), 'rotary,fast,s1,GB/s,2100.0,"FlashInfer, table",1900,1.1053,,'
        self.write("h100.csv", f"{header}\n{old}\n{old.replace('s1', 's2')}\n{old.replace('FlashInfer', 'gone')}\n")
        self.write("stamps.json", '{"rotary": {"peers": {"date": "2026-11-27T09:00:00Z", "commit": "abc"}}}')
        absent = "echo 'oracle: a: within 0.1'; echo 'not measured: FlashInfer, table, s1 (no module)'\n"
        self.python(absent + self.rows(self.LIGER.format(2000)))
        self.assertEqual(self.run_part("peers")["problems"], [])
        notes = {(row["peer"], row["shape"]): row["note"] for row in self.table()}
        note = "of 2026-11-27, commit abc; not installed since"
        self.assertEqual(notes, {("Liger, table", "s1"): "", ("FlashInfer, table", "s1"): note})
        # Its note stays, whatever ran since.
        shutil.copy(self.out / "h100.csv", self.folder)
        self.write("stamps.json", '{"rotary": {"peers": {"date": "2026-11-28T09:00:00Z", "commit": "def"}}}')
        self.run_part("peers")
        self.assertEqual({row["note"] for row in self.table()}, {"", note})

    def test_a_peer_that_is_not_what_it_was_gets_a_note(self):
        for value, note in (
            (1941, ""),
            (1918, "peer 4.1 % below its 2000 of 2026-11-23"),
            (2100, "peer 5.0 % above its 2000 of 2026-11-23"),
        ):
            self.python("echo 'oracle: a: within 0.1'\n" + self.rows(self.LIGER.format(value)))
            self.assertEqual(self.run_part("peers")["problems"], [])
            self.assertEqual(self.table()[0]["note"], note)

    def test_an_oracle_that_disagrees_fails_and_so_does_the_want_of_one(self):
        self.python("echo 'the oracle disagrees: a: 3 times its bound'; exit 1")
        self.assertEqual(
            self.run_part("peers")["problems"], ["exit status 1", "no oracle was asked", "nothing was measured"]
        )
        self.python(self.rows(self.LIGER.format(2000)))
        self.assertEqual(self.run_part("peers")["problems"], ["no oracle was asked"])

    def test_a_goal_against_a_peer_is_held_by_the_peers_part_and_is_of_that_peer_alone(self):
        self.write("goals.csv", 'family,op,shape,unit,goal,peer\nrotary,fast,s1,GB/s,0.9,"Liger, table"\n')
        self.program("bench", self.rows(Bench.NODE))
        self.assertEqual(self.run_part("bench")["problems"], [])
        slow = self.LIGER.format(2000).replace("1.0500", "0.8")
        other = slow.replace("Liger, table", "FlashInfer")
        self.python("echo 'oracle: a: within 0.1'\n" + self.rows(slow, other))
        found = self.run_part("peers")
        self.assertEqual((found["problems"], found["missed"]), ([], ["fast, s1, Liger, table: 0.8 of 0.9"]))
        self.assertEqual([row["goal"] for row in self.table() if row["op"] == "fast"], ["0.9", ""])
        # Another peer's row does not stand for it.
        self.python("echo 'oracle: a: within 0.1'\n" + self.rows(other))
        self.assertEqual(self.run_part("peers")["problems"], ["no row for the goal fast, s1, GB/s, Liger, table"])


    def test_a_goal_against_the_fastest_is_of_the_best_row_of_its_shape(self):
        self.write("goals.csv", "family,op,shape,unit,goal,peer\nrotary,fast,s1,GB/s,1.03,fastest\n")
        slow, quick = self.LIGER.format(2000), 'rotary,fast,s1,GB/s,2100.0,cuDNN,2060,1.0194'
        other = 'rotary,fast,s2,GB/s,2100.0,cuDNN,2400,0.8750'
        self.python("echo 'oracle: a: within 0.1'\n" + self.rows(slow, quick, other))
        found = self.run_part("peers")
        self.assertEqual((found["problems"], found["missed"]), ([], ["fast, s1, cuDNN: 1.0194 of 1.03"]))
        self.assertEqual([row["goal"] for row in self.table()], ["", "1.03", ""])
        # Where it was not measured, the other one is.
        self.python("echo 'oracle: a: within 0.1'\n" + self.rows(slow))
        found = self.run_part("peers")
        self.assertEqual((found["problems"], found["missed"]), ([], []))
        self.python("echo 'oracle: a: within 0.1'\n" + self.rows(other))
        self.assertEqual(self.run_part("peers")["problems"], ["no row for the goal fast, s1, GB/s, fastest"])


class WithoutPeers(Suite):
    """A family that has no peers' program: its goals against peers wait for one."""

    PAGED = "rotary,paged,s1,GB/s,95.0,contiguous,100.0,0.9500"
    COLD = "rotary,cold,s1,GB/s,80.0,read ceiling,100.0,0.8000"

    def setUp(self):
        super().setUp()
        family = dataclasses.replace(FAMILY, bench="gpu_rotary", peers=())
        patch = mock.patch.dict(families.FAMILIES, {"rotary": family}, clear=True)
        patch.start()
        self.addCleanup(patch.stop)

    def test_its_bench_compares_with_ours_in_another_form_and_is_held_to_its_own_goals(self):
        self.write(
            "goals.csv",
            "family,op,shape,unit,goal,peer\nrotary,paged,s1,GB/s,0.95,\nrotary,cold,s1,GB/s,0.85,\n"
            "rotary,fast,s1,GB/s,1.0,fastest\n",
        )
        self.program("gpu_rotary", self.rows(self.PAGED, self.COLD))
        found = self.run_part("bench")
        self.assertEqual((found["problems"], found["missed"]), ([], ["cold, s1, read ceiling: 0.8000 of 0.85"]))
        self.assertEqual([row["goal"] for row in self.table()], ["0.95", "0.85"])

    def test_the_check_asks_for_the_parts_that_it_has(self):
        for kind in families.kinds("rotary"):
            now = families.sources("rotary", kind)
            stamp = {"passed": True, "gpu": "H100", "date": "today", "commit": "abc", "sources": {}}
            results.write_stamp(self.folder, "rotary", kind, {**stamp, "source_hash": families.combined(now)})
        with contextlib.redirect_stdout(io.StringIO()) as output:
            status = results.check()
        parts_seen = [line.split()[0] for line in output.getvalue().splitlines()]
        self.assertEqual((status, parts_seen), (0, ["rotary:tests", "rotary:sanitizer", "rotary:bench"]))


class Stamps(Suite):
    def test_a_stamp_is_stale_by_the_files_that_changed(self):
        now = {"a": families.digest(b"1"), "b": families.digest(b"2")}
        stamp = {"passed": True, "gpu": "H100", "date": "today", "commit": "abc", "source_hash": families.combined(now)}
        stamp["sources"] = {path: value[:16] for path, value in now.items()}
        self.assertEqual(results.verdict(stamp, now), "fresh: H100, today, commit abc")
        self.assertEqual(results.verdict(stamp, {**now, "b": families.digest(b"3"), "c": now["a"]}), "stale: b, c")
        self.assertEqual(results.verdict({**stamp, "passed": False}, now), "stale: failed on today")
        self.assertEqual(results.verdict(None, now), "stale: never run")

    def test_parts_not_run_keep_their_stamps(self):
        self.write("stamps.json", '{"rotary": {"tests": 1}}')
        results.write_stamp(self.out, "rotary", "peers", {"passed": True})
        results.write_stamp(self.out, "rotary", "bench", {"passed": False})
        stamps = results.read_stamps(self.out / "stamps.json")["rotary"]
        self.assertEqual(stamps, {"tests": 1, "peers": {"passed": True}, "bench": {"passed": False}})


class Sources(unittest.TestCase):
    def test_each_part_depends_on_its_own_files_and_all_on_the_kernel(self):
        found = {kind: families.sources("rotary", kind).keys() for kind in families.KINDS}
        for kind in families.KINDS:
            self.assertLessEqual(
                {"cuda/rotary.cu", "cuda/include/params.h", "src/ops/rotary.rs", "build.rs"}, found[kind]
            )
        self.assertIn("tests/gpu/rotary/contract.rs", found["sanitizer"])
        self.assertIn("benches/gpu/measure.rs", found["bench"])
        self.assertIn("benches/peers/known.csv, the family's rows", found["peers"])
        self.assertFalse(any(path.startswith("benches/") for path in found["tests"]))
        self.assertFalse(any(path.startswith("tests/") for path in found["peers"] | found["bench"]))

    def test_the_attention_kernels_are_families_that_share_all_else(self):
        found = {name: families.sources(name, "tests").keys() for name in ("attention_sm80", "attention_sm90")}
        for name, other in (("attention_sm80", "attention_sm90"), ("attention_sm90", "attention_sm80")):
            self.assertIn(f"cuda/{name}_d128.cu", found[name])
            self.assertIn(f"cuda/include/{name}.cuh", found[name])
            self.assertFalse(any(other in path for path in found[name]))
            self.assertIn("tests/gpu/attention/forward.rs", found[name])
            # Known values are of the name that they share.
            self.assertIn(("forward", "b1 s16384 h16/16 d96 causal Bf16", "TFLOP/s", "cuDNN"), families.known(name))
            self.assertEqual(len(families.goals(name, "peers")), 10)

    def test_decode_is_held_to_the_fastest_peer_by_one_part_and_to_its_own_goals_by_another(self):
        for family in ("rotary", "decode"):
            self.assertEqual(families.kinds(family), ["tests", "sanitizer", "bench", "peers"])
        found = families.sources("decode", "tests").keys()
        self.assertLessEqual(
            {"cuda/decode_d128.cu", "cuda/decode_merge.cu", "cuda/include/decode.cuh", "src/ops/cache.rs"}, found
        )
        self.assertIn("tests/gpu/attention/oracle.rs", found)
        self.assertIn("benches/gpu_decode.rs", families.sources("decode", "bench"))
        peers = families.sources("decode", "peers").keys()
        self.assertLessEqual({"benches/peers/decode.py", "benches/peers/longrope.py", "ffi/src/decode.rs"}, peers)
        goals = {kind: {(op, peer) for op, *_, peer in families.goals("decode", kind)} for kind in ("peers", "bench")}
        own = ("rotate_on_read", "paged_16", "paged_64", "mixed_lengths", "cold", "cold_settled", "append")
        self.assertEqual(goals, {"peers": {("contiguous", "fastest")}, "bench": {(op, "") for op in own}})
        # What peers were seen to do is of the shapes that the goals are of.
        held = {key[:3] for key in families.goals("decode", "peers")}
        self.assertLessEqual(held, {key[:3] for key in families.known("decode")})


if __name__ == "__main__":
    unittest.main()
