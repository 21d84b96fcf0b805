"""The numerics contract, executable: every number an Alula device computes, it computes like this.

All values are IEEE binary32. One operation, one rounding: to nearest, ties to even. A result that
is subnormal becomes a zero of its sign, NaN is always 0x7FC00000, and nothing is fused. Functions
are sequences of these operations; reductions have one order, whatever the size of the build.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I8 = NDArray[np.int8]

CODE_MAX = 127  # int8 codes are symmetric
PAGE_TOKENS = 64  # tokens in a page of the KV cache
PAGE_CLASSES = 8  # pages merge in classes of the page number modulo this
PARTIALS = 128  # strided partial sums of a reduction
WEIGHT_BITS = (2, 3, 4, 8)
GROUPS = (16, 32, 64, 128, 256)
SOFTMAX_BITS = 8  # width of the softmax weights in softmax . V; docs/numbers.md says why
SOFTMAX_MAX = (1 << SOFTMAX_BITS) - 1

LOG2_E = np.float32(1.4426950408889634)
LN2_HIGH = np.float32(float.fromhex("0x1.62ep-1"))  # 12 bits: times an integer it is exact
LN2_LOW = np.float32(np.log(2) - float(LN2_HIGH))
ROUND_MAGIC = np.float32(1.5 * 2**23)  # adding it rounds to an integer
EMPTY_PAGE = np.float32(-(2.0**24))  # maximum of a page with no token

# 2**f on [-1/2, 1/2]: minimax in relative error, 2.0e-9 before rounding. Highest power first.
EXP2_POLY = np.array([float.fromhex(text) for text in (
    "0x1.41fbbcp-13", "0x1.5f3e54p-10", "0x1.3b2d4cp-7", "0x1.c6aee8p-5", "0x1.ebfbdcp-3",
    "0x1.62e430p-1", "0x1p+0")], np.float32)

_STEPS = (np.arange(128) + 0.5) / 128
# First guesses, 16 bits each: 1/m for m in [1, 2), and 1/sqrt(m) for m in [1, 2) then [2, 4).
RECIPROCAL_TABLE = (np.rint(2**16 / (1 + _STEPS)) / 2**16).astype(np.float32)
RSQRT_TABLE = (np.rint(2**16 / np.sqrt(np.concatenate(
    [1 + (np.arange(64) + 0.5) / 64, 2 + (np.arange(64) + 0.5) / 32]))) / 2**16).astype(np.float32)

_SIGN = np.uint32(0x8000_0000)
_EXPONENT = np.uint32(0x7F80_0000)
_NAN = np.uint32(0x7FC0_0000)


def canonical(x: F32) -> F32:
    """Return ``x`` with subnormals flushed to zeros of their sign and NaNs made one."""
    x = np.asarray(x, np.float32)
    bits = x.view(np.uint32)
    exponent = bits & _EXPONENT
    small, large = exponent == 0, exponent == _EXPONENT
    if small.any():
        bits = np.where(small, bits & _SIGN, bits)
    if large.any():
        bits = np.where(large & ((bits & np.uint32(0x7F_FFFF)) != 0), _NAN, bits)
    return np.asarray(bits).view(np.float32)


def add(a: F32, b: F32 | np.float32 | float) -> F32:
    with np.errstate(all="ignore"):
        return canonical(np.add(a, b, dtype=np.float32))


def sub(a: F32 | np.float32, b: F32 | np.float32) -> F32:
    with np.errstate(all="ignore"):
        return canonical(np.subtract(a, b, dtype=np.float32))


def mul(a: F32, b: F32 | np.float32 | float) -> F32:
    with np.errstate(all="ignore"):
        return canonical(np.multiply(a, b, dtype=np.float32))


def div(a: F32 | np.float32, b: F32 | np.float32) -> F32:
    """Divide, correctly rounded: only where a quantizer needs it, once for each group."""
    with np.errstate(all="ignore"):
        return canonical(np.divide(a, b, dtype=np.float32))


def from_int(n: NDArray[np.integer]) -> F32:
    """Round integers of at most 32 bits to fp32."""
    return np.asarray(n).astype(np.float32)


def scale_by_power(x: F32, power: NDArray[np.integer] | int) -> F32:
    """Return ``x * 2**power`` by adding to the exponent; out of range gives zero or infinity."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    old = (bits >> 23 & 0xFF).astype(np.int32)
    new = old + power
    sign = bits & _SIGN
    moved = (bits & ~_EXPONENT) | (np.clip(new, 0, 255).astype(np.uint32) << 23)
    moved = np.where((new <= 0) | (old == 0), sign, np.where(new >= 255, sign | _EXPONENT, moved))
    # NumPy 1 widens a lone number.
    return np.where(old == 255, bits, moved).astype(np.uint32).view(np.float32)


def round_to_int(x: F32, low: int, high: int) -> NDArray[np.int32]:
    """Round to the nearest integer, ties to even, within ``[low, high]``; NaN gives 0."""
    x = np.where(np.isnan(x), np.float32(0), x)
    return np.rint(np.clip(x, low, high)).astype(np.int32)


def reduce_sum(x: F32) -> F32:
    """Sum the last axis: ``PARTIALS`` strided partial sums, ascending from +0, then a binary tree.

    Partial ``j`` adds elements ``j, j + PARTIALS, ...``; the tree adds partials ``PARTIALS / 2``
    apart, then half as far, down to 1.
    """
    count = x.shape[-1]
    short = -count % PARTIALS
    if short:
        x = np.concatenate([x, np.zeros((*x.shape[:-1], short), np.float32)], axis=-1)
    x = x.reshape(*x.shape[:-1], -1, PARTIALS)
    total = np.zeros((*x.shape[:-2], PARTIALS), np.float32)
    for i in range(x.shape[-2]):
        total = add(total, x[..., i, :])
    while (half := total.shape[-1] // 2):
        total = add(total[..., :half], total[..., half:])
    return total[..., 0]


def exp2(x: F32) -> F32:
    """Return ``2**x``; below -126 it is +0, from 128 it is infinite."""
    x = np.asarray(x, np.float32)
    power = _nearest_integer(x)
    return _power_of_two(x, power, sub(x, power))


def exp(x: F32) -> F32:
    """Return ``e**x``: ``2**k`` times ``2**(r log2 e)``, where ``r = x - k ln 2`` in two steps."""
    x = np.asarray(x, np.float32)
    scaled = mul(x, LOG2_E)
    power = _nearest_integer(scaled)
    rest = sub(sub(x, mul(power, LN2_HIGH)), mul(power, LN2_LOW))
    return _power_of_two(scaled, power, mul(rest, LOG2_E))


def _nearest_integer(x: F32) -> F32:
    """Round to an integer where ``2**x`` is a number; what is outside stays outside."""
    with np.errstate(invalid="ignore"):
        inside = np.clip(x, np.float32(-150), np.float32(150))
    return sub(add(inside, ROUND_MAGIC), ROUND_MAGIC)


def _power_of_two(x: F32, power: F32, part: F32) -> F32:
    """Return ``2**power * 2**part`` by a polynomial; ``x`` is their sum and decides the range."""
    inside = (x >= -126) & (x < 128)
    part = np.where(inside, part, np.float32(0))
    value = np.broadcast_to(EXP2_POLY[0], part.shape)
    for coefficient in EXP2_POLY[1:]:
        value = add(mul(value, part), coefficient)
    value = scale_by_power(value, np.where(inside, power, 0).astype(np.int32))
    outside = np.where(x >= 128, np.float32(np.inf), np.float32(0))
    return canonical(np.where(np.isnan(x), x, np.where(inside, value, outside)))


def _split(x: F32) -> tuple[NDArray[np.uint32], NDArray[np.int32]]:
    bits = np.asarray(x, np.float32).view(np.uint32)
    return bits & np.uint32(0x7F_FFFF), ((bits & _EXPONENT) >> 23).astype(np.int32) - 127


def reciprocal(x: F32) -> F32:
    """Return ``1 / x``: a table of 128, then two Newton steps ``y * (2 - m * y)``."""
    x = np.asarray(x, np.float32)
    fraction, exponent = _split(x)
    m = (fraction | np.uint32(0x3F80_0000)).view(np.float32)
    y = RECIPROCAL_TABLE[fraction >> 16]
    for _ in range(2):
        y = mul(y, sub(np.float32(2), mul(m, y)))
    y = scale_by_power(np.copysign(y, x), -exponent)
    y = np.where(x == 0, np.copysign(np.float32(np.inf), x), y)
    y = np.where(np.isinf(x), np.copysign(np.float32(0), x), y)
    return canonical(np.where(np.isnan(x), x, y).astype(np.float32))


def rsqrt(x: F32) -> F32:
    """Return ``1 / sqrt(x)``: a table of 128, then two Newton steps ``y * (1.5 - (m/2 * y) * y)``.

    Below zero it is NaN, at a zero of either sign +infinity.
    """
    x = np.asarray(x, np.float32)
    fraction, exponent = _split(x)
    odd = (exponent & 1).astype(np.uint32)
    half = ((fraction | np.uint32(0x3F00_0000)) + (odd << 23)).view(np.float32)  # m / 2
    y = RSQRT_TABLE[(odd << 6) | (fraction >> 17)]
    for _ in range(2):
        y = mul(y, sub(np.float32(1.5), mul(mul(half, y), y)))
    y = scale_by_power(y, -(exponent >> 1))
    y = np.where(x == 0, np.float32(np.inf), np.where(np.isposinf(x), np.float32(0), y))
    return canonical(np.where((x < 0) | np.isnan(x), np.float32(np.nan), y).astype(np.float32))


def sigmoid(x: F32) -> F32:
    """Return ``1 / (1 + e**-x)``."""
    return reciprocal(add(exp(-np.asarray(x, np.float32)), np.float32(1)))


def silu(x: F32) -> F32:
    return mul(x, sigmoid(x))


def relu(x: F32) -> F32:
    return np.where(x > 0, x, np.float32(0)).astype(np.float32)


GELU_CUBE = np.float32(0.044715)
GELU_SCALE = np.float32(2 * np.sqrt(2 / np.pi))


def gelu_tanh(x: F32) -> F32:
    """Return ``x * sigmoid(2 sqrt(2/pi) (x + 0.044715 x**3))``, which is GELU's tanh form."""
    cube = mul(mul(mul(x, x), x), GELU_CUBE)
    return mul(x, sigmoid(mul(add(x, cube), GELU_SCALE)))


# Ref: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: |error| <= 1.5e-7.
ERF_P = np.float32(0.3275911)
ERF_POLY = np.array([1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592],
                    np.float32)
SQRT_HALF = np.float32(np.sqrt(0.5))


def gelu(x: F32) -> F32:
    """Return ``x * (1 + erf(x / sqrt 2)) / 2``."""
    z = mul(np.abs(x), SQRT_HALF)
    t = reciprocal(add(mul(z, ERF_P), np.float32(1)))
    poly = np.broadcast_to(ERF_POLY[0], t.shape)
    for coefficient in ERF_POLY[1:]:
        poly = add(mul(poly, t), coefficient)
    tail = mul(mul(mul(poly, t), exp(-mul(z, z))), np.float32(0.5))  # (1 - erf) / 2
    return mul(x, np.where(x < 0, tail, sub(np.float32(1), tail)))


def quantize(x: F32, scale: np.float32 = np.float32(1)) -> tuple[I8, F32]:
    """Quantize the last axis to int8 with one scale: ``amax / 127``, ties to even.

    Codes are ``x * (127 / amax)`` rounded; both divisions are IEEE, as in ONNX Runtime's
    ``MatMulNBits``.

    Parameters
    ----------
    scale
        Folded into the scale that is returned; it does not touch the codes.

    Returns
    -------
    codes : int8, the shape of ``x``
    scales : float32, the shape of ``x`` without its last axis
    """
    peak = np.abs(x).max(axis=-1)
    inverse = np.where(peak == 0, np.float32(0), div(np.float32(CODE_MAX), peak))
    codes = round_to_int(mul(x, inverse[..., None]), -CODE_MAX, CODE_MAX).astype(np.int8)
    return codes, mul(div(peak, np.float32(CODE_MAX)), scale)


def rms_norm(x: F32, gamma: F32, eps: np.float32) -> F32:
    """Return ``x * rsqrt(sum(x * x) * (1 / n) + eps) * gamma`` of the last axis, left to right."""
    inverse_count = reciprocal(np.asarray(x.shape[-1], np.float32))
    mean = mul(reduce_sum(mul(x, x)), inverse_count)
    return mul(mul(x, rsqrt(add(mean, eps))[..., None]), gamma)


def rotate(x: F32, cos: F32, sin: F32, interleaved: bool) -> F32:
    """Rotate pairs of the last axis: ``(a c - b s, b c + a s)``; later elements pass unchanged.

    ``x`` is ``(rows, heads, head_dim)``, the tables ``(rows, 1, rotary_dim / 2)``.
    """
    half = cos.shape[-1]
    first = slice(0, 2 * half, 2) if interleaved else slice(0, half)
    second = slice(1, 2 * half, 2) if interleaved else slice(half, 2 * half)
    a, b = x[..., first], x[..., second]
    out = x.copy()
    out[..., first] = sub(mul(a, cos), mul(b, sin))
    out[..., second] = add(mul(b, cos), mul(a, sin))
    return out


def linear(codes: NDArray[np.float32], scales: F32, x: I8, x_scales: F32, exponent: int,
           present: NDArray[np.bool_] | None = None) -> F32:
    """Multiply quantized rows by a matrix: exact group dots, fp32 sums in ascending groups.

    Parameters
    ----------
    codes
        ``(groups, outputs, group)`` integers ``code - zero_point``, as float32.
    scales
        ``(groups, outputs)`` float32 values of the fp16 scales.
    x, x_scales
        ``(rows, groups, group)`` int8 and ``(rows, groups)`` float32.
    exponent
        The matrix's scales stand for ``scale * 2**exponent``.
    present
        ``(groups, outputs)``: which groups of a row are stored; others add nothing, whatever the
        activations are. All, if not given.

    Returns
    -------
    ``(rows, outputs)`` float32: ``sum_g (dot_g * scale_g) * x_scale_g``, then times the power.
    """
    # A group's dot product is below 256 * 127 * 255 < 2**24, so fp32 holds every partial sum.
    dots = np.matmul(codes, x.astype(np.float32).transpose(1, 2, 0)).transpose(0, 2, 1)
    terms = mul(mul(dots, scales[:, None, :]), x_scales.T[:, :, None])
    if present is not None:
        terms = np.where(present[:, None, :], terms, np.float32(-0.0))  # adding -0 changes nothing
    total = np.zeros(terms.shape[1:], np.float32)
    for term in terms:
        total = add(total, term)
    return scale_by_power(total, np.array(exponent))


@dataclass
class Partial:
    """Attention over some tokens: powers of two are relative to ``peak``, an integer."""

    peak: F32  # (...)
    total: F32  # (...): sum of the weights
    values: F32  # (..., head_dim): sum of weights times values

    @classmethod
    def empty(cls, shape: tuple[int, ...], head_dim: int) -> Partial:
        return cls(np.full(shape, EMPTY_PAGE, np.float32), np.zeros(shape, np.float32),
                   np.zeros((*shape, head_dim), np.float32))

    def merge(self, other: Partial) -> Partial:
        """Return both: rescaled by exact powers of two to the larger peak, then added.

        No zero comes out negative, so that merging with an empty partial changes nothing.
        """
        peak = np.maximum(self.peak, other.peak)
        mine, theirs = ((part.peak - peak).astype(np.int32) for part in (self, other))
        return Partial(
            peak, add(_rescale(self.total, mine), _rescale(other.total, theirs)),
            add(_rescale(self.values, mine[..., None]), _rescale(other.values, theirs[..., None])))


def _rescale(x: F32, power: NDArray[np.int32]) -> F32:
    return scale_by_power(x, power) + np.float32(0)  # the sum only makes -0 into +0


def attend_page(scores: F32, values: I8, value_scales: F32, kept: NDArray[np.bool_]) -> Partial:
    """Attend over one page.

    Parameters
    ----------
    scores
        ``(..., PAGE_TOKENS)``: query times key, in powers of two (times log2 e).
    values, value_scales
        ``(..., PAGE_TOKENS, head_dim)`` int8 and ``(..., PAGE_TOKENS)``.
    kept
        ``(..., PAGE_TOKENS)``: which tokens count. A page of which none does is empty.
    """
    kept = np.broadcast_to(kept, scores.shape)
    peak = np.ceil(np.where(kept, scores, EMPTY_PAGE).max(axis=-1))
    peak = np.clip(peak, EMPTY_PAGE, -EMPTY_PAGE)  # NaN stays
    weights = np.where(kept, exp2(sub(scores, peak[..., None])), np.float32(0))
    total = reduce_sum(weights)
    scaled = np.where(kept, mul(weights, value_scales), np.float32(0))
    largest = scaled.max(axis=-1)
    inverse = np.where(largest == 0, np.float32(0), mul(reciprocal(largest), SOFTMAX_MAX))
    codes = round_to_int(mul(scaled, inverse[..., None]), 0, SOFTMAX_MAX)
    # Below 255 * 127 * 64 < 2**24, so fp32 holds every partial sum.
    sums = np.matmul(codes[..., None, :].astype(np.float32), values.astype(np.float32))[..., 0, :]
    back = mul(largest, np.float32(1 / SOFTMAX_MAX))
    return Partial(peak, total, mul(sums, back[..., None]))


def attend_pages(scores: F32, values: I8, value_scales: F32, kept: NDArray[np.bool_]) -> F32:
    """Attend over all pages of a sequence, in the one order that pages are merged in.

    A class is the pages of one number modulo ``PAGE_CLASSES``, merged in ascending order onto an
    empty start; classes 4 apart merge next, then 2 apart, then 1.

    Parameters
    ----------
    scores
        ``(rows, kv_heads, ratio, pages, PAGE_TOKENS)``.
    values, value_scales
        ``(kv_heads, pages, PAGE_TOKENS, head_dim)`` and ``(kv_heads, pages, PAGE_TOKENS)``.
    kept
        ``(rows, pages, PAGE_TOKENS)``.

    Returns
    -------
    ``(rows, kv_heads * ratio * head_dim)`` float32.
    """
    *outer, pages, _ = scores.shape
    head_dim = values.shape[-1]
    partial = attend_page(scores, values[:, None], value_scales[:, None], kept[:, None, None])
    turns = -(-pages // PAGE_CLASSES)
    padded = Partial.empty((*outer, turns * PAGE_CLASSES), head_dim)
    for name in ("peak", "total", "values"):
        getattr(padded, name)[:, :, :, :pages] = getattr(partial, name)
    classes = Partial.empty((*outer, PAGE_CLASSES), head_dim)
    for turn in range(turns):
        span = slice(turn * PAGE_CLASSES, (turn + 1) * PAGE_CLASSES)
        classes = classes.merge(_span(padded, span))
    half = PAGE_CLASSES // 2
    while half:
        classes = _span(classes, slice(0, half)).merge(_span(classes, slice(half, 2 * half)))
        half //= 2
    result = mul(classes.values, reciprocal(classes.total)[..., None])
    return result.reshape(len(scores), -1)


def _span(part: Partial, span: slice) -> Partial:
    return Partial(part.peak[:, :, :, span], part.total[:, :, :, span],
                   part.values[:, :, :, span])


def merge_top(values: F32, tokens: NDArray[np.uint32], more: F32, first: int,
              count: int) -> tuple[F32, NDArray[np.uint32]]:
    """Merge a run of logits into the best so far, the best first; a tie goes to the lower token.

    ``more`` are the logits of tokens ``first``, ``first + 1``, ...; NaNs are never among the best.
    Returns ``count`` values and their tokens.
    """
    kept = ~np.isnan(more)
    fresh = (first + np.flatnonzero(kept)).astype(np.uint32)
    all_values, all_tokens = np.concatenate([values, more[kept]]), np.concatenate([tokens, fresh])
    best = np.lexsort((all_tokens, -all_values))[:count]
    return all_values[best], all_tokens[best]


def describe() -> str:
    """Return every constant that a result depends on, as text."""
    tables = [array.tobytes().hex() for array in (EXP2_POLY, RECIPROCAL_TABLE, RSQRT_TABLE,
                                                  ERF_POLY)]
    return repr((CODE_MAX, PAGE_TOKENS, PAGE_CLASSES, PARTIALS, SOFTMAX_BITS, GROUPS, tables))
