"""Functions of softmax on little hardware, equal to :mod:`alula.hw.numerics` to the bit.

``2**x`` takes a number every other clock and passes it twice through half of its polynomial's
steps; a page's queries bring no more. A step knows that its sum is near a constant, so that what
is added is the smaller, and that one bit at most has to be shifted in or out.
"""

import numpy as np
from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from alula.hw import fp, functions, numerics
from alula.hw.numerics import SOFTMAX_MAX
from alula.hw.pipe import Pipe

_STEPS = len(numerics.EXP2_POLY) // 2  # in hardware, each used twice
_ONE_HALF = fp.BIAS - 1  # exponent field


def exp2(p, x, turn):
    """Return ``2**x``; ``turn`` alternates, and at stage 0 a number comes where it is 0."""
    part, power, kind = _split(p, x)
    part_in, value_in = Signal(32), Signal(31)
    part_now, value = p.input(part_in, part.stage), p.input(value_in, part.stage)
    constants = [Const(int(bits), 31) for bits in numerics.EXP2_POLY.view(np.uint32)]

    def first(stage):  # whether what is at a stage passes for the first time
        return turn if stage % 2 else ~turn
    for step in range(1, _STEPS + 1):
        value = functions.horner_step(p, value, part_now, lambda stage, step=step: Mux(
            first(stage), constants[step], constants[step + _STEPS]))
    end = value.stage + (value.stage + 1 - part.stage) % 2  # an odd number of clocks later
    begins = first(part.stage)
    p.m.d.comb += [
        value_in.eq(Mux(begins, constants[0], p.at(value, end))),
        part_in.eq(Mux(begins, part.signal, p.at(part_now, end))),
    ]
    value = p.input(value.signal, end + value.stage - part.stage)

    def scale(value, power, inside, nan, high):
        number = Cat(value[:23], (value[23:31] + power)[:8], Const(0, 1))
        return Mux(inside, number, Mux(nan, fp.NAN, Mux(high, fp.INFINITY, 0)))
    return p.apply(scale, value, power, *kind, shape=32)


def _split(p, x):
    """Return ``x`` less the nearest integer, that integer, and ``inside, nan, high``.

    The integer matters where ``2**x`` is a number; outside, the rest is 0.
    """
    def place(bits):
        x = fp.as_float(bits)
        low = x.sign & (bits[:31] > fp.to_bits(126))
        high = ~x.sign & (bits[:31] >= fp.to_bits(128))
        small = x.exponent < _ONE_HALF  # nearest to 0
        significand = Cat(x.fraction, ~fp.is_zero(bits))
        fixed = significand << (x.exponent - _ONE_HALF)[:3]  # 24 bits after the point
        return (fixed[:31], significand, small, x.sign, x.exponent, ~low & ~high & ~fp.is_nan(bits),
                fp.is_nan(bits), high)
    fixed, significand, small, sign, exponent, *kind = p.apply(place, x)

    def nearest(fixed, significand, small, sign, exponent, inside):
        rest, whole = fixed[:24], fixed[24:]
        up = p.wire(rest[23] & (rest[:23].any() | whole[0]) & ~small, "up")
        size = p.wire(whole + up, "size")
        power = Mux(small, 0, Mux(sign, -size, size))
        bits = Mux(small, significand, Mux(up, -rest, rest)[:24])
        return (Mux(inside, bits, 0)[:24], Mux(small, exponent, _ONE_HALF)[:8], sign ^ up,
                power[:9].as_signed())
    bits, exponent, sign, power = p.apply(nearest, fixed, significand, small, sign, exponent,
                                          kind[0])
    for steps in ((16, 8), (4, 2, 1)):
        bits, exponent = p.apply(_shift(p, steps), bits, exponent)
    part = p.apply(lambda bits, exponent, sign: Cat(bits[:23], Mux(bits[23], exponent, 0), sign),
                   bits, exponent, sign, latency=0)
    return part, power, kind


def _shift(p, steps):
    """Shift leading zeros out of a number."""
    def run(bits, exponent):
        for step in steps:
            zeros = p.wire(~bits[-step:].any(), "zeros")
            bits = p.wire(Mux(zeros, Cat(Const(0, step), bits[:-step]), bits), "shifted")
            exponent = p.wire((exponent - Mux(zeros, step, 0))[:8], "exponent")
        return bits, exponent
    return run


class Inverse(wiring.Component):
    """Divide 255 by a number, and the number by 255, with one multiplier.

    Members
    -------
    start, x : ``In``
        ``x`` is held from ``start`` on.
    done : ``Out(1)``
        A pulse; results hold until the next start.
    inverse, back : ``Out``
        ``inverse`` is 0 if ``x`` is.
    """

    start: In(1)
    x: In(32)
    done: Out(1)
    inverse: Out(32)
    back: Out(32)

    def elaborate(self, platform):
        m = Module()
        p = Pipe(m)
        a, y, clock = Signal(32), Signal(32), Signal(range(6 * (fp.MUL_LATENCY + 1)))
        number = fp.as_float(self.x)
        guess = functions.guess(p, numerics.RECIPROCAL_TABLE, p.input(number.fraction[16:]))
        product = p.mul(p.input(a), p.input(y)).signal
        one, step = Cat(number.fraction, Const(fp.BIAS, 9)), fp.MUL_LATENCY + 1
        with m.If(self.start):
            m.d.sync += [clock.eq(1), y.eq(self.x), a.eq(fp.constant(np.float32(1 / SOFTMAX_MAX)))]
        with m.Elif(clock != 0):
            m.d.sync += clock.eq(clock + 1)
        m.d.comb += self.done.eq(clock == 5 * step + 3)
        with m.Switch(clock):
            with m.Case(1):
                m.d.sync += [a.eq(one), y.eq(guess.signal)]
            with m.Case(step):
                m.d.sync += self.back.eq(product)
            with m.Case(step + 1, 3 * step + 1):
                m.d.sync += a.eq(functions.two_less(product))
            with m.Case(2 * step + 1):
                m.d.sync += [y.eq(product), a.eq(one)]
            with m.Case(4 * step + 1):
                m.d.sync += [y.eq(product), a.eq(fp.constant(SOFTMAX_MAX))]
            with m.Case(4 * step + 2):
                m.d.sync += y.eq(self._reciprocal(m, y))
            with m.Case(5 * step + 2):
                m.d.sync += self.inverse.eq(Mux(fp.is_zero(self.x), 0, product))
            with m.Case(5 * step + 3):
                m.d.sync += clock.eq(0)
        return m

    def _reciprocal(self, m, y):
        """Return ``1 / x`` where ``y`` is 1 over the significand of ``x``."""
        x = fp.as_float(self.x)
        power = Signal(signed(10))
        m.d.comb += power.eq(y[23:31] + fp.BIAS - x.exponent)
        small = (power <= 0) | fp.is_infinite(self.x)
        size = Mux(small, 0, Cat(y[:23], power[:8]))
        return Mux(fp.is_nan(self.x), fp.NAN, Cat(size[:31], x.sign))
