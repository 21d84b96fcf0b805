"""The store unit: logits and best tokens to the control memory; keys and values by lanes."""

from amaranth.hdl import Array, Cat, Module, Mux, Signal
from amaranth.lib import data, fifo, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from alula.hw import isa, layout
from alula.hw.axi import ADDRESS_BITS, BEATS_BITS, REQUEST
from alula.hw.formats import COMMAND_BITS, instruction_layout
from alula.hw.isa import TOP_K, WORD_BYTES
from alula.hw.passive import passive
from alula.hw.step import row_bits, row_layout

READ_LATENCY = 2  # clocks from a buffer's address to its data
_WORD = ceil_log2(WORD_BYTES)
_IN_WORD = WORD_BYTES // 4  # fp32 values of a memory word
_TOP_WORDS = layout.TOP_ROW.itemsize // WORD_BYTES
BEAT = data.StructLayout({"data": 8 * WORD_BYTES, "strobe": WORD_BYTES})


class VectorReader(wiring.Component):
    """Read a run of the vector buffer as memory words.

    Members
    -------
    start : ``In(1)``
        Begin at ``first`` (a word of the buffer) with ``beats`` memory words; when idle.
    address : ``Out(stream of address)``, ``data``
        Of the vector buffer; ``data`` comes ``READ_LATENCY`` clocks after an address is taken.
    words : ``Out(stream of memory words)``
    """

    DEPTH = 8

    def __init__(self, address_bits, width):
        self.width = width
        super().__init__({
            "start": In(1), "first": In(address_bits), "beats": In(BEATS_BITS),
            "address": Out(stream.Signature(address_bits)), "data": In(32 * width),
            "words": Out(stream.Signature(8 * WORD_BYTES)),
        })

    def elaborate(self, platform):
        m = Module()
        parts = self.width // _IN_WORD
        m.submodules.fifo = queue = fifo.SyncFIFOBuffered(
            width=32 * self.width, depth=self.DEPTH)
        left, part = Signal(BEATS_BITS), Signal(range(parts + 1))
        coming = Signal(READ_LATENCY)  # a bit for each read under way
        room = Signal(range(self.DEPTH + 1), init=self.DEPTH)  # not read for, and not held
        asked, taken = Signal(), Signal()
        m.d.comb += [
            self.address.valid.eq((left != 0) & (room != 0)),
            asked.eq(self.address.valid & self.address.ready),
            queue.w_data.eq(self.data), queue.w_en.eq(coming[-1]),
            self.words.valid.eq(queue.r_rdy),
            self.words.payload.eq(queue.r_data.word_select(part, 8 * WORD_BYTES)),
            taken.eq(self.words.valid & self.words.ready & (part == parts - 1)),
            queue.r_en.eq(taken),
        ]
        m.d.sync += [coming.eq(Cat(asked, coming[:-1])), room.eq(room - asked + taken)]
        with m.If(self.words.valid & self.words.ready):
            m.d.sync += part.eq(Mux(taken, 0, part + 1))
        with m.If(asked):
            m.d.sync += [left.eq(left - 1), self.address.payload.eq(self.address.payload + 1)]
        with m.If(self.start):
            m.d.sync += [left.eq(self.beats >> ceil_log2(parts)),
                         self.address.payload.eq(self.first)]
        return m


class StoreUnit(wiring.Component):
    """Run the ST instructions.

    Members
    -------
    commands : ``In(stream of COMMAND_BITS)``
    done : ``Out(1)``
        A pulse when all that the command wrote is in memory.
    base, rows, table : of the step
    lanes : ``Out(stream of COMMAND_BITS)``, ``lanes_done`` : ``In(1)``
        ``StoreKeyValue`` is the lanes' work.
    requests, beats, written
        To the writer of the control memory; ``written`` says that nothing is under way.
    vector : ``Out(stream of address)``, ``vector_data``
        Reads of the vector buffer, in its words: data two clocks after an address is taken.
    top_row, top_index, top_value, top_token
        Reads of the best logits, the same.
    """

    def __init__(self, arch):
        self.arch = arch
        self.words = arch.vector_elements // arch.vector_width  # of a row in the vector buffer
        super().__init__({
            "commands": In(stream.Signature(COMMAND_BITS)),
            "done": Out(1),
            "base": In(ADDRESS_BITS),
            "rows": In(range(arch.rows + 1)),
            "table": In(row_layout(arch)).array(arch.rows),
            "lanes": Out(stream.Signature(COMMAND_BITS)),
            "lanes_done": In(1),
            "requests": Out(stream.Signature(REQUEST)),
            "beats": Out(stream.Signature(BEAT)),
            "written": In(1),
            "vector": Out(stream.Signature(ceil_log2(arch.rows * self.words))),
            "vector_data": In(32 * arch.vector_width),
            "top_row": Out(row_bits(arch)),
            "top_index": Out(range(TOP_K)),
            "top_value": In(32),
            "top_token": In(32),
        })

    def elaborate(self, platform):
        m = Module()
        word, row = Signal(COMMAND_BITS), Signal(range(self.arch.rows + 1))
        store = instruction_layout(isa.StoreRow)(word)
        is_top = word[:8] == isa.StoreTop.opcode
        wants = Array(entry.wants for entry in self.table)[row]
        address, stride = Signal(ADDRESS_BITS), Signal(24)
        sent, total = Signal(BEATS_BITS), Signal(BEATS_BITS)  # beats of a row
        m.d.sync += total.eq(Mux(is_top, _TOP_WORDS, store.size >> ceil_log2(_IN_WORD)))
        m.submodules.reader = reader = VectorReader(
            len(self.vector.payload), self.arch.vector_width)
        wiring.connect(m, reader.address, wiring.flipped(self.vector))
        tops = Signal(32 * 2 * TOP_K)
        at = Signal(range(TOP_K + READ_LATENCY + 1))
        m.d.comb += [
            reader.data.eq(self.vector_data),
            reader.first.eq(row * self.words
                            + store.source * (isa.BLOCK // self.arch.vector_width)),
            reader.beats.eq(store.size >> ceil_log2(_IN_WORD)),
            stride.eq(Mux(is_top, _TOP_WORDS, store.stride)),
            self.requests.payload.address.eq(address),
            self.requests.payload.beats.eq(total),
            self.beats.payload.data.eq(passive(
                m, Mux(is_top, tops[:8 * WORD_BYTES], reader.words.payload))),
            self.beats.payload.strobe.eq(-1),
            self.lanes.payload.eq(word),
            self.top_row.eq(row), self.top_index.eq(at),
        ]
        with m.FSM():
            with m.State("idle"):
                m.d.comb += self.commands.ready.eq(1)
                m.d.sync += [word.eq(self.commands.payload), row.eq(0)]
                fresh = instruction_layout(isa.StoreRow)(self.commands.payload)
                m.d.sync += address.eq(self.base + (fresh.offset << _WORD))
                with m.If(self.commands.valid):
                    m.next = "row"
                    with m.If(fresh.opcode == isa.StoreKeyValue.opcode):
                        m.next = "lanes"
            with m.State("row"):
                m.d.sync += [sent.eq(0), at.eq(0)]
                with m.If(row == self.rows):
                    m.next = "finish"
                with m.Elif(is_top):
                    m.next = "tops"
                with m.Elif(~wants | (reader.beats == 0)):
                    m.d.sync += [row.eq(row + 1), address.eq(address + (stride << _WORD))]
                with m.Else():
                    m.d.comb += reader.start.eq(1)
                    m.next = "ask"
            with m.State("tops"):
                m.d.sync += at.eq(at + 1)
                with m.If(at >= READ_LATENCY):
                    m.d.sync += tops.eq(Cat(tops[32:32 * TOP_K], self.top_value,
                                            tops[32 * (TOP_K + 1):], self.top_token))
                with m.If(at == TOP_K + READ_LATENCY - 1):
                    m.next = "ask"
            with m.State("ask"):
                m.d.comb += self.requests.valid.eq(1)
                with m.If(self.requests.ready):
                    m.next = "send"
            with m.State("send"):
                m.d.comb += [
                    self.beats.valid.eq(is_top | reader.words.valid),
                    reader.words.ready.eq(~is_top & self.beats.ready),
                ]
                with m.If(self.beats.valid & self.beats.ready):
                    m.d.sync += [sent.eq(sent + 1), tops.eq(tops >> 8 * WORD_BYTES)]
                    with m.If(sent + 1 == total):
                        m.d.sync += [row.eq(row + 1), address.eq(address + (stride << _WORD))]
                        m.next = "row"
            with m.State("finish"):
                with m.If(self.written):
                    m.d.comb += self.done.eq(1)
                    m.next = "idle"
            with m.State("lanes"):
                m.d.comb += self.lanes.valid.eq(1)
                with m.If(self.lanes.ready):
                    m.next = "wait"
            with m.State("wait"):
                with m.If(self.lanes_done):
                    m.d.comb += self.done.eq(1)
                    m.next = "idle"
        return m
