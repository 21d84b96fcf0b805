"""Functions of :mod:`alula.hw.numerics` as pipelines; the same operations in the same order."""

import numpy as np
from amaranth.hdl import Cat, Const, Mux, signed

from alula.hw import fp, numerics

_WHOLE_BITS = 7  # of numbers below 128
_TABLE_BITS = 15  # of an entry in [1/2, 1): 16 bits, of which the first is 1


def exp(p, x):
    """Return ``e**x``."""
    scaled = p.mul(x, p.const(numerics.LOG2_E))
    power = _nearest_integer(p, scaled)
    whole = fp.from_int(p, power)
    rest = p.sub(x, p.mul(whole, p.const(numerics.LN2_HIGH)))
    rest = p.sub(rest, p.mul(whole, p.const(numerics.LN2_LOW)))
    return _power_of_two(p, scaled, power, p.mul(rest, p.const(numerics.LOG2_E)))


def _nearest_integer(p, x):
    """Return the nearest integer, if it is at most 128; of larger numbers anything."""
    def place(x):
        number = fp.as_float(x)
        apart = (_WHOLE_BITS + fp.BIAS - 1 - number.exponent)[:3]
        small = number.exponent < fp.BIAS - 1
        return Cat(Const(0, _WHOLE_BITS), number.fraction, Const(1, 1)) >> apart, small, number.sign

    def nearest(fixed, small, sign):
        whole, half, rest = fixed[24:], fixed[23], fixed[:23].any()
        size = p.wire(Mux(small, 0, whole + (half & (rest | whole[0]))), "size")
        return Mux(sign, -size, size)
    return p.apply(nearest, *p.apply(place, x), shape=signed(_WHOLE_BITS + 2))


def _power_of_two(p, x, power, part):
    """Return ``2**power * 2**part``; ``x`` is their sum and decides the range."""
    def place(x):
        low = x[31] & (x[:31] > fp.to_bits(126))
        high = ~x[31] & (x[:31] >= fp.to_bits(128))
        nan = fp.is_nan(x)
        return ~low & ~high & ~nan, nan, high
    inside, nan, high = p.apply(place, x)
    part = p.mux(inside, part, p.const(0))
    value = p.const(numerics.EXP2_POLY[0])
    for coefficient in numerics.EXP2_POLY[1:]:
        value = horner_step(p, value, part, lambda _, number=coefficient: fp.constant(number))
    value = p.apply(lambda value: Cat(value, Const(0, 1)), value, latency=0)
    value = p.scale_by_power(value, power)
    return p.apply(lambda value, inside, nan, high: Mux(
        inside, value, Mux(nan, fp.NAN, Mux(high, fp.INFINITY, 0))),
        value, inside, nan, high, shape=32)


def horner_step(p, value, part, constant):
    """Return ``value * part + constant``, both rounded.

    Value and constant are positive, ``part`` within a half of 0, and the product less than half of
    the constant; one that is too small for the sum, as 0 is, is as good as any. ``constant``
    gives the constant at a stage.
    """
    product = p.apply(lambda v, x: Cat(v[:23], Const(1, 1)) * Cat(x[:23], Const(1, 1)),
                      value, part, latency=2)
    power = p.apply(lambda v, x: (v[23:31] + x[23:31] - fp.BIAS)[:10].as_signed(), value, part)

    def rounded(product, power):
        top = product[47]
        significand = p.wire(Mux(top, product[24:48], product[23:47]), "significand")
        guard = Mux(top, product[23], product[22])
        up = guard & (product[:22].any() | (top & product[22]) | significand[0])
        return (Cat(significand[:23], (power + top)[:10]) + up)[:33]
    product = p.apply(rounded, product, power)
    at = product.stage

    def align(product):
        apart = p.wire((constant(at)[23:31] - product[23:33].as_signed())[:10], "apart")
        return fp.aligned(p, Cat(product[:23], Const(1, 1)),
                          apart[:5] | apart[5:].any().replicate(5))
    small = p.apply(align, product)

    def total(small, sign):
        # One carry chain for both: the complement's 1 is its carry in.
        big = Cat(Const(0, 3), constant(at + 1)[:23], Const(1, 1))
        return (big + (small ^ sign.replicate(28)) + sign)[:28]
    bits = p.apply(total, small, p.apply(lambda x: x[31], part, latency=0))

    def pack(bits):
        up, same = bits[27], bits[26]
        kept = p.wire(Mux(up, bits[1:28], Mux(same, bits[:27], Cat(Const(0, 1), bits[:26]))),
                      "kept")
        exponent = (constant(at + 2)[23:31] + up - ~(up | same))[:8]
        rest = kept[:2].any() | (up & bits[0])
        return (Cat(kept[3:26], exponent) + (kept[2] & (rest | kept[3])))[:31]
    return p.apply(pack, bits)


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
        y = p.mul(y, p.apply(two_less, p.mul(m, y), shape=32))
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


def two_less(x):
    """Return ``2 - x`` for ``x`` from 1/2 up to, not including, 2."""
    large = x[23]  # at least 1: exponents are 126 and 127
    odd = Cat(Const(0, 1), -x[:23])[:24]
    double = (Const(1 << 23, 24) - x[:23])[:24]
    half = (double[1:] + (double[0] & double[1]))[:24]
    below = Mux(x[:23] == 0, fp.constant(1), Cat(odd[:23], Const(fp.BIAS - 1, 9)))
    return Mux(large, below, (Const(fp.BIAS << 23, 32) + half)[:32])
