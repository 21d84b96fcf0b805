"""Activate: one pipeline for all functions of one variable, and the unit that feeds it."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from alula.hw import fp, functions, isa, numerics, rows as rows_of
from alula.hw.formats import COMMAND_BITS, instruction_layout
from alula.hw.pipe import Pipe
from alula.hw.vector.buffers import (
    READ_LATENCY,
    address_bits,
    first_word,
    row_words,
    tail_mask,
    words_of,
)

STEPS = 8  # of a word: an element's pipeline is as large as eight elements' sums and products
_ELEMENT_STAGE = READ_LATENCY + 1
_OTHER_STAGE = READ_LATENCY + 2


def activation(p, x, other, function, gated):
    """Return a function of ``x``, times ``other`` if ``gated``, as numerics computes it.

    ``function`` and ``gated`` are signals that do not change while anything is in the pipeline.
    Operations that two functions need are done once, on operands chosen by the function.
    """
    def choose(**cases):
        """Return the value of the function's case, or of ``default``."""
        names = list(cases)

        def mux(*signals):
            chosen = signals[names.index("default")]
            for name, signal in zip(names, signals, strict=True):
                if name != "default":
                    chosen = Mux(function == isa.Function[name.upper()], signal, chosen)
            return chosen
        return p.apply(mux, *cases.values())

    const, mul, add = p.const, p.mul, p.add
    size = p.absolute(x)
    first = mul(choose(gelu=size, default=x), choose(gelu=const(numerics.SQRT_HALF), default=x))
    second = mul(first, choose(gelu=first, default=x))  # gelu: z * z, gelu_tanh: x * x * x
    third = mul(choose(gelu=first, default=second),
                choose(gelu=const(numerics.ERF_P), default=const(numerics.GELU_CUBE)))
    inner = add(choose(gelu=const(1), default=x), third)
    scaled = mul(inner, const(numerics.GELU_SCALE))
    power = functions.exp(p, p.negate(choose(gelu=second, gelu_tanh=scaled, default=x)))
    r = functions.reciprocal(p, choose(gelu=inner, default=add(power, const(1))))
    tail = functions.horner(p, numerics.ERF_POLY, r)
    tail = mul(mul(mul(tail, r), power), const(0.5))
    half = p.mux(p.apply(lambda x: x[31] & ~fp.is_zero(x) & ~fp.is_nan(x), x),
                 tail, p.sub(const(1), tail))
    result = mul(x, choose(gelu=half, default=r))
    positive = p.apply(lambda x: Mux(x[31] | fp.is_nan(x), 0, x), x, shape=32)
    result = choose(relu=positive, default=result)
    return p.apply(lambda plain, product: Mux(gated, product, plain), result, mul(result, other))


class Activate(wiring.Component):
    """A word in eight clocks, in four if it has four elements.

    Members
    -------
    start : ``In(1)``
        One clock; ``command`` and ``rows`` hold from then until ``finished``.
    read_address, read_data : of the vector buffer
    writes : ``Out(1)``, write_address, write_data, write_mask : ``Out``
    finished : ``Out(1)``
        One clock, with the last write.
    """

    def __init__(self, arch):
        self.arch = arch
        word, address = 32 * arch.vector_width, address_bits(arch)
        super().__init__({
            "start": In(1), "command": In(COMMAND_BITS), "rows": In(range(arch.rows + 1)),
            "read_address": Out(address), "read_data": In(word),
            "writes": Out(1), "write_address": Out(address), "write_data": Out(word),
            "write_mask": Out(arch.vector_width), "finished": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        arch, width = self.arch, self.arch.vector_width
        insn = data.View(instruction_layout(isa.Activate), self.command)
        at_once = max(1, width // STEPS)
        steps = width // at_once
        busy, step = Signal(), Signal(range(steps))
        row, base = Signal(range(arch.rows)), Signal(address_bits(arch))
        words, word = Signal(20), Signal(20)
        last, end = Signal(), Signal()
        target, mask = Signal(address_bits(arch)), Signal(width)
        m.d.comb += [
            words.eq(words_of(arch, insn.size)),
            last.eq(word + 1 == words),
            end.eq(last & (step == steps - 1)
                   & (row + 1 == rows_of.end_row(arch, self.command, self.rows))),
            self.read_address.eq(base + word + first_word(
                arch, Mux(step == 0, insn.source, insn.other))),
            target.eq(base + word + first_word(arch, insn.target)),
            mask.eq(Mux(last, tail_mask(arch, insn.size), ~0)
                    & Cat(*((step == i // at_once) for i in range(width)))),
        ]
        with m.If(busy):
            m.d.sync += step.eq(step + 1)
            with m.If(step == steps - 1):
                m.d.sync += word.eq(Mux(last, 0, word + 1))
                with m.If(last):
                    m.d.sync += [row.eq(row + 1), base.eq(base + row_words(arch))]
        first = rows_of.first_row(arch, self.command)
        with m.If(self.start):
            m.d.sync += [busy.eq(1), step.eq(0), word.eq(0), row.eq(first),
                         base.eq(first * row_words(arch))]
        with m.Elif(end):
            m.d.sync += busy.eq(0)
        p = Pipe(m)
        elements, others = self._elements(m, p, step, at_once)
        results = [activation(p, p.input(x, _ELEMENT_STAGE), p.input(y, _OTHER_STAGE),
                              insn.function, insn.gated)
                   for x, y in zip(elements, others, strict=True)]
        valid, ended, target, mask, *results = p.together(
            p.input(busy, reset=True), p.input(busy & end, reset=True), p.input(target),
            p.input(mask), *results)
        m.d.comb += [
            self.writes.eq(valid), self.write_address.eq(target),
            self.write_data.eq(Cat(*results).replicate(steps)),
            self.write_mask.eq(mask & valid.replicate(width)),
            self.finished.eq(ended),
        ]
        return m

    def _elements(self, m, p, step, at_once):
        """Hold the two words; return their elements that each step takes.

        A word is held from ``_ELEMENT_STAGE`` of its step, which is step 0, to the same stage of
        the last; the other is read a step later.
        """
        step = p.input(step)
        parts = []
        for place, stage in ((0, _ELEMENT_STAGE), (1, _OTHER_STAGE)):
            held = Signal(32 * self.arch.vector_width, name=f"held_{place}", reset_less=True)
            with m.If(p.at(step, READ_LATENCY) == place):
                m.d.sync += held.eq(self.read_data)
            parts.append([held.word_select(p.at(step, stage) * at_once + i, 32)
                          for i in range(at_once)])
        return parts
