"""What belongs to each family of kernels, and what the result of each of its parts depends on."""

import csv
import hashlib
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GOALS = ROOT / "benches" / "goals.csv"
KNOWN = ROOT / "benches" / "peers" / "known.csv"
KINDS = ["tests", "lengths", "sanitizer", "bench", "peers"]


@dataclass(frozen=True)
class Family:
    """The files of a family, by patterns of paths from the root, beside those that all families share."""

    device: tuple[str, ...]  # what they include follows from them
    launch: tuple[str, ...]
    tests: tuple[str, ...]
    # None: the family has no such part.
    bench: str = ""
    abi: tuple[str, ...] = ()
    # The program comes first, then what it needs. None: the family has no such part.
    peers: tuple[str, ...] = ()
    # What its programs call it, in the names of tests and in rows, where that is not its own name.
    called: str = ""
    # Of the runs of our own programs; what the driver compiles under it is compiled before a part's time begins.
    environment: dict[str, str] = field(default_factory=dict)
    # Of the runs under a sanitizer, which would take what the driver compiles for an error, and is slow at it.
    sanitizer_environment: dict[str, str] = field(default_factory=dict)
    # Of the peers' program.
    peers_arguments: tuple[str, ...] = ()
    # Cases of each property test; of a run under a sanitizer.
    cases_tests: int = 10_000
    cases_sanitizer: int = 8
    # Tests, by a part of their names, that are too large for a sanitizer.
    large: tuple[str, ...] = ()
    # Tests, by the beginning of their names within the family, that are a part of their own: those over so many keys that the
    # processor takes long for what they are held against. None: the family has no such part.
    lengths: tuple[str, ...] = ()
    # The programs that have its tests.
    programs: tuple[str, ...] = ("gpu",)
    # Whether its tests run under sanitizers too.
    sanitized: bool = True


def attention(name: str, *device: str, **rest) -> Family:
    """The families of attention share all but their kernels: which one runs is chosen behind the same calls."""
    return Family(
        device=(f"cuda/{name}_*.cu", "cuda/merge.cu", "cuda/split_merge.cu", *device),
        launch=tuple(
            f"src/ops/{name}.rs"
            for name in (
                *("attention", "attention_arguments", "attention_hopper", "attention_kernels", "merge", "split_merge"),
                # Rotated queries, and chunks of a prefill, which the bench times.
                *("cache_rotary", "factors", "prefill", "cached_attention", "cache"),
            )
        ),
        tests=("tests/gpu/attention/*.rs", "tests/gpu/cache/model.rs", "tests/gpu/decode/model.rs"),
        bench="gpu_attention",
        abi=("ffi/src/attention.rs", "ffi/src/merge.rs"),
        peers=tuple(f"benches/peers/{program}.py" for program in ("attention", "flash_attention3", "worker")),
        called="attention",
        # Each is checked against a reference in f64, on the processor.
        cases_tests=100,
        cases_sanitizer=3,
        large=(
            *("million", "long_causal_prefill", "long_prefill", "many_blocks", "two_to_the_32"),
            *("grow_by_hundreds", "a_launch_stays_on_its_own_stream", "a_limit_of_multiprocessors"),
        ),
        lengths=("sampled_rows_", "constant_values_", "two_million_"),
        **rest,
    )


def backward(kernels: str, **rest) -> Family:
    """The families of its gradients, likewise."""
    return Family(
        device=(kernels, "cuda/attention_delta.cu"),
        launch=(
            *("src/ops/attention_backward*.rs", "src/ops/attention_delta.rs", "src/ops/attention_arguments.rs"),
            *("src/ops/cache_rotary.rs", "src/ops/factors.rs", "src/device/params/backward.rs"),
        ),
        tests=("tests/gpu/backward/*.rs", *(f"tests/gpu/attention/{name}.rs" for name in ("forward", "long", "oracle"))),
        bench="gpu_backward",
        abi=tuple(f"ffi/src/{name}.rs" for name in ("attention_backward", "attention_delta", "abi/backward", "attention", "merge")),
        called="backward",
        # Each is checked against a reference in f64, on the processor.
        cases_tests=100,
        cases_sanitizer=3,
        large=(
            *("million", "two_to_the_32", "the_same_inputs_give_the_same_bits", "a_replayed_graph", "two_streams"),
            *("sums_that_are_folded", "more_blocks", "many_blocks", "one_long_sequence"),
        ),
        lengths=("sampled_rows_",),
        **rest,
    )


# What launches all that is done with a cache.
CACHE = tuple(
    f"src/ops/{name}.rs"
    for name in ("append", "cache", "cache_*", "cached_attention", "decode", "decode_clusters", "decode_kernels", "factors", "rotary_launch")
)

FAMILIES = {
    "rotary": Family(
        device=("cuda/rotary.cu",),
        launch=("src/ops/rotary*.rs", "src/ops/factors.rs"),
        tests=("tests/gpu/rotary/*.rs",),
        bench="gpu_rotary",
        abi=("ffi/src/rotary.rs", "ffi/src/factors.rs"),
        peers=("benches/peers/rotary.py",),
        large=("two_to_the_32", "a_launch_stays_on_its_own_stream", "safe_launches_on_two_streams"),
    ),
    "attention_sm80": attention(
        "attention_sm80",
        "cuda/attention_cached_*.cu",
        # The driver takes no machine code but compiles PTX, as for GPUs to come; Hopper's kernels have none, so that these run.
        environment={"CUDA_FORCE_PTX_JIT": "1"},
        # The same kernels, by a context that leaves Hopper's out.
        sanitizer_environment={"LONGROPE_TEST_PORTABLE": "1"},
        # The peers have no PTX for this GPU, so that their process can't have that environment.
        peers_arguments=("--portable",),
    ),
    "attention_sm90": attention("attention_sm90"),
    # Gradients of attention.
    "backward": backward(
        "cuda/attention_backward_sm80_*.cu",
        environment={"LONGROPE_TEST_PORTABLE": "1"},
        sanitizer_environment={"LONGROPE_TEST_PORTABLE": "1"},
    ),
    "backward_sm90": backward(
        "cuda/attention_backward_sm90_*.cu",
        # The forward pass, which comes before, is not timed. The family of the portable kernels has no such part: through the C ABI they
        # can't be asked for where Hopper's are.
        peers=tuple(f"benches/peers/{program}.py" for program in ("backward", "attention", "flash_attention3", "worker")),
    ),
    "decode": Family(
        device=("cuda/decode_*.cu", "cuda/cache.cu"),
        launch=CACHE,
        tests=("tests/gpu/decode/*.rs", "tests/gpu/attention/oracle.rs"),
        bench="gpu_decode",
        abi=tuple(f"ffi/src/{name}.rs" for name in ("decode", "cache", "abi/cache", "factors")),
        peers=tuple(
            f"benches/peers/{program}.py"
            # Those of attention have what is the same for both.
            for program in ("decode", "flash_attention3_decode", "attention", "flash_attention3", "worker")
        ),
        # Each is checked against a reference in f64, on the processor.
        cases_tests=2000,
        cases_sanitizer=3,
        # All but the first launch some hundreds of times. racecheck keeps memory of the host for each launch, and beside the tests
        # before them 128 GiB do not suffice.
        large=(
            *("million", "the_same_inputs_give_the_same_bits", "a_captured_graph_serves_growing_sequences"),
            *("around_the_borders_of_blocks", "whichever_block_has_it", "between_launches_that_overlap"),
        ),
    ),
    # What writes to a cache, and what reads it by chunks; its times are of the bench of decoding.
    "cache": Family(
        device=(
            *("cuda/cache.cu", "cuda/decode_*.cu", "cuda/attention_cached_*.cu", "cuda/split_merge.cu"),
            # Prefill on Hopper.
            "cuda/attention_sm90_*.cu",
        ),
        launch=(
            *CACHE,
            *(f"src/ops/{name}.rs" for name in ("prefill", "attention_kernels", "attention_hopper", "split_merge")),
        ),
        tests=("tests/gpu/cache/*.rs", "tests/gpu/decode/model.rs", "tests/gpu/attention/oracle.rs"),
        cases_tests=400,
        cases_sanitizer=3,
        # The last three launch hundreds of times: racecheck takes a minute and more for each. It finds nothing in them.
        large=(
            *("thirty_thousand", "a_thousand_steps", "of_a_long_cache", "the_same_bits", "much_shorter_than_their_room"),
            *("reported_by_an_append", "reported_by_a_re_rotation", "prefill_reports_bad_entries"),
        ),
    ),
    # What engines do: programs in C, C++ and Python, contexts of their own, streams and memory of the crate cust. The kernels have
    # families of their own.
    "linking": Family(
        device=(),
        # What builds the library names it for the loader.
        launch=("src/cust.rs", "ffi/src/*.rs", "ffi/src/abi/*.rs", "ffi/include/longrope.h", "ffi/build.rs"),
        tests=(
            *("ffi/tests/programs/*", "ffi/examples/*", "ffi/examples/*/*", "tests/cust.rs"),
            *("ffi/tests/c_abi/expected.rs", "ffi/tests/c_abi/library.rs"),
        ),
        programs=("programs", "cust"),
        sanitized=False,
    ),
}

# Of every family: for all parts, for tests and sanitizers, for the bench, for the peers.
SHARED = ("src/device/*.rs", "src/device/params/shared.rs", "build.rs", "build/*.rs")
SHARED_TESTS = ("tests/gpu/main.rs", "tests/gpu/buffer.rs", "tests/cpu/random.rs")
SHARED_BENCH = ("benches/gpu/*.rs",)
SHARED_PEERS = (
    *(f"benches/peers/{name}.py" for name in ("longrope", "turns")),
    *(f"ffi/src/{name}.rs" for name in ("abi", "arguments", "context", "status", "tensor")),
)


def called(name: str) -> str:
    """What the programs of a family call it."""
    return FAMILIES[name].called or name


def kinds(name: str) -> list[str]:
    """The kinds of parts that a family has."""
    family = FAMILIES[name]
    optional = (
        *(("lengths", family.lengths), ("sanitizer", family.sanitized)),
        *(("bench", family.bench), ("peers", family.peers)),
    )
    missing = {kind for kind, what in optional if not what}
    return [kind for kind in KINDS if kind not in missing]


def fail(message: str) -> None:
    sys.exit(f"gpu-suite: {message}")


def goals(name: str, kind: str) -> dict[tuple[str, str, str, str], str]:
    """The goals that a part of a family is held to, by op, shape, unit and peer. Those without a peer are the bench's.

    One against the peer `fastest` is against the fastest of those that were measured. A family without peers is held to
    none of theirs.
    """
    with GOALS.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["family"] == name]
    rows = [row for row in rows if kind == ("peers" if row["peer"] else "bench")]
    return {(row["op"], row["shape"], row["unit"], row["peer"]): row["goal"] for row in rows}


def known(name: str) -> dict[tuple[str, str, str, str], tuple[float, str]]:
    """What peers were seen to do: the value and its source, by op, shape, unit and peer."""
    with KNOWN.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["family"] == called(name)]
    return {(row["op"], row["shape"], row["unit"], row["peer"]): (float(row["value"]), row["source"]) for row in rows}


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def includes(source: Path) -> set[Path]:
    """The source and every header of ours that it includes, directly or not."""
    found, rest = set(), [source]
    while rest:
        path = rest.pop().resolve()
        if path in found or not path.is_file():
            continue
        found.add(path)
        for name in re.findall(r'^\s*#\s*include\s*"([^"]+)"', path.read_text(), re.MULTILINE):
            rest.append(path.parent / name)
    return found


def patterns(family: Family, kind: str) -> tuple[str, ...]:
    match kind:
        case "bench":
            own = (*SHARED_BENCH, f"benches/{family.bench}.rs")
        case "peers":
            own = (*SHARED_PEERS, *family.abi, *family.peers)
        case _:
            own = (*(SHARED_TESTS if "gpu" in family.programs else ()), *family.tests)
    return (*family.device, *family.launch, *SHARED, *own)


def sources(name: str, kind: str) -> dict[str, str]:
    """What a part's result depends on: the digest of each file, of the compiler, of goals and known values."""
    family, files = FAMILIES[name], set()
    for pattern in patterns(family, kind):
        matches = list(ROOT.glob(pattern))
        if not matches:
            fail(f"{pattern}, of the family {name}, matches no file")
        files.update(path.resolve() for path in matches if path.is_file())
    for pattern in family.device:
        for source in ROOT.glob(pattern):
            files |= includes(source)
    entries = {path.relative_to(ROOT).as_posix(): digest(path.read_bytes()) for path in files}
    pinned = re.search(r"^version=(\S+)$", (ROOT / "scripts/install-cuda").read_text(), re.MULTILINE)
    entries["nvcc, as pinned by scripts/install-cuda"] = digest(pinned.group(1).encode())
    if kind in ("bench", "peers"):
        entries["benches/goals.csv, the rows of this part"] = digest(repr(sorted(goals(name, kind).items())).encode())
    if kind == "peers":
        entries["benches/peers/known.csv, the family's rows"] = digest(repr(sorted(known(name).items())).encode())
    return dict(sorted(entries.items()))


def combined(entries: dict[str, str]) -> str:
    return digest("".join(f"{value}  {path}\n" for path, value in sorted(entries.items())).encode())
