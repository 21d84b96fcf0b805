"""Write the step's keys and values to a lane's cache."""

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from alula.hw import isa, layout, rows as rows_of
from alula.hw.attention.attend import largest_piece
from alula.hw.attention.fetch import SCALE_BYTES
from alula.hw.attention.multiply import Multiplier
from alula.hw.attention.walk import HEAD_BITS, UNIT_BITS, first_units
from alula.hw.axi import ADDRESS_BITS, REQUEST
from alula.hw.choice import choose
from alula.hw.formats import COMMAND_BITS, instruction_layout
from alula.hw.isa import BLOCK, WORD_BYTES
from alula.hw.lane.activation import READ_LATENCY
from alula.hw.numerics import PAGE_CLASSES, PAGE_TOKENS
from alula.hw.passive import passive
from alula.hw.step import POSITION_BITS, SLOT_BITS, row_bits, row_layout

_WORD = ceil_log2(WORD_BYTES)
_BLOCK = ceil_log2(BLOCK)
_TOKENS = ceil_log2(PAGE_TOKENS)
_LEAF_OF_CLASS = [layout.CLASS_ORDER.index(number) for number in range(PAGE_CLASSES)]


class KeyValueStore(wiring.Component):
    """Run ``StoreKeyValue`` in a lane: of each row, the heads whose page's class is the lane's.

    Each write is of one beat: a scale, or a piece of a key or value.

    Members
    -------
    command : ``In(stream of COMMAND_BITS)``
        Taken at its end, when all is written.
    base, lane, table, slot_words : steady
    entry : ``Out``, slot : ``In``
        The slot of a page, a clock after its entry.
    reads : ``Out(1)``, granted : ``In(1)``, row, word, block
        A read of the activation buffer, if granted in the same clock; its codes, a beat's, and
        scale come ``READ_LATENCY`` clocks later.
    requests, beats, written : to the lane's AXI writer
    """

    def __init__(self, arch):
        self.arch = arch
        beat = data.StructLayout({"data": 8 * arch.beat_bytes, "strobe": arch.beat_bytes})
        super().__init__({
            "command": In(stream.Signature(COMMAND_BITS)),
            "base": In(ADDRESS_BITS),
            "lane": In(range(arch.lanes)),
            "table": In(row_layout(arch)).array(arch.rows),
            "slot_words": In(32),
            "entry": Out(ceil_log2(arch.page_entries)),
            "slot": In(SLOT_BITS),
            "reads": Out(1),
            "granted": In(1),
            "row": Out(row_bits(arch)),
            "word": Out(range(arch.activation_elements // arch.beat_bytes)),
            "block": Out(range(arch.activation_elements // BLOCK)),
            "codes": In(8 * arch.beat_bytes),
            "scale": In(32),
            "requests": Out(stream.Signature(REQUEST)),
            "beats": Out(stream.Signature(beat)),
            "written": In(1),
        })

    def elaborate(self, platform):
        m = Module()
        arch = self.arch
        m.submodules.multiply = multiply = Multiplier(SLOT_BITS, 32)
        store = instruction_layout(isa.StoreKeyValue)(self.command.payload)
        row, head = Signal(range(arch.rows + 1)), Signal(HEAD_BITS + 1)
        position, place = Signal(POSITION_BITS), Signal(SLOT_BITS + _TOKENS)
        placed, pages = Signal(), Signal.like(self.entry)
        first, stop, unit = (Signal(UNIT_BITS + 1, name=name) for name in ("first", "stop", "unit"))
        outside, found = Signal(), Signal()  # the unit is another lane's; its pages begin here
        page_class = position[_TOKENS:][:ceil_log2(PAGE_CLASSES)]
        leaf = Array(Const(leaf, ceil_log2(PAGE_CLASSES)) for leaf in _LEAF_OF_CLASS)[page_class]
        token = Signal(_TOKENS)
        piece, last_part = Signal(3), Signal(6)
        is_value, part, sends_scale = Signal(), Signal(6), Signal()
        here = data.View(row_layout(arch), choose(
            row, [entry.as_value() for entry in self.table]))
        m.d.comb += [
            unit.eq((head << ceil_log2(PAGE_CLASSES)) + leaf),
            self.entry.eq(pages + (position >> _TOKENS)),
            token.eq(Mux(placed, place, position)),
            multiply.a.eq(Mux(placed, place >> _TOKENS, self.slot)),
            multiply.b.eq(self.slot_words),
        ]
        page_words = SCALE_BYTES // WORD_BYTES + store.head_dim * (2 * PAGE_TOKENS // WORD_BYTES)
        in_lane, index = Signal(32), Signal(UNIT_BITS)  # where pages of a (head, class) begin
        page, offset, address = Signal(ADDRESS_BITS), Signal(20), Signal(ADDRESS_BITS)
        codes, of_head = (Signal(range(arch.activation_elements), name=name)
                          for name in ("codes", "of_head"))
        along = part << piece
        source = Signal.like(codes)
        m.d.comb += source.eq((Mux(is_value, store.value, store.key) << _BLOCK) + of_head)
        beat_bits = ceil_log2(arch.beat_bytes)
        taken, scale = Signal(8 * arch.beat_bytes), Signal(32)
        wait = Signal(range(READ_LATENCY + 1))
        sent_address, sent_data = Signal(), Signal()
        m.d.comb += [
            self.row.eq(row), self.word.eq(codes >> beat_bits),
            self.requests.payload.address.eq(
                Cat(Const(0, beat_bits), address[beat_bits:])),
            self.requests.payload.beats.eq(1),
        ]
        m.d.sync += [  # a clock after what they are made of
            codes.eq(source + along), self.block.eq(source >> _BLOCK),
            offset.eq(Mux(
                sends_scale,
                (token << 3) + Mux(is_value, 4, 0),
                SCALE_BYTES + token * store.head_dim + along
                + Mux(is_value, store.head_dim * PAGE_TOKENS, 0))),
            last_part.eq((store.head_dim >> piece) - 1),
        ]
        block, content = Signal(range(arch.beat_bytes // BLOCK)), Signal(8 * arch.beat_bytes)
        m.d.comb += self.beats.payload.data.eq(passive(m, content))
        fresh = self._block(m, taken, codes[_BLOCK:beat_bits], block, piece)
        m.d.comb += self.beats.payload.strobe.eq(
            self._strobe(address[:beat_bits], sends_scale, piece))
        begins, stops = first_units(arch, self.lane, store.kv_heads)
        with m.FSM():
            with m.State("idle"):
                m.d.sync += [first.eq(begins), stop.eq(stops), row.eq(0),
                             piece.eq(largest_piece(store.head_dim, arch.beat_bytes))]
                with m.If(self.command.valid):
                    m.next = "row"
            with m.State("row"):
                m.d.sync += [position.eq(here.position), place.eq(here.place),
                             placed.eq(here.placed), pages.eq(here.pages),
                             head.eq(0), of_head.eq(0), index.eq(0), in_lane.eq(store.offset)]
                m.next = "look up"
                with m.If(row == rows_of.told(arch, self.command.payload)):
                    m.next = "finish"
            with m.State("look up"):
                m.next = "place"
            with m.State("place"):
                m.d.comb += multiply.start.eq(1)
                m.next = "seek"
            with m.State("seek"):
                m.d.sync += [outside.eq((unit < first) | (unit >= stop)),
                             found.eq(index == unit - first)]
                m.next = "unit"
            with m.State("unit"):
                m.d.sync += [is_value.eq(0), part.eq(0), sends_scale.eq(1)]
                with m.If(head == store.kv_heads):
                    m.d.sync += row.eq(row + 1)
                    m.next = "row"
                with m.Elif(outside):
                    m.d.sync += [head.eq(head + 1), of_head.eq(of_head + store.head_dim)]
                    m.next = "seek"
                with m.Elif(~found):
                    m.d.sync += [index.eq(index + 1), in_lane.eq(in_lane + page_words)]
                    m.next = "seek"
                with m.Elif(~multiply.busy):
                    words = (multiply.total + in_lane)[:32]
                    m.d.sync += page.eq(self.base + Cat(Const(0, _WORD), words))
                    m.next = "next"
            with m.State("next"):
                m.next = "read"
            with m.State("read"):
                m.d.comb += self.reads.eq(1)
                m.d.sync += [wait.eq(READ_LATENCY), address.eq(page + offset)]
                with m.If(self.granted):
                    m.next = "arrive"
            with m.State("arrive"):
                m.d.sync += wait.eq(wait - 1)
                with m.If(wait == 1):
                    m.d.sync += [taken.eq(self.codes), scale.eq(self.scale), block.eq(0),
                                 sent_address.eq(0), sent_data.eq(0)]
                    m.next = "fill"
            with m.State("fill"):
                fresh = Mux(sends_scale, scale.replicate(BLOCK // 4), fresh)
                m.d.sync += [content.eq(Cat(content, fresh)[8 * BLOCK:]), block.eq(block + 1)]
                with m.If(block == arch.beat_bytes // BLOCK - 1):
                    m.next = "send"
            with m.State("send"):
                m.d.comb += [self.requests.valid.eq(~sent_address), self.beats.valid.eq(~sent_data)]
                m.d.sync += [
                    sent_address.eq(sent_address | self.requests.ready),
                    sent_data.eq(sent_data | self.beats.ready),
                ]
                with m.If(sent_address & sent_data):  # a clock later: no path through here
                    m.next = "next"
                    with m.If(sends_scale):
                        m.d.sync += sends_scale.eq(0)
                    with m.Elif(part == last_part):
                        m.d.sync += [part.eq(0), is_value.eq(1), sends_scale.eq(1)]
                        with m.If(is_value):
                            m.d.sync += [head.eq(head + 1), of_head.eq(of_head + store.head_dim)]
                            m.next = "seek"
                    with m.Else():
                        m.d.sync += part.eq(part + 1)
            with m.State("finish"), m.If(self.written):
                m.d.comb += self.command.ready.eq(1)
                m.next = "idle"
        return m

    def _block(self, m, word, at, block, piece):
        """Return a block of the beat: the piece at block ``at``, over and over.

        A piece lies at a multiple of its size: repeated, it is where the strobe wants it.
        """
        if not len(at):
            return word
        blocks = [word.word_select(b, 8 * BLOCK) for b in range(1 << len(at))]
        source = Cat(Mux(piece > _BLOCK + bit, block[bit], at[bit]) for bit in range(len(at)))
        return choose(source, blocks)

    def _strobe(self, at, sends_scale, piece):
        """Return which bytes of a beat a scale or a piece at byte ``at`` is."""
        words = []
        for word in range(self.arch.beat_bytes // 4):
            apart = (word >> 2) ^ at[_BLOCK:]
            own = Cat(Mux(piece > _BLOCK + bit, 0, different)
                      for bit, different in enumerate(apart[:len(at) - _BLOCK]))
            words.append(Mux(sends_scale, at[2:] == word, ~own.any()).replicate(4))
        return Cat(words)
