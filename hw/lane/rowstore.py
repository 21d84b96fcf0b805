"""A small store that is written a word at a time and read a few items at a time."""

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from alula.hw.choice import choose
from alula.hw.ram import Ram

ITEMS = 256  # rows of the tiles of a segment


class RowStore(wiring.Component):
    """Hold one scale or zero point for each row of a segment.

    Parameters
    ----------
    item_bits, word_bits
    rows
        Items read together, a power of two.

    Members
    -------
    enable : ``In(1)``
        Nothing changes while it is 0.
    write, word, data : ``In``
        Write word number ``word``: items from ``word * (word_bits / item_bits)``.
    index : ``In(8)``
    items : ``Out(rows * item_bits)``
        Items from ``index`` on, an enabled clock later; a write in the same clock is not seen.
    """

    def __init__(self, item_bits, word_bits, rows):
        self.item_bits, self.rows = item_bits, rows
        self.per_word = word_bits // item_bits
        self.depth = max(2, ITEMS // self.per_word)
        super().__init__({
            "enable": In(1), "write": In(1), "word": In(range(self.depth)), "data": In(word_bits),
            "index": In(8), "items": Out(rows * item_bits)})

    def elaborate(self, platform):
        m = Module()
        bits, rows = self.item_bits, self.rows
        items = [self.data[at * bits:(at + 1) * bits] for at in range(self.per_word)]
        read = []
        for bank in range(rows):
            share = items[bank::rows]
            m.submodules[f"bank_{bank}"] = held = Ram(
                shape=bits * len(share), depth=self.depth, passive=True)
            write, port = held.write_port(), held.read_port(domain="comb")
            at = Signal(8)  # of the item that this bank holds of those wanted
            ahead = Signal(range(rows))
            m.d.comb += [
                write.addr.eq(self.word), write.data.eq(Cat(share)),
                write.en.eq(self.write & self.enable),
                ahead.eq(bank - self.index), at.eq(self.index + ahead),
                port.addr.eq(at >> (self.per_word.bit_length() - 1)),
            ]
            inside = at[rows.bit_length() - 1:self.per_word.bit_length() - 1]
            read.append(choose(inside, [port.data.word_select(place, bits)
                                        for place in range(len(share))]))
        wanted = [choose((self.index + row)[:rows.bit_length() - 1], read) for row in range(rows)]
        with m.If(self.enable):
            m.d.sync += self.items.eq(Cat(wanted))
        return m
