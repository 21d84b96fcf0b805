"""Finish attentions: merge what several lanes have of a head, divide, and write the result."""

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, fifo, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from alula.hw import functions, isa, layout
from alula.hw.attention.merge import (
    HEAD_DIM_LIMIT,
    LEVELS,
    packet_layout,
    rescale,
    shifts,
)
from alula.hw.attention.softmax import PEAK_BITS
from alula.hw.attention.walk import PAGE_BITS
from alula.hw.buffers import vector_words, write_layout
from alula.hw.formats import COMMAND_BITS, instruction_layout
from alula.hw.isa import BLOCK
from alula.hw.pipe import Pipe
from alula.hw.ram import Ram

PLACES = 1 << (LEVELS - 1)  # where parts of a head's tree wait for their siblings
_OUT = 64  # words of results being made or waiting to be written: more than the division takes


class Merger(wiring.Component):
    """Take packets; a part whose sibling is here or does not exist goes up, else it waits.

    Words of what is whole as it comes go straight to the division, one a clock.

    Members
    -------
    command : ``In(stream of COMMAND_BITS)``
        The ``Attend`` whose packets come; taken when the last of its heads is written.
    rows, top
        Rows that the command is for, and the last page of any of the step.
    packets : ``In(stream of packet_layout)``
    writes : ``Out(stream of write_layout)``
        To the vector buffer.
    clearing : ``Out(1)``
        After reset: no command is taken.
    """

    def __init__(self, arch):
        self.arch = arch
        super().__init__({
            "command": In(stream.Signature(COMMAND_BITS)),
            "rows": In(range(arch.rows + 1)),
            "top": In(PAGE_BITS),
            "packets": In(stream.Signature(packet_layout(arch))),
            "writes": Out(stream.Signature(write_layout(arch))),
            "clearing": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        arch = self.arch
        width = arch.vector_width
        insn = instruction_layout(isa.Attend)(self.command.payload)
        entries = arch.merge_elements // BLOCK * PLACES
        state = data.StructLayout({
            "waits": 1, "level": range(LEVELS + 1), "node": LEVELS,
            "peak": signed(PEAK_BITS), "total": 32})
        m.submodules.states = states = Ram(shape=state, depth=entries)
        m.submodules.waiting = waiting = Ram(
            shape=32 * width, depth=arch.merge_elements * PLACES // width, passive=True,
            style=arch.core_memory)
        m.submodules.scratch = scratch = Ram(
            shape=32 * width, depth=HEAD_DIM_LIMIT // width, passive=True)
        look, mark = states.read_port(), states.write_port()
        theirs, keep = waiting.read_port(), waiting.write_port()
        mine, put = scratch.read_port(), scratch.write_port()
        m.submodules.out = out = fifo.SyncFIFOBuffered(
            width=write_layout(arch).size, depth=_OUT)

        row, head = Signal(6), Signal(8)
        level, node = Signal(range(LEVELS + 1)), Signal(LEVELS)
        peak, total = Signal(signed(PEAK_BITS)), Signal(32)
        at, words = Signal(range(HEAD_DIM_LIMIT // width + 1)), Signal(
            range(HEAD_DIM_LIMIT // width + 1))
        finished = Signal(range(arch.rows * 256 + 1))  # heads of rows
        clear = Signal(range(entries + 1))
        sibling, entry = Signal(LEVELS), Signal(range(entries))
        number = Signal(range(entries))  # of the row's head
        place, other_place = Signal(range(PLACES)), Signal(range(PLACES))
        m.d.comb += [
            words.eq(insn.head_dim >> ceil_log2(width)),
            sibling.eq(node ^ 1),
            number.eq(row * insn.heads + head),
            place.eq(_place(level, node)), other_place.eq(_place(level, sibling)),
            entry.eq(number * PLACES + place),
            look.addr.eq(number * PLACES + other_place),
            mark.addr.eq(entry),
            mark.data.waits.eq(1), mark.data.level.eq(level), mark.data.node.eq(node),
            mark.data.peak.eq(peak), mark.data.total.eq(total),
        ]
        first = (sibling << level)[:LEVELS + 1]
        final = ((sibling << level) + (1 << level) - 1)[:LEVELS + 1]
        exists = Cat((first <= leaf) & (final >= leaf) & (cls <= self.top)
                     for leaf, cls in enumerate(layout.CLASS_ORDER)).any()

        # Words of the scratch and of what waits, merged or scaled; total in a turn of its own.
        turn, total_turn = Signal(), Signal()
        values_at = (number * insn.head_dim * PLACES) >> ceil_log2(width)
        mine_at = Signal(range(HEAD_DIM_LIMIT // width))
        m.d.comb += [
            mine_at.eq(at),
            mine.addr.eq(mine_at),
            theirs.addr.eq(values_at + other_place * words + at),
            keep.addr.eq(values_at + place * words + at - 1), keep.data.eq(mine.data),
        ]
        new_peak, powers = shifts(m, peak, look.data.peak)
        p = Pipe(m)
        valid, is_total = p.input(turn, reset=True), p.input(total_turn)
        slot = p.input(mine_at)
        sums = []
        for lane in range(width):
            a = p.input(mine.data.word_select(lane, 32), stage=1)
            b = p.input(theirs.data.word_select(lane, 32), stage=1)
            if lane == 0:
                a = p.mux(is_total, p.input(total), a)
                b = p.mux(is_total, p.input(look.data.total), b)
            sums.append(p.add(rescale(p, a, p.input(powers[0])),
                              rescale(p, b, p.input(powers[1]))))
        end = max(value.stage for value in sums)
        summed = Cat(p.at(value, end) for value in sums)
        sum_out, total_out = p.at(valid, end), p.at(is_total, end)
        packet = self.packets.payload
        receiving = Signal()
        m.d.comb += [
            put.en.eq((sum_out & ~total_out) | (receiving & self.packets.valid)),
            put.addr.eq(Mux(receiving, at, p.at(slot, end))),
            put.data.eq(Mux(receiving, packet.values, summed)),
        ]
        with m.If(sum_out & total_out):
            m.d.sync += total.eq(summed[:32])

        # The division: words of the scratch, or of a packet that is whole.
        scaling, passing, whole = Signal(), Signal(), Signal()
        m.d.comb += whole.eq(packet.level == LEVELS)
        held, room = Signal(range(_OUT + 1)), Signal()  # words in the division and behind it
        direct, was_passing = Signal(32 * width, reset_less=True), Signal()
        m.d.sync += [direct.eq(packet.values), was_passing.eq(passing)]
        value = Signal(32 * width)
        m.d.comb += [value.eq(Mux(was_passing, direct, mine.data)), room.eq(held != _OUT)]
        m.d.sync += held.eq(held + (scaling | passing) - (self.writes.valid & self.writes.ready))
        s = Pipe(m)
        factor = functions.reciprocal(s, s.input(Mux(passing, packet.total, total)))
        products = [s.mul(s.input(value.word_select(lane, 32), stage=1), factor)
                    for lane in range(width)]
        done_at = products[0].stage
        assert done_at + 2 < _OUT
        leaving = data.View(write_layout(arch), out.w_data)
        result_word = Signal(range(vector_words(arch)))
        m.d.comb += [
            result_word.eq(
                Mux(passing, packet.row, row) * (arch.vector_elements // width)
                + insn.target * (BLOCK // width)
                + ((Mux(passing, packet.head, head) * insn.head_dim) >> ceil_log2(width))
                + Mux(passing, packet.index, at)),
            leaving.address.eq(s.at(s.input(result_word), done_at)),
            leaving.data.eq(Cat(value.signal for value in products)), leaving.mask.eq(-1),
            out.w_en.eq(s.at(s.input(scaling | passing, reset=True), done_at)),
            self.writes.valid.eq(out.r_rdy), out.r_en.eq(self.writes.ready),
            self.writes.payload.eq(out.r_data),
        ]
        wait = Signal(range(end + 3))
        with m.FSM():
            with m.State("clear"):
                m.d.comb += self.clearing.eq(1)
                m.d.comb += [mark.addr.eq(clear), mark.data.waits.eq(0), mark.en.eq(1)]
                m.d.sync += clear.eq(clear + 1)
                with m.If(clear == entries - 1):
                    m.next = "idle"
            with m.State("idle"):
                m.d.sync += finished.eq(0)
                with m.If(self.command.valid):
                    m.next = "head word"
            with m.State("head word"):
                all_done = finished == self.rows * insn.heads
                m.d.comb += [
                    self.packets.ready.eq(~all_done & (room | ~whole)),
                    passing.eq(self.packets.valid & self.packets.ready & whole),
                ]
                with m.If(passing & packet.last):
                    m.d.sync += finished.eq(finished + 1)
                m.d.sync += [row.eq(packet.row), head.eq(packet.head), level.eq(packet.level),
                             node.eq(packet.node), peak.eq(packet.values[:PEAK_BITS]),
                             total.eq(packet.values[32:64]), at.eq(0)]
                with m.If(all_done):
                    m.next = "finish"
                with m.Elif(self.packets.valid & ~whole):
                    m.next = "receive"
            with m.State("receive"):
                m.d.comb += [self.packets.ready.eq(1), receiving.eq(1)]
                with m.If(self.packets.valid):
                    m.d.sync += at.eq(at + 1)
                    with m.If(packet.last):
                        m.next = "look up"
            with m.State("look up"):
                m.d.sync += at.eq(0)
                m.next = "decide"
            with m.State("decide"):
                with m.If(level == LEVELS):
                    m.next = "scale"
                with m.Elif(~exists):
                    m.d.sync += [level.eq(level + 1), node.eq(node >> 1)]
                    m.next = "look up"
                with m.Elif(look.data.waits & (look.data.level == level)
                            & (look.data.node == sibling)):
                    m.next = "merge"
                with m.Else():
                    m.next = "store"
            with m.State("merge"):
                m.d.comb += turn.eq(1)
                m.d.sync += at.eq(at + 1)
                with m.If(at + 1 == words):
                    m.next = "merge total"
            with m.State("merge total"):
                m.d.comb += [turn.eq(1), total_turn.eq(1)]
                m.d.sync += wait.eq(end + 2)
                m.next = "merge drain"
            with m.State("merge drain"):
                m.d.sync += [wait.eq(wait - 1), at.eq(0)]
                with m.If(wait == 0):
                    m.d.comb += [mark.en.eq(1), mark.addr.eq(number * PLACES + other_place),
                                 mark.data.waits.eq(0)]
                    m.d.sync += [level.eq(level + 1), node.eq(node >> 1), peak.eq(new_peak)]
                    m.next = "look up"
            with m.State("store"):
                # What is read in a clock is kept in the next.
                m.d.comb += keep.en.eq(at != 0)
                m.d.sync += at.eq(at + 1)
                with m.If(at == words):
                    m.d.comb += mark.en.eq(1)
                    m.next = "head word"
            with m.State("scale"):
                m.d.comb += scaling.eq(room)
                with m.If(scaling):
                    m.d.sync += at.eq(at + 1)
                    with m.If(at + 1 == words):
                        m.d.sync += finished.eq(finished + 1)
                        m.next = "head word"
            with m.State("finish"), m.If(held == 0):
                m.d.comb += self.command.ready.eq(1)
                m.next = "idle"
        return m


def _place(level, node):
    """Return where a part waits: each level's places are among those its leaves have left."""
    return Array([Cat(node[1:LEVELS]), node[:LEVELS - 1],
                  Cat(Const(0, 1), node[:LEVELS - 2]), Const(0, LEVELS - 1)])[level]
