"""Scale the exact sums of a lane's chain and add them up in fp32. Ref: ``numerics.linear``."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from alula.hw import fp
from alula.hw.choice import choose
from alula.hw.isa import TILE_ROWS
from alula.hw.lane.chain import tap_bits, taps_layout
from alula.hw.lane.drain import EXPONENT_BITS, READ_CLOCKS, STRIP_BANKS, Drain, result_layout
from alula.hw.lane.shape import CHUNK_BITS, LaneShape
from alula.hw.pipe import Pipe
from alula.hw.ram import Ram

# Clocks from one addition to an accumulator to the next: it is read a clock before it is added
# to, and a sum can be read in the clock after it is written.
DISTANCE = fp.ADD_LATENCY + 2
GROUP_SUM_BITS = 24  # of 256 products: 256 * 127 * 255 < 2**23
SCALES_LATENCY = 1 + fp.SCALE_INT_LATENCY  # clocks from a tag to its tokens' scales


def place_layout(shape):
    """Return the layout of which sums of the tree the pipelines take.

    The tree's sums are those of ``2**regions_log2`` regions. If the pair has one token, it is
    ``lone``, and pipeline ``p`` takes the low sum of row ``p``. Else pipelines ``2 * r`` and
    ``2 * r + 1`` take the low and the high sum of row ``r``, and if ``second`` of row
    ``r + shape.rows / 2``.
    """
    return data.StructLayout({"regions_log2": range(shape.half_windows.bit_length()),
                              "lone": 1, "second": 1})


def tag_layout(shape):
    """Return the layout of what goes beside the sums of a bundle and a pair of tokens.

    Row ``r`` is the bundle's ``r``-th, of ``count``: ``rows`` are their numbers. ``fresh`` rows
    have no sum yet in this strip. ``end_of_strip`` marks a strip's last sums; with it ``touched``
    tells the rows that have a sum.
    """
    return data.StructLayout({
        "place": place_layout(shape), "pair": range(max(2, shape.pairs)), "count": 3,
        "rows": 4 * shape.rows, "scales": 16 * shape.rows, "fresh": shape.rows,
        "chunk": CHUNK_BITS, "last_chunk": 1, "bank": 1, "end_of_strip": 1,
        "touched": TILE_ROWS})


class ScaleAccumulate(wiring.Component):
    """Multiply sums by both scales, add them to their rows' accumulators, and give out strips.

    Nothing stalls what comes in. Sums for the same row, pair and strip must be ``DISTANCE`` clocks
    apart, and a strip may begin only when the strip ``STRIP_BANKS`` before it is drained. Each of
    ``shape.rows`` pipelines takes one sum a clock.

    Members
    -------
    taps : ``In``
        The chain's.
    place : ``In(place_layout)``
        Belongs to the tap of the lowest level.
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
            "taps": In(taps_layout(self.shape)), "place": In(place_layout(self.shape)),
            "valid": In(1), "tag": In(tag_layout(self.shape)), "scales": In(64),
            "begin": In(1), "first": In(16), "tokens": In(7), "exponent": In(signed(EXPONENT_BITS)),
            "results": Out(stream.Signature(result_layout(arch))), "drained": Out(1)})

    def elaborate(self, platform):
        self.m = m = Module()
        self.p = p = Pipe(m)  # stage 0 is that of the tree's lowest level
        self.tag_value = p.input(self.tag.as_value(), self.top)
        self.valid_value = p.input(self.valid, self.top, reset=True)
        m.submodules.drain = self.drain = Drain(self.arch)
        numbers = self._chunks(self._sums())
        even, odd = (p.input(self.scales[at:at + 32], self.top + SCALES_LATENCY) for at in (0, 32))
        lone = p.apply(lambda tag: self._tag(tag).place.lone, self.tag_value, latency=0)
        x_scales = p.delay(even, 1), p.mux(lone, even, odd)
        terms = []
        for at, number in enumerate(numbers):
            scale = p.apply(lambda tag, at=at: self._mine(at, tag, self._tag(tag).scales, 16),
                            self.tag_value)
            terms.append(p.mul(fp.scale_int(p, number, scale), x_scales[at % 2]))
        self._drain(self._accumulate(terms))
        return m

    def _tag(self, bits):
        return data.View(tag_layout(self.shape), bits)

    def _ranks(self, pipeline):
        """Return which row of the bundle a pipeline takes: first, second, or of a lone token."""
        return pipeline // 2, pipeline // 2 + self.shape.rows // 2, pipeline

    def _mine(self, pipeline, tag, rows, width):
        """Return a pipeline's part of what there is for each row."""
        place = self._tag(tag).place
        return choose(Cat(place.second, place.lone),
                      [rows.word_select(rank, width) for rank in self._ranks(pipeline)])

    def _sums(self):
        """Return each pipeline's sum: what it takes of the tree goes from level to level."""
        p, shape = self.p, self.shape
        place = p.input(self.place.as_value())
        held = [None] * shape.rows
        for level in range(self.top + 1):
            here = data.View(place_layout(shape), p.at(place, level))
            mine = p.wire(here.regions_log2 == self.top - level, "mine")
            select = p.wire(Cat(mine & ~here.second, mine & (here.second | here.lone)), "select")
            for at in range(shape.rows):
                held[at] = self._taken(level, at, select, held[at])
        return held

    def _taken(self, level, pipeline, select, before):
        """Return a pipeline's sum a level later: that of before, or one of this level's."""
        regions, size = self.shape.half_windows >> level, tap_bits(level)
        tap = self.taps[f"level_{level}"]
        first, second, lone = self._ranks(pipeline)
        high = regions * (pipeline % 2)
        values = [before and self.p.at(before, level)] + [
            tap[size * place:size * (place + 1)].as_signed() if rank < regions else None
            for place, rank in ((high + first, first), (high + second, second), (lone, lone))]
        known = next(value for value in reversed(values) if value is not None)
        values = [known if value is None else value for value in values]
        total = Signal(signed(size), name=f"sum_{level}_{pipeline}", reset_less=True)
        self.m.d.sync += total.eq(choose(select, values))
        return self.p.input(total, level + 1)

    def _chunks(self, sums):
        """Add the chunks of a row; only bundles of one row have several."""
        m, p = self.m, self.p
        stage = sums[0].stage
        bits = max(len(sums[0].signal), GROUP_SUM_BITS)
        here = self._tag(p.at(self.tag_value, stage))
        m.submodules.chunks = held = Ram(
            shape=2 * bits, depth=max(2, self.shape.pairs), passive=True)
        write, read = held.write_port(), held.read_port(domain="comb")
        totals = []
        for token, number in enumerate(sums[:2]):
            total = Signal(signed(bits), name=f"chunks_{token}")
            before = read.data[bits * token:bits * (token + 1)].as_signed()
            m.d.comb += total.eq(number.signal + Mux(here.chunk == 0, 0, before))
            totals.append(total)
        m.d.comb += [write.addr.eq(here.pair), read.addr.eq(here.pair),
                     write.data.eq(Cat(totals)), write.en.eq(p.at(self.valid_value, stage))]
        return [p.delay(p.input(total, stage), 1) for total in totals] + [
            p.delay(number, 1) for number in sums[2:]]

    def _accumulate(self, terms):
        """Add terms to their rows' accumulators, and return the stage at which they are written.

        Even and odd tokens' sums are beside each other; those of a lone token are in both places.
        """
        m, p, shape = self.m, self.p, self.shape
        m.submodules.accumulators = held = Ram(
            shape=64 * TILE_ROWS, depth=STRIP_BANKS * max(2, shape.pairs), passive=True)
        write, read = held.write_port(granularity=64), held.read_port(domain="comb")
        stage = terms[0].stage
        end = stage + fp.ADD_LATENCY
        target = p.apply(lambda tag: Cat(self._tag(tag).pair, self._tag(tag).bank),
                         self.tag_value, latency=0)
        there = self._there()
        m.d.sync += read.addr.eq(p.at(target, stage - READ_CLOCKS))
        self._read_drained(held.read_port(domain="comb"))
        ends, rows = [], []
        for at, term in enumerate(terms):
            row = p.apply(lambda tag, at=at: self._mine(at, tag, self._tag(tag).rows, 4),
                          self.tag_value)
            fresh = p.apply(lambda tag, at=at: self._mine(at, tag, self._tag(tag).fresh, 1),
                            self.tag_value)
            number, clear = Signal(4, name=f"row_{at}"), Signal(name=f"clear_{at}")
            m.d.sync += [
                number.eq(p.at(row, stage - READ_CLOCKS)),
                clear.eq(p.at(fresh, stage - READ_CLOCKS))]
            before = Signal(32, name=f"before_{at}", reset_less=True)
            m.d.sync += before.eq(Mux(clear, 0, choose(
                number, [read.data[32 * place:32 * place + 32]
                         for place in range(at % 2, 2 * TILE_ROWS, 2)])))
            total = p.add(p.input(before, stage), term)
            assert total.stage == end
            ends.append(total.signal)
            rows.append(p.at(row, end - 1))
        m.d.comb += write.addr.eq(p.at(target, end))
        lone = self._tag(p.at(self.tag_value, end - 1)).place.lone
        self._write(write, ends, rows, p.at(there, end - 1), lone)
        return end

    def _read_drained(self, port):
        """Read what is drained, by a port of its own: short strips leave no clock for it."""
        m, drain = self.m, self.drain
        step, absent = Signal.like(drain.step), Signal.like(drain.absent)
        m.d.sync += [port.addr.eq(Cat(drain.pair, drain.bank)), step.eq(drain.step),
                     absent.eq(drain.absent)]
        words = [port.data[at:at + len(drain.values)]
                 for at in range(0, len(port.data), len(drain.values))]
        found = choose(step, words)
        m.d.sync += drain.values.eq(Cat(
            Mux(absent[row], 0, found.word_select(row, 64)) for row in range(len(absent))))

    def _there(self):
        """Return which pipelines have sums to be added."""
        def there(tag, valid):
            view = self._tag(tag)
            rows = Cat(rank < view.count for rank in range(self.shape.rows))
            return Cat(valid & view.last_chunk & self._mine(at, tag, rows, 1)
                       for at in range(self.shape.rows))
        return self.p.apply(there, self.tag_value, self.valid_value)

    def _write(self, write, ends, rows, there, lone):
        """Write each row's sums a clock later; which pipelines have them is known by then."""
        m = self.m
        for number in range(TILE_ROWS):
            hits = Cat(there[at] & (row == number) for at, row in enumerate(rows))
            # Of a pair's pipelines the first has the even token's sum, unless it is lone.
            odd, late = hits[1::2].any(), hits[2:].any()
            some = Signal(name=f"some_{number}", reset_less=True)
            select = [Signal(2, name=f"from_{number}_{half}", reset_less=True) for half in "eo"]
            m.d.sync += [some.eq(hits.any()), select[0].eq(Cat(lone & odd, late)),
                         select[1].eq(Cat(~lone | odd, late))]
            m.d.comb += [write.en[number].eq(some), write.data.word_select(number, 64).eq(
                Cat(choose(one, ends) for one in select))]

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
