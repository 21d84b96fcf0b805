"""Scale the exact sums of a lane's chain and add them up in fp32. Ref: ``numerics.linear``."""

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from alula.hw import fp
from alula.hw.isa import BLOCK, TILE_ROWS
from alula.hw.lane.chain import tap_bits, taps_layout
from alula.hw.lane.delay import delayed
from alula.hw.lane.shape import CHUNK_BITS, LaneShape
from alula.hw.pipe import Pipe
from alula.hw.ram import Ram

EXPONENT_BITS = 10
DISTANCE = fp.ADD_LATENCY  # clocks from one addition to an accumulator to the next
GROUP_SUM_BITS = 24  # of 256 products: 256 * 127 * 255 < 2**23
STRIP_BANKS = 2  # strips whose accumulators are held


def tag_layout(shape):
    """Return the layout of what goes beside the sums of a bundle and a pair of tokens.

    ``fresh`` rows have no sum yet in this strip. ``end_of_strip`` marks a strip's last sums; with
    it ``touched`` tells the rows that have a sum.
    """
    return data.StructLayout({
        "pair": range(max(2, shape.pairs)), "regions_log2": shape.regions_bits, "count": 3,
        "rows": 4 * shape.rows, "scales": 16 * shape.rows, "fresh": shape.rows,
        "chunk": CHUNK_BITS, "last_chunk": 1, "bank": 1, "end_of_strip": 1, "touched": TILE_ROWS})


def result_layout(arch):
    """Return the layout of a result: ``vector_width`` values of a block of a token's row."""
    return data.StructLayout({
        "row": 6, "block": 16, "word": range(max(2, BLOCK // arch.vector_width)),
        "values": 32 * arch.vector_width})


class ScaleAccumulate(wiring.Component):
    """Multiply sums by both scales, add them to their rows' accumulators, and give out strips.

    Nothing stalls what comes in. Sums for the same row, pair and strip must be ``DISTANCE`` clocks
    apart, and a strip may begin only when the strip ``STRIP_BANKS`` before it is drained.

    Members
    -------
    taps : ``In``
        The chain's.
    valid, tag : ``In``
        Belong to the tap of the highest level.
    scales : ``In(64)``
        The two tokens' fp32 scales, with ``tag``.
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
        super().__init__({
            "taps": In(taps_layout(self.shape)),
            "valid": In(1), "tag": In(tag_layout(self.shape)), "scales": In(64),
            "begin": In(1), "first": In(16), "tokens": In(7), "exponent": In(signed(EXPONENT_BITS)),
            "results": Out(stream.Signature(result_layout(arch))), "drained": Out(1)})

    def elaborate(self, platform):
        self.m = m = Module()
        shape = self.shape
        p = Pipe(m)
        tag = p.input(self.tag.as_value())
        valid = p.input(self.valid, reset=True)
        numbers = self._exact(p, tag, valid)  # of each row, both tokens
        terms, stage = [], None
        for row in range(shape.rows):
            half = p.apply(lambda tag, row=row: self._tag(tag).scales.word_select(row, 16), tag,
                           latency=0)
            scale = fp.from_half(p, half)
            for token in range(2):
                x_scale = p.input(self.scales[32 * token:32 * token + 32])
                number = fp.from_int(p, numbers[row][token])
                terms.append(p.mul(p.mul(number, scale), x_scale))
                stage = terms[-1].stage
        self._accumulate(p, terms, stage, tag, valid)
        return m

    def _tag(self, bits):
        return data.View(tag_layout(self.shape), bits)

    def _exact(self, p, tag, valid):
        """Return the integer sums: a row's own part of the tree, over its chunks."""
        m, shape = self.m, self.shape
        top = shape.half_windows.bit_length() - 1
        bits = max(tap_bits(top), GROUP_SUM_BITS)
        by_rows = []  # by log2 of the regions
        for regions_log2 in range(top + 1):
            level = top - regions_log2
            tap = delayed(m, self.taps[f"level_{level}"], regions_log2)
            size = tap_bits(level)
            by_rows.append([[tap[size * at:size * (at + 1)].as_signed()
                             for at in (row, row + (1 << regions_log2))]
                            for row in range(min(shape.rows, 1 << regions_log2))])
        sums = []
        for row in range(shape.rows):
            pair = []
            for token in range(2):
                choices = [part[row][token] if row < len(part) else 0 for part in by_rows]
                total = Signal(signed(bits), name=f"tap_{row}_{token}", reset_less=True)
                m.d.sync += total.eq(Array(choices)[self.tag.regions_log2])
                pair.append(total)
            sums.append(pair)
        # Only bundles of one row have several chunks.
        here = self._tag(p.at(tag, 1))
        m.submodules.chunks = held = Ram(
            shape=2 * bits, depth=max(2, shape.pairs))
        write, read = held.write_port(), held.read_port(domain="comb")
        totals = []
        for token in range(2):
            total = Signal(signed(bits), name=f"chunks_{token}")
            before = read.data[bits * token:bits * (token + 1)].as_signed()
            m.d.comb += total.eq(sums[0][token] + Mux(here.chunk == 0, 0, before))
            totals.append(total)
        m.d.comb += [write.addr.eq(here.pair), read.addr.eq(here.pair),
                     write.data.eq(Cat(totals)), write.en.eq(p.at(valid, 1))]
        sums[0] = totals
        return [[p.delay(p.input(total, 1), 1) for total in pair] for pair in sums]

    def _accumulate(self, p, terms, stage, tag, valid):
        m, shape = self.m, self.shape
        m.submodules.accumulators = held = Ram(
            shape=64 * TILE_ROWS, depth=STRIP_BANKS * max(2, shape.pairs))
        write, read = held.write_port(granularity=64), held.read_port(domain="comb")
        drain = held.read_port(domain="comb")
        here = self._tag(p.at(tag, stage - 1))
        m.d.comb += read.addr.eq(Cat(here.pair, here.bank))
        end = stage + fp.ADD_LATENCY
        ends = [Signal(64, name=f"end_{row}") for row in range(shape.rows)]
        for row in range(shape.rows):
            number = here.rows.word_select(row, 4)
            # A sum that is being written is not in memory, one that comes now not even that.
            written = self._same(p, tag, valid, here, number, end, f"written_{row}")
            coming = self._same(p, tag, valid, here, number, end - 1, f"coming_{row}")
            before, latest = Signal(64, name=f"before_{row}"), Signal(64, name=f"latest_{row}")
            m.d.comb += before.eq(Mux(here.fresh[row], 0, self._chosen(
                written, ends, Array(read.data[64 * at:64 * at + 64]
                                     for at in range(TILE_ROWS))[number])))
            held, coming = (delayed(m, part, 1) for part in (before, coming))
            m.d.comb += latest.eq(self._chosen(coming, ends, held))
            totals = [p.add(p.input(latest[32 * token:32 * token + 32], stage),
                            terms[2 * row + token]) for token in range(2)]
            assert all(total.stage == end for total in totals)
            m.d.comb += ends[row].eq(Cat(total.signal for total in totals))
        here, writes = self._tag(p.at(tag, end)), p.at(valid, end)
        m.d.comb += write.addr.eq(Cat(here.pair, here.bank))
        there = Signal(shape.rows)
        m.d.comb += there.eq(self._there(p, tag, valid, end))
        for number in range(TILE_ROWS):
            hits = Signal(shape.rows, name=f"hits_{number}")
            m.d.comb += hits.eq(Cat(there[row] & (here.rows.word_select(row, 4) == number)
                                    for row in range(shape.rows)))
            chosen = Const(0, 64)
            for row in range(shape.rows):
                chosen = chosen | Mux(hits[row], ends[row], 0)
            m.d.comb += [write.en[number].eq(hits.any()),
                         write.data.word_select(number, 64).eq(chosen)]
        self._drain(drain, writes & here.end_of_strip, here)

    def _there(self, p, tag, valid, stage):
        """Return which rows of the bundle at a stage have sums to be added."""
        tag, valid = self._tag(p.at(tag, stage)), p.at(valid, stage)
        return Cat(valid & tag.last_chunk & (row < tag.count) for row in range(self.shape.rows))

    def _same(self, p, tag, valid, here, number, stage, name):
        """Return which sums at a later stage belong to the accumulators of a row."""
        there, other = self._there(p, tag, valid, stage), self._tag(p.at(tag, stage))
        same = Signal(self.shape.rows, name=name)
        place = (here.pair == other.pair) & (here.bank == other.bank)
        self.m.d.comb += same.eq(Cat(
            there[row] & place & (other.rows.word_select(row, 4) == number)
            for row in range(self.shape.rows)))
        return same

    @staticmethod
    def _chosen(marks, values, otherwise):
        """Return the value that is marked, at most one is, or what there is if none is."""
        chosen = Const(0, 64)
        for mark, value in zip(marks, values, strict=True):
            chosen = chosen | Mux(mark, value, 0)
        return Mux(marks.any(), chosen, otherwise)

    def _drain(self, port, ended, tag):
        m, arch, results = self.m, self.arch, self.results
        words, width = BLOCK // arch.vector_width, arch.vector_width
        waiting, bank = Signal(range(STRIP_BANKS + 1)), Signal()
        touched = [Signal(TILE_ROWS, name=f"touched_{bank}") for bank in range(STRIP_BANKS)]
        token, word, block = Signal(6), Signal(range(max(2, words))), Signal(16)
        for number, mask in enumerate(touched):
            with m.If(ended & (tag.bank == number)):
                m.d.sync += mask.eq(tag.touched)
        go, read, last, final = Signal(), Signal(), Signal(), Signal()
        middle = Signal(result_layout(arch), reset_less=True)  # not yet times the power
        middle_valid, middle_last = Signal(), Signal()
        m.d.comb += [
            go.eq(~results.valid | results.ready), read.eq(go & (waiting != 0)),
            last.eq((word == words - 1) & (token + 1 == self.tokens)),
            self.drained.eq(results.valid & results.ready & final),
            port.addr.eq(Cat(token[1:][:len(port.addr) - 1], bank)),
        ]
        values, there = [], Signal(TILE_ROWS)
        m.d.comb += there.eq(Array(touched)[bank])
        for at in range(BLOCK):
            value = Mux(token[0], port.data[64 * at + 32:64 * at + 64],
                        port.data[64 * at:64 * at + 32])
            values.append(Mux(there[at], value, 0))
        with m.If(go):
            m.d.sync += [
                middle.row.eq(token), middle.block.eq(block), middle.word.eq(word),
                middle.values.eq(Cat(values).word_select(word, 32 * width) if words > 1
                                 else Cat(values)),
                middle_valid.eq(read), middle_last.eq(last), final.eq(middle_last),
                results.valid.eq(middle_valid), results.payload.eq(middle),
                results.payload.values.eq(Cat(self._scaled(middle.values[32 * at:32 * at + 32])
                                              for at in range(width))),
            ]
        m.d.sync += waiting.eq(waiting + ended - (read & last))
        with m.If(read):
            m.d.sync += word.eq(word + 1)
            with m.If(word == words - 1):
                m.d.sync += [word.eq(0), token.eq(token + 1)]
            with m.If(last):
                m.d.sync += [token.eq(0), bank.eq(bank + 1), block.eq(block + arch.lanes)]
        with m.If(self.begin):
            m.d.sync += [block.eq(self.first), bank.eq(0)]

    def _scaled(self, bits):
        """Return a value times the power of two, in the same clock."""
        x = fp.as_float(bits)
        power = Signal(signed(EXPONENT_BITS + 1))
        self.m.d.comb += power.eq(x.exponent + self.exponent)
        size = Mux((power <= 0) | (x.exponent == 0), 0,
                   Mux(power >= fp.FULL, fp.INFINITY, Cat(x.fraction, power[:8])))
        return Mux(x.exponent == fp.FULL, bits, Cat(size[:31], x.sign))
