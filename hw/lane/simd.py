"""A DSP slice as an adder of several short numbers: it takes none of the logic around it."""

from amaranth.hdl import Cat, ClockSignal, Const, Instance, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from alula.hw.lane.slice import DSP48E2

BITS = 48
_MODES = {2: "TWO24", 4: "FOUR12"}  # by fields


class Simd(wiring.Component):
    """Add or subtract two or four numbers, modulo their size.

    Parameters
    ----------
    fields
        Numbers in a word: 2 of 24 bits, or 4 of 12.
    subtract
        ``left - right``, else their sum.
    held
        Keep the operands in registers first, which is a clock more.
    primitive
        Instantiate a slice, if it is a DSP48E2; the results are the same. The 7 series has few.

    Members
    -------
    left, right : ``In(48)``
    enable : ``In(1)``
        All registers hold while it is 0.
    result : ``Out(48)``
        An enabled clock later, two if ``held``.
    """

    def __init__(self, fields, *, subtract=False, held=False, primitive=""):
        self.fields, self.subtract, self.held = fields, subtract, held
        self.primitive = primitive
        super().__init__({"left": In(BITS), "right": In(BITS), "enable": In(1, init=1),
                          "result": Out(BITS)})

    def elaborate(self, platform):
        m = Module()
        if self.primitive == DSP48E2:
            self._primitive(m)
        else:
            self._portable(m)
        return m

    def _portable(self, m):
        left, right = self.left, self.right
        if self.held:
            left, right = (Signal(BITS, name=name, reset_less=True) for name in ("kept", "other"))
            with m.If(self.enable):
                m.d.sync += [left.eq(self.left), right.eq(self.right)]
        size = BITS // self.fields
        pairs = [(left.word_select(at, size), right.word_select(at, size))
                 for at in range(self.fields)]
        result = Signal(BITS, name="total", reset_less=True)
        m.d.comb += self.result.eq(result)
        with m.If(self.enable):
            m.d.sync += result.eq(Cat((a - b if self.subtract else a + b)[:size]
                                      for a, b in pairs))

    def _primitive(self, m):
        # Ref: AMD UG579, UltraScale Architecture DSP Slice. OPMODE: X is A and B side by side, Z is
        # C, Y and W are 0; ALUMODE 0000 adds, 0011 takes X from Z.
        clock, held = ClockSignal(), int(self.held)
        m.submodules.dsp = Instance(
            DSP48E2,
            p_AREG=held, p_ACASCREG=held, p_DREG=0, p_ADREG=0, p_BREG=held, p_BCASCREG=held,
            p_CREG=held, p_MREG=0, p_PREG=1, p_OPMODEREG=0, p_INMODEREG=0, p_ALUMODEREG=0,
            p_CARRYINREG=0, p_CARRYINSELREG=0, p_AMULTSEL="A", p_BMULTSEL="B", p_PREADDINSEL="A",
            p_A_INPUT="DIRECT", p_B_INPUT="DIRECT", p_USE_MULT="NONE",
            p_USE_SIMD=_MODES[self.fields],
            p_USE_WIDEXOR="FALSE", p_USE_PATTERN_DETECT="NO_PATDET",
            i_CLK=clock, i_A=self.right[18:], i_D=Const(0, 27), i_B=self.right[:18],
            i_C=self.left, i_INMODE=Const(0, 5), i_OPMODE=Const(0b000110011, 9),
            i_ALUMODE=Const(0b0011 if self.subtract else 0, 4),
            i_CARRYIN=Const(0, 1), i_CARRYINSEL=Const(0, 3),
            i_PCIN=Const(0, 48), i_ACIN=Const(0, 30), i_BCIN=Const(0, 18),
            i_CARRYCASCIN=Const(0, 1), i_MULTSIGNIN=Const(0, 1),
            **{f"i_CE{name}": self.enable for name in ("A2", "B2", "C", "P")},
            **{f"i_CE{name}": Const(0, 1) for name in (
                "A1", "AD", "ALUMODE", "B1", "CARRYIN", "CTRL", "D", "INMODE", "M")},
            **{f"i_RST{name}": Const(0, 1) for name in (
                "A", "ALLCARRYIN", "ALUMODE", "B", "C", "CTRL", "D", "INMODE", "M", "P")},
            o_P=self.result)
