"""Functions of :mod:`alula.hw.numerics` as pipelines; the same operations in the same order."""

import numpy as np
from amaranth.hdl import Cat, Const, Mux, signed

from alula.hw import fp, numerics

_TABLE_BITS = 15  # of an entry in [1/2, 1): 16 bits, of which the first is 1


def exp2(p, x):
    """Return ``2**x``."""
    whole, power = _nearest_integer(p, x)
    return _power_of_two(p, x, power, p.sub(x, whole))


def exp(p, x):
    """Return ``e**x``."""
    scaled = p.mul(x, p.const(numerics.LOG2_E))
    whole, power = _nearest_integer(p, scaled)
    rest = p.sub(x, p.mul(whole, p.const(numerics.LN2_HIGH)))
    rest = p.sub(rest, p.mul(whole, p.const(numerics.LN2_LOW)))
    return _power_of_two(p, scaled, power, p.mul(rest, p.const(numerics.LOG2_E)))


def _nearest_integer(p, x):
    """Return the nearest integer, clipped to [-150, 150], as fp32 and as a signed number."""
    limit = fp.constant(150)
    inside = p.apply(lambda x: Mux(fp.is_nan(x) | (x[:31] <= limit[:31]), x,
                                   Cat(limit[:31], x[31])), x)
    large = p.add(inside, p.const(numerics.ROUND_MAGIC))
    power = p.apply(lambda bits: bits[:9].as_signed(), large, latency=0)
    return p.sub(large, p.const(numerics.ROUND_MAGIC)), power


def _power_of_two(p, x, power, part):
    """Return ``2**power * 2**part``; ``x`` is their sum and decides the range."""
    def place(x):
        low = x[31] & (x[:31] > fp.to_bits(126))
        high = ~x[31] & (x[:31] >= fp.to_bits(128))
        nan = fp.is_nan(x)
        return ~low & ~high & ~nan, nan, high
    inside, nan, high = p.apply(place, x)
    part = p.mux(inside, part, p.const(0))
    value = horner(p, numerics.EXP2_POLY, part)
    value = p.scale_by_power(value, power)
    return p.apply(lambda value, inside, nan, high: Mux(
        inside, value, Mux(nan, fp.NAN, Mux(high, fp.INFINITY, 0))),
        value, inside, nan, high, shape=32)


def horner(p, coefficients, x):
    """Return a polynomial, its coefficients given highest power first."""
    value = p.const(coefficients[0])
    for coefficient in coefficients[1:]:
        value = p.add(p.mul(value, x), p.const(coefficient))
    return value


def guess(p, table, index):
    """Return the entry of a table of numbers in [1/2, 1) with 16 bits."""
    entries = (table * np.float32(1 << 16)).astype(np.int64) - (1 << _TABLE_BITS)
    assert (entries >> _TABLE_BITS == 0).all()
    bits = p.lookup(entries.tolist(), _TABLE_BITS, index)
    return p.apply(lambda bits: Cat(Const(0, 23 - _TABLE_BITS), bits, Const(fp.BIAS - 1, 9)),
                   bits, latency=0)


def _special(p, x, value, *, negative, zero, infinite):
    """Return ``value`` where ``x`` is a number that is not zero, in two clocks."""
    flags = p.apply(lambda x: Cat(fp.is_nan(x) | negative(x), fp.is_zero(x), fp.is_infinite(x)), x)
    choice = p.apply(lambda flags, x: Mux(flags[0], fp.NAN, Mux(flags[1], zero(x), infinite(x))),
                     flags, x, shape=32)
    return p.apply(lambda flags, choice, value: Mux(flags.any(), choice, value),
                   flags, choice, value)


def reciprocal(p, x):
    """Return ``1 / x``."""
    m = p.apply(lambda x: Cat(x[:23], Const(fp.BIAS, 9)), x, latency=0)
    y = guess(p, numerics.RECIPROCAL_TABLE, p.apply(lambda x: x[16:23], x, latency=0))
    for _ in range(2):
        y = p.mul(y, p.sub(p.const(2), p.mul(m, y)))
    power = p.apply(lambda x: fp.BIAS - x[23:31], x)
    y = p.apply(lambda y, x: Cat(y[:31], x[31]), p.scale_by_power(y, power), x, latency=0)
    return _special(p, x, y, negative=lambda x: Const(0, 1),
                    zero=lambda x: Cat(Const(fp.INFINITY, 31), x[31]),
                    infinite=lambda x: Cat(Const(0, 31), x[31]))


def rsqrt(p, x):
    """Return ``1 / sqrt(x)``."""
    half = p.apply(lambda x: Cat(x[:23], ~x[23], Const(63, 8)), x, latency=0)
    index = p.apply(lambda x: Cat(x[17:23], ~x[23]), x, latency=0)
    y = guess(p, numerics.RSQRT_TABLE, index)
    for _ in range(2):
        y = p.mul(y, p.sub(p.const(1.5), p.mul(p.mul(half, y), y)))
    # The exponent is x[23:31] - 127; half of it, rounded down, is taken away.
    power = p.apply(lambda x: -((x[23:31] - fp.BIAS) >> 1), x, shape=signed(9))
    return _special(p, x, p.scale_by_power(y, power),
                    negative=lambda x: x[31] & ~fp.is_zero(x),
                    zero=lambda x: Const(fp.INFINITY, 32), infinite=lambda x: Const(0, 32))


def sigmoid(p, x):
    """Return ``1 / (1 + e**-x)``."""
    return reciprocal(p, p.add(exp(p, p.negate(x)), p.const(1)))
