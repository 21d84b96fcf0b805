"""The contract's operations on one fp32 number each, for compiled loops.

What each computes is its namesake's in :mod:`alula.hw.numerics`, to the bit: same operations, same
order, each result flushed. A test compares them over random and special values.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from alula.host.cpu.compiled import inlined
from alula.hw import numerics

_ZERO, _ONE, _TWO, _HALF = (np.float32(value) for value in (0, 1, 2, 0.5))
_THREE_HALVES, _INFINITY, _NAN = (np.float32(value) for value in (1.5, np.inf, np.nan))
_SIGN, _EXPONENT, _FRACTION = np.uint32(1 << 31), np.uint32(0x7F80_0000), np.uint32(0x7F_FFFF)
_NAN_BITS = np.uint32(0x7FC0_0000)
_UNIT_EXPONENT, _HALF_EXPONENT = np.uint32(0x3F80_0000), np.uint32(0x3F00_0000)
MAGIC = numerics.ROUND_MAGIC
_LOG2_E, _LN2_HIGH, _LN2_LOW = numerics.LOG2_E, numerics.LN2_HIGH, numerics.LN2_LOW
_RECIPROCALS, _RSQRTS = numerics.RECIPROCAL_TABLE, numerics.RSQRT_TABLE
_E0, _E1, _E2, _E3, _E4, _E5, _E6 = numerics.EXP2_POLY
_G0, _G1, _G2, _G3, _G4 = numerics.ERF_POLY
_LOW, _HIGH = np.float32(-150), np.float32(150)
_LEAST, _MOST = np.float32(-126), np.float32(128)
_GELU_CUBE, _GELU_SCALE = numerics.GELU_CUBE, numerics.GELU_SCALE
_ERF_P, _SQRT_HALF = numerics.ERF_P, numerics.SQRT_HALF


def _reinterpreted(source: Any, target: Any) -> Any:
    def typed(typing: Any, value: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.bitcast(arguments[0], context.get_value_type(target))
        return target(source), emit
    return intrinsic(typed)


bits_of = _reinterpreted(types.float32, types.uint32)
number_of = _reinterpreted(types.uint32, types.float32)


@intrinsic
def multiply_add(typing: Any, total: Any, a: Any, b: Any) -> Any:
    """Return ``total + a * b`` of integers, in 32 bits: numba's own would be of 64."""
    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        total, a, b = (context.cast(builder, value, kind, types.int32)
                       for value, kind in zip(arguments, signature.args, strict=True))
        return builder.add(total, builder.mul(a, b))
    return types.int32(total, a, b), emit


@inlined
def canonical(x):
    bits = bits_of(x)
    bits = (bits & _SIGN) if (bits & _EXPONENT) == 0 else bits
    return number_of(_NAN_BITS if x != x else bits)


@inlined
def add(a, b):
    return canonical(a + b)


@inlined
def sub(a, b):
    return canonical(a - b)


@inlined
def mul(a, b):
    return canonical(a * b)


@inlined
def div(a, b):
    return canonical(a / b)


@inlined
def scale_by_power(x, power):
    bits = bits_of(x)
    sign = bits & _SIGN
    old = np.int32((bits & _EXPONENT) >> np.uint32(23))
    new = np.int32(old + np.int32(power))
    moved = (bits & (_SIGN | _FRACTION)) | (np.uint32(new) << np.uint32(23))
    moved = (sign | _EXPONENT) if new >= 255 else moved
    moved = sign if (new <= 0) | (old == 0) else moved
    return number_of(bits if old == 255 else moved)


@inlined
def _nearest_integer(x):
    inside = _LOW if x < _LOW else x
    inside = _HIGH if inside > _HIGH else inside
    return (inside + MAGIC) - MAGIC


@inlined
def _power_of_two(x, power, part):
    inside = (x >= _LEAST) & (x < _MOST)
    part = part if inside else _ZERO
    value = add(mul(_E0, part), _E1)
    value = add(mul(value, part), _E2)
    value = add(mul(value, part), _E3)
    value = add(mul(value, part), _E4)
    value = add(mul(value, part), _E5)
    value = add(mul(value, part), _E6)
    value = scale_by_power(value, np.int32(power if inside else _ZERO))
    outside = _INFINITY if x >= _MOST else _ZERO
    value = value if inside else outside
    return canonical(x if x != x else value)


@inlined
def exp2(x):
    power = _nearest_integer(x)
    return _power_of_two(x, power, sub(x, power))


@inlined
def exp(x):
    scaled = mul(x, _LOG2_E)
    power = _nearest_integer(scaled)
    rest = sub(sub(x, mul(power, _LN2_HIGH)), mul(power, _LN2_LOW))
    return _power_of_two(scaled, power, mul(rest, _LOG2_E))


@inlined
def reciprocal(x):
    bits = bits_of(x)
    fraction = bits & _FRACTION
    exponent = np.int32((bits & _EXPONENT) >> np.uint32(23)) - np.int32(127)
    m = number_of(fraction | _UNIT_EXPONENT)
    y = _RECIPROCALS[fraction >> np.uint32(16)]
    y = mul(y, sub(_TWO, mul(m, y)))
    y = mul(y, sub(_TWO, mul(m, y)))
    sign = bits & _SIGN
    y = scale_by_power(number_of(bits_of(y) | sign), -exponent)
    y = number_of(sign | _EXPONENT) if x == _ZERO else y
    y = number_of(sign) if (bits & ~_SIGN) == _EXPONENT else y
    return canonical(x if x != x else y)


@inlined
def rsqrt(x):
    bits = bits_of(x)
    fraction = bits & _FRACTION
    exponent = np.int32((bits & _EXPONENT) >> np.uint32(23)) - np.int32(127)
    odd = np.uint32(exponent & np.int32(1))
    half = number_of((fraction | _HALF_EXPONENT) + (odd << np.uint32(23)))
    y = _RSQRTS[(odd << np.uint32(6)) | (fraction >> np.uint32(17))]
    y = mul(y, sub(_THREE_HALVES, mul(mul(half, y), y)))
    y = mul(y, sub(_THREE_HALVES, mul(mul(half, y), y)))
    y = scale_by_power(y, -(exponent >> np.int32(1)))
    y = _ZERO if bits == _EXPONENT else y
    y = _INFINITY if x == _ZERO else y
    return canonical(_NAN if (x < _ZERO) | (x != x) else y)


@inlined
def sigmoid(x):
    return reciprocal(add(exp(-x), _ONE))


@inlined
def silu(x):
    return mul(x, sigmoid(x))


@inlined
def relu(x):
    return x if x > _ZERO else _ZERO


@inlined
def gelu_tanh(x):
    cube = mul(mul(mul(x, x), x), _GELU_CUBE)
    return mul(x, sigmoid(mul(add(x, cube), _GELU_SCALE)))


@inlined
def gelu(x):
    z = mul(abs(x), _SQRT_HALF)
    t = reciprocal(add(mul(z, _ERF_P), _ONE))
    poly = add(mul(_G0, t), _G1)
    poly = add(mul(poly, t), _G2)
    poly = add(mul(poly, t), _G3)
    poly = add(mul(poly, t), _G4)
    tail = mul(mul(mul(poly, t), exp(-mul(z, z))), _HALF)
    return mul(x, tail if x < _ZERO else sub(_ONE, tail))


@inlined
def round_to_int(x, low, high):
    """Round to the nearest integer within limits of at most 2**22; NaN gives 0."""
    x = _ZERO if x != x else x
    x = low if x < low else x
    x = high if x > high else x
    return np.int32((x + MAGIC) - MAGIC)
