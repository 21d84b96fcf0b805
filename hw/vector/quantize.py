"""Quantize: groups stream through; a memory holds a group's words until its peak is known."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from alula.hw import fp, isa, numerics, rows as rows_of
from alula.hw.formats import COMMAND_BITS, instruction_layout
from alula.hw.isa import BLOCK
from alula.hw.pipe import Pipe
from alula.hw.ram import Ram
from alula.hw.vector.buffers import (
    READ_LATENCY,
    address_bits,
    first_word,
    log2,
    row_words,
    spread,
    tail_mask,
    words_of,
    words_of_block,
)
from alula.hw.vector.lanes import PRODUCT_STAGE, Operation

BLOCK_BITS = 14  # address of a block in a row's activation buffer
_GROUP_BITS = 9


def codes_layout(arch):
    return data.StructLayout({"valid": 1, "row": range(arch.rows), "block": BLOCK_BITS,
                              "codes": 8 * BLOCK})


def scales_layout(arch):
    return data.StructLayout({"valid": 1, "row": range(arch.rows), "block": BLOCK_BITS,
                              "scale": 32})


class Groups(wiring.Component):
    """Count the words of all rows' groups; the last group of a row covers its last element.

    Members
    -------
    start, next : ``In(1)``
        Begin at the first word of row ``begin``; go on to the next.
    rows : ``In``
        The first row behind the last.
    words, group_words : ``In``
        Words of a row, words of a group.
    row, base, word : ``Out``
        Place of the current word; ``base`` is the row's first word in the vector buffer.
    first, last, end : ``Out(1)``
        It is the first, the last of its group; and the last of all.
    """

    def __init__(self, arch):
        self.arch = arch
        super().__init__({
            "start": In(1), "next": In(1), "words": In(18), "group_words": In(_GROUP_BITS),
            "begin": In(range(arch.rows)), "rows": In(range(arch.rows + 1)),
            "row": Out(range(arch.rows)), "base": Out(address_bits(arch)), "word": Out(18),
            "first": Out(1), "last": Out(1), "end": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        inside, row_end = Signal(_GROUP_BITS), Signal()
        m.d.comb += [
            self.first.eq(inside == 0),
            self.last.eq(inside + 1 == self.group_words),
            row_end.eq(self.last & (self.word + 1 >= self.words)),
            self.end.eq(row_end & (self.row + 1 == self.rows)),
        ]
        with m.If(self.start):
            m.d.sync += [inside.eq(0), self.word.eq(0), self.row.eq(self.begin),
                         self.base.eq(self.begin * row_words(self.arch))]
        with m.Elif(self.next):
            m.d.sync += [inside.eq(Mux(self.last, 0, inside + 1)),
                         self.word.eq(Mux(row_end, 0, self.word + 1))]
            with m.If(row_end):
                m.d.sync += [self.row.eq(self.row + 1),
                             self.base.eq(self.base + row_words(self.arch))]
        return m


class Quantize(wiring.Component):
    """A word a clock; two clocks if a group is one word.

    Members
    -------
    start : ``In(1)``
        One clock; ``command`` and ``rows`` hold from then until ``finished``.
    read_address, read_data : of the vector buffer
    operation : ``Out(Operation)``
        ``SCALE``, always.
    group_word, scalar : ``Out``
        Its operands.
    product : ``In``
        Their product, ``PRODUCT_STAGE - READ_LATENCY`` clocks later.
    codes, scales : ``Out(codes_layout), Out(scales_layout)``
        To the activation buffers. A group's scale comes no later than its last codes.
    finished : ``Out(1)``
        One clock, with the last codes.
    """

    def __init__(self, arch):
        self.arch = arch
        word = 32 * arch.vector_width
        super().__init__({
            "start": In(1), "command": In(COMMAND_BITS), "rows": In(range(arch.rows + 1)),
            "read_address": Out(address_bits(arch)), "read_data": In(word),
            "group_word": Out(word), "scalar": Out(32), "product": In(word),
            "operation": Out(Operation),
            "codes": Out(codes_layout(arch)), "scales": Out(scales_layout(arch)),
            "finished": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        arch = self.arch
        insn = data.View(instruction_layout(isa.Quantize), self.command)
        m.submodules.reading = reading = Groups(arch)
        m.submodules.coding = coding = Groups(arch)
        words, group_words = words_of(arch, insn.size), insn.group >> log2(arch.vector_width)
        for groups in (reading, coding):
            m.d.comb += [groups.start.eq(self.start),
                         groups.begin.eq(rows_of.first_row(arch, self.command)),
                         groups.rows.eq(rows_of.end_row(arch, self.command, self.rows)),
                         groups.words.eq(words), groups.group_words.eq(group_words)]
        busy, pause = Signal(), Signal()
        m.d.comb += reading.next.eq(busy & ~pause)
        m.d.sync += pause.eq(reading.next & (group_words == 1))  # a group takes two divisions
        with m.If(self.start):
            m.d.sync += busy.eq(1)
        with m.Elif(reading.next & reading.end):
            m.d.sync += busy.eq(0)
        m.d.comb += self.read_address.eq(
            reading.base + reading.word + first_word(arch, insn.source))
        m.d.comb += self.operation.eq(Operation.SCALE)
        self.moved = Mux(insn.packed, isa.half(arch.rows), 0)  # rows that codes move down
        p = Pipe(m)
        x = self._masked(m, p, reading, insn)
        known = self._divide(m, p, x, reading, insn)
        self._hold(m, p, x, reading, known, coding)
        self._code(m, coding, insn)
        return m

    def _masked(self, m, p, reading, insn):
        """Return the words read, zero past the row's last element."""
        mask = Signal(self.arch.vector_width)
        m.d.comb += mask.eq(Mux(reading.word + 1 < reading.words, ~0, Mux(
            reading.word + 1 == reading.words, tail_mask(self.arch, insn.size), 0)))
        return p.apply(lambda word, mask: word & spread(mask),
                       p.input(self.read_data, READ_LATENCY), p.input(mask))

    def _divide(self, m, p, x, reading, insn):
        """Find each group's peak and divide; return the value that tells when 127 / peak is there.

        ``scalar`` then holds it, from two clocks later.
        """
        sizes = [p.apply(lambda x, i=i: x.word_select(i, 32)[:31], x, latency=0)
                 for i in range(self.arch.vector_width)]
        while len(sizes) > 1:  # NaN is above infinity, and stays
            sizes = [p.apply(lambda a, b: Mux(a < b, b, a), *pair)
                     for pair in zip(sizes[::2], sizes[1::2], strict=True)]
        peak, stage = Signal(31), sizes[0].stage
        valid, last = (p.input(reading.next, reset=True),
                       p.input(reading.next & reading.last, reset=True))
        first = p.at(p.input(reading.first), stage)
        with m.If(p.at(valid, stage)):
            m.d.sync += peak.eq(Mux(first | (peak < sizes[0].signal), sizes[0].signal, peak))
        # 127 / peak, and a clock later, when the next group may have begun, peak / 127.
        peak = p.input(peak, stage + 1)
        later, held = p.at(last, stage + 2), p.at(peak, stage + 2)
        most = fp.constant(numerics.CODE_MAX)
        quotient = p.div(p.input(Mux(later, held, most), stage + 1),
                         p.input(Mux(later, most, peak.signal), stage + 1))
        done = quotient.stage
        known, inverse = p.at(last, done), Signal(32)
        zero = p.at(p.apply(lambda peak: peak == 0, peak, latency=0), done)
        with m.If(known):
            m.d.sync += inverse.eq(Mux(zero, 0, quotient.signal))
        m.d.sync += self.scalar.eq(inverse)
        scale = p.mul(p.input(quotient.signal, done + 1), p.input(insn.scale, done + 1))
        # The scale belongs to the group's first block.
        block = Signal(BLOCK_BITS)
        m.d.comb += block.eq(insn.target + (reading.word >> log2(words_of_block(self.arch)))
                             - (insn.group >> log2(BLOCK)) + 1)
        m.d.comb += [
            self.scales.valid.eq(p.at(last, scale.stage)),
            self.scales.row.eq(p.at(p.input(reading.row), scale.stage) - self.moved),
            self.scales.block.eq(p.at(p.input(block), scale.stage)),
            self.scales.scale.eq(scale.signal),
        ]
        return known

    def _hold(self, m, p, x, reading, known, coding):
        """Keep the words until their group's peak is known, then read them again."""
        most = (1 << _GROUP_BITS) // self.arch.vector_width + 40  # a group and those on the way
        depth = 1 << (most - 1).bit_length()
        m.submodules.held = held = Ram(shape=32 * self.arch.vector_width, depth=depth,
                                      passive=True)
        write, read = held.write_port(), held.read_port()
        m.d.comb += [write.data.eq(x.signal),
                     write.en.eq(p.at(p.input(reading.next, reset=True), x.stage))]
        with m.If(write.en):
            m.d.sync += write.addr.eq(write.addr + 1)
        inside = Signal()
        m.d.comb += coding.next.eq(known | inside)
        with m.If(coding.next):
            m.d.sync += [read.addr.eq(read.addr + 1), inside.eq(~coding.last)]
        m.d.sync += self.group_word.eq(read.data)

    def _code(self, m, coding, insn):
        """Round the products and put blocks together."""
        p = Pipe(m)
        words = words_of_block(self.arch)
        elements = [fp.to_int(p, p.input(self.product.word_select(i, 32), PRODUCT_STAGE),
                              -numerics.CODE_MAX, numerics.CODE_MAX)
                    for i in range(self.arch.vector_width)]
        word = p.apply(lambda *parts: Cat(*parts), *elements, latency=0)
        whole = Signal(BLOCK_BITS + 2)
        m.d.comb += whole.eq((insn.target << log2(words)) + coding.word)
        valid, end, place, row = p.together(
            p.input(coding.next, reset=True), p.input(coding.next & coding.end, reset=True),
            p.input(whole), p.input(coding.row), word)[:4]
        kept = Signal(8 * BLOCK)
        joined = Cat(kept, word.signal)[-8 * BLOCK:]
        with m.If(valid):
            m.d.sync += kept.eq(joined)
        m.d.comb += [
            self.codes.valid.eq(valid & (Const(1, 1) if words == 1
                                         else place[:log2(words)].all())),
            self.codes.row.eq(row - self.moved),
            self.codes.block.eq(place >> log2(words)),
            self.codes.codes.eq(joined),
            self.finished.eq(end),
        ]
