"""A lane's multipliers: cascades of eight DSP slices and an adder tree behind them."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from alula.hw.lane import slice as dsp
from alula.hw.lane.delay import delayed, staggered
from alula.hw.lane.shape import LaneShape
from alula.hw.lane.simd import Simd
from alula.hw.lane.slice import Add, DspSlice
from alula.hw.layout import CASCADE  # 8 * 127 * 255 < 2**18: a low sum does not run over

OWN_BITS = 24
WORD_BITS = 24  # of each of the two sums in a DSP slice that adds
SHARED_BITS = 8
OWN_LATENCY = dsp.LATENCY  # of slice 0 of each half-window; slice k is k clocks later


def tap_latency(level):
    """Return the clocks from operands to the sums of ``2**level`` neighbouring half-windows."""
    return dsp.LATENCY + CASCADE - 1 + 1 + level


def tap_bits(level):
    return dsp.HIGH_SHIFT + level


def taps_layout(shape):
    """Return the layout of the tree's sums: of each level, all low ones, then all high ones."""
    count = shape.half_windows
    return data.StructLayout({f"level_{level}": 2 * (count >> level) * tap_bits(level)
                              for level in range(count.bit_length())})


class Chain(wiring.Component):
    """Multiply each slot's weight by two operands, and add up.

    Members
    -------
    weights, lo, hi : ``In``
        9, 8 and 8 bits of each slot, signed, slot 0 lowest. ``lo`` and ``hi`` of slot ``s`` come
        ``s % 8`` clocks after its weight and all else: what they are chosen from is delayed, which
        is less. A build of one row ignores ``hi``.
    shared : ``In(8)``
        Unsigned, added to each slot's ``lo``.
    accumulate : ``In(1)``
        0: sums run along half-windows; 1: each slice adds to its own sum.
    valid, first : ``In(1)``
        Only for ``accumulate``: without ``valid`` own sums stay; with ``first`` they start anew.
    taps : ``Out``
        For each level of the tree, ``tap_latency(level)`` clocks after the weights, the sums of
        ``2**level`` neighbouring half-windows: all of ``lo * weight``, then all of ``hi * weight``.
        Only without ``accumulate``.
    own : ``Out(24 * slots)``
        Each slice's own sum of ``lo * weight``. Slot ``s`` has it ``OWN_LATENCY + s % 8`` clocks
        after the weights, and while ``valid`` is low after that.
    """

    def __init__(self, arch, primitive=""):
        self.shape, self.primitive = LaneShape(arch), primitive
        slots, count = self.shape.slots, self.shape.half_windows
        self.levels = count.bit_length()
        super().__init__({
            "weights": In(9 * slots), "lo": In(8 * slots), "hi": In(8 * slots),
            "shared": In(SHARED_BITS), "accumulate": In(1), "valid": In(1), "first": In(1),
            "taps": Out(taps_layout(self.shape)), "own": Out(OWN_BITS * slots)})

    def elaborate(self, platform):
        m = Module()
        before, sums = ([None] * self.shape.half_windows for _ in range(2))
        own = [None] * self.shape.slots
        for k in range(CASCADE):
            operands = [staggered(m, self._column(self.weights, 9, k), k),
                        *(self._column(part, 8, k) for part in (self.lo, self.hi))]
            shared = delayed(m, self.shared, k)
            add = Signal(Add, init=Add.NOTHING, name=f"add_{k}")
            m.d.comb += add.eq(Mux(
                self.accumulate,
                Mux(self.valid, Mux(self.first, Add.NOTHING, Add.OWN), Add.HOLD),
                Add.CASCADE if k else Add.BIASED))
            add = delayed(m, add, k + dsp.ADD_DELAY)
            for j in range(self.shape.half_windows):
                m.submodules[f"slice_{j}_{k}"] = cell = DspSlice(self.primitive, self.shape.pair)
                weight, lo, hi = (part[bits * j:bits * (j + 1)]
                                  for part, bits in zip(operands, (9, 8, 8), strict=True))
                m.d.comb += [cell.b.eq(weight), cell.lo.eq(lo), cell.add.eq(add),
                             cell.shared.eq(shared)]
                if self.shape.pair:
                    m.d.comb += cell.hi.eq(hi)
                if k:
                    m.d.comb += cell.cascade.eq(before[j].cascade_out)
                before[j], sums[j] = cell, cell.sum
                own[CASCADE * j + k] = cell.sum[:OWN_BITS]
        m.d.comb += self.own.eq(Cat(own))
        self._tree(m, sums)
        return m

    def _column(self, value, bits, k):
        """Return slot ``k`` of each half-window."""
        return Cat(value[bits * slot:bits * (slot + 1)]
                   for slot in range(k, self.shape.slots, CASCADE))

    def _tree(self, m, sums):
        """Add up the low and the high sums of neighbours; a DSP slice adds both."""
        bits, words = tap_bits(0), []
        for j, total in enumerate(sums):
            low, high = (Signal(signed(bits), name=f"{name}_{j}", reset_less=True)
                         for name in ("low", "high"))
            # What was added so that the low sum does not borrow is its top bit, inverted.
            m.d.sync += low.eq(Cat(total[:bits - 1], ~total[bits - 1]).as_signed())
            if self.shape.pair:
                m.d.sync += high.eq(total[bits:2 * bits])
            words.append(Cat(_extended(low), _extended(high)))
        for level in range(self.levels):
            halves = [[word[at:at + tap_bits(level)] for word in words] for at in (0, WORD_BITS)]
            m.d.comb += self.taps[f"level_{level}"].eq(Cat(halves))
            if level + 1 < self.levels:
                words = [self._sum(m, *pair) for pair in zip(words[::2], words[1::2], strict=True)]

    def _sum(self, m, left, right):
        m.submodules += (adder := Simd(2, primitive=self.primitive))
        m.d.comb += [adder.left.eq(left), adder.right.eq(right)]
        return adder.result


def _extended(number):
    return Cat(number, number[-1].replicate(WORD_BITS - len(number)))
