"""The contract's functions against float64, and its rules."""

import math

import numpy as np
import pytest

from alula.hw import numerics

RANDOM = np.random.default_rng(0)
SUBNORMAL = np.float32(1e-40)


def _spread(low: float, high: float, count: int = 400_000) -> np.ndarray:
    """Values evenly over a range, and a dense run of neighbours in its middle."""
    even = np.linspace(low, high, count, dtype=np.float32)
    middle = np.float32((low + high) / 2 or 1)
    near = (np.full(1 << 16, middle).view(np.int32) + np.arange(1 << 16)).view(np.float32)
    return np.concatenate([even, near[(near >= low) & (near <= high)]])


def _erf(x: np.ndarray) -> np.ndarray:
    return np.array([math.erf(v) for v in x])


def _log_uniform(low: int, high: int, count: int = 400_000) -> np.ndarray:
    return (2.0 ** RANDOM.uniform(low, high, count)).astype(np.float32)


# name, function, exact, arguments, worst error that docs/numerics.md states, relative or absolute
FUNCTIONS = [
    ("exp2", numerics.exp2, np.exp2, _spread(-125, 127), 1.6e-7, True),
    ("exp", numerics.exp, np.exp, _spread(-87, 88), 1.6e-7, True),
    ("reciprocal", numerics.reciprocal, lambda x: 1 / x, _log_uniform(-120, 120), 1.5e-7, True),
    ("rsqrt", numerics.rsqrt, lambda x: 1 / np.sqrt(x), _log_uniform(-120, 120), 2.2e-7, True),
    ("sigmoid", numerics.sigmoid, lambda x: 1 / (1 + np.exp(-x)), _spread(-30, 30), 3.0e-7, True),
    ("silu", numerics.silu, lambda x: x / (1 + np.exp(-x)), _spread(-30, 30), 3.2e-6, False),
    ("gelu", numerics.gelu, lambda x: x * (1 + _erf(x / 2**0.5)) / 2, _spread(-8, 8, 40_000),
     7.0e-7, False),
    ("gelu_tanh", numerics.gelu_tanh,
     lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))), _spread(-8, 8),
     8.0e-7, False),
]


@pytest.mark.parametrize("name, function, exact, x, bound, relative", FUNCTIONS,
                         ids=[row[0] for row in FUNCTIONS])
def test_function_error(name, function, exact, x, bound, relative, record_property):
    wanted = exact(x.astype(np.float64))
    error = np.abs(function(x).astype(np.float64) - wanted)
    worst = float((error / np.abs(wanted) if relative else error).max())
    record_property("worst", worst)
    print(f"{name}: worst {'relative' if relative else 'absolute'} error {worst:.3g}")
    assert bound / 3 < worst <= bound, "docs/numerics.md states the bound"


def test_canonical_flushes_and_unifies():
    x = np.array([SUBNORMAL, -SUBNORMAL, np.nan, -np.nan, np.inf, 2**-126], np.float32)
    bits = numerics.canonical(x).view(np.uint32).tolist()
    assert bits == [0, 0x8000_0000, 0x7FC0_0000, 0x7FC0_0000, 0x7F80_0000, 0x0080_0000]


def test_multiply_flushes_after_rounding():
    just_below = np.float32(1 - 2**-24)  # times 2**-126 rounds to 2**-126 and is kept
    assert numerics.mul(just_below, np.float32(2**-126)) == np.float32(2**-126)
    assert numerics.mul(np.float32(0.75), np.float32(2**-126)) == 0


@pytest.mark.parametrize("size", [1, 5, 16, 100, 1000])
def test_reduce_sum_order(size):
    x = RANDOM.standard_normal((3, size)).astype(np.float32)
    for row, got in zip(x, numerics.reduce_sum(x), strict=True):
        partial = [np.float32(0)] * numerics.PARTIALS
        for at, value in enumerate(row):
            place = at % numerics.PARTIALS
            partial[place] = np.float32(partial[place] + value)
        while len(partial) > 1:
            half = len(partial) // 2
            partial = [np.float32(partial[i] + partial[i + half]) for i in range(half)]
        assert got == partial[0]


def test_scale_by_power_is_multiplication():
    x = np.concatenate([RANDOM.standard_normal(1000), [0.0, -0.0]]).astype(np.float32)
    power = RANDOM.integers(-60, 60, x.size)
    np.testing.assert_array_equal(numerics.scale_by_power(x, power), np.ldexp(x, power))
    assert numerics.scale_by_power(np.float32(-1), -127) == 0
    assert numerics.scale_by_power(np.float32(-1), 128) == -np.inf


@pytest.mark.parametrize("value, code", [(0.5, 0), (1.5, 2), (-2.5, -2), (126.5, 126), (127, 127)])
def test_quantize_ties_to_even(value, code):
    codes, scale = numerics.quantize(np.array([127.0, value], np.float32))
    assert codes[1] == code and scale == 1


def test_quantize_zeros_and_infinity():
    codes, scale = numerics.quantize(np.zeros(4, np.float32))
    assert not codes.any() and scale == 0
    codes, _ = numerics.quantize(np.array([np.inf, 1.0], np.float32))
    assert codes.tolist() == [0, 0]  # infinity over infinity is no number, and counts as 0


@pytest.mark.parametrize("bits, group", [(2, 16), (4, 32), (8, 256)])
def test_linear_is_exact_integers_then_ordered_sums(bits, group):
    groups, outputs, rows = 5, 7, 3
    codes = RANDOM.integers(-(1 << bits) + 1, 1 << bits, (groups, outputs, group))
    scales = RANDOM.standard_normal((groups, outputs)).astype(np.float16).astype(np.float32)
    x = RANDOM.integers(-127, 128, (rows, groups, group)).astype(np.int8)
    x_scales = RANDOM.random((rows, groups)).astype(np.float32)
    got = numerics.linear(codes.astype(np.float32), scales, x, x_scales, 2)
    for row in range(rows):
        for output in range(outputs):
            total = np.float32(0)
            for g in range(groups):
                dot = np.float32(int(codes[g, output] @ x[row, g].astype(np.int64)))
                total = total + dot * scales[g, output] * x_scales[row, g]
            assert got[row, output] == total * 4


def test_attention_does_not_depend_on_empty_pages():
    """A page out of a window, or past the end, changes no bit."""
    pages, tokens, head_dim = 11, numerics.PAGE_TOKENS, 16
    scores = RANDOM.standard_normal((1, 1, 2, pages, tokens)).astype(np.float32) * 5
    values = RANDOM.integers(-127, 128, (1, pages, tokens, head_dim)).astype(np.int8)
    scales = RANDOM.random((1, pages, tokens)).astype(np.float32)
    kept = np.zeros((1, pages, tokens), bool)
    kept[0, 2:9] = True
    whole = numerics.attend_pages(scores, values, scales, kept)
    cut = numerics.attend_pages(scores[..., :9, :], values[:, :9], scales[:, :9], kept[:, :9])
    np.testing.assert_array_equal(whole, cut)


def test_attention_near_float64():
    pages, tokens, head_dim = 3, numerics.PAGE_TOKENS, 32
    scores = RANDOM.standard_normal((1, 1, 1, pages, tokens)).astype(np.float32) * 3
    values = RANDOM.integers(-127, 128, (1, pages, tokens, head_dim)).astype(np.int8)
    scales = (RANDOM.random((1, pages, tokens)) + 0.5).astype(np.float32)
    got = numerics.attend_pages(scores, values, scales, np.ones((1, pages, tokens), bool))
    weights = np.exp2(scores.astype(np.float64).ravel())
    plain = values.reshape(-1, head_dim) * scales.reshape(-1, 1).astype(np.float64)
    wanted = weights @ plain / weights.sum()
    assert np.abs(got - wanted).max() < np.abs(plain).max() / numerics.SOFTMAX_MAX
