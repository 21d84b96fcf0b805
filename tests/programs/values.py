"""Random numbers of the kinds that arithmetic goes wrong with, and random weights."""

from __future__ import annotations

import random

import numpy as np
from models import random_codes
from numpy.typing import NDArray

from alula.compiler.graph import Codes, QuantMatrix

SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 2.0**-126, -(2.0**-126),
                    2.0**-140, -(2.0**-149), 3e38, -3e38, 127.5, 88.5, -88.0, 5e-20, 1e-30],
                   np.float32)


def floats(chooser: random.Random, count: int, *, tame: bool = False) -> NDArray[np.float32]:
    """Return numbers of many sizes; unless ``tame``, sometimes some that are special."""
    generator = np.random.default_rng(chooser.randrange(1 << 30))
    x = generator.standard_normal(count).astype(np.float32)
    kind = chooser.randrange(3 if tame else 6)
    if kind == 1:
        x *= np.exp(generator.uniform(-8, 8, count)).astype(np.float32)
    elif kind == 2:
        x = np.rint(2 * x).astype(np.float32) * np.float32(0.5)  # ties
    elif kind == 3:
        x *= np.exp(generator.uniform(-40, 40, count)).astype(np.float32)
    elif kind == 4:
        x = np.where(generator.random(count) < 0.05, generator.choice(SPECIAL, count), x)
    elif kind == 5:
        x = np.where(generator.random(count) < 0.004, generator.choice(SPECIAL, count), x)
    return x.astype(np.float32)


def fp_bits(chooser: random.Random, count: int) -> NDArray[np.uint32]:
    """Return the bits of numbers; rarely any bits at all."""
    if chooser.randrange(16) == 0:
        generator = np.random.default_rng(chooser.randrange(1 << 30))
        return generator.integers(0, 1 << 32, count, np.uint32)
    return floats(chooser, count).view(np.uint32)


KEPT = (0, 4, 8, 12)


def matrix(chooser: random.Random, outputs: int, inputs: int, group: int) -> QuantMatrix:
    """Return a matrix whose groups of inputs are of all kinds, or all of one."""
    generator = np.random.default_rng(chooser.randrange(1 << 30))
    bits = chooser.choice([2, 3, 4, 4, 8])
    groups = -(-inputs // group)

    def kind() -> dict[str, float]:
        return {"kept": chooser.choice(KEPT), "dropped": chooser.choice([0, 0, 0, 0.3, 0.7, 0.95]),
                "asymmetric": chooser.random() < 0.4}

    first = kind()
    mixed = chooser.random() < 0.5
    parts = [random_codes(generator, outputs, group, bits, group, **(kind() if mixed else first))
             for _ in range(groups)]
    codes, scales, zeros = (np.concatenate([part[at] for part in parts], axis=1)
                            for at in range(3))
    choice = chooser.randrange(6)
    if choice == 0:
        scales = np.ldexp(scales, chooser.randint(-60, 60)).astype(np.float32)
    elif choice == 1:
        scales = np.where(generator.random(scales.shape) < 0.2, np.float32(0), scales)
    elif choice == 2:
        scales = np.abs(scales)
    held = Codes(codes[:, :inputs], scales, zeros)
    return QuantMatrix(name="m", rows=outputs, cols=inputs, bits=bits, group=group,
                       read=lambda a, b: Codes(*(part[a:b] for part in held)))
