"""Rotate: rotary position embedding, a word of cosines at a time for all heads of a row."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data

from alula.hw import isa
from alula.hw.formats import instruction_layout
from alula.hw.vector.buffers import first_word, log2
from alula.hw.vector.lanes import Operation
from alula.hw.vector.sequencer import Sequencer


class Rotate(Sequencer):
    """A word a clock, and four clocks for each word of cosines in each row.

    Of pairs of halves, ``TURN_FIRST`` is done as the second half is read, ``TURN_SECOND`` a clock
    later, while something else is read.
    """

    def elaborate(self, platform):
        m = Module()
        arch, step = self.arch, self.step
        insn = data.View(instruction_layout(isa.Rotate), self.command)
        base, row_end = self.count_rows(m)
        shift = log2(arch.vector_width)
        turning, dim = insn.rotary_dim[shift:], insn.head_dim[shift:]  # words of a head
        half = turning >> 1
        tables = (insn.rotary_dim + 31) >> 5  # blocks of cosines
        head, at = Signal(8), Signal(16)  # at: first word of the head
        word, upper = Signal(9), Signal()  # word of the cosines; in pairs, of two the second
        inside = Signal(16)  # word of the head
        last_head, more = Signal(), Signal()
        turned, turned_to = Signal(), Signal(step.target.shape())
        cos = first_word(arch, insn.cos)
        # Of the row's words; two clocks before the first of them.
        source, target = Signal.like(self.read_address), Signal.like(self.read_address)
        m.d.sync += [source.eq(base + first_word(arch, insn.source)),
                     target.eq(base + first_word(arch, insn.target))]
        m.d.comb += [
            inside.eq(Mux(insn.interleaved, (word << 1) + upper, word)),
            last_head.eq(head + 1 == insn.heads),
            more.eq(Mux(insn.interleaved, ((word + 1) << 1) < turning, word + 1 < half)),
            self.read_address.eq(source + at + inside),
            step.target.eq(target + at + inside),
            # All elements. A bare constant would become `always @*` with nothing to wait for, which
            # a Verilog simulator never runs.
            step.mask.eq((insn.heads != 0).replicate(arch.vector_width)),
            step.upper.eq(upper),
        ]
        m.d.sync += turned.eq(0)
        with m.If(turned):
            m.d.comb += [step.operation.eq(Operation.TURN_SECOND), step.write.eq(1),
                         step.target.eq(turned_to)]
        next_word = [head.eq(0), at.eq(0), upper.eq(0), word.eq(word + 1)]
        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += [head.eq(0), at.eq(0), word.eq(0), upper.eq(0)]
                with m.If(self.start):
                    m.next = "COS"
            with m.State("COS"):
                m.d.comb += [step.cos.eq(1), self.read_address.eq(base + cos + word)]
                m.next = "SIN"
            with m.State("SIN"):
                m.d.comb += [step.sin.eq(1), self.read_address.eq(
                    base + cos + first_word(arch, tables) + word)]
                m.next = "FIRST"
                with m.If(insn.interleaved):
                    m.next = "PAIRS"
            with m.State("PAIRS"):
                m.d.comb += [step.operation.eq(Operation.TURN_PAIRS), step.write.eq(1)]
                with m.If(~upper & (inside + 1 < turning)):
                    m.d.sync += upper.eq(1)
                with m.Else():
                    m.d.sync += [upper.eq(0), head.eq(head + 1), at.eq(at + dim)]
                    with m.If(last_head):
                        m.d.sync += next_word
                        m.next = "COS"
                        with m.If(~more):
                            m.next = "GAP"
            with m.State("FIRST"):
                m.next = "SECOND"
            with m.State("SECOND"):
                m.d.comb += [step.operation.eq(Operation.TURN_FIRST), step.write.eq(1),
                             self.read_address.eq(source + at + inside + half)]
                m.d.sync += [turned.eq(1), turned_to.eq(step.target + half),
                             head.eq(head + 1), at.eq(at + dim)]
                m.next = "FIRST"
                with m.If(last_head):
                    m.d.sync += next_word
                    m.next = "COS"
                    with m.If(~more):
                        m.next = "GAP"
            with m.State("GAP"):
                m.d.sync += [upper.eq(0), word.eq(turning)]
                m.next = "REST"
                with m.If(turning == dim):
                    m.next = "END"
            with m.State("REST"):
                m.d.comb += [step.operation.eq(Operation.COPY), step.write.eq(1),
                             self.read_address.eq(source + at + word),
                             step.target.eq(target + at + word)]
                m.d.sync += word.eq(word + 1)
                with m.If(word + 1 == dim):
                    m.d.sync += [word.eq(turning), head.eq(head + 1), at.eq(at + dim)]
                    with m.If(last_head):
                        m.next = "END"
            with m.State("END"):
                m.d.comb += row_end.eq(1)
                m.d.sync += [head.eq(0), at.eq(0), word.eq(0)]
                m.next = "COS"
                with m.If(self.finished):
                    m.next = "IDLE"
        return m
