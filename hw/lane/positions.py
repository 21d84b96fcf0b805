"""Decode position codes of windows. Ref: ``alula.hw.layout.pattern_tables``."""

from itertools import combinations
from math import comb

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

CODE_BITS = 14
LATENCY = 6  # enabled clocks
QUOTIENT_SHIFT = 18


def _firsts(kept):
    """Return the first code with each number of ones in the low byte, from the fewest."""
    fewest, most = max(0, kept - 8), min(8, kept)
    starts, total = [], 0
    for count in range(fewest, most + 1):
        starts.append(total)
        total += comb(8, count) * comb(8, kept - count)
    return fewest, starts


def _magic(kept, count, size):
    """Return a factor that divides ranks below ``size`` by the high byte's patterns."""
    divisor = comb(8, kept - count)
    factor = -(-(1 << QUOTIENT_SHIFT) // divisor)
    assert all(rank * factor >> QUOTIENT_SHIFT == rank // divisor for rank in range(size))
    return factor


def _bytes_by_count():
    """Return all bytes: by number of ones, then by value."""
    return [value for count in range(9)
            for value in sorted(sum(1 << i for i in ones)
                                for ones in combinations(range(8), count))]


FIRST_BYTE = [sum(comb(8, less) for less in range(count)) for count in range(9)]


def _distances(value, high):
    """Return, 4 bits each, how far the ones of a byte are from their slots' numbers.

    The low byte's ones go to slots from 0 on, the high byte's to slots up to 7.
    """
    ones = [i + 8 * high for i in range(8) if value >> i & 1]
    first = 8 - len(ones) if high else 0
    return sum(place - (first + i) << 4 * (first + i) for i, place in enumerate(ones))


class PositionDecoder(wiring.Component):
    """Turn a window's position code into the inputs of its codes.

    Members
    -------
    enable : ``In(1)``
        All registers hold while it is 0.
    code : ``In(14)``
    kept : ``In(2)``
        Quarters of the window that are kept: 1, 2 or 3.
    first, second : ``Out(32)``
        Of the slots of the window's first and (only 12 of 16) second half-window, 4 bits each: how
        far the slot's input is from the slot's number. Undefined in slots that hold no code.
        Codes of 8 of 16 take the eight slots in order. Those of 4 of 16 take slots ``0..3`` in
        the low byte of inputs and ``4..7`` in the high one, so that no input is more than eight
        away. Of 12 of 16 the last four take slots 4 to 7 of the second half-window.
    low : ``Out(4)``
        Of 4 of 16, a clock before those: whether code ``k`` is in slot ``k``, not in ``k + 4``.

    ``LATENCY`` enabled clocks later.
    """

    def __init__(self):
        super().__init__({"enable": In(1), "code": In(CODE_BITS), "kept": In(2),
                          "first": Out(32), "second": Out(32), "low": Out(4)})

    def elaborate(self, platform):
        m = Module()
        kept = [self.kept]
        for _ in range(LATENCY - 1):
            kept.append(Signal(2, reset_less=True))
        # 1: how many ones the low byte has, past the fewest
        code, ones = Signal(CODE_BITS, reset_less=True), Signal(4, reset_less=True)
        half = self.kept == 2
        starts, quarter_starts = _firsts(8)[1], _firsts(4)[1]
        assert quarter_starts == _firsts(12)[1]
        by_half = sum((self.code >= start for start in starts[1:]), Const(0, 1))
        by_quarter = sum((self.code >= start for start in quarter_starts[1:]), Const(0, 1))
        # 2: the rank among those
        constants = [self._constants(kept, past) for kept in (0, 4, 8, 12) for past in range(16)]
        at = Cat(ones, kept[1])
        start, factor, divisor, low_first, high_first = (
            Array(Const(entry[i], max(max(entry[i] for entry in constants), 1).bit_length())
                  for entry in constants)[at] for i in range(5))
        rank = Signal(CODE_BITS, reset_less=True)
        factor2 = Signal(QUOTIENT_SHIFT + 1, reset_less=True)
        divisor2, low2, high2 = (Signal(8, reset_less=True) for _ in range(3))
        # 3: divide it, 4: into the ranks of both bytes
        rank3, divisor3, low3, high3 = (Signal.like(part, reset_less=True)
                                        for part in (rank, divisor2, low2, high2))
        quotient = Signal(8, reset_less=True)
        low4, high4 = Signal(8, reset_less=True), Signal(8, reset_less=True)
        # 5: the places of their ones, 6: where the slots want them
        order = _bytes_by_count()
        tables = [_distances(value, high) for high in (0, 1) for value in order]
        m.submodules.distances = table = memory.Memory(
            shape=32, depth=len(tables), init=tables, attrs={"rom_style": "block"})
        low_port, high_port = table.read_port(), table.read_port()
        m.d.comb += [low_port.addr.eq(low4), high_port.addr.eq(Cat(high4, Const(1, 1))),
                     low_port.en.eq(self.enable), high_port.en.eq(self.enable)]
        low, high = low_port.data, high_port.data
        first, moved = Signal(32), Signal(32)
        # Codes before the ninth of 12 of 16: four slots on, so four nearer; 4 to 8 lose bit 2.
        nearer = [Cat(high[4 * at:4 * at + 2], high[4 * at + 3], Const(0, 1)) for at in range(4)]
        m.d.comb += [moved.eq(Cat(Const(0, 16), *nearer)),
                     first.eq(low | Mux(kept[5] == 3, moved, high))]
        lows = [Signal(4, name=f"low_{stage}", reset_less=True) for stage in range(2, LATENCY)]
        m.d.comb += self.low.eq(lows[-1])
        with m.If(self.enable):
            m.d.sync += [now.eq(before) for before, now in zip(kept, kept[1:], strict=False)]
            m.d.sync += [
                code.eq(self.code), ones.eq(Mux(half, by_half, by_quarter)),
                rank.eq(code - start), factor2.eq(factor), divisor2.eq(divisor),
                low2.eq(low_first), high2.eq(high_first),
                quotient.eq((rank * factor2) >> QUOTIENT_SHIFT),
                rank3.eq(rank), divisor3.eq(divisor2), low3.eq(low2), high3.eq(high2),
                low4.eq(low3 + quotient), high4.eq(high3 + rank3 - quotient * divisor3),
                self.first.eq(first), self.second.eq(high),
                lows[0].eq(Cat(ones > k for k in range(4))),
            ]
            m.d.sync += [now.eq(before) for before, now in zip(lows, lows[1:], strict=False)]
        return m

    @staticmethod
    def _constants(kept, past):
        fewest, starts = _firsts(kept)
        if past >= len(starts):
            return 0, 0, 0, 0, 0
        count = fewest + past
        size = comb(8, count) * comb(8, kept - count)
        return (starts[past], _magic(kept, count, size), comb(8, kept - count), FIRST_BYTE[count],
                FIRST_BYTE[kept - count])
