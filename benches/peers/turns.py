"""Ours and its peers taking turns on one GPU, and the rows that come of it.

A program of a family prints lines that scripts/gpu-suite reads: `oracle: ...` for
each independent implementation that agreed, `not measured: ...` for each peer that
could not be had, and rows `family,op,shape,unit,ours,peer,peer_value,ratio`, where a
ratio above 1 is better than the peer.
"""

import argparse
import csv
import statistics
import sys

import torch


def not_measured(name, reason):
    first = (str(reason).strip().splitlines() or [type(reason).__name__])[0]
    print(f"not measured: {name} ({first})", flush=True)


def arguments(description, *flags):
    """The program's arguments; `flags` are its own, each a name and what it does."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--library", required=True, help="liblongrope.so")
    parser.add_argument("--prepare", action="store_true", help="only compile what the peers compile at their first use")
    for name, meaning in flags:
        parser.add_argument(name, action="store_true", help=meaning)
    return parser.parse_args()


def agree(name, off):
    """An oracle's verdict: `off` is the largest difference in units of its bound."""
    if not off <= 1:
        sys.exit(f"the oracle disagrees: {name}: {off:.3g} times its bound")
    print(f"oracle: {name}: within {off:.3g} of its bound", flush=True)


def event():
    mark = torch.cuda.Event(enable_timing=True)
    mark.record()
    return mark


def rounds(works, count, launches):
    """Milliseconds of a launch of each work, a list a round. All is queued at once, so that launches follow closely."""
    marks = []
    for _ in range(count):
        marks.append([event()])
        for work, times in zip(works, launches):
            for _ in range(times):
                work()
            marks[-1].append(event())
    torch.cuda.synchronize()
    return [[a.elapsed_time(b) / n for a, b, n in zip(row, row[1:], launches)] for row in marks]


def medians(rows):
    return [statistics.median(column) for column in zip(*rows)]


def alternate(ours, peer, count=25):
    """Medians, in milliseconds, of ours and a peer taking turns, a launch each."""
    rounds([ours, peer], 3, [1, 1])
    return medians(rounds([ours, peer], count, [1, 1]))


class Rows:
    """Prints rows of a family; `value` makes the value of a time in milliseconds."""

    def __init__(self, family):
        self.family = family
        self.writer = csv.writer(sys.stdout, lineterminator="\n")
        print("family,op,shape,unit,ours,peer,peer_value,ratio")

    def row(self, op, shape, unit, value, our_time, name, peer_time):
        ours, peers = (f"{value(time):.1f}" for time in (our_time, peer_time))
        self.writer.writerow([self.family, op, shape, unit, ours, name, peers, f"{peer_time / our_time:.4f}"])
        sys.stdout.flush()
