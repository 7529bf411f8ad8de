"""Writes tests/data/phase_golden.json: sine and cosine of position * frequency, to arbitrary precision.

    pip install mpmath && python scripts/golden/phase.py

A case is [position, frequency, quarter, high, low, sin, cos]: position * frequency modulo 2 pi is
quarter * pi/2 + high + low, with high the f64 nearest to the rest, and low the f64 nearest to what that leaves.
"""

import json
import random
from pathlib import Path

from mpmath import cos, floor, mp, mpf, nint, pi, sin

mp.prec = 1500  # the smallest frequency is 2^-1074, and the largest angle is 2^122
random.seed(20240221)


def case(position, frequency):
    angle = mpf(position) * mpf(frequency)
    turns = nint(angle / (pi / 2))
    rest = angle - turns * (pi / 2)
    high = float(rest)
    low = float(rest - mpf(high))
    return [position, frequency, int(turns) % 4, high, low, float(sin(angle)), float(cos(angle))]


def model_frequency():
    base = random.choice([1e4, 5e5])
    dim = random.choice([64, 96, 128])
    factor = random.choice([0.9, 1.0, 1.03, 1.5, 4.97, 8.0, 16.99, 32.0, 64.9, 65.0, random.uniform(0.9, 65.0)])
    return base ** (-2 * random.randrange(dim // 2) / dim) / factor


EXTREMES = [0, 1, -1, 2, 3, -3, 2**21, -(2**21), 2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 2**32, 2**53 + 1, -(2**62), 2**62,
            2**62 - 1, 2**63 - 1, -(2**63)]
FREQUENCIES = [1.0, 1e-4, 1 / 0.9, 500000 ** (-126 / 128) / 65, 3.141592653589793, 6.283185307179586, 6.4, 1e3 / 7, 1e17,
               2.0**60, 1e-18, 1e-40]

cases = [case(position, frequency) for position in EXTREMES for frequency in FREQUENCIES]
for _ in range(120):
    position = random.randrange(2 ** random.randrange(1, 63)) * random.choice([1, -1])
    cases.append(case(position, model_frequency()))
for _ in range(30):  # above 2 pi a token
    position = random.randrange(-(2**62), 2**62) >> random.randrange(60)
    cases.append(case(position, random.uniform(6.29, 10) * 2.0 ** random.randrange(56)))
for _ in range(20):  # tiny
    cases.append(case(random.randrange(-(2**62), 2**62), random.uniform(1, 2) * 2.0 ** random.randrange(-1074, -40)))
# Convergents of the continued fraction of (pi/2) / 2^shift: angles that all but meet a multiple of pi/2.
for shift in [0, 5, 30, 60]:
    rest = pi / 2 / mpf(2) ** shift
    (before, numerator), (below, denominator) = (0, 1), (1, 0)
    while True:
        whole = int(floor(rest))
        before, numerator = numerator, whole * numerator + before
        below, denominator = denominator, whole * denominator + below
        if numerator >= 2**63:
            break
        if numerator >= 2**40:
            cases.append(case(random.choice([1, -1]) * numerator, 2.0**shift))
        rest = 1 / (rest - whole)
# Angles rounded to a multiple of pi/2.
for quarter in range(1, 5):
    cases.append(case(2**40 + quarter, float(quarter * pi / 2) / (2**40 + quarter)))

path = Path(__file__).parents[2] / "tests" / "data" / "phase_golden.json"
path.parent.mkdir(exist_ok=True)
path.write_text("[\n" + ",\n".join(json.dumps(row) for row in cases) + "\n]\n")
print(len(cases), "cases to", path.name)
