"""RmsNorm: a pass that sums squares, a tree, a scalar, and a pass that multiplies."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from alula.hw import fp, functions, isa
from alula.hw.formats import instruction_layout
from alula.hw.pipe import Pipe
from alula.hw.vector.buffers import first_word, log2, tail_mask, words_of
from alula.hw.vector.lanes import PARTIAL_CLOCKS, Operation, partial_words
from alula.hw.vector.sequencer import Sequencer


class RmsNorm(Sequencer):
    """Twice a part's words in clocks, and about 200 for each part.

    Members
    -------
    total : ``In(32)``
        The lanes' last sum.
    scalar : ``Out(32)``
        What the lanes multiply by.
    """

    def ports(self, arch):
        return {"total": In(32), "scalar": Out(32)}

    def elaborate(self, platform):
        m = Module()
        arch = self.arch
        insn = data.View(instruction_layout(isa.RmsNorm), self.command)
        base, row_end = self.count_rows(m)
        # Levels of the tree: words, then halves of a word.
        depth, folds = partial_words(arch), log2(arch.vector_width)
        words, word, part = Signal(16), Signal(16), Signal(8)
        at = Signal(range(arch.vector_elements))  # first word of the part, in its vector
        last, near, wait = Signal(), Signal(), Signal(range(256))
        half, fold = Signal(range(depth + 1)), Signal(range(folds + 2))
        step = self.step
        m.d.comb += [
            words.eq(words_of(arch, insn.size)),
            last.eq(word + 1 == words),
            near.eq(word + 1 < words),
            self.read_address.eq(base + at + first_word(arch, insn.source) + word),
            self.param_address.eq(first_word(arch, insn.gamma) + word),
            step.target.eq(base + at + first_word(arch, insn.target) + word),
            step.mask.eq(Mux(near, ~0, Mux(last, tail_mask(arch, insn.size), 0))),
            step.first.eq(word < depth),
            step.partial.eq(word),
            step.other.eq(word + half),
            step.fold.eq(fold),
        ]
        ready = self._scalar(m, insn)
        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += [part.eq(0), at.eq(0), word.eq(0)]
                with m.If(self.start):
                    m.next = "SQUARES"
            with m.State("SQUARES"):
                m.d.comb += step.operation.eq(Operation.SQUARE)
                m.d.sync += word.eq(word + 1)
                with m.If(~near & (word + 1 >= depth)):
                    m.d.sync += [word.eq(0), half.eq(depth // 2), fold.eq(0), wait.eq(0)]
                    m.next = "WAIT"
            with m.State("WAIT"):
                m.d.sync += wait.eq(wait + 1)
                with m.If(wait == PARTIAL_CLOCKS):
                    m.next = "TREE"
            with m.State("TREE"):
                m.d.comb += step.operation.eq(Operation.FOLD)
                m.d.sync += [word.eq(word + 1), wait.eq(0)]
                with m.If((fold != 0) | (word + 1 == half)):
                    m.d.sync += [word.eq(0), half.eq(half >> 1)]
                    with m.If(half <= 1):
                        m.d.sync += fold.eq(fold + 1)
                    m.next = "WAIT"
                    with m.If(fold == folds):
                        m.next = "SCALAR"
            with m.State("SCALAR"):
                m.d.sync += wait.eq(wait + 1)
                with m.If(wait == ready):
                    m.next = "MULTIPLY"
            with m.State("MULTIPLY"):
                m.d.comb += [step.operation.eq(Operation.NORMALIZE), step.write.eq(1)]
                m.d.sync += word.eq(word + 1)
                with m.If(last):
                    m.d.sync += [word.eq(0), part.eq(part + 1), at.eq(at + words)]
                    m.next = "SQUARES"
                    with m.If(part + 1 == insn.parts):
                        m.d.comb += row_end.eq(1)
                        m.d.sync += [part.eq(0), at.eq(0)]
                    with m.If(self.finished):
                        m.next = "IDLE"
        return m

    def _scalar(self, m, insn):
        """Compute the scalar; return the clocks from a part's last step until it is there."""
        p = Pipe(m)
        size = p.input(Cat(insn.size, Const(0, 1)).as_signed())
        inverse = functions.reciprocal(p, fp.from_int(p, size))
        # The size has been there since the start: its reciprocal is as good as a constant.
        count = p.input(inverse.signal)
        mean = p.mul(p.input(self.total), count)
        scalar = functions.rsqrt(p, p.add(mean, p.input(insn.eps)))
        m.d.comb += self.scalar.eq(scalar.signal)
        return scalar.stage + 24
