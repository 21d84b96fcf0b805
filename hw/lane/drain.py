"""Read a lane's finished accumulators, scale them, and give them out in words."""

from amaranth.hdl import Array, Cat, Module, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from alula.hw.isa import BLOCK, TILE_ROWS
from alula.hw.lane.delay import delayed_flag
from alula.hw.lane.shape import LaneShape
from alula.hw.passive import passive
from alula.hw.pipe import Pipe
from alula.hw.ram import Ram

EXPONENT_BITS = 10
READ_CLOCKS = 2  # of the accumulators
STRIP_BANKS = 2  # strips whose accumulators are held
BUFFERS = 2  # pairs of tokens that are read ahead


def result_layout(arch):
    """Return the layout of a result: ``vector_width`` values of a block of a token's row."""
    return data.StructLayout({
        "row": 6, "block": 16, "word": range(max(2, BLOCK // arch.vector_width)),
        "values": 32 * arch.vector_width})


class Drain(wiring.Component):
    """Give out strips in the order in which they end.

    Accumulators are read some rows of a pair of tokens at once.

    Members
    -------
    ending : ``In(1)``, ending_bank : ``In(1)``, touched : ``In(16)``
        The last sums of a bank's strip come; ``touched`` rows have a sum, the others are zero.
    ended : ``In(1)``
        As ``ending``, when those sums can be read two clocks later.
    pair, bank, step, absent, lone : ``Out``
        What to read: the ``step``-th ``shape.rows / 2`` rows, and which of them have no sum;
        ``lone`` if the pair has one token.
    values : ``In``
        Each row's sums, even token first, ``READ_CLOCKS`` clocks later.
    begin, first, tokens, exponent, results, drained
        See :class:`alula.hw.lane.accumulate.ScaleAccumulate`.
    """

    def __init__(self, arch):
        self.arch, self.shape = arch, LaneShape(arch)
        self.rows = self.shape.rows // 2
        super().__init__({
            "ending": In(1), "ending_bank": In(1), "touched": In(TILE_ROWS), "ended": In(1),
            "pair": Out(range(max(2, self.shape.pairs))), "bank": Out(1),
            "step": Out(range(TILE_ROWS // self.rows)), "absent": Out(self.rows), "lone": Out(1),
            "values": In(64 * self.rows),
            "begin": In(1), "first": In(16), "tokens": In(7), "exponent": In(signed(EXPONENT_BITS)),
            "results": Out(stream.Signature(result_layout(arch))), "drained": Out(1)})

    def elaborate(self, platform):
        self.m = m = Module()
        self.steps = TILE_ROWS // self.rows
        m.submodules.pairs = self.pairs = Ram(
            shape=64 * self.rows, depth=BUFFERS * self.steps, passive=True)
        self.freed = Signal()  # the other side is through with a pair
        self._give(self._take())
        return m

    def _take(self):
        """Read the next pair into a buffer; the result is high when it is there."""
        m = self.m
        waiting, room = Signal(range(STRIP_BANKS + 1)), Signal(range(BUFFERS + 1), init=BUFFERS)
        touched = [Signal(TILE_ROWS, name=f"touched_{bank}") for bank in range(STRIP_BANKS)]
        for number, mask in enumerate(touched):
            with m.If(self.ending & (self.ending_bank == number)):
                m.d.sync += mask.eq(self.touched)
        step, buffer = self.step, Signal()
        read, whole, last, last_pair = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            read.eq((waiting != 0) & (room != 0)),
            whole.eq(read & (step == self.steps - 1)),
            last_pair.eq((self.pair << 1) + 2 >= self.tokens), last.eq(whole & last_pair),
            self.lone.eq(last_pair & self.tokens[0]),
            self.absent.eq(~Array(touched)[self.bank].word_select(step, self.rows))]
        m.d.sync += [waiting.eq(waiting + self.ended - last), room.eq(room - whole + self.freed)]
        with m.If(read):
            m.d.sync += step.eq(step + 1)
        with m.If(whole):
            m.d.sync += [self.pair.eq(self.pair + 1), buffer.eq(~buffer)]
        with m.If(last):
            m.d.sync += [self.pair.eq(0), self.bank.eq(~self.bank)]
        with m.If(self.begin):
            m.d.sync += self.bank.eq(0)
        write, place = self.pairs.write_port(), Cat(step, buffer)
        for _ in range(READ_CLOCKS):
            later = Signal.like(place, name="place", reset_less=True)
            m.d.sync += later.eq(place)
            place = later
        m.d.comb += [write.addr.eq(place), write.data.eq(self.values),
                     write.en.eq(delayed_flag(m, read, READ_CLOCKS))]
        return delayed_flag(m, whole, READ_CLOCKS)

    def _give(self, there):
        """Give out the buffered pairs, token by token."""
        m, arch, results = self.m, self.arch, self.results
        words, steps = BLOCK // arch.vector_width, arch.vector_width // self.rows
        pairs, buffer, step = Signal(range(BUFFERS + 1)), Signal(), Signal(range(self.steps))
        sent, read, taken = Signal(range(steps + 1)), Signal(), Signal()
        token, word, block = Signal(6), Signal(range(max(2, words))), Signal(16)
        token_ends, strip_ends = Signal(), Signal()
        m.d.comb += [
            read.eq((pairs != 0) & (sent != steps)), taken.eq(results.valid & results.ready),
            token_ends.eq(taken & (word == words - 1)),
            strip_ends.eq(token_ends & (token + 1 == self.tokens)), self.drained.eq(strip_ends),
            self.freed.eq(token_ends & (token[0] | strip_ends)),
            results.payload.row.eq(token), results.payload.block.eq(block),
            results.payload.word.eq(word)]
        m.d.sync += pairs.eq(pairs + there - self.freed)
        with m.If(read):
            m.d.sync += [sent.eq(sent + 1), step.eq(step + 1)]
        with m.If(taken):
            m.d.sync += [sent.eq(0), results.valid.eq(0), word.eq(word + 1)]
        with m.If(token_ends):
            m.d.sync += [word.eq(0), token.eq(token + 1)]
        with m.If(self.freed):
            m.d.sync += buffer.eq(~buffer)
        with m.If(strip_ends):
            m.d.sync += [token.eq(0), block.eq(block + arch.lanes)]
        with m.If(self.begin):
            m.d.sync += block.eq(self.first)
        port = self.pairs.read_port(domain="comb")
        m.d.comb += port.addr.eq(Cat(step, buffer))
        self._collect(port.data, token[0], read, sent == steps - 1)

    def _collect(self, pair, odd, read, last):
        """Scale what is read, and shift it into the word, which is complete after the last."""
        m, results = self.m, self.results
        p = Pipe(m)
        power, values = p.input(self.exponent), []
        for row in range(self.rows):
            even_value, odd_value = (p.input(pair[at:at + 32]) for at in (64 * row, 64 * row + 32))
            value = p.mux(p.input(odd), odd_value, even_value)
            values.append(p.scale_by_power(value, power))
        valid = p.at(p.input(read, reset=True), values[0].stage)
        ends = p.at(p.input(read & last, reset=True), values[0].stage)
        word = Signal.like(results.payload.values)
        m.d.comb += results.payload.values.eq(passive(m, word))
        with m.If(valid):
            m.d.sync += word.eq(Cat(word[32 * self.rows:], *(value.signal for value in values)))
        with m.If(ends):
            m.d.sync += results.valid.eq(1)
