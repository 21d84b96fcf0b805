"""Ask for the pages of an attention, keys some pages before values."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, fifo, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from alula.hw import isa, layout, rows as rows_of
from alula.hw.attention.multiply import Multiplier
from alula.hw.attention.walk import UNIT_BITS, PageWalk, item_layout
from alula.hw.axi import ADDRESS_BITS, BEATS_BITS, REQUEST
from alula.hw.choice import choose
from alula.hw.formats import COMMAND_BITS, instruction_layout
from alula.hw.isa import WORD_BYTES
from alula.hw.lane.prefetch import PAGES
from alula.hw.numerics import PAGE_TOKENS
from alula.hw.step import SLOT_BITS, row_layout

LAG = 3  # pages between the keys and the values of one page: time for its softmax
SCALE_BYTES = 2 * 4 * PAGE_TOKENS  # a key's and a value's of each token, at the start of a page
_WORD = ceil_log2(WORD_BYTES)
assert layout.page_words(16) == (SCALE_BYTES + 2 * 16 * PAGE_TOKENS) // WORD_BYTES


def key_beats(size, beat_bytes):
    """Return the beats from the start of a page to its last key, of ``size`` bytes; 0 if none."""
    return Mux(size == 0, 0, value_beats(size, beat_bytes) + SCALE_BYTES // beat_bytes)


def value_beats(size, beat_bytes):
    return (size + beat_bytes - 1) >> ceil_log2(beat_bytes)


class PageFetch(wiring.Component):
    """Turn a ``LoadPages`` into reads: for each page its scales and keys, and its values later.

    The order is keys 0, keys 1, ..., keys LAG, values 0, keys LAG + 1, values 1, and so on.

    Members
    -------
    command : ``In(stream of COMMAND_BITS)``
        Taken at its end.
    lane, table, slot_words : of the step
    entry : ``Out``, ``slot`` : ``In``
        The slot of a page, a clock after its entry.
    requests : ``Out(stream of PAGES)``
        Addresses in the lane's memory; no more than ``piece`` beats each. The last has none.
    """

    def __init__(self, arch, piece):
        self.arch, self.piece = arch, piece
        super().__init__({
            "command": In(stream.Signature(COMMAND_BITS)),
            "lane": In(range(arch.lanes)),
            "table": In(row_layout(arch)).array(arch.rows),
            "slot_words": In(32),
            "entry": Out(ceil_log2(arch.page_entries)),
            "slot": In(SLOT_BITS),
            "requests": Out(stream.Signature(PAGES)),
        })

    def elaborate(self, platform):
        m = Module()
        arch = self.arch
        request = self._pieces(m)
        m.submodules.walk = walk = PageWalk(arch)
        # Values still to be asked for: as many as pages whose keys were asked for, at most LAG + 1.
        m.submodules.values = values = fifo.SyncFIFO(width=REQUEST.size, depth=LAG + 1)
        load = instruction_layout(isa.LoadPages)(self.command.payload)
        item = Signal(item_layout(arch))
        m.d.comb += [
            walk.kv_heads.eq(load.kv_heads), walk.lane.eq(self.lane),
            walk.rows.eq(rows_of.told(arch, self.command.payload)), walk.part.eq(load.rows),
            self.entry.eq(choose(item.root, [row.pages for row in self.table]) + item.page),
        ]
        m.d.comb += [mine.eq(theirs) for mine, theirs in zip(walk.table, self.table, strict=True)]
        m.submodules.multiply = multiply = Multiplier(SLOT_BITS, 32)
        in_lane, index = Signal(32), Signal(UNIT_BITS)  # where pages of a (head, class) begin
        address = Signal(ADDRESS_BITS)
        m.d.comb += [multiply.a.eq(self.slot), multiply.b.eq(self.slot_words)]
        page_words = (SCALE_BYTES // WORD_BYTES) + load.head_dim * (2 * PAGE_TOKENS // WORD_BYTES)
        later, waiting = data.View(REQUEST, values.w_data), data.View(REQUEST, values.r_data)
        keys, its_values = Signal(BEATS_BITS), Signal(BEATS_BITS)  # three clocks after its item
        size = Signal(16)  # bytes of the page's keys
        m.d.sync += [
            size.eq(item.tokens * load.head_dim),
            keys.eq(key_beats(size, arch.beat_bytes)),
            its_values.eq(value_beats(size, arch.beat_bytes)),
        ]
        m.d.comb += [
            later.address.eq(address + SCALE_BYTES + load.head_dim * PAGE_TOKENS),
            later.beats.eq(its_values),
        ]
        with m.FSM():
            with m.State("idle"):
                m.d.sync += [in_lane.eq(load.offset), index.eq(0)]
                with m.If(self.command.valid):
                    m.d.comb += walk.start.eq(1)
                    m.next = "item"
            with m.State("item"):
                m.d.comb += walk.items.ready.eq(1)
                m.d.sync += item.eq(walk.items.payload)
                with m.If(walk.items.valid):
                    m.next = "look up"
            with m.State("look up"):  # items come in order of their index
                m.next = "place"
                with m.If((index != item.index) & ~item.end):
                    m.d.sync += [index.eq(index + 1), in_lane.eq(in_lane + page_words)]
                    m.next = "look up"
            with m.State("place"):
                m.d.comb += multiply.start.eq(1)
                m.next = "address"
                with m.If(item.end):
                    m.next = "values"
            with m.State("address"), m.If(~multiply.busy):
                words = (multiply.total + in_lane)[:32]
                m.d.sync += address.eq(Cat(Const(0, _WORD), words))
                m.next = "keys"
            with m.State("keys"):
                m.d.comb += [
                    request.valid.eq(keys != 0),
                    request.payload.address.eq(address),
                    request.payload.beats.eq(keys),
                    values.w_en.eq(~request.valid | request.ready),
                ]
                with m.If(values.w_en):
                    m.next = "item"
                    with m.If(values.level == LAG):
                        m.next = "values"
            with m.State("values"):
                m.d.comb += [
                    request.valid.eq(values.r_rdy & (waiting.beats != 0)),
                    request.payload.address.eq(waiting.address),
                    request.payload.beats.eq(Mux(values.r_rdy, waiting.beats, 0)),
                    values.r_en.eq(~request.valid | request.ready),
                ]
                with m.If(~item.end):
                    with m.If(values.r_en):
                        m.next = "item"
                with m.Elif(~values.r_rdy):
                    m.d.comb += [request.valid.eq(1), request.payload.last.eq(1)]
                    with m.If(request.ready):
                        m.d.comb += self.command.ready.eq(1)
                        m.next = "idle"
        return m

    def _pieces(self, m):
        """Cut requests into pieces; return the stream of whole ones."""
        whole = stream.Signature(PAGES).create(path=("whole",))
        held = Signal(PAGES)
        busy, more = Signal(), Signal()  # `held` is what is left of a request, and not the last
        size = Signal(BEATS_BITS)
        m.d.comb += [
            more.eq(held.beats > self.piece),
            size.eq(Mux(more, self.piece, held.beats)),
            self.requests.valid.eq(busy),
            self.requests.payload.address.eq(held.address),
            self.requests.payload.beats.eq(size),
            self.requests.payload.last.eq(held.last),
            whole.ready.eq(~busy),  # a clock between two, so that no way leads through here
        ]
        with m.If(busy & self.requests.ready):
            m.d.sync += [
                held.beats.eq(held.beats - size),
                held.address.eq(held.address + (size << ceil_log2(self.arch.beat_bytes))),
            ]
            with m.If(~more):
                m.d.sync += busy.eq(0)
        with m.If(whole.ready):
            m.d.sync += [busy.eq(whole.valid), held.eq(whole.payload)]
        return whole
