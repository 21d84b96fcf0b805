"""One DSP slice: two multiplies that share an operand, and an adder to cascade or accumulate."""

from amaranth.hdl import Cat, ClockSignal, Const, Instance, Module, Mux, Signal, signed
from amaranth.lib import enum, wiring
from amaranth.lib.wiring import In, Out

HIGH_SHIFT = 19  # of ``hi`` in the shared product
BIAS = 1 << HIGH_SHIFT - 1  # so that a low sum does not borrow from the high one
SUM_BITS = 48
LATENCY = 4  # from operands to ``sum``
ADD_DELAY = 2  # from operands to their ``add``


class Add(enum.Enum, shape=4):
    """What is added up: product, the neighbour's sum, the own last sum, ``BIAS``; a bit each."""

    NOTHING = 0b0001  # the product alone
    CASCADE = 0b0011
    OWN = 0b0101
    HOLD = 0b0100  # the own last sum stays, without the product
    BIASED = 0b1001


DSP48E1, DSP48E2 = "DSP48E1", "DSP48E2"  # slices of the 7 series and of UltraScale+


class DspSlice(wiring.Component):
    """Compute ``sum = (hi * 2**19 + lo + shared) * b + (0, the cascade, the last sum or BIAS)``.

    ``hi`` must not be -128 where ``lo`` is negative: the slice's pre-adder has 27 bits, and codes
    are symmetric.

    Parameters
    ----------
    primitive
        Instantiate a slice of this name instead of portable arithmetic; the sums are the same.
    pair
        Whether there is a ``hi``, for which a DSP48E1's pre-adder of 25 bits is too narrow.

    Members
    -------
    lo, hi, b : ``In``
        8, 8 and 9 bits, signed.
    shared : ``In(8)``
        Unsigned. It comes by wires of its own, so ``lo`` needs no choice between the two.
    add : ``In(Add)``
        Belongs to the operands of ``ADD_DELAY`` clocks before.
    cascade : ``In(48)``
        A neighbour's ``cascade_out``, as it is ``LATENCY - 1`` clocks after the operands: that of
        operands a clock earlier than these.
    sum, cascade_out : ``Out(signed(48))``
        ``LATENCY`` clocks after the operands; the latter may only go to a neighbour.
    """

    def __init__(self, primitive="", pair=True):
        if pair and primitive == DSP48E1:
            raise ValueError("a build of several rows must be for DSP48E2, not DSP48E1: its "
                             "slices multiply two rows")
        self.primitive, self.pair = primitive, pair
        super().__init__({
            "lo": In(signed(8)), "b": In(signed(9)), "shared": In(8),
            **({"hi": In(signed(8))} if pair else {}),
            "add": In(Add, init=Add.NOTHING), "cascade": In(signed(SUM_BITS)),
            "sum": Out(signed(SUM_BITS)), "cascade_out": Out(signed(SUM_BITS))})

    def elaborate(self, platform):
        m = Module()
        if self.primitive:
            self._primitive(m)
        else:
            self._portable(m)
        return m

    def _portable(self, m):
        lo, b, shared = (Signal.like(part, name=name, reset_less=True) for part, name in (
            (self.lo, "lo_in"), (self.b, "b_in"), (self.shared, "shared_in")))
        later = Signal(signed(9), reset_less=True)
        joined = Signal(signed(27 if self.pair else 10), reset_less=True)
        product = Signal(signed(len(joined) + 9), reset_less=True)
        high = 0
        if self.pair:
            hi = Signal.like(self.hi, name="hi_in", reset_less=True)
            m.d.sync += hi.eq(self.hi)
            high = hi << HIGH_SHIFT
        mode = Signal(Add, init=Add.NOTHING, reset_less=True)
        base = Signal(signed(SUM_BITS))
        m.d.comb += self.cascade_out.eq(self.sum)
        with m.Switch(mode):
            with m.Case(Add.CASCADE):
                m.d.comb += base.eq(self.cascade)
            with m.Case(Add.OWN, Add.HOLD):
                m.d.comb += base.eq(self.sum)
            with m.Case(Add.BIASED):
                m.d.comb += base.eq(BIAS)
        m.d.sync += [
            lo.eq(self.lo), b.eq(self.b), shared.eq(self.shared),
            joined.eq(high + lo + shared), later.eq(b),
            product.eq(joined * later), mode.eq(self.add),
            self.sum.eq(base + Mux(mode == Add.HOLD, 0, product)),
        ]

    def _primitive(self, m):
        """Registers: A1, D, then AD; B1, B2; M; P. Refs: AMD UG579 and, of DSP48E1, UG479.

        OPMODE: tables of the multiplexers X, Y, Z and, in UltraScale+, W: X = Y = M is X=01, Y=01;
        Z: 000 zero, 001 PCIN, 010 P, 011 C; W: 00 zero, 10 RND. OPMODE has one register, and counts
        when the product is in M.
        """
        product, cascade, own, bias = self.add.as_value()
        operands = Cat(product, Const(0, 1), product, Const(0, 1))
        if self.primitive == DSP48E2:
            bits, constant = 27, Const(0, SUM_BITS)
            opmode = Cat(operands, cascade, own, Const(0, 2), bias)
            special = dict(p_AMULTSEL="AD", p_BMULTSEL="B", p_PREADDINSEL="A",
                           p_USE_WIDEXOR="FALSE", p_RND=Const(BIAS, SUM_BITS))
        else:
            bits, constant = 25, Const(BIAS, SUM_BITS)
            opmode = Cat(operands, cascade | bias, own | bias, Const(0, 1))
            special = dict(p_USE_DPORT="TRUE")
        high = self.hi if self.pair else Const(0, 8)
        a = Cat(self.shared, Const(0, HIGH_SHIFT - len(self.shared)), high,
                high[-1].replicate(3))  # 30 bits
        clock = ClockSignal()
        m.submodules.dsp = Instance(
            self.primitive,
            p_AREG=1, p_ACASCREG=1, p_DREG=1, p_ADREG=1, p_BREG=2, p_BCASCREG=2,
            p_CREG=int(self.primitive == DSP48E2), p_MREG=1, p_PREG=1, p_OPMODEREG=1,
            p_INMODEREG=0, p_ALUMODEREG=0, p_CARRYINREG=0, p_CARRYINSELREG=0,
            p_A_INPUT="DIRECT", p_B_INPUT="DIRECT", p_USE_MULT="MULTIPLY", p_USE_SIMD="ONE48",
            p_USE_PATTERN_DETECT="NO_PATDET", **special,
            i_CLK=clock, i_A=a, i_D=Cat(self.lo, self.lo[-1].replicate(bits - len(self.lo))),
            i_B=Cat(self.b, self.b[-1].replicate(9)), i_C=constant,
            # INMODE (table "INMODE Functions"): bit 2 adds D to A2, which AREG=1 makes the only A.
            i_INMODE=Const(0b00100, 5), i_OPMODE=opmode, i_ALUMODE=Const(0, 4),
            i_CARRYIN=Const(0, 1), i_CARRYINSEL=Const(0, 3),
            i_PCIN=self.cascade, i_ACIN=Const(0, 30), i_BCIN=Const(0, 18),
            i_CARRYCASCIN=Const(0, 1), i_MULTSIGNIN=Const(0, 1),
            **{f"i_CE{name}": Const(1, 1) for name in (
                "A1", "A2", "AD", "ALUMODE", "B1", "B2", "C", "CARRYIN", "CTRL", "D", "INMODE",
                "M", "P")},
            **{f"i_RST{name}": Const(0, 1) for name in (
                "A", "ALLCARRYIN", "ALUMODE", "B", "C", "CTRL", "D", "INMODE", "M", "P")},
            o_P=self.sum, o_PCOUT=self.cascade_out)
