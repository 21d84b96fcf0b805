"""Compiled functions give the bits of the contract's, over random and special numbers."""

import numba
import numpy as np
import pytest

from alula.host.cpu import functions, vector
from alula.hw import numerics

SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1, -1, 2.0**-126, -(2.0**-126), 2.0**-125,
                    3e38, -3e38, 127.5, 128, -126, -126.5, 88.5, -88, 5e-20, 1e-30, 0.5, 1.5, 2.5,
                    -0.5, 149.9, -150.1, 1e10, 2.0**23, 2.0**24], np.float32)


def numbers(seed=0):
    """Return canonical numbers: of any bits, of sizes that occur, and special ones."""
    random = np.random.default_rng(seed)
    bits = random.integers(0, 1 << 32, 100_000, np.uint32).view(np.float32)
    sizes = (random.standard_normal(100_000) * np.exp(random.uniform(-9, 9, 100_000)))
    return numerics.canonical(np.concatenate([bits, sizes.astype(np.float32), SPECIAL]))


def over(function):
    """Return a compiled function of one number as one of arrays."""
    @numba.njit(error_model="numpy")
    def loop(x, out):
        for at in range(x.size):
            out[at] = function(x[at])

    def apply(x):
        out = np.empty_like(x)
        loop(x, out)
        return out
    return apply


def equal(got, want):
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))


@pytest.mark.parametrize("name", ["exp2", "exp", "reciprocal", "rsqrt", "sigmoid", "silu", "relu",
                                  "gelu", "gelu_tanh"])
def test_function(name):
    x = numbers()
    with np.errstate(all="ignore"):
        equal(over(getattr(functions, name))(x), getattr(numerics, name)(x))


def test_canonical():
    x = np.random.default_rng(1).integers(0, 1 << 32, 200_000, np.uint32).view(np.float32)
    equal(over(functions.canonical)(x), numerics.canonical(x))


@pytest.mark.parametrize("name", ["add", "sub", "mul", "div"])
def test_operation(name):
    """Results that are subnormal before rounding are among them."""
    function = getattr(functions, name)

    @numba.njit(error_model="numpy")
    def loop(a, b, out):
        for at in range(a.size):
            out[at] = function(a[at], b[at])

    random = np.random.default_rng(2)
    a, b = numbers(3), numbers(4)
    edge = np.float32(1) + random.integers(-8, 8, 4000).astype(np.float32) * np.float32(2**-24)
    a = np.concatenate([a, np.repeat(SPECIAL, SPECIAL.size), edge * np.float32(2.0**-63)])
    b = np.concatenate([b, np.tile(SPECIAL, SPECIAL.size),
                        random.permutation(edge) * np.float32(2.0**-63)])
    out = np.empty_like(a)
    loop(a, b, out)
    equal(out, getattr(numerics, name)(a, b))


@pytest.mark.parametrize("power", [-300, -150, -3, 0, 3, 150, 300])
def test_scale_by_power(power):
    @numba.njit
    def scaled(x):
        return functions.scale_by_power(x, np.int32(power))

    x = numbers()
    equal(over(scaled)(x), numerics.scale_by_power(x, power))


@pytest.mark.parametrize("size", [1, 16, 100, 128, 129, 500, 2048])
def test_reduce_sum(size):
    x = numbers()[-size - 40:-40] if size < 500 else np.random.default_rng(5).standard_normal(
        size).astype(np.float32)
    with np.errstate(all="ignore"):
        equal(np.float32(vector.reduce_sum(x)), numerics.reduce_sum(x))


def test_round_to_int():
    @numba.njit
    def rounded(x):
        return np.float32(functions.round_to_int(x, np.float32(-127), np.float32(127)))

    x = np.concatenate([numbers(), np.arange(-260, 260, dtype=np.float32) / 2])
    got = over(rounded)(x)
    np.testing.assert_array_equal(got.astype(np.int32), numerics.round_to_int(x, -127, 127))
