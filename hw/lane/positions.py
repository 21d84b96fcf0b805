"""Decode position codes of windows. Ref: ``alula.hw.layout.pattern_code``."""

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from alula.hw.layout import bytes_by_ones

CODE_BITS = 14
LATENCY = 4  # enabled clocks
RANK_BITS = 7

_BYTES = bytes_by_ones()
ADDRESS_BITS = 9  # of the bytes' table


def _first_addresses():
    """Return where the bytes with each number of ones begin: a rank is added by an or."""
    first, end = [0] * len(_BYTES), 0
    for ones in sorted(range(len(_BYTES)), key=lambda ones: -len(_BYTES[ones])):
        first[ones] = end
        end += max(8, 1 << (len(_BYTES[ones]) - 1).bit_length())
    assert end <= 1 << ADDRESS_BITS
    return first


_FIRST = _first_addresses()


def _table():
    """Return the distances of the low byte's ones by address, then of the high byte's."""
    contents = [0] * (2 << ADDRESS_BITS)
    for high in range(2):
        for first, values in zip(_FIRST, _BYTES, strict=True):
            for rank, value in enumerate(values):
                contents[(high << ADDRESS_BITS) + first + rank] = _distances(value, high)
    return contents


def _distances(value, high):
    """Return, 4 bits each, how far the ones of a byte are from their slots' numbers.

    The low byte's ones go to slots from 0 on, the high byte's to slots up to 7.
    """
    ones = [i + 8 * high for i in range(8) if value >> i & 1]
    first = 8 - len(ones) if high else 0
    return sum(place - (first + i) << 4 * (first + i) for i, place in enumerate(ones))


class PositionDecoder(wiring.Component):
    """Turn a window's position code into the inputs of its codes.

    Parameters
    ----------
    second
        Of 12 of 16, decode for the window's second half-window, not the first.

    Members
    -------
    enable : ``In(1)``
        All registers hold while it is 0.
    code : ``In(14)``
    kept : ``In(2)``
        Quarters of the window that are kept; of 0 there is no code.
    further : ``In(1)``
        Of a dense row: the half-window has the window's last eight inputs.
    distances : ``Out(32)``
        Of the half-window's slots, 4 bits each: how far the slot's input is from the slot's
        number. Undefined in slots that hold no code.
        Codes of 8 of 16 take the eight slots in order. Those of 4 of 16 take slots ``0..3`` in
        the low byte of inputs and ``4..7`` in the high one, so that no input is more than eight
        away. Of 12 of 16 the last four take slots 4 to 7 of the window's second half-window.
    low : ``Out(4)``
        Of 4 of 16, a clock before those: whether code ``k`` is in slot ``k``, not in ``k + 4``.

    ``LATENCY`` enabled clocks later.
    """

    def __init__(self, second=False):
        self.second = second
        super().__init__({"enable": In(1), "code": In(CODE_BITS), "kept": In(2), "further": In(1),
                          "distances": Out(32), "low": Out(4)})

    def elaborate(self, platform):
        m = Module()
        kept = [self.kept, *(Signal(2, name=f"kept_{stage}", reset_less=True)
                             for stage in range(1, LATENCY))]
        # 1: the ones in the low byte and the ranks of both bytes, 2: their places in the table
        ones, ranks = Signal(4, reset_less=True), (Signal(RANK_BITS, name="low_rank"),
                                                   Signal(RANK_BITS, name="high_rank"))
        found = [Mux(self.kept == 2, half, quarter)
                 for half, quarter in zip(self._half(), self._quarter(), strict=True)]
        first = [Array(Const(_FIRST[ones], ADDRESS_BITS) for ones in by_ones)[Cat(ones, kept[1])]
                 for by_ones in self._counts()]
        addresses = [Signal(ADDRESS_BITS, name=f"{half}_address") for half in ("low", "high")]
        # 3: how far their ones are from the slots, 4: of each slot
        contents = _table()
        m.submodules.distances = table = memory.Memory(
            shape=32, depth=len(contents), init=contents, attrs={"rom_style": "block"})
        ports = [table.read_port() for _ in addresses]
        low, high = (port.data for port in ports)
        # Codes before the ninth of 12 of 16: four slots on, so four nearer; 4 to 8 lose bit 2.
        nearer = [Cat(high[4 * at:4 * at + 2], high[4 * at + 3], Const(0, 1)) for at in range(4)]
        if self.second:
            both = Mux(kept[3] == 3, 0, low) | high
        else:
            both = low | Mux(kept[3] == 3, Cat(Const(0, 16), *nearer), high)
        lows = [Signal(4, name=f"low_{stage}", reset_less=True) for stage in (2, 3)]
        for at, (port, address) in enumerate(zip(ports, addresses, strict=True)):
            m.d.comb += [port.addr.eq(Cat(address, Const(at, 1))), port.en.eq(self.enable)]
        m.d.comb += self.low.eq(lows[1])
        with m.If(self.enable):
            m.d.sync += [
                *(now.eq(before) for before, now in zip(kept, kept[1:], strict=False)),
                *(to.eq(part) for to, part in zip((ones, *ranks), found, strict=True)),
                *(address.eq(base | rank)
                  for address, base, rank in zip(addresses, first, ranks, strict=True)),
                lows[0].eq(Cat(ones > k for k in range(4))), lows[1].eq(lows[0]),
                self.distances.eq(both),
            ]
        dense = Signal()
        m.d.comb += dense.eq(self.enable & (self.kept == 0))
        with m.If(dense):
            m.d.sync += [ones.eq(self.further), *(rank.eq(0) for rank in ranks)]
        return m

    def _half(self):
        """Return the ones of the low byte, and both ranks, of a code of 8 of 16."""
        c = self.code
        split = Array([(Cat(c[6:9], Const(8, 4)), c[:6]), (c[3:9], Cat(c[:3], Const(8, 4))),
                       (Cat(c[3:6], Const(8, 4)), Cat(c[:3], Const(8, 4)))])
        rest = c[6:12]  # of the codes below 4096
        few = Mux(rest == 58, Mux(c[0], 8, 0), Mux(rest[0], 7, 1))
        few_low, few_high = (Mux(rest == 58, 0, part) for part in (c[3:6], c[:3]))
        narrow = c[12] & c[11]  # of those from 8192 on
        far = c[12] & ~c[11]
        ones = Mux(c[13], Mux(narrow, Mux(c[10], 6, 2), 4),
                   Mux(c[12], 5, Mux(rest < 56, 3, few)))
        low, high = (
            Mux(c[13], Mux(narrow, thin, Mux(far, Array(row[at] for row in split)[c[9:11]], wide)),
                Mux(c[12] | (rest < 56), wide, small))
            for at, (wide, thin, small) in enumerate(((c[6:12], c[5:10], few_low),
                                                      (c[:6], c[:5], few_high))))
        return ones, low, high

    def _quarter(self):
        """Return the same of a code of 4 of 16; of 12 of 16 the ones that the low byte lacks."""
        c = self.code
        end = c[7:10].all()  # 896 to 1023
        past = c[6] & c[3]
        last = c[6:9].all()  # 1984 to 2047
        ones = Mux(c[10], Mux(c[9], Mux(last, 4, 3), 1), Mux(end, Mux(past, 4, 0), 2))
        low = Mux(c[10], Mux(c[9], Mux(last, c[:6], c[3:9]), c[6:9]),
                  Mux(end, Mux(past, Cat(c[:3], Const(8, 4)), 0), c[5:10]))
        high = Mux(c[10], Mux(c[9], Mux(last, 0, c[:3]), c[:6]),
                   Mux(end, Mux(past, 0, c[:7]), c[:5]))
        return ones, low, high

    @staticmethod
    def _counts():
        """Return the ones of the low and of the high byte, by what a code's bits say and kept.

        Dense are the distances of a byte without ones, which are 0, or of a high byte of ones: 8.
        """
        said = range(16)

        def legal(ones):
            return ones if 0 <= ones <= 8 else 0
        low = [0] * 16 + [*map(legal, said)] * 2 + [legal(8 - ones) for ones in said]
        high = [0, 8] * 8 + [legal(4 - ones) for ones in said] + [legal(8 - ones) for ones in said]
        return low, high + [legal(4 + ones) for ones in said]
