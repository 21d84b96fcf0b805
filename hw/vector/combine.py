"""Combine: add, multiply or copy element by element."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data

from alula.hw import isa
from alula.hw.formats import instruction_layout
from alula.hw.vector.buffers import first_word, tail_mask, words_of
from alula.hw.vector.lanes import Operation
from alula.hw.vector.sequencer import Sequencer


class Combine(Sequencer):
    """A word a clock; two clocks if both operands are in the vector buffer."""

    def elaborate(self, platform):
        m = Module()
        insn = data.View(instruction_layout(isa.Combine), self.command)
        base, row_end = self.count_rows(m)
        busy, second, pair = Signal(), Signal(), Signal()
        words, word = Signal(20), Signal(20)
        m.d.comb += pair.eq(~insn.shared & (insn.function != isa.Elementwise.COPY))
        last, takes = Signal(), Signal()
        m.d.comb += [
            words.eq(words_of(self.arch, insn.size)),
            last.eq(word + 1 == words),
            takes.eq(busy & (second | ~pair)),
            row_end.eq(takes & last),
            self.read_address.eq(base + word + first_word(self.arch, Mux(second, insn.other,
                                                                         insn.source))),
            self.param_address.eq(first_word(self.arch, insn.other) + word),
            self.step.write.eq(takes),
            self.step.target.eq(base + first_word(self.arch, insn.target) + word),
            self.step.mask.eq(Mux(last, tail_mask(self.arch, insn.size), ~0)),
        ]
        with m.Switch(insn.function):
            with m.Case(isa.Elementwise.ADD):
                m.d.comb += self.step.operation.eq(
                    Mux(insn.shared, Operation.ADD_PARAM, Operation.ADD_PAIR))
            with m.Case(isa.Elementwise.MUL):
                m.d.comb += self.step.operation.eq(
                    Mux(insn.shared, Operation.MUL_PARAM, Operation.MUL_PAIR))
            with m.Default():
                m.d.comb += self.step.operation.eq(Operation.COPY)
        with m.If(busy):
            m.d.sync += second.eq(~second & pair)
        with m.If(takes):
            m.d.sync += word.eq(Mux(last, 0, word + 1))
        with m.If(self.start):
            m.d.sync += [busy.eq(1), second.eq(0), word.eq(0)]
        with m.Elif(self.finished):
            m.d.sync += busy.eq(0)
        return m
