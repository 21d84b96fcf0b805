"""The numerics contract in Triton: the operations and functions of :mod:`alula.hw.numerics`.

Each has the name and the meaning that it has there. Kernels are launched with fusing of multiplies
and adds off; of Triton's own functions only those that are exact or correctly rounded are used.
"""

from __future__ import annotations

import triton
import triton.language as tl

from alula.hw import numerics

_LOG2_E = tl.constexpr(float(numerics.LOG2_E))
_LN2_HIGH = tl.constexpr(float(numerics.LN2_HIGH))
_LN2_LOW = tl.constexpr(float(numerics.LN2_LOW))
_ROUND_MAGIC = tl.constexpr(float(numerics.ROUND_MAGIC))
_EXP2_POLY = tl.constexpr(tuple(float(c) for c in numerics.EXP2_POLY))
_ERF_POLY = tl.constexpr(tuple(float(c) for c in numerics.ERF_POLY))
_ERF_P = tl.constexpr(float(numerics.ERF_P))
_SQRT_HALF = tl.constexpr(float(numerics.SQRT_HALF))
_GELU_CUBE = tl.constexpr(float(numerics.GELU_CUBE))
_GELU_SCALE = tl.constexpr(float(numerics.GELU_SCALE))
_CODE_MAX = tl.constexpr(float(numerics.CODE_MAX))
_INF = tl.constexpr(float("inf"))
_NAN_BITS = tl.constexpr(0x7FC0_0000)
RSQRT_AT = tl.constexpr(numerics.RECIPROCAL_TABLE.size)  # in the table of both


@triton.jit
def canonical(x):
    bits = x.to(tl.int32, bitcast=True)
    bits = tl.where((bits & 0x7F800000) == 0, bits & -2147483648, bits)
    bits = tl.where((bits & 0x7FFFFFFF) > 0x7F800000, _NAN_BITS, bits)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def add(a, b):
    return canonical(a + b)


@triton.jit
def sub(a, b):
    return canonical(a - b)


@triton.jit
def mul(a, b):
    return canonical(a * b)


@triton.jit
def div(a, b):
    return canonical(tl.div_rn(a, b))


@triton.jit
def scale_by_power(x, power):
    bits = x.to(tl.int32, bitcast=True)
    old = (bits >> 23) & 0xFF
    new = old + power
    sign = bits & -2147483648
    inside = tl.minimum(tl.maximum(new, 0), 255)
    moved = (bits & -2139095041) | (inside << 23)
    moved = tl.where((new <= 0) | (old == 0), sign,
                     tl.where(new >= 255, sign | 0x7F800000, moved))
    return tl.where(old == 255, bits, moved).to(tl.float32, bitcast=True)


@triton.jit
def round_to_int(x, LOW: tl.constexpr, HIGH: tl.constexpr):
    """Round to nearest, ties to even; ``LOW`` and ``HIGH`` are within 2**22 of 0."""
    x = tl.where(x != x, 0.0, x)
    x = tl.where(x < LOW, LOW * 1.0, tl.where(x > HIGH, HIGH * 1.0, x))
    return ((x + _ROUND_MAGIC) - _ROUND_MAGIC).to(tl.int32)


@triton.jit
def fold(x, OUTER: tl.constexpr, HALF: tl.constexpr):
    """Add the two halves of the last axis, ``(OUTER, 2 * HALF)``."""
    low, high = tl.split(tl.permute(tl.reshape(x, (OUTER, 2, HALF)), (0, 2, 1)))
    return add(low, high)


@triton.jit
def fold_64(x, OUTER: tl.constexpr):
    """Sum ``(OUTER, 64)`` by the contract's binary tree; returns ``(OUTER,)``."""
    x = fold(x, OUTER, 32)
    x = fold(x, OUTER, 16)
    x = fold(x, OUTER, 8)
    x = fold(x, OUTER, 4)
    x = fold(x, OUTER, 2)
    return tl.reshape(fold(x, OUTER, 1), (OUTER,))


@triton.jit
def _nearest_integer(x):
    inside = tl.where(x < -150.0, -150.0, tl.where(x > 150.0, 150.0, x))
    return sub(add(inside, _ROUND_MAGIC), _ROUND_MAGIC)


@triton.jit
def _power_of_two(x, power, part):
    inside = (x >= -126.0) & (x < 128.0)
    part = tl.where(inside, part, 0.0)
    value = tl.zeros_like(part) + _EXP2_POLY[0]
    for i in tl.static_range(1, 7):
        value = add(mul(value, part), _EXP2_POLY[i])
    value = scale_by_power(value, tl.where(inside, power, 0.0).to(tl.int32))
    outside = tl.where(x >= 128.0, _INF, 0.0)
    return canonical(tl.where(x != x, x, tl.where(inside, value, outside)))


@triton.jit
def exp2(x):
    power = _nearest_integer(x)
    return _power_of_two(x, power, sub(x, power))


@triton.jit
def exp(x):
    scaled = mul(x, _LOG2_E)
    power = _nearest_integer(scaled)
    rest = sub(sub(x, mul(power, _LN2_HIGH)), mul(power, _LN2_LOW))
    return _power_of_two(scaled, power, mul(rest, _LOG2_E))


@triton.jit
def reciprocal(x, tables):
    bits = x.to(tl.int32, bitcast=True)
    fraction = bits & 0x7FFFFF
    exponent = ((bits >> 23) & 0xFF) - 127
    sign = bits & -2147483648
    m = (fraction | 0x3F800000).to(tl.float32, bitcast=True)
    y = tl.load(tables + (fraction >> 16))
    for _ in tl.static_range(2):
        y = mul(y, sub(2.0, mul(m, y)))
    y = scale_by_power((y.to(tl.int32, bitcast=True) | sign).to(tl.float32, bitcast=True),
                       -exponent)
    y = tl.where(x == 0.0, (sign | 0x7F800000).to(tl.float32, bitcast=True), y)
    y = tl.where((bits & 0x7FFFFFFF) == 0x7F800000, sign.to(tl.float32, bitcast=True), y)
    return canonical(tl.where(x != x, x, y))


@triton.jit
def rsqrt(x, tables):
    bits = x.to(tl.int32, bitcast=True)
    fraction = bits & 0x7FFFFF
    exponent = ((bits >> 23) & 0xFF) - 127
    odd = exponent & 1
    half = ((fraction | 0x3F000000) + (odd << 23)).to(tl.float32, bitcast=True)
    y = tl.load(tables + RSQRT_AT + ((odd << 6) | (fraction >> 17)))
    for _ in tl.static_range(2):
        y = mul(y, sub(1.5, mul(mul(half, y), y)))
    y = scale_by_power(y, -(exponent >> 1))
    y = tl.where(x == 0.0, _INF, tl.where(x == _INF, 0.0, y))
    nan = (tl.zeros_like(bits) + _NAN_BITS).to(tl.float32, bitcast=True)
    return canonical(tl.where((x < 0.0) | (x != x), nan, y))


@triton.jit
def sigmoid(x, tables):
    return reciprocal(add(exp(-x), 1.0), tables)


@triton.jit
def silu(x, tables):
    return mul(x, sigmoid(x, tables))


@triton.jit
def relu(x):
    return tl.where(x > 0.0, x, 0.0)


@triton.jit
def gelu_tanh(x, tables):
    cube = mul(mul(mul(x, x), x), _GELU_CUBE)
    return mul(x, sigmoid(mul(add(x, cube), _GELU_SCALE), tables))


@triton.jit
def gelu(x, tables):
    magnitude = (x.to(tl.int32, bitcast=True) & 0x7FFFFFFF).to(tl.float32, bitcast=True)
    z = mul(magnitude, _SQRT_HALF)
    t = reciprocal(add(mul(z, _ERF_P), 1.0), tables)
    poly = tl.zeros_like(t) + _ERF_POLY[0]
    for i in tl.static_range(1, 5):
        poly = add(mul(poly, t), _ERF_POLY[i])
    tail = mul(mul(mul(poly, t), exp(-mul(z, z))), 0.5)
    return mul(x, tl.where(x < 0.0, tail, sub(1.0, tail)))


@triton.jit
def quantize(x, SCALE: tl.constexpr):
    """Quantize the last axis of ``(groups, group)``; what is not of the group must be 0."""
    bits = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    peak = tl.max(bits, axis=1).to(tl.float32, bitcast=True)  # as integers: a NaN is the largest
    limit = tl.zeros_like(peak) + _CODE_MAX
    inverse = tl.where(peak == 0.0, 0.0, div(limit, tl.where(peak == 0.0, 1.0, peak)))
    codes = round_to_int(mul(x, inverse[:, None]), -127, 127)
    return codes.to(tl.int8), mul(div(peak, limit), SCALE)
