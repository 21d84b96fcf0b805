"""The arithmetic that instructions share: two multipliers and an adder for each element.

All steps take the same time, whatever they do: words are read at stage 0, operands are chosen at
stage 2, the first product is there at stage 7, the second at 11, the sum at 18, and the result is
written at 19.
"""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, enum, wiring
from amaranth.lib.wiring import In, Out

from alula.hw import fp, numerics
from alula.hw.pipe import Pipe
from alula.hw.ram import Ram
from alula.hw.vector.buffers import READ_LATENCY, address_bits, log2, spread

PRODUCT_STAGE = READ_LATENCY + 1 + fp.MUL_LATENCY
_SECOND_STAGE = PRODUCT_STAGE + fp.MUL_LATENCY
_SUM_STAGE = _SECOND_STAGE + 1 + fp.ADD_LATENCY
WRITE_STAGE = _SUM_STAGE + 1
PARTIAL_CLOCKS = _SUM_STAGE + 1 - _SECOND_STAGE  # from a step to one that uses its partial sum


class Operation(enum.Enum, shape=4):
    """What a step does with the word it reads, ``x``; ``before`` was read a step earlier."""

    COPY = 0  # x
    ADD_PARAM = 1  # x + parameter
    ADD_PAIR = 2  # before + x
    MUL_PARAM = 3  # x * parameter
    MUL_PAIR = 4  # before * x
    SQUARE = 5  # partial sum + x * x
    FOLD = 6  # partial sum + partial sum
    NORMALIZE = 7  # x * scalar * parameter
    TURN_FIRST = 8  # before * cosine - x * sine
    TURN_SECOND = 9  # before * cosine + the word before that * sine
    TURN_PAIRS = 10  # neighbours in x turn
    SCALE = 11  # group_word * scalar, for Quantize


def partial_words(arch):
    """Return the words of partial sums."""
    return numerics.PARTIALS // arch.vector_width


def step_layout(arch):
    """Return what an instruction asks of the lanes in a clock."""
    index = log2(partial_words(arch))
    return data.StructLayout({
        "operation": Operation,
        "write": 1,
        "target": address_bits(arch),
        "mask": arch.vector_width,  # elements that are read; others are 0, and not written
        "cos": 1, "sin": 1,  # the word read becomes the cosines, the sines
        "upper": 1,  # TURN_PAIRS: by the upper half of the cosines and sines
        "first": 1,  # SQUARE: the partial sum is 0 so far
        "partial": index,  # where the partial sum goes, and comes from
        "other": index,  # FOLD: the second operand
        "fold": range(log2(arch.vector_width) + 1),  # FOLD: if not 0, by the upper half
    })


class Lanes(wiring.Component):
    """Execute a step each clock.

    Members
    -------
    step : ``In(step_layout)``
        At the clock in which its word is asked for.
    read_data, param_data : ``In(32 * vector_width)``
        What was asked for ``READ_LATENCY`` clocks earlier.
    group_word, scalar : ``In``
        Operands that are needed ``READ_LATENCY`` clocks after their step.
    writes : ``Out(1)``, write_address, write_data, write_mask : ``Out``
        Result of the step ``WRITE_STAGE`` clocks earlier.
    product : ``Out(32 * vector_width)``
        First product of the step ``PRODUCT_STAGE`` clocks earlier.
    total : ``Out(32)``
        First element of the sum of the last step that folded or squared.
    """

    def __init__(self, arch):
        self.arch = arch
        word = 32 * arch.vector_width
        super().__init__({
            "step": In(step_layout(arch)),
            "read_data": In(word), "param_data": In(word),
            "group_word": In(word), "scalar": In(32),
            "writes": Out(1),
            "write_address": Out(address_bits(arch)), "write_data": Out(word),
            "write_mask": Out(arch.vector_width),
            "product": Out(word), "total": Out(32),
        })

    def elaborate(self, platform):
        m = Module()
        p = Pipe(m)
        tags = {name: p.input(self.step[name] if name != "operation"
                              else self.step.operation.as_value(), reset=name == "write")
                for name in step_layout(self.arch).members}
        x1, y1, x2, y2 = self._operands(m, p, tags)
        first = self._each(p, p.mul, x1, y1)
        operation = p.at(tags["operation"], PRODUCT_STAGE)
        left = p.apply(lambda x, first: Mux(self._is(operation, Operation.NORMALIZE), first, x),
                       x2, first, latency=0)
        second = self._each(p, p.mul, left, y2)
        plain = p.apply(lambda x, first: Mux(self._is(
            operation, Operation.COPY, Operation.ADD_PARAM, Operation.ADD_PAIR), x, first),
            x1, first)
        total = self._sum(m, p, tags, plain, second, y2)
        operation = p.at(tags["operation"], _SUM_STAGE)
        result = p.apply(lambda plain, second, total: Mux(self._is(
            operation, Operation.COPY, Operation.MUL_PARAM, Operation.MUL_PAIR), plain,
            Mux(self._is(operation, Operation.NORMALIZE), second, total)), plain, second, total)
        write = p.apply(lambda write, mask: write.replicate(len(mask)) & mask,
                        tags["write"], tags["mask"], latency=0)
        m.d.comb += [
            self.writes.eq(p.at(tags["write"], WRITE_STAGE)),
            self.write_address.eq(p.at(tags["target"], WRITE_STAGE)),
            self.write_data.eq(p.at(result, WRITE_STAGE)),
            self.write_mask.eq(p.at(write, WRITE_STAGE)),
            self.product.eq(first.signal),
        ]
        return m

    def _is(self, operation, *choices):
        return operation.matches(*choices)

    def _operands(self, m, p, tags):
        """Choose the operands of both multipliers; those of the adder pass through them."""
        word = 32 * self.arch.vector_width
        stage = READ_LATENCY
        before, older, cos, sin = (Signal(word, name=name, reset_less=True)
                                   for name in ("before", "older", "cos", "sin"))
        x, fill = Signal(word), Signal(word)
        m.d.comb += x.eq(self.read_data & spread(p.at(tags["mask"], stage)))
        m.d.sync += [before.eq(x), older.eq(before)]
        for name, table in (("cos", cos), ("sin", sin)):
            with m.If(p.at(tags[name], stage)):
                m.d.sync += table.eq(self.read_data)
        m.d.comb += fill.eq(self.scalar.replicate(self.arch.vector_width))
        x1, y1, x2, y2 = (Signal(word, name=name, reset_less=True)
                          for name in ("x1", "y1", "x2", "y2"))
        upper = p.at(tags["upper"], stage)
        m.d.sync += [x1.eq(x), y1.eq(self.param_data), x2.eq(x), y2.eq(self.param_data)]
        with m.Switch(p.at(tags["operation"], stage)):
            with m.Case(Operation.ADD_PAIR, Operation.MUL_PAIR):
                m.d.sync += [x1.eq(before), y1.eq(x), y2.eq(x)]
            with m.Case(Operation.SQUARE):
                m.d.sync += y1.eq(x)
            with m.Case(Operation.NORMALIZE):
                m.d.sync += y1.eq(fill)
            with m.Case(Operation.SCALE):
                m.d.sync += [x1.eq(self.group_word), y1.eq(fill)]
            with m.Case(Operation.TURN_FIRST):
                m.d.sync += [x1.eq(before), y1.eq(cos), y2.eq(sin)]
            with m.Case(Operation.TURN_SECOND):
                m.d.sync += [x1.eq(before), y1.eq(cos), x2.eq(older), y2.eq(sin)]
            with m.Case(Operation.TURN_PAIRS):
                m.d.sync += [y1.eq(self._pairs(cos, upper)), y2.eq(self._pairs(sin, upper)),
                             x2.eq(Cat(*(x.word_select(i ^ 1, 32)
                                         for i in range(self.arch.vector_width))))]
        return tuple(p.input(operand, stage + 1) for operand in (x1, y1, x2, y2))

    def _pairs(self, table, upper):
        """Return each of half of a table's elements twice."""
        half = self.arch.vector_width // 2
        table = Mux(upper, table[32 * half:], table[:32 * half])
        return Cat(*(table[32 * (i // 2):32 * (i // 2 + 1)] for i in range(2 * half)))

    def _each(self, p, operate, a, b):
        """Return an operation on each element."""
        parts = [operate(*(p.apply(lambda x, i=i: x.word_select(i, 32), value, latency=0)
                           for value in (a, b))) for i in range(self.arch.vector_width)]
        return p.apply(lambda *parts: Cat(*parts), *parts, latency=0)

    def _sum(self, m, p, tags, plain, second, y2):
        """Return the sum, which SQUARE and FOLD also keep as a partial sum."""
        width, depth = self.arch.vector_width, partial_words(self.arch)
        m.submodules.partials = partials = Ram(shape=32 * width, depth=depth,
                                              passive=True)
        mine, other = partials.read_port(domain="comb"), partials.read_port(domain="comb")
        write = partials.write_port()
        stage = _SECOND_STAGE
        operation = p.at(tags["operation"], stage)
        fold = p.at(tags["fold"], stage)
        u, v = Signal(32 * width, reset_less=True), Signal(32 * width, reset_less=True)
        upper = Signal(32 * width)
        m.d.comb += [mine.addr.eq(p.at(tags["partial"], stage)),
                     other.addr.eq(p.at(tags["other"], stage)), upper.eq(other.data)]
        for level in range(1, log2(width) + 1):
            with m.If(fold == level):
                m.d.comb += upper.eq(mine.data >> (32 * (width >> level)))
        turned, minus = p.at(second, stage), Signal(width)
        with m.Switch(operation):
            with m.Case(Operation.TURN_FIRST):
                m.d.comb += minus.eq(~0)
            with m.Case(Operation.TURN_PAIRS):
                m.d.comb += minus.eq(sum(1 << i for i in range(0, width, 2)))
        m.d.sync += u.eq(p.at(plain, stage))
        with m.Switch(operation):
            with m.Case(Operation.ADD_PARAM, Operation.ADD_PAIR):
                m.d.sync += v.eq(p.at(y2, stage))
            with m.Case(Operation.SQUARE):
                m.d.sync += v.eq(Mux(p.at(tags["first"], stage), 0, mine.data))
            with m.Case(Operation.FOLD):
                m.d.sync += [u.eq(mine.data), v.eq(upper)]
            with m.Default():
                m.d.sync += v.eq(Cat(*(turned[32 * i:32 * i + 32] ^ (minus[i] << 31)
                                       for i in range(width))))
        total = self._each(p, p.add, p.input(u, stage + 1), p.input(v, stage + 1))
        assert total.stage == _SUM_STAGE
        keeps = self._is(p.at(tags["operation"], _SUM_STAGE), Operation.SQUARE, Operation.FOLD)
        m.d.comb += [write.addr.eq(p.at(tags["partial"], _SUM_STAGE)),
                     write.data.eq(total.signal), write.en.eq(keeps)]
        with m.If(keeps):
            m.d.sync += self.total.eq(total.signal[:32])
        return total
