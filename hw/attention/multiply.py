"""A product that may take its time, without a DSP slice."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out


class Multiplier(wiring.Component):
    """Multiply, a bit of ``a`` a clock, the highest first; modulo the width of ``b``.

    Members
    -------
    start, a : ``In``
        ``a`` is taken at ``start``.
    b : ``In``
        Steady.
    busy : ``Out(1)``
        From the clock after ``start`` until ``total`` is the product, which holds.
    """

    def __init__(self, a_bits, b_bits):
        super().__init__({"start": In(1), "a": In(a_bits), "b": In(b_bits), "busy": Out(1),
                          "total": Out(b_bits)})

    def elaborate(self, platform):
        m = Module()
        rest, left = Signal.like(self.a), Signal(range(len(self.a) + 1))
        m.d.comb += self.busy.eq(left != 0)
        with m.If(self.start):
            m.d.sync += [rest.eq(self.a), left.eq(len(self.a)), self.total.eq(0)]
        with m.Elif(self.busy):
            m.d.sync += [rest.eq(rest << 1), left.eq(left - 1),
                         self.total.eq(Cat(Const(0, 1), self.total) + Mux(rest[-1], self.b, 0))]
        return m
