"""A small store that is written a word at a time and read a few items at a time."""

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from alula.hw.choice import choose
from alula.hw.isa import SEGMENT_TILES, TILE_ROWS
from alula.hw.ram import Ram

INDEX_BITS = (SEGMENT_TILES * TILE_ROWS - 1).bit_length()


class RowStore(wiring.Component):
    """Hold one scale or zero point for each row of two segments, one of them the ``odd`` one.

    Parameters
    ----------
    item_bits, word_bits
    rows
        Items read together, a power of two.

    Members
    -------
    write, odd_word, word, data : ``In``
        Write word number ``word`` of a segment: items from ``word * (word_bits / item_bits)``.
    enable, odd, index : ``In``
    items : ``Out(rows * item_bits)``
        A segment's items from ``index`` on, an enabled clock later; a write in the same clock is
        not seen. Undefined beyond its last.
    """

    def __init__(self, item_bits, word_bits, rows):
        self.item_bits, self.rows = item_bits, rows
        self.per_word = word_bits // item_bits
        self.words = max(2, (1 << INDEX_BITS) // self.per_word)  # of a segment
        super().__init__({
            "write": In(1), "odd_word": In(1), "word": In(range(self.words)), "data": In(word_bits),
            "enable": In(1), "odd": In(1), "index": In(INDEX_BITS),
            "items": Out(rows * item_bits)})

    def elaborate(self, platform):
        m = Module()
        bits, rows = self.item_bits, self.rows
        items = [self.data[at * bits:(at + 1) * bits] for at in range(self.per_word)]
        read = []
        for bank in range(rows):
            share = items[bank::rows]
            m.submodules[f"bank_{bank}"] = held = Ram(
                shape=bits * len(share), depth=2 * self.words, passive=True)
            write, port = held.write_port(), held.read_port(domain="comb")
            at = Signal(INDEX_BITS)  # of the item that this bank holds of those wanted
            ahead = Signal(range(rows))
            m.d.comb += [
                write.addr.eq(Cat(self.word, self.odd_word)), write.data.eq(Cat(share)),
                write.en.eq(self.write),
                ahead.eq(bank - self.index), at.eq(self.index + ahead),
                port.addr.eq(Cat((at >> (self.per_word.bit_length() - 1))[:len(self.word)],
                                 self.odd)),
            ]
            inside = at[rows.bit_length() - 1:self.per_word.bit_length() - 1]
            read.append(choose(inside, [port.data.word_select(place, bits)
                                        for place in range(len(share))]))
        wanted = [choose((self.index + row)[:rows.bit_length() - 1], read) for row in range(rows)]
        with m.If(self.enable):
            m.d.sync += self.items.eq(Cat(wanted))
        return m
