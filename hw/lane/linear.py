"""The controller of a lane's share of a matrix product."""

from amaranth.hdl import Cat, Const, Instance, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from alula.hw import isa
from alula.hw.choice import choose
from alula.hw.formats import COMMAND_BITS, instruction_layout
from alula.hw.isa import BLOCK, TILE_ROWS
from alula.hw.lane.accumulate import DISTANCE, SCALES_LATENCY, place_bits, tag_layout
from alula.hw.lane.activation import BLOCK_BITS, ROW_BITS
from alula.hw.lane.chain import tap_latency
from alula.hw.lane.delay import Delay, delayed, delayed_flag, staggered
from alula.hw.lane.drain import EXPONENT_BITS, STRIP_BANKS
from alula.hw.lane.operands import Operands, query_port
from alula.hw.lane.shape import GROUPS_BITS, SELECT_BITS, STRIPS_BITS, LaneShape
from alula.hw.lane.steps import START
from alula.hw.layout import CASCADE, WINDOW

DESCRIPTOR = data.StructLayout({"exponent": signed(EXPONENT_BITS), "strips": 24, "beats": 24})
READ = 1  # clocks from an issue to its activations
TAG = 1  # to what the pipelines are to do
SELECT = READ + 1  # to the chain's operands


class LinearUnit(wiring.Component):
    """Take bundles, give the chain its operands, and tell the accumulators what comes out.

    A bundle and a pair of tokens go out in a clock. The chain, the activation buffer and the
    accumulators are outside; their latencies are fixed.

    Members
    -------
    command : ``In(stream of isa.Linear)``
        The next begins when the one before is done.
    tokens : ``In(7)``
        Rows of the step, at least 1.
    lane : ``In(6)``
    streams : ``In(stream of DESCRIPTOR)``
    start, fetch : ``Out(stream)``
        What the unpacker is to unpack, and the beats that it is to get.
    bundles : ``In(stream)``
    reads, row, word, block : ``Out``; codes, scale : ``In``
        The activation buffer's.
    query : ``In(query_port)``, keyed, keyed_blocks : ``In``
        While attention is busy, the chain's operands are what it has kept as a query, and the
        blocks of a beat of its codes that are marked, other weights are 0. ``keyed`` is a clock
        before the chain's, ``query.wanted`` two.
    valid, weights, lo, hi : ``Out``
        The chain's operands, the last two as it wants them.
    regions_log2, tag_valid, tag, scales, begin, first, exponent : ``Out``; drained : ``In``
        For :class:`ScaleAccumulate`.
    busy : ``Out(1)``
        A command is being run.
    done : ``Out(1)``
        High for a clock when the consumer has taken all results of a command.
    """

    def __init__(self, arch, primitive=""):
        self.arch, self.shape, self.primitive = arch, LaneShape(arch), primitive
        shape = self.shape
        slots = shape.slots
        super().__init__({
            "command": In(stream.Signature(COMMAND_BITS)), "tokens": In(7), "lane": In(6),
            "streams": In(stream.Signature(DESCRIPTOR)),
            "start": Out(stream.Signature(START)), "fetch": Out(stream.Signature(24)),
            "bundles": In(stream.Signature(shape.bundle_layout())),
            "query": In(query_port(arch)), "keyed": In(8 * arch.beat_bytes),
            "keyed_blocks": In(arch.beat_bytes // BLOCK),
            "reads": Out(1), "row": Out(ROW_BITS), "word": Out(BLOCK_BITS),
            "block": Out(BLOCK_BITS), "codes": In(8 * arch.beat_bytes), "scale": In(32),
            "valid": Out(1), "weights": Out(9 * slots), "lo": Out(8 * slots), "hi": Out(8 * slots),
            "regions_log2": Out(range(shape.half_windows.bit_length())), "tag_valid": Out(1),
            "tag": Out(tag_layout(shape)), "scales": Out(64),
            "begin": Out(1), "first": Out(16), "exponent": Out(signed(EXPONENT_BITS)),
            "drained": In(1), "done": Out(1), "busy": Out(1)})

    def elaborate(self, platform):
        self.m = m = Module()
        self.issue, self.tag_now = Signal(), Signal(tag_layout(self.shape))
        m.submodules.operands = self.operands = Operands(self.arch)
        self._control()
        self._issue()
        self._select()
        self._tags()
        return m

    def _control(self):
        """Take a command and its stream, set the others going, and wait for the results."""
        m = self.m
        command = data.View(instruction_layout(isa.Linear), self.command.payload)
        stream_ = self.streams.payload
        operands = self.operands
        groups, strips, beats = Signal(GROUPS_BITS), Signal(STRIPS_BITS), Signal(24)
        source, group_log2 = Signal(BLOCK_BITS), Signal(4)
        inputs = Signal(len(command.inputs) + 1)  # filled up to whole groups
        started, fetched, taken = Signal(), Signal(), Signal()
        self.bank, self.undrained = Signal(), Signal(range(STRIP_BANKS + 1))
        self.ended = Signal()  # a strip's last operands are issued
        m.d.comb += [
            self.start.payload.groups.eq(groups), self.start.payload.strips.eq(strips),
            self.start.payload.group_log2.eq(group_log2), self.fetch.payload.eq(beats),
            operands.begin.eq(taken), operands.source.eq(source),
            operands.groups.eq(groups), operands.group_log2.eq(group_log2),
            operands.strips.eq(strips), operands.tokens.eq(self.tokens)]
        drained = Signal()  # known late in a clock
        m.d.sync += [self.undrained.eq(self.undrained + self.ended - drained),
                     drained.eq(self.drained),
                     taken.eq(0)]
        with m.FSM() as fsm:
            m.d.comb += self.busy.eq(~fsm.ongoing("IDLE"))
            with m.State("IDLE"):
                both = self.command.valid & self.streams.valid
                m.d.comb += [self.command.ready.eq(both), self.streams.ready.eq(both)]
                m.d.sync += [
                    group_log2.eq(command.group_log2), source.eq(command.source),
                    inputs.eq(command.inputs + (1 << command.group_log2) - 1),
                    strips.eq(stream_.strips), beats.eq(stream_.beats),
                    self.exponent.eq(stream_.exponent),
                    self.first.eq(command.target + self.lane), self.bank.eq(0)]
                with m.If(both):
                    m.next = "DIVIDE"
            with m.State("DIVIDE"):
                m.d.sync += [groups.eq(inputs >> group_log2), taken.eq(1)]
                m.next = "START"
            with m.State("START"):
                m.d.comb += [self.start.valid.eq(~started & (strips != 0)),
                             self.fetch.valid.eq(~fetched & (strips != 0)), self.begin.eq(1)]
                start = started | (self.start.valid & self.start.ready)
                fetch = fetched | (self.fetch.valid & self.fetch.ready)
                m.d.sync += [started.eq(start), fetched.eq(fetch)]
                with m.If((start & fetch) | (strips == 0)):
                    m.d.sync += [started.eq(0), fetched.eq(0)]
                    m.next = "RUN"
            with m.State("RUN"):
                m.d.comb += self.done.eq(strips == 0)
                with m.If(drained):
                    m.d.sync += strips.eq(strips - 1)
                    m.d.comb += self.done.eq(strips == 1)
                with m.If(self.done):
                    m.next = "IDLE"

    def _issue(self):
        """Decide what goes out, one bundle and pair at a time, and update what it leaves behind."""
        m, bundle = self.m, self.bundles.payload
        self.pair, self.lone = Signal(range(max(2, self.shape.pairs))), Signal()
        touched, last = Signal(TILE_ROWS), Signal.like(self.pair)
        advance, last_pair, stall = Signal(), Signal(), Signal()
        later, again = self._passes()
        m.d.comb += [
            last_pair.eq(self.pair == last),
            self.lone.eq(last_pair & self.tokens[0] if self.shape.pair else 1),
            # Of a bundle's rows none comes twice, so later passes need not wait.
            stall.eq(self._conflict() & bundle.last_chunk & ~later),
            self.issue.eq(self.bundles.valid & self.operands.ready & ~stall
                          & (self.undrained != STRIP_BANKS)),
            advance.eq(self.issue & ((last_pair & ~again) | (bundle.count == 0))),
            self.operands.pair.eq(self.pair), self.operands.chunk.eq(bundle.chunk),
            self.operands.done.eq(advance & bundle.last_of_tile),
            self.bundles.ready.eq(advance), self.ended.eq(advance & bundle.end_of_strip)]
        m.d.sync += last.eq((self.tokens - 1) >> 1)
        with m.If(self.issue):
            m.d.sync += self.pair.eq(self.pair + ~again)
        with m.If(advance):
            m.d.sync += self.pair.eq(0)
            with m.If(bundle.last_chunk):
                m.d.sync += touched.eq(touched | bundle.mask)
            with m.If(bundle.end_of_strip):
                m.d.sync += [touched.eq(0), self.bank.eq(self.bank + 1)]
        self._jobs(touched)

    def _passes(self):
        """Choose rows, in their order, of which no two have the same pipeline: the ``taken`` ones.

        Return whether some were taken in an earlier clock, and whether some are left.
        """
        m, shape, bundle = self.m, self.shape, self.bundles.payload
        left, rest = Signal(shape.rows), Signal(shape.rows)
        later, again = Signal(), Signal()
        self.taken = Signal(shape.rows)
        low = ceil_log2(shape.rows)
        numbers = [bundle.rows.word_select(row, 4)[:low] for row in range(shape.rows)]
        clashes = []
        for row, number in enumerate(numbers):
            same = [(number[:low - 1] == other[:low - 1])
                    & ((number[-1] == other[-1]) | ~self.lone) for other in numbers[:row]]
            clashes.append(left[row] & (left[:row] & Cat(same)).any())
        m.d.comb += [
            left.eq(Mux(later, rest, Cat(bundle.count > row for row in range(shape.rows)))),
            self.taken.eq(left & ~Cat(clashes)), again.eq(Cat(clashes).any())]
        with m.If(self.issue):
            m.d.sync += [later.eq(again), rest.eq(Cat(clashes))]
        return later, again

    def _conflict(self):
        """Return whether additions under way will change accumulators that this one needs."""
        m, bundle = self.m, self.bundles.payload
        busy, before_pair, before_mask = [], self.pair, Signal(TILE_ROWS)
        m.d.comb += before_mask.eq(Mux(self.issue & bundle.last_chunk, bundle.mask, 0))
        for _ in range(DISTANCE - 1):
            pair, mask = Signal.like(self.pair, reset_less=True), Signal(TILE_ROWS)
            m.d.sync += [pair.eq(before_pair), mask.eq(before_mask)]
            busy.append((pair == self.pair) & (mask & bundle.mask).any())
            before_pair, before_mask = pair, mask
        return Cat(busy).any()

    def _jobs(self, touched):
        """Say, a clock later, what each pipeline does with what was issued."""
        m, shape, bundle, tag = self.m, self.shape, self.bundles.payload, self.tag_now
        low, bits = ceil_log2(shape.rows), place_bits(shape)
        row_layout = data.StructLayout({"taken": 1, "number": 4, "scale": 16, "fresh": 1})
        rows = [Signal(row_layout, name=f"row_{row}", reset_less=True)
                for row in range(shape.rows)]
        for at, row in enumerate(rows):
            number = bundle.rows.word_select(at, 4)
            m.d.sync += [row.taken.eq(self.taken[at]), row.number.eq(number),
                         row.scale.eq(bundle.scales.word_select(at, 16)),
                         row.fresh.eq(~(touched >> number)[0])]
        m.d.comb += tag.lone.eq(delayed(m, self.lone, TAG) if shape.pair else 1)
        for name, value in (("pair", self.pair), ("bank", self.bank),
                            ("end_of_strip", self.ended), ("chunk", bundle.chunk),
                            ("last_chunk", bundle.last_chunk), ("touched", touched | bundle.mask)):
            m.d.comb += tag[name].eq(delayed(m, value, TAG))
        for pipeline, job in enumerate(tag.jobs):
            hits = Cat(row.taken & Mux(tag.lone, row.number[:low] == pipeline,
                                       row.number[:low - 1] == pipeline >> 1) for row in rows)
            rank = Cat(Cat(hit for at, hit in enumerate(hits) if at >> bit & 1).any()
                       for bit in range(low))
            place = choose(rank, [Mux(tag.lone, row.number[low:], row.number[low - 1:])[:bits]
                                  for row in rows])
            m.d.comb += [job.there.eq(hits.any()), job.rank.eq(rank), job.place.eq(place),
                         *(job[name].eq(choose(rank, [row[name] for row in rows]))
                           for name in ("scale", "fresh"))]

    def _select(self):
        """Give each slot its weight and the inputs of it, from both tokens."""
        m, operands = self.m, self.operands
        wiring.connect(m, operands.query, wiring.flipped(self.query))
        selects = self._selects()
        m.d.comb += [
            *(getattr(self, name).eq(getattr(operands, name))
              for name in ("reads", "row", "word", "block")),
            operands.codes.eq(self.codes), operands.scale.eq(self.scale),
            self.weights.eq(self._weights()),
            self.valid.eq(delayed_flag(m, self.issue, SELECT))]
        m.d.comb += self.lo.eq(self._inputs(operands.even, selects))
        if self.shape.pair:
            m.d.comb += self.hi.eq(self._inputs(operands.odd, selects))

    def _inputs(self, source, selects):
        """Return each slot's input; slot ``k`` of a half-window ``k`` clocks later than slot 0.

        Not the inputs of slots are delayed but those that they choose from, which are fewer.
        """
        shape, chosen = self.shape, [None] * self.shape.slots
        inputs = [source.word_select(at, 8) for at in range(WINDOW * shape.windows)]
        for k in range(CASCADE):
            of_window = WINDOW - k  # inputs that slots from k on may choose
            mine = staggered(self.m, Cat(selects.word_select(CASCADE * j + k, SELECT_BITS)
                                         for j in range(shape.half_windows)), k)
            for j in range(shape.half_windows):
                first = of_window * (j % shape.windows)
                chosen[CASCADE * j + k] = delayed(self.m, self._input(
                    inputs[first:first + CASCADE + 1], mine.word_select(j, SELECT_BITS)), 1)
            later = staggered(self.m, Cat(part for at, part in enumerate(inputs)
                                          if at % of_window), 1)
            inputs = [later.word_select(at, 8) for at in range(len(later) // 8)]
        return Cat(chosen)

    def _selects(self):
        """Return each slot's choice; while attention is busy, as of a dense row."""
        m, shape = self.m, self.shape
        selects = Signal(SELECT_BITS * shape.slots, reset_less=True)
        m.d.sync += selects.eq(self.bundles.payload.selects)
        with m.If(self.query.busy):
            m.d.sync += selects.eq(Cat(
                Const(WINDOW - CASCADE if j >= shape.windows else 0, SELECT_BITS).replicate(CASCADE)
                for j in range(shape.half_windows)))
        return selects

    def _weights(self):
        """Return the weights of slots: of a bundle, or attention's codes."""
        m, shape = self.m, self.shape
        early = delayed(m, self.bundles.payload.weights, READ)
        weights = [Signal(9, name=f"weight_{slot}", reset_less=True) for slot in range(shape.slots)]
        keyed = {shape.dense_slot(at): self.keyed.word_select(at, 8)
                 for at in range(shape.beat_bytes)}
        absent = Signal(shape.beat_bytes // BLOCK + 1)  # of each block, and of slots without any
        m.d.comb += absent.eq(Mux(self.query.busy, ~Cat(self.keyed_blocks, Const(0, 1)), 0))
        for slot, weight in enumerate(weights):
            code, early_weight = keyed.get(slot), early.word_select(slot, 9)
            m.d.sync += weight.eq(early_weight if code is None else Mux(
                self.query.busy, Cat(code, code[-1]), early_weight))
        for block in range(len(absent)):
            mine = ([shape.dense_slot(BLOCK * block + at) for at in range(BLOCK)]
                    if block < len(absent) - 1 else set(range(shape.slots)) - set(keyed))
            with m.If(absent[block]):
                m.d.sync += [weights[slot].eq(0) for slot in mine]
        return Cat(weights)

    def _input(self, inputs, select):
        """Return one of nine inputs."""
        near = self._either(select[2], *(choose(select[:2], inputs[at:at + 4]) for at in (4, 0)))
        return Mux(select[3], inputs[8], near)

    def _either(self, select, one, other):
        """Return ``Mux(select, one, other)``, by the multiplexer behind each two LUTs of a slice.

        Tools take a LUT of five inputs for it and for the choice that follows; without it two such
        choices, which share their select, are one LUT.
        """
        if not self.primitive:
            return Mux(select, one, other)
        result = Signal(len(one), name="near")
        for bit in range(len(one)):
            self.m.submodules += Instance("MUXF7", i_I0=other[bit], i_I1=one[bit], i_S=select,
                                          o_O=result[bit])
        return result

    def _tags(self):
        """Send what belongs to the sums along with them."""
        m = self.m
        top = self.shape.half_windows.bit_length() - 1
        clocks = SELECT + tap_latency(top)
        m.submodules.tags = tags = Delay(len(self.tag.as_value()), clocks - TAG)
        m.submodules.scale_delay = scales = Delay(64, clocks - READ + SCALES_LATENCY)
        m.submodules.regions_delay = regions = Delay(len(self.regions_log2), clocks - top)
        m.d.comb += [
            regions.i.eq(self.bundles.payload.regions_log2), self.regions_log2.eq(regions.o),
            tags.i.eq(self.tag_now.as_value()), self.tag.as_value().eq(tags.o),
            scales.i.eq(Cat(self.operands.even_scale, self.operands.odd_scale)),
            self.scales.eq(scales.o),
            self.tag_valid.eq(delayed_flag(m, self.issue, clocks))]
