"""Write the step's keys and values to a lane's cache."""

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from alula.hw import isa, layout
from alula.hw.attention.attend import READ_LATENCY, largest_piece
from alula.hw.attention.fetch import SCALE_BYTES
from alula.hw.attention.walk import HEAD_BITS, UNIT_BITS, first_unit
from alula.hw.axi import ADDRESS_BITS, REQUEST
from alula.hw.formats import COMMAND_BITS, instruction_layout
from alula.hw.isa import BLOCK, WORD_BYTES
from alula.hw.lane.window import window
from alula.hw.numerics import PAGE_CLASSES, PAGE_TOKENS
from alula.hw.step import SLOT_BITS, row_bits, row_layout

_WORD = ceil_log2(WORD_BYTES)
_TOKENS = ceil_log2(PAGE_TOKENS)
_LEAF_OF_CLASS = [layout.CLASS_ORDER.index(number) for number in range(PAGE_CLASSES)]


class KeyValueStore(wiring.Component):
    """Run ``StoreKeyValue`` in a lane: of each row, the heads whose page's class is the lane's.

    Each write is of one beat: a scale, or a piece of a key or value.

    Members
    -------
    command : ``In(stream of COMMAND_BITS)``
        Taken at its end, when all is written.
    base, lane, rows, table, slot_words : steady
    entry : ``Out``, slot : ``In``
        The slot of a page, a clock after its entry.
    reads : ``Out(1)``, granted : ``In(1)``, row, word, block
        A read of the activation buffer, if granted in the same clock; its codes and scale come
        two clocks later.
    requests, beats, written : to the lane's AXI writer
    """

    def __init__(self, arch):
        self.arch = arch
        beat = data.StructLayout({"data": 8 * arch.beat_bytes, "strobe": arch.beat_bytes})
        super().__init__({
            "command": In(stream.Signature(COMMAND_BITS)),
            "base": In(ADDRESS_BITS),
            "lane": In(range(arch.lanes)),
            "rows": In(range(arch.rows + 1)),
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
        store = instruction_layout(isa.StoreKeyValue)(self.command.payload)
        row, head = Signal(range(arch.rows + 1)), Signal(HEAD_BITS + 1)
        here = Signal(row_layout(arch))
        first, stop, unit = (Signal(UNIT_BITS + 1, name=name) for name in ("first", "stop", "unit"))
        page_class = (here.position >> _TOKENS)[:ceil_log2(PAGE_CLASSES)]
        leaf = Array(Const(leaf, ceil_log2(PAGE_CLASSES)) for leaf in _LEAF_OF_CLASS)[page_class]
        slot, token = Signal(SLOT_BITS), Signal(_TOKENS)
        piece = Signal(3)
        is_value, part = Signal(), Signal(6)
        m.d.comb += [
            here.eq(Array(self.table)[row]),
            unit.eq((head << ceil_log2(PAGE_CLASSES)) + leaf),
            self.entry.eq(here.pages + (here.position >> _TOKENS)),
            slot.eq(Mux(here.placed, here.place >> _TOKENS, self.slot)),
            token.eq(Mux(here.placed, here.place, here.position)),
        ]
        page_words = SCALE_BYTES // WORD_BYTES + store.head_dim * (2 * PAGE_TOKENS // WORD_BYTES)
        in_slot, in_lane = Signal(32), Signal(32)
        page, offset, address = Signal(ADDRESS_BITS), Signal(20), Signal(ADDRESS_BITS)
        codes = Signal(range(arch.activation_elements))
        source = (Mux(is_value, store.value, store.key) << ceil_log2(BLOCK)) \
            + head * store.head_dim
        beat_bits = ceil_log2(arch.beat_bytes)
        sends_scale = Signal()
        taken, scale = Signal(8 * arch.beat_bytes), Signal(32)
        wait = Signal(range(READ_LATENCY + 1))
        sent_address, sent_data = Signal(), Signal()
        m.d.comb += [
            codes.eq(source + (part << piece)),
            self.row.eq(row), self.word.eq(codes >> beat_bits), self.block.eq(source >> 4),
            offset.eq(Mux(
                sends_scale,
                (token << 2) + Mux(is_value, SCALE_BYTES // 2, 0),
                SCALE_BYTES + token * store.head_dim + (part << piece)
                + Mux(is_value, store.head_dim * PAGE_TOKENS, 0))),
            self.requests.payload.address.eq(
                Cat(Const(0, beat_bits), address[beat_bits:])),
            self.requests.payload.beats.eq(1),
        ]
        at = address[:beat_bits]
        strobe = Mux(sends_scale, 0xF, Cat((1 << piece) > byte for byte in range(arch.beat_bytes)))
        # A piece lies at a multiple of its size: repeated, it is where the strobe wants it.
        pieces = [taken[:8 << log2].replicate(arch.beat_bytes >> log2)
                  for log2 in range(ceil_log2(BLOCK), beat_bits + 1)]
        content = Mux(sends_scale, scale.replicate(arch.beat_bytes // 4),
                      Array(pieces)[(piece - ceil_log2(BLOCK))[:max(1, ceil_log2(len(pieces)))]])
        m.d.comb += [
            self.beats.payload.strobe.eq(strobe << at),
            self.beats.payload.data.eq(content),
        ]
        with m.FSM():
            with m.State("idle"):
                m.d.sync += [
                    first.eq(first_unit(arch, self.lane, store.kv_heads)),
                    stop.eq(first_unit(arch, self.lane + 1, store.kv_heads)),
                    row.eq(0), head.eq(0), piece.eq(largest_piece(store.head_dim, arch.beat_bytes)),
                ]
                with m.If(self.command.valid):
                    m.next = "unit"
            with m.State("unit"):
                m.d.sync += [is_value.eq(0), part.eq(0), sends_scale.eq(1)]
                with m.If(row == self.rows):
                    m.next = "finish"
                with m.Elif(head == store.kv_heads):
                    m.d.sync += [head.eq(0), row.eq(row + 1)]
                with m.Elif((unit < first) | (unit >= stop)):
                    m.d.sync += head.eq(head + 1)
                with m.Else():
                    m.next = "look up"
            with m.State("look up"):
                m.d.sync += in_lane.eq(store.offset + (unit - first) * page_words)
                m.next = "place"
            with m.State("place"):
                m.d.sync += in_slot.eq(slot * self.slot_words)
                m.next = "address"
            with m.State("address"):
                words = (in_slot + in_lane)[:32]
                m.d.sync += page.eq(self.base + Cat(Const(0, _WORD), words))
                m.next = "read"
            with m.State("read"):
                m.d.comb += self.reads.eq(1)
                m.d.sync += wait.eq(READ_LATENCY)
                with m.If(self.granted):
                    m.next = "arrive"
            with m.State("arrive"):
                m.d.sync += [wait.eq(wait - 1), address.eq(page + offset)]
                with m.If(wait == 1):
                    turn = codes[ceil_log2(BLOCK):beat_bits]
                    turned = window(m, self.codes, turn, len(taken), 8 * BLOCK)
                    m.d.sync += [taken.eq(turned), scale.eq(self.scale),
                                 sent_address.eq(0), sent_data.eq(0)]
                    m.next = "send"
            with m.State("send"):
                m.d.comb += [self.requests.valid.eq(~sent_address), self.beats.valid.eq(~sent_data)]
                m.d.sync += [
                    sent_address.eq(sent_address | self.requests.ready),
                    sent_data.eq(sent_data | self.beats.ready),
                ]
                with m.If((sent_address | self.requests.ready) & (sent_data | self.beats.ready)):
                    m.next = "read"
                    with m.If(sends_scale):
                        m.d.sync += sends_scale.eq(0)
                    with m.Elif((part + 1) << piece == store.head_dim):
                        m.d.sync += [part.eq(0), is_value.eq(1), sends_scale.eq(1)]
                        with m.If(is_value):
                            m.d.sync += head.eq(head + 1)
                            m.next = "unit"
                    with m.Else():
                        m.d.sync += part.eq(part + 1)
            with m.State("finish"), m.If(self.written):
                m.d.comb += self.command.ready.eq(1)
                m.next = "idle"
        return m
