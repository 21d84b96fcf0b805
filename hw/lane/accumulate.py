"""Scale the exact sums of a lane's chain and add them up in fp32. Ref: ``numerics.linear``."""

from itertools import product

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from alula.hw import fp
from alula.hw.choice import choose
from alula.hw.isa import TILE_ROWS
from alula.hw.lane.chain import tap_bits, taps_layout
from alula.hw.lane.drain import EXPONENT_BITS, READ_CLOCKS, Drain, result_layout
from alula.hw.lane.shape import CHUNK_BITS, LaneShape
from alula.hw.pipe import Pipe
from alula.hw.ram import Ram

# Clocks from one addition to an accumulator to the next: it is read a clock before it is added
# to, and a sum can be read in the clock after it is written.
DISTANCE = fp.ADD_LATENCY + 2
GROUP_SUM_BITS = 24  # of 256 products: 256 * 127 * 255 < 2**23
SCALES_LATENCY = 1 + fp.SCALE_INT_LATENCY  # clocks from a tag to its tokens' scales


def place_bits(shape):
    """Return the bits of a row's place in its pipeline's accumulators; the rest is the pipeline."""
    return ceil_log2(2 * TILE_ROWS // shape.rows)


def job_layout(shape):
    """Return the layout of what a pipeline does with a bundle and a pair of tokens.

    If ``there``, it takes the sum of the bundle's row number ``rank``, whose accumulator is at
    ``place``; a ``fresh`` row has no sum yet in this strip.
    """
    return data.StructLayout({"there": 1, "rank": range(shape.rows), "place": place_bits(shape),
                              "scale": 16, "fresh": 1})


def tag_layout(shape):
    """Return the layout of what goes beside the sums of a bundle and a pair of tokens.

    Of a ``lone`` token, pipeline ``p`` has the rows that are ``p`` modulo ``shape.rows``. Else
    pipelines ``2 * b`` and ``2 * b + 1`` have the even and the odd token's sums of the rows that
    are ``b`` modulo half of that. ``end_of_strip`` marks a strip's last sums; with it ``touched``
    tells the rows that have a sum.
    """
    return data.StructLayout({
        "lone": 1, "pair": range(max(2, shape.pairs)),
        "jobs": data.ArrayLayout(job_layout(shape), shape.rows),
        "chunk": CHUNK_BITS, "last_chunk": 1, "bank": 1, "end_of_strip": 1,
        "touched": TILE_ROWS})


class ScaleAccumulate(wiring.Component):
    """Multiply sums by both scales, add them to their rows' accumulators, and give out strips.

    Nothing stalls what comes in. Sums for the same row, pair and strip must be ``DISTANCE`` clocks
    apart, and a strip may begin only when the strip ``STRIP_BANKS`` before it is drained. Each of
    ``shape.rows`` pipelines takes one sum a clock, and has its own rows' accumulators.

    Members
    -------
    taps : ``In``
        The chain's.
    regions_log2 : ``In``
        log2 of the regions whose sums are taken. Belongs to the tap of the lowest level.
    valid, tag : ``In``
        Belong to the tap of the highest level.
    scales : ``In(64)``
        The two tokens' fp32 scales, ``SCALES_LATENCY`` clocks after ``tag``.
    begin : ``In(1)``
        A matrix begins: ``first`` is the block of its first strip.
    first : ``In(16)``, tokens : ``In(7)``, exponent : ``In(signed(10))``
        The last two must stay until the last strip is drained.
    results : ``Out(stream of result_layout)``
        Each strip's values, times ``2**exponent``: token by token, word by word.
    drained : ``Out(1)``
        High in the clock in which a strip's last result is taken.
    """

    def __init__(self, arch):
        self.arch, self.shape = arch, LaneShape(arch)
        self.top = self.shape.half_windows.bit_length() - 1
        super().__init__({
            "taps": In(taps_layout(self.shape)),
            "regions_log2": In(range(self.shape.half_windows.bit_length())), "valid": In(1),
            "tag": In(tag_layout(self.shape)), "scales": In(64),
            "begin": In(1), "first": In(16), "tokens": In(7), "exponent": In(signed(EXPONENT_BITS)),
            "results": Out(stream.Signature(result_layout(arch))), "drained": Out(1)})

    def elaborate(self, platform):
        self.m = m = Module()
        self.p = p = Pipe(m)  # stage 0 is that of the tree's lowest level
        self.tag_value = p.input(self.tag.as_value(), self.top)
        self.valid_value = p.input(self.valid, self.top, reset=True)
        m.submodules.drain = self.drain = Drain(self.arch)
        numbers = self._shared_out(*self._chunks(*self._sums()))
        even, odd = (p.input(self.scales[at:at + 32], self.top + SCALES_LATENCY) for at in (0, 32))
        lone = self._of_tag(lambda tag: tag.lone)
        x_scales = p.delay(even, 1), p.mux(lone, even, odd) if self.shape.pair else p.delay(even, 1)
        terms = []
        for at, number in enumerate(numbers):
            scale = self._of_tag(lambda tag, at=at: tag.jobs[at].scale)
            terms.append(p.mul(fp.scale_int(p, number, scale), x_scales[at % 2]))
        self._drain(self._accumulate(terms))
        return m

    def _tag(self, bits):
        return data.View(tag_layout(self.shape), bits)

    def _of_tag(self, part):
        """Return a part of the tag as a value of the pipeline."""
        return self.p.apply(lambda tag: part(self._tag(tag)), self.tag_value, latency=0)

    def _sums(self):
        """Return each rank's low and high sum: what is taken of the tree goes from level to level.
        """
        p, shape = self.p, self.shape
        regions_log2 = p.input(self.regions_log2)
        held = [[None] * shape.rows, [None] * shape.rows]
        for level in range(self.top + 1):
            mine = p.wire(p.at(regions_log2, level) == self.top - level, "mine")
            tap, size = self.taps[f"level_{level}"], tap_bits(level)
            regions = shape.half_windows >> level
            for half, rank in product(range(2), range(min(shape.rows, regions))):
                at = size * (half * regions + rank)
                held[half][rank] = self._taken(mine, tap[at:at + size], held[half][rank])
        return held

    def _taken(self, mine, tap, before):
        """Return a sum a level later: this level's if that is ``mine``, else that of before."""
        total = Signal(signed(len(tap)), name="sum", reset_less=True)
        stage = before.stage if before else 0
        self.m.d.sync += total.eq(Mux(mine, tap.as_signed(), before.signal) if before
                                  else tap.as_signed())
        return self.p.input(total, stage + 1)

    def _chunks(self, low, high):
        """Add the chunks of a row; only bundles of one row have several."""
        m, p = self.m, self.p
        stage = self.top + 1
        here = self._tag(p.at(self.tag_value, stage))
        m.submodules.chunks = held = Ram(
            shape=2 * GROUP_SUM_BITS, depth=max(2, self.shape.pairs), passive=True)
        write, read = held.write_port(), held.read_port(domain="comb")
        totals = []
        for half, number in enumerate((low[0], high[0])):
            total = Signal(signed(GROUP_SUM_BITS), name=f"chunks_{half}")
            before = read.data.word_select(half, GROUP_SUM_BITS).as_signed()
            m.d.comb += total.eq(number.signal + Mux(here.chunk == 0, 0, before))
            totals.append(p.input(total, stage))
        m.d.comb += [write.addr.eq(here.pair), read.addr.eq(here.pair),
                     write.data.eq(Cat(total.signal for total in totals)),
                     write.en.eq(p.at(self.valid_value, stage))]
        return [totals[0], *low[1:]], [totals[1], *high[1:]]

    def _shared_out(self, low, high):
        """Return each pipeline's sum, which may be of any of the bundle's rows."""
        p, stage = self.p, self.top + 1
        low, high = ([p.at(number, stage).as_signed() for number in half] for half in (low, high))
        tag, numbers = self._tag(p.at(self.tag_value, stage)), []
        for at, job in enumerate(tag.jobs):
            of_low = choose(job.rank, low)
            number = Signal(signed(GROUP_SUM_BITS), name=f"number_{at}", reset_less=True)
            self.m.d.sync += number.eq(
                Mux(tag.lone, of_low, choose(job.rank, high)) if at % 2 and self.shape.pair
                else of_low)
            numbers.append(p.input(number, stage + 1))
        return numbers

    def _accumulate(self, terms):
        """Add terms to their rows' accumulators, and return the stage at which they are written."""
        p = self.p
        stage = terms[0].stage
        end = stage + fp.ADD_LATENCY
        there = p.apply(lambda tag, valid: Cat(
            valid & self._tag(tag).last_chunk & job.there for job in self._tag(tag).jobs),
            self.tag_value, self.valid_value)
        finished = []
        for at, term in enumerate(terms):
            place = self._of_tag(lambda tag, at=at: Cat(tag.jobs[at].place, tag.pair, tag.bank))
            fresh = self._of_tag(lambda tag, at=at: tag.jobs[at].fresh)
            write, before, drained = self._accumulators(at, p.at(place, stage - READ_CLOCKS),
                                                        p.at(fresh, stage - READ_CLOCKS))
            total = p.add(p.input(before, stage), term)
            assert total.stage == end
            self.m.d.comb += [write.addr.eq(p.at(place, end)), write.data.eq(total.signal),
                              write.en.eq(p.at(there, end)[at])]
            finished.append(drained)
        self._read_drained(finished)
        return end

    def _accumulators(self, at, place, fresh):
        """Return a pipeline's memory: its write port, what it has at a place, a port to drain it.

        What it has comes ``READ_CLOCKS`` later, and is 0 of a row that is fresh.
        """
        m = self.m
        copies = [Ram(shape=32, depth=1 << len(place), style=style, passive=True)
                  for style in ("auto", "block")]
        m.submodules[f"accumulators_{at}"], m.submodules[f"drained_{at}"] = held, drained = copies
        write, other, read = held.write_port(), drained.write_port(), held.read_port(domain="comb")
        clear, before = (Signal(name=f"clear_{at}"),
                         Signal(32, name=f"before_{at}", reset_less=True))
        m.d.sync += [read.addr.eq(place), clear.eq(fresh), before.eq(Mux(clear, 0, read.data))]
        m.d.comb += [other.addr.eq(write.addr), other.data.eq(write.data), other.en.eq(write.en)]
        return write, before, drained.read_port()

    def _read_drained(self, ports):
        """Read what is drained, by ports of its own: short strips leave no clock for it."""
        m, drain, half = self.m, self.drain, self.shape.rows // 2
        last, lone, absent = Signal(), Signal(), Signal.like(drain.absent)
        address = Cat(Mux(drain.lone, drain.step >> 1, drain.step)[:place_bits(self.shape)],
                      drain.pair, drain.bank)
        m.d.comb += [port.addr.eq(address) for port in ports]
        m.d.sync += [absent.eq(drain.absent), last.eq(drain.step[0]), lone.eq(drain.lone)]
        words = [port.data for port in ports]
        for row in range(half):
            even = Mux(lone, Mux(last, words[half + row], words[row]), words[2 * row])
            m.d.sync += drain.values.word_select(row, 64).eq(
                Mux(absent[row], 0, Cat(even, words[2 * row + 1])))

    def _drain(self, end):
        m, p, drain, tag = self.m, self.p, self.drain, self.tag
        last = p.apply(lambda valid, tag: valid & self._tag(tag).end_of_strip, self.valid_value,
                       self.tag_value, latency=0)
        ended = p.at(p.input(last.signal, self.top, reset=True), end)
        m.d.comb += [
            drain.ending.eq(last.signal), drain.ending_bank.eq(tag.bank),
            drain.touched.eq(tag.touched), drain.ended.eq(ended), drain.begin.eq(self.begin),
            drain.first.eq(self.first), drain.tokens.eq(self.tokens),
            drain.exponent.eq(self.exponent), self.drained.eq(drain.drained)]
        wiring.connect(m, drain.results, wiring.flipped(self.results))
