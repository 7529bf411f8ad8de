"""The results: rows of a table, stamps that say what they are of, and whether they are of the present sources."""

import csv
import io
import json
from pathlib import Path

from .families import FAMILIES, KINDS, ROOT, called, combined, goals, kinds, known, sources

RESULTS = ROOT / "benches" / "results"
TABLE, STAMPS = "h100.csv", "stamps.json"
COLUMNS = ["family", "op", "shape", "unit", "ours", "peer", "peer_value", "ratio", "goal", "note"]
# What a bench compares with: nothing, the goal itself, the device, or ours in another form. Every other peer is of the peers
# part.
OF_BENCH = {"", "goal", "device copy", "read ceiling", "contiguous", "queries rotated before"}
# How far a peer may be off what it was seen to do without a note.
TOLERANCE = 0.03


def parse_rows(name: str, output: str) -> list[dict[str, str]]:
    """The rows of a family among whatever else a program says."""
    lines = [line for line in output.splitlines() if line.startswith((f"{called(name)},", "family,op,"))]
    header = "family,op,shape,unit,ours,peer,peer_value,ratio"
    table = [header, *(line for line in lines if line != header)]
    return [{**row, "family": name} for row in csv.DictReader(io.StringIO("\n".join(table)))]


def judge_rows(name: str, kind: str, rows: list[dict[str, str]]) -> tuple[list[str], list[str]]:
    """Puts goals and notes into the rows. What makes them count as failed, and the goals that were missed."""
    wanted, seen, expected = goals(name, kind), set(), known(name)
    problems, missed, fastest = [], [], fastest_peers(rows)
    for row in rows:
        key = (row["op"], row["shape"], row["unit"])
        label = f"{row['op']}, {row['shape']}"
        if None in row or None in row.values():
            problems.append(f"a row that has not {len(COLUMNS) - 2} fields: {label}")
            continue
        if (row["peer"] in OF_BENCH) != (kind == "bench"):
            problems.append(f"{label}: the peer {row['peer']!r} is not one of the part {kind}")
        # A goal of the bench is against whatever the bench compares with.
        goal_keys = [(*key, row["peer"] if kind == "peers" else "")]
        if row is fastest.get(key):
            goal_keys.append((*key, "fastest"))
        seen.update(goal_keys)
        row["goal"] = next((wanted[goal_key] for goal_key in goal_keys if goal_key in wanted), "")
        row["note"] = note(row, expected.get((*key, row["peer"])))
        if row["goal"] and not meets(row):
            missed.append(f"{label}, {row['peer']}: {row['ratio']} of {row['goal']}")
    if not rows:
        return ["nothing was measured"], []
    problems += [f"no row for the goal {', '.join(filter(None, key))}" for key in wanted if key not in seen]
    return problems, missed


def fastest_peers(rows: list[dict[str, str]]) -> dict[tuple[str, str, str], dict[str, str]]:
    """The rows of the peers that come off best against ours, by op, shape and unit."""
    found = {}
    for row in rows:
        key = (row["op"], row["shape"], row["unit"])
        if row["ratio"] and (key not in found or float(row["ratio"]) < float(found[key]["ratio"])):
            found[key] = row
    return found


def note(row: dict[str, str], expected: tuple[float, str] | None) -> str:
    """What to know about a row: that its peer does not do what it did."""
    if expected is None:
        return ""
    value, source = expected
    off = float(row["peer_value"]) / value - 1
    if abs(off) <= TOLERANCE:
        return ""
    return f"peer {abs(off):.1%} {'above' if off > 0 else 'below'} its {value:g} of {source.rsplit(', ')[-1]}".replace(
        "%", " %"
    )


def meets(row: dict[str, str]) -> bool:
    """Ratios are the better the larger: of ours to the peer, or of the goal to ours where the goal is the peer."""
    return float(row["ratio"]) >= (1.0 if row["peer"] == "goal" else float(row["goal"]))


def kind_of(row: dict[str, str]) -> str:
    return "bench" if row["peer"] in OF_BENCH else "peers"


def write_rows(out: Path, name: str, kind: str, rows: list[dict[str, str]]) -> None:
    """Puts the rows of a part in place of those it had."""
    path = out / TABLE
    source = path if path.is_file() else RESULTS / TABLE
    kept = []
    if source.is_file():
        with source.open(newline="") as file:
            kept = [row for row in csv.DictReader(file) if (row["family"], kind_of(row)) != (name, kind)]
    # A family that was renamed or taken away leaves none behind.
    kept = [row for row in kept if row["family"] in FAMILIES]
    order = [(family, kind) for family in FAMILIES for kind in KINDS]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(kept + rows, key=lambda row: order.index((row["family"], kind_of(row)))))


def rows_of_absent(name: str, kind: str, rows: list[dict[str, str]], absent: list[str]) -> list[dict[str, str]]:
    """The last rows of peers that are not installed this time, with a note of when they were measured.

    `absent` has what a program says that it did not measure: the peer, and the shape.
    """
    if not absent or not (RESULTS / TABLE).is_file():
        return []
    stamp = read_stamps(RESULTS / STAMPS).get(name, {}).get(kind, {})
    present = {(row["op"], row["shape"], row["unit"], row["peer"]) for row in rows}
    kept = []
    with (RESULTS / TABLE).open(newline="") as file:
        for row in csv.DictReader(file):
            key = (row["op"], row["shape"], row["unit"], row["peer"])
            if (row["family"], kind_of(row)) != (name, kind) or key in present:
                continue
            if any(text.startswith(f"{row['peer']}, ") and row["shape"] in text for text in absent):
                when = f"of {stamp.get('date', '?')[:10]}, commit {stamp.get('commit', '?')}; not installed since"
                kept.append({**row, "note": row["note"] if "not installed since" in row["note"] else when})
    return kept


def read_stamps(path: Path) -> dict:
    return json.loads(path.read_text()) if path.is_file() else {}


def write_stamp(out: Path, name: str, kind: str, stamp: dict) -> None:
    path = out / STAMPS
    stamps = read_stamps(path if path.is_file() else RESULTS / STAMPS)
    stamps.setdefault(name, {})[kind] = stamp
    path.write_text(json.dumps(stamps, indent=1) + "\n")


def verdict(stamp: dict | None, now: dict[str, str]) -> str:
    """Whether a stamp is of these sources."""
    if stamp is None:
        return "stale: never run"
    if stamp["source_hash"] != combined(now):
        then = stamp["sources"]
        short = {path: value[:16] for path, value in now.items()}
        changed = sorted(path for path in short.keys() | then.keys() if short.get(path) != then.get(path))
        return f"stale: {', '.join(changed)}"
    if not stamp["passed"]:
        return f"stale: failed on {stamp['date']}"
    return f"fresh: {stamp['gpu']}, {stamp['date']}, commit {stamp['commit']}"


def check() -> int:
    """Prints whether each part's last result is that of the present sources."""
    stamps, fresh = read_stamps(RESULTS / STAMPS), True
    for name in FAMILIES:
        for kind in kinds(name):
            found = verdict(stamps.get(name, {}).get(kind), sources(name, kind))
            fresh &= found.startswith("fresh")
            print(f"{name}:{kind} {found}")
    return 0 if fresh else 1
