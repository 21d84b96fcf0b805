"""fp32 operations as pipelines, equal to :mod:`alula.hw.numerics` to the bit.

Numbers are raw 32-bit words. Operations round to nearest, ties to even, then flush: a subnormal
result is a zero of its sign, a subnormal operand is taken for one, NaN is always ``NAN``. Each
takes a new operand set every clock and answers its ``*_LATENCY`` clocks later.

Operations take the :class:`~alula.hw.pipe.Pipe` that they extend and its values. Functions of
plain signals, such as :func:`greater`, are combinational.
"""

import numpy as np
from amaranth.hdl import Cat, Const, Mux, Value as Expression, signed
from amaranth.lib import data, enum

from alula.hw.choice import choose

FLOAT = data.StructLayout({"fraction": 23, "exponent": 8, "sign": 1})
HALF = data.StructLayout({"fraction": 10, "exponent": 5, "sign": 1})
NAN = 0x7FC0_0000
INFINITY = 0x7F80_0000
BIAS = 127
FULL = 255  # exponent field of infinities and NaNs

MUL_LATENCY = 4
ADD_LATENCY = 4
FROM_INT_LATENCY = 3
SCALE_INT_LATENCY = 5
TO_INT_LATENCY = 3
FROM_HALF_LATENCY = 1
MAXIMUM_LATENCY = 1
SCALE_LATENCY = 1
DIV_LATENCY = 16

_EXPONENT = signed(10)  # of a result, before it is known to be in range
_QUOTIENT_BITS = 26  # one before the point, 24 that are kept and a guard
_BITS_A_STAGE = 2  # of a quotient


class Kind(enum.Enum, shape=2):
    """What a result is, apart from its digits."""

    NUMBER = 0
    ZERO = 1
    INFINITE = 2
    NAN = 3


def to_bits(number):
    """Return the word of a number."""
    return int(np.float32(number).view(np.uint32))


def as_float(bits):
    """Return a view of a word's ``fraction, exponent, sign``."""
    return data.View(FLOAT, Expression.cast(bits))


def negated(bits):
    return Cat(bits[:31], ~bits[31])


def magnitude(bits):
    return Cat(bits[:31], Const(0, 1))


def flushed(bits):
    """Return a word of memory with a subnormal made a zero of its sign, and every NaN the one."""
    subnormal = Mux(bits[23:31] == 0, Cat(Const(0, 31), bits[31]), bits)
    return Mux(is_nan(bits), Const(NAN, 32), subnormal)


def is_zero(bits):
    return as_float(bits).exponent == 0


def is_nan(bits):
    x = as_float(bits)
    return (x.exponent == FULL) & (x.fraction != 0)


def is_infinite(bits):
    x = as_float(bits)
    return (x.exponent == FULL) & (x.fraction == 0)


def order(bits):
    """Return a signed number that orders words as their values; zeros are equal, NaN is highest.

    A NaN must be ``NAN``.
    """
    x = as_float(bits)
    low = bits[:31]
    ordered = Mux(x.sign, ~low, low)
    return Mux(x.exponent == 0, 0, Cat(ordered, x.sign)).as_signed()


def greater(a, b):
    """Return whether ``a > b``; false if either is NaN."""
    return (order(a) > order(b)) & ~is_nan(a) & ~is_nan(b)


def equal(a, b):
    """Return whether ``a == b``; false if either is NaN."""
    return (order(a) == order(b)) & ~is_nan(a)


def _kind(nan, infinite, zero):
    return Mux(nan, Kind.NAN, Mux(infinite, Kind.INFINITE, Mux(zero, Kind.ZERO, Kind.NUMBER)))


def _round(p, sign, kind, exponent, significand, guard, sticky, bounded=False):
    """Round a normalised significand of 24 bits, flush, and pack; one clock.

    ``bounded`` says that the exponent cannot run over or under.

    A guard with its sticky bit says what is left below the significand. A significand that rounds
    up to a power of two carries into the exponent, which is why both are one sum.
    """
    def pack(sign, kind, exponent, significand, guard, sticky):
        up = guard & (sticky | significand[0])
        total = p.wire((Cat(significand[:23], exponent) + up)[:33].as_signed(), "rounded")
        power = total[23:33].as_signed()
        nan = p.wire(kind == Kind.NAN.value, "nan")
        full = nan | (kind == Kind.INFINITE.value)
        zero = kind == Kind.ZERO.value
        if not bounded:
            full |= (kind == Kind.NUMBER.value) & (power >= FULL)
            zero |= power <= 0
        # Fractions of what is no number are a reset of the register, not logic before it.
        special = p.wire(full | zero, "special")
        return Cat(Mux(special, 0, total[:22]), Mux(special, nan, total[22]),
                   Mux(full, FULL, Mux(zero, 0, total[23:31])), sign & ~nan)
    return p.apply(pack, sign, kind, exponent, significand, guard, sticky, shape=32)


def _leading(p, bits):
    """Return how many leading zeros a value has, and the value without them.

    Choices of four, the longest step first, are a LUT a bit each. No bits at all give any count.
    """
    width, count = len(bits), []
    step = 4 ** ((width - 1).bit_length() + 1 >> 1)
    while step > 1:
        step //= 4
        places = range(0, min(4 * step, width), step)
        some = [p.wire(bits[max(0, width - at - step):width - at].any(), "some") for at in places]
        some += [Const(0, 1)] * (4 - len(some))
        digit = p.wire(Cat(~some[0] & (some[1] | ~some[2]), ~some[0] & ~some[1]), "digit")
        bits = p.wire(choose(digit, [Cat(Const(0, at), bits[:width - at]) for at in places]),
                      "shifted")
        count.insert(0, digit)
    return Cat(*count), bits


def _normalize(p, sign, kind, exponent, bits, bounded=False):
    """Shift leading zeros out of ``bits``, whose top bit has ``exponent``; then round. 2 clocks.

    No bits at all give a zero of the sign.
    """
    def shift(exponent, bits):
        count, bits = _leading(p, bits)
        return (exponent - count)[:len(exponent)].as_signed(), bits
    exponent, bits = p.apply(shift, exponent, bits)
    parts = p.apply(lambda bits, kind: (
        bits[-24:], bits[-25], bits[:-25].any(),
        Mux((kind == Kind.NUMBER.value) & ~bits[-1], Kind.ZERO, kind)), bits, kind, latency=0)
    significand, guard, sticky, kind = parts
    return _round(p, sign, kind, exponent, significand, guard, sticky, bounded)


def _keep_smallest(exponent, significand):
    """Return whether a result just below the smallest normal number becomes it.

    An exponent of 0 leaves 23 bits to a subnormal; if all 24 are ones, rounding them off carries.
    """
    return (exponent == 0) & significand.all()


def multiply(p, a, b):
    """Return ``a * b``."""
    def unpack(a, b):
        x, y = as_float(a), as_float(b)
        zero = is_zero(a) | is_zero(b)
        infinite = (x.exponent == FULL) | (y.exponent == FULL)
        nan = is_nan(a) | is_nan(b) | (infinite & zero)
        biased = p.wire((x.exponent + y.exponent + 1)[:9], "biased")
        exponent = Cat(biased[:7], (biased[7:] - 1)[:3])  # less BIAS + 1
        return x.sign ^ y.sign, _kind(nan, infinite, zero), exponent.as_signed()
    sign, kind, exponent = p.apply(unpack, a, b)
    # Two registers: those of a DSP slice's multiplier and of its adder.
    product = p.apply(lambda a, b: Cat(a[:23], Const(1, 1)) * Cat(b[:23], Const(1, 1)), a, b,
                      latency=2)

    def normalize(product, exponent):
        top = product[47]
        significand = p.wire(Mux(top, product[24:48], product[23:47]), "significand")
        power = p.wire((exponent + top)[:10].as_signed(), "power")
        keep = p.wire(_keep_smallest(power, significand), "keep")
        guard = Mux(top, product[23], product[22]) | keep
        sticky = product[:22].any() | (top & product[22]) | keep
        return power, significand, guard, sticky
    return _round(p, sign, kind, *p.apply(normalize, product, exponent))


def add(p, a, b, positive=False):
    """Return ``a + b``; a clock earlier if neither's sign is set, which ``positive`` says."""
    def swap(a, b):
        less = p.wire(a[:31] < b[:31], "less")
        x, y = as_float(a), as_float(b)
        nan = is_nan(a) | is_nan(b) | (is_infinite(a) & is_infinite(b) & (x.sign ^ y.sign))
        infinite = (x.exponent == FULL) | (y.exponent == FULL)
        big, small = (p.wire(Mux(less, *pair), "exponent")
                      for pair in ((y.exponent, x.exponent), (x.exponent, y.exponent)))
        apart = p.wire((big - small)[:8], "apart")
        one, other = _significand(x), _significand(y)
        return (Mux(less, y.sign, x.sign), x.sign ^ y.sign, _kind(nan, infinite, Const(0, 1)),
                big, Mux(less, other, one), Mux(less, one, other),
                apart[:5] | apart[5:].any().replicate(5))
    sign, subtract, kind, exponent, big, small, apart = p.apply(swap, a, b)

    def total(big, small, apart, subtract):
        small = aligned(p, small, apart)
        # One carry chain for both: the complement's 1 is its carry in.
        return (Cat(Const(0, 3), big) + (small ^ subtract.replicate(28)) + subtract)[:28]
    bits = p.apply(total, big, small, apart, subtract)
    # The top bit is the carry's, one above the exponent's.
    exponent = p.apply(lambda e: (e + 1).as_signed(), exponent, shape=_EXPONENT)
    # What cancels to nothing is +0.
    sign = p.apply(lambda sign, subtract, bits: sign & ~(subtract & ~bits.any()),
                   sign, subtract, bits)
    if not positive:
        return _normalize(p, sign, kind, exponent, bits)

    def shift(bits, exponent, kind):
        carry = bits[27]
        return (exponent - ~carry, Mux(carry, bits[4:], bits[3:27]), Mux(carry, bits[3], bits[2]),
                bits[:2].any() | (carry & bits[2]),
                Mux((kind == Kind.NUMBER.value) & ~bits[26:].any(), Kind.ZERO, kind))
    exponent, significand, guard, sticky, kind = p.apply(shift, bits, exponent, kind, latency=0)
    return _round(p, sign, kind, exponent, significand, guard, sticky)


def aligned(p, significand, apart):
    """Return 28 bits of an addend: a bit for what is lost, 26 of ``significand * 4``, and a 0."""
    return Cat(*_shifted_right(p, Cat(Const(0, 2), significand), apart), Const(0, 1))


def _shifted_right(p, bits, by):
    """Return whether ones are shifted out, and bits shifted right."""
    lost, left = Const(0, 1), len(by)
    while left:
        taken = min(2, left)
        left -= taken
        digit = by[left:left + taken]
        places = [min(choice << left, len(bits)) for choice in range(1 << taken)]
        lost = p.wire(lost | choose(digit, [bits[:place].any() for place in places]), "lost")
        bits = p.wire(choose(digit, [Cat(bits[place:], Const(0, place)) for place in places]),
                      "shifted")
    return lost, bits


def _significand(x):
    return Mux(x.exponent == 0, 0, Cat(x.fraction, Const(1, 1)))


def divide(p, a, b):
    """Return ``a / b``, a bit pair of the quotient a stage."""
    def unpack(a, b):
        x, y = as_float(a), as_float(b)
        infinite, zero = (x.exponent == FULL) | is_zero(b), is_zero(a) | (y.exponent == FULL)
        nan = is_nan(a) | is_nan(b) | (is_zero(a) & is_zero(b)) | (
            (x.exponent == FULL) & (y.exponent == FULL))
        exponent = (x.exponent - y.exponent + BIAS)[:10].as_signed()
        return (x.sign ^ y.sign, _kind(nan, infinite, zero), exponent,
                Cat(x.fraction, Const(1, 1), Const(0, 1)), Cat(y.fraction, Const(1, 1)))
    sign, kind, exponent, rest, divisor = p.apply(unpack, a, b)
    quotient = None

    def digits(rest, divisor, quotient=None):
        found = []
        for _ in range(_BITS_A_STAGE):
            less = p.wire(rest - divisor, "less")
            found.insert(0, ~less[-1])
            rest = p.wire(Cat(Const(0, 1), Mux(less[-1], rest, less)[:24]), "rest")
        return rest, Cat(*found) if quotient is None else Cat(*found, quotient)
    for _ in range(_QUOTIENT_BITS // _BITS_A_STAGE):
        parts = (rest, divisor) if quotient is None else (rest, divisor, quotient)
        rest, quotient = p.apply(digits, *parts)

    def normalize(quotient, rest, exponent):
        top = quotient[25]
        significand = p.wire(Mux(top, quotient[2:26], quotient[1:25]), "significand")
        power = p.wire((exponent - ~top)[:10].as_signed(), "power")
        keep = p.wire(_keep_smallest(power, significand), "keep")
        guard = Mux(top, quotient[1], quotient[0]) | keep
        sticky = rest.any() | (top & quotient[0]) | keep
        return power, significand, guard, sticky
    return _round(p, sign, kind, *p.apply(normalize, quotient, rest, exponent))


def from_int(p, n):
    """Return a signed integer of at most 32 bits, rounded to fp32; -2**31 too."""
    sign, bits = p.apply(_sign_and_size, n)
    width = n.signal.shape().width
    exponent = p.literal(BIAS + width - 1, _EXPONENT)
    if width > 24:
        return _normalize(p, sign, p.literal(Kind.NUMBER.value, 2), exponent, bits, bounded=True)

    def pack(sign, bits):
        count, shifted = _leading(p, bits)
        power = Mux(bits.any(), (BIAS + width - 1 - count)[:8], 0)
        return Cat(Const(0, 24 - width), shifted[:-1], power, sign)
    return p.delay(p.apply(pack, sign, bits, shape=32), FROM_INT_LATENCY - 2)


def _sign_and_size(n):
    return n[-1], ((n ^ n[-1].replicate(len(n))) + n[-1])[:len(n)]


def scale_int(p, n, half):
    """Return a signed integer of at most 24 bits, times an fp16 word, rounded to fp32.

    Of its finite factors the integer is exact in fp32, so this is their product in fp32.
    """
    width = n.signal.shape().width

    def unpack(n, half):
        x = data.View(HALF, half)
        full = x.exponent == 31
        nan = full & ((x.fraction != 0) | (n == 0))
        return n[-1] ^ x.sign, _kind(nan, full, Const(0, 1)), Cat(
            x.exponent[0] | (x.exponent == 0), x.exponent[1:])
    sign, kind, exponent = p.apply(unpack, n, half)
    size = p.apply(lambda n: _sign_and_size(n)[1], n)
    digits = p.apply(lambda half: Cat(half[:10], half[10:15] != 0), half)
    product = p.apply(lambda size, digits: size * digits, size, digits, latency=2)
    # The top bit of the product has this exponent.
    exponent = p.apply(lambda e: (e + (BIAS - 15 - 10 + width + 10)).as_signed(), exponent,
                       shape=_EXPONENT)
    # An integer below 2**24 times an fp16 number is neither too large nor too small.
    return _normalize(p, sign, kind, exponent, product, bounded=True)


def to_int(p, x, low, high):
    """Return ``x`` rounded to an integer, ties to even, within ``[low, high]``; NaN gives 0.

    ``low`` is at most 0, ``high`` at least 0; below 2**22 in magnitude.
    """
    width = max(-low, high).bit_length()
    most = BIAS + width - 1  # exponent of the largest numbers that are not clipped

    def place(bits):
        x = as_float(bits)
        away = p.wire(most - x.exponent, "away")  # negative: too large
        shift = Mux(away > width, width + 1, away)[:(width + 1).bit_length()]
        return x.sign, is_nan(bits), away < 0, shift, Cat(x.fraction, ~is_zero(bits))
    sign, nan, large, shift, bits = p.apply(place, x)

    def cut(bits, shift):
        rest, kept = bits[:-width - 1].any(), bits[-width - 1:]
        lost, kept = _shifted_right(p, kept, shift)
        return kept[1:], kept[0] & (lost | rest | kept[1])
    whole, up = p.apply(cut, bits, shift)

    def clip(sign, nan, large, whole, up):
        size = p.wire(whole + up, "size")
        most = Mux(sign, -low, high)
        size = Mux(nan, 0, Mux(large | (size > most), most, size))
        return Mux(sign, -size, size)
    shape = signed(width + 1) if low < 0 else width
    return p.apply(clip, sign, nan, large, whole, up, shape=shape)


def from_half(p, half):
    """Return an fp16 word as fp32, exactly: fp16 subnormals are normal fp32 numbers."""
    def widen(bits):
        x = data.View(HALF, bits)
        fraction, count = x.fraction, []
        for step in (8, 4, 2, 1):  # leading zeros of a subnormal
            zeros = p.wire(~fraction[-step:].any(), "zeros")
            fraction = p.wire(Mux(zeros, fraction << step, fraction)[:10], "fraction")
            count.insert(0, zeros)
        small = Cat(Const(0, 14), fraction[:9], (BIAS - 15 - Cat(*count))[:8])
        subnormal = Mux(x.fraction == 0, 0, small)
        normal = Cat(Const(0, 13), x.fraction, (x.exponent + (BIAS - 15))[:8])
        special = Mux(x.fraction == 0, INFINITY, NAN)
        size = Mux(x.exponent == 0, subnormal, Mux(x.exponent == 31, special, normal))
        return Cat(size[:31], x.sign & ~((x.exponent == 31) & (x.fraction != 0)))
    return p.apply(widen, half, shape=32)


def maximum(p, a, b):
    """Return the larger of two words, NaN if either is; of zeros ``a``."""
    def choose(a, b):
        chosen = p.wire(Mux(is_nan(a) | (~is_nan(b) & (order(a) >= order(b))), a, b), "chosen")
        return Cat(Mux(is_zero(chosen), 0, chosen[:31]), chosen[31])
    return p.apply(choose, a, b)


def scale_by_power(p, x, power):
    """Return ``x * 2**power`` for a signed ``power``; out of range gives zero or infinity."""
    def scale(bits, power):
        x = as_float(bits)
        new = p.wire(x.exponent + power, "exponent")
        stays = x.exponent == FULL
        zero = (new <= 0) | is_zero(bits)
        large = new >= FULL
        # Fractions of what is out of range are a reset of the register, not logic before it.
        return Cat(Mux(~stays & (zero | large), 0, x.fraction),
                   Mux(stays, FULL, Mux(zero, 0, Mux(large, FULL, new[:8]))), x.sign)
    return p.apply(scale, x, power, shape=32)


def constant(number):
    """Return a word as a constant for combinational use."""
    return Const(to_bits(number), 32)
