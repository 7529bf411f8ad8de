"""Writes tests/data/evolution_golden.json: searches by Algorithm 1 of LongRoPE (arXiv 2402.13753), and by the operators of its released code.

    python scripts/golden/evolution.py            # or --check: compare, exit 1 on a difference

The paper's algorithm, and what the released code does, once more. For the same candidates to come out, all that these leave open is as in
the Rust, so that it is a second implementation, not an independent one: the order of draws, tries after a known candidate, ChaCha8 as
the crate rand_chacha seeds it, booleans and whole numbers as the crate rand 0.10 draws them. A search minimises the sum of (factor - wanted)^2 and of |n - wanted n| / 100. Needs nothing but Python.
"""

import json
import math
import platform
import sys
from pathlib import Path

MASK32, MASK64 = 2**32 - 1, 2**64 - 1


def rotated_left(x, by):
    return (x << by | x >> (32 - by)) & MASK32


class ChaCha8:
    """Words of 32 bits, block after block: four constants, eight words of key, a counter of 64 bits, a nonce of zero."""

    def __init__(self, seed):
        key, state = [], seed
        for _ in range(8):
            # PCG-XSH-RR, by which rand_core makes a key of 64 bits.
            state = (state * 0x5851F42D4C957F2D + 0xA17654E46FBE17F3) & MASK64
            x = ((state >> 18 ^ state) >> 27) & MASK32
            key.append(rotated_left(x, (32 - (state >> 59)) % 32))
        self.key, self.counter, self.words = key, 0, []

    def block(self):
        start = [0x61707865, 0x3320646E, 0x79622D32, 0x6B206574, *self.key, self.counter & MASK32, self.counter >> 32, 0, 0]
        x = list(start)

        def quarter(a, b, c, d):
            for to, of, turned, by in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
                x[to] = (x[to] + x[of]) & MASK32
                x[turned] = rotated_left(x[turned] ^ x[to], by)

        for _ in range(4):
            for i in range(4):
                quarter(i, i + 4, i + 8, i + 12)
            for i in range(4):
                quarter(i, (i + 1) % 4 + 4, (i + 2) % 4 + 8, (i + 3) % 4 + 12)
        self.counter += 1
        return [(a + b) & MASK32 for a, b in zip(x, start)]

    def u32(self):
        if not self.words:
            self.words = self.block()
        return self.words.pop(0)

    def u64(self):
        low = self.u32()
        return low | self.u32() << 32

    def happens(self, probability):
        return self.u64() < int(probability * 2**64)

    def below(self, count, bits):
        """A whole number below `count`: the upper half of a product, by Canon's method with one more draw where it may be biased."""
        draw = self.u32 if bits == 32 else self.u64
        high, low = divmod(draw() * count, 2**bits)
        if low > 2**bits - count:
            high += low + (draw() * count >> bits) >= 2**bits
        return high


# What Algorithm 1 leaves open is as the Rust documents it: a mutant that is known is mutated again, at most so often; and a crossover
# that is known or decreases is made anew.
MUTATION_TRIES, CROSSOVER_TRIES = 1000, 20


class Search:
    """Candidates are lists of factors and the number of first tokens at the end."""

    def __init__(self, case):
        self.case, self.random = case, ChaCha8(case["seed"])
        self.most = case["maximum_ratio"] * case["scale"]
        self.known, self.history = [], []

    def value(self, candidate):
        total = 0.0
        for factor, wanted in zip(candidate, self.case["wanted"]):
            total += (factor - wanted) * (factor - wanted)
        return total + abs(candidate[-1] - self.case["wanted_first_tokens"]) / 100.0

    def is_new(self, candidate):
        if self.case["released"] and any(
            all(abs(a - b) <= 1e-8 + 1e-5 * abs(b) for a, b in zip(candidate[:-1], other)) for other in self.known
        ):
            return False
        if candidate in self.known:
            return False
        self.known.append(list(candidate))
        return True

    def mutate(self, genes):
        last = len(genes) - 2
        for i in range(last + 1):
            if not self.random.happens(0.3):
                continue
            low = genes[i - 1] if i else 1.0
            high = genes[i + 1] if i < last else self.most
            if self.case["released"]:
                # Steps from the left neighbour, up to the right one; the first factor stays below it.
                count = int(max((high - low) / 0.01 + 1e-9, 0.0))
                if i == 0 and i < last and low + count * 0.01 >= high:
                    count -= 1
                if count >= 0:
                    genes[i] = min(low + self.random.below(count + 1, 64) * 0.01, high)
            else:
                # Hundredths that lie between the neighbours.
                first = math.ceil(low * 100 - 1)
                while first / 100 < low:
                    first += 1
                end = math.floor(high * 100 + 1)
                while end > first and end / 100 > high:
                    end -= 1
                if first / 100 <= high:
                    genes[i] = (first + self.random.below(end - first + 1, 64)) / 100
        allowed = self.case["first_tokens"]
        if len(allowed) > 1 and self.random.happens(0.3):
            others = [n for n in allowed if n != genes[-1]]
            genes[-1] = others[self.random.below(len(others), 32)]

    def mutant(self, parent):
        genes = list(parent)
        for _ in range(MUTATION_TRIES):
            self.mutate(genes)
            if self.is_new(genes):
                return genes
        raise AssertionError("no new mutant")

    def crossover(self, better, other):
        child = list(better)
        for _ in range(CROSSOVER_TRIES):
            if self.case["released"]:
                for i in range(len(child) - 1):
                    if self.random.happens(0.3) and self.random.happens(0.5):
                        child[i] = other[i]
            else:
                child = [a if self.random.happens(0.5) else b for a, b in zip(better, other)]
            rises = all(a <= b for a, b in zip(child, child[1:-1]))
            if rises and self.is_new(child):
                return child
        return self.mutant(better)

    def evaluate(self, population):
        self.history += [(self.value(candidate), candidate) for candidate in population]

    def run(self):
        case = self.case
        seeds = case["seeds"]
        population = [list(seed) for seed in seeds if self.is_new(seed)]
        while len(population) < case["population"]:
            population.append(self.mutant(seeds[self.random.below(len(seeds), 32)]))
        self.evaluate(population)
        for _ in range(case["iterations"]):
            # Python's sort keeps the order of equals.
            parents = [candidate for _, candidate in sorted(self.history, key=lambda entry: entry[0])[: case["parents"]]]
            population = [self.mutant(parents[self.random.below(len(parents), 32)]) for _ in range(case["mutations"])]
            for _ in range(case["crossovers"]):
                first = self.random.below(len(parents), 32)
                second = self.random.below(len(parents) - 1, 32)
                second += second >= first
                population.append(self.crossover(parents[min(first, second)], parents[max(first, second)]))
            self.evaluate(population)
        return self.history


def seeds(pairs, scale, theta, original, released):
    """Position interpolation, NTK-aware and YaRN, or the ramp of the released code."""
    dims = 2 * pairs
    turns = [original / (2 * math.pi * theta ** (2 * i / dims)) for i in range(pairs)]
    # YaRN's ramp from 32 turns to 1, between whole pairs.
    low = max(math.floor(dims * math.log(original / (32 * 2 * math.pi)) / (2 * math.log(theta))), 0)
    high = min(math.ceil(dims * math.log(original / (2 * math.pi)) / (2 * math.log(theta))), dims - 1)
    assert turns[0] > 32 > 1 > turns[-1]
    share = [min(max((i - low) / (high - low), 0.0), 1.0) for i in range(pairs)]
    if released:
        return [[scale * s + (1 - s) for s in share] + [0]]
    yarn = [1 / (s / scale + (1 - s)) for s in share]
    ntk = [scale ** (2 * i / (dims - 2)) for i in range(pairs)]
    return [[scale] * pairs + [0], ntk + [0], yarn + [0]]


def main():
    sizes = {"population": 16, "mutations": 6, "crossovers": 6, "parents": 8, "iterations": 8}
    cases = []
    for released, seed, scale in ((False, 0, 4.0), (False, 1, 8.0), (False, 20, 2.5), (True, 0, 4.0), (True, 7, 8.0)):
        pairs = 16
        case = {"released": released, "seed": seed, "scale": scale, **sizes}
        case["maximum_ratio"] = (1 + scale) / scale if released else 1.25
        case["first_tokens"] = [0] if released else [0, 1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 64, 128, 256]
        case["wanted"] = [1 + (scale - 1) * (i / (pairs - 1)) ** 2 for i in range(pairs)]
        case["wanted_first_tokens"] = 0 if released else 16
        case["seeds"] = seeds(pairs, scale, 1e4, 4096, released)
        history = Search(case).run()
        case["history"] = [[*candidate, value] for value, candidate in history]
        cases.append(case)
    lines = ",\n".join(json.dumps(case) for case in cases)
    top = f'{{"script": "scripts/golden/evolution.py",\n"python": "{platform.python_version()}",\n"cases": [\n{lines}\n]}}\n'
    path = Path(__file__).resolve().parents[2] / "tests" / "data" / "evolution_golden.json"
    if "--check" in sys.argv:
        same = json.loads(path.read_text())["cases"] == json.loads(top)["cases"]
        sys.exit(None if same else f"{path.name} is not what scripts/golden/evolution.py makes")
    path.write_text(top)
    print(f"{path.name}: {len(top)} bytes, {sum(len(case['history']) for case in cases)} candidates")


if __name__ == "__main__":
    main()
