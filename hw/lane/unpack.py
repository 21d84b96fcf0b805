"""Unpack weight streams into bundles. Format: :mod:`alula.hw.layout`."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from alula.hw import layout, numerics
from alula.hw.choice import choose, ones
from alula.hw.isa import SEGMENT_TILES, TILE_ROWS
from alula.hw.lane import positions
from alula.hw.lane.codequeue import CodeQueue
from alula.hw.lane.delay import delayed, delayed_flag
from alula.hw.lane.gear import Gear, WordQueue
from alula.hw.lane.positions import PositionDecoder
from alula.hw.lane.rowstore import RowStore
from alula.hw.lane.shape import LaneShape
from alula.hw.lane.simd import BITS, Simd
from alula.hw.lane.steps import START, Kind, Steps, codes_layout, step_layout
from alula.hw.lane.window import window
from alula.hw.passive import passive

COARSE_UNITS_LOG2, COARSE_BYTES_LOG2 = 1, 4  # the first shift's: of the stream, of position codes
LATENCY = positions.LATENCY  # stages from codes that are cut out to a bundle
QUAD = 4  # slots that take their codes together


def _cut(value, width, count):
    return [value[at * width:(at + 1) * width] for at in range(count)]


def _spread(numbers, size):
    """Return unsigned numbers side by side, ``size`` bits each."""
    return Cat(Cat(number, Const(0, size - len(number))) for number in numbers)


class Unpacker(wiring.Component):
    """Turn the beats of weight streams into bundles.

    A step a clock, if its bytes are there. A step takes scales, zero points, position codes or a
    bundle's codes, at most a beat of them, so wide codes take several steps a bundle. Absent rows
    take no time; a tile without any makes an empty bundle. Codes wait for the chain when they are
    cut out, and what comes after them in the stream does not wait for that.

    Members
    -------
    start : ``In(stream of START)``
        Tiles of a strip, log2 of their inputs, and strips (at least one) of a stream to come.
    beats : ``In(stream of 8 * beat_bytes)``
    bundles : ``Out(stream of LaneShape.bundle_layout)``
    """

    def __init__(self, arch, primitive=""):
        self.arch, self.shape, self.primitive = arch, LaneShape(arch), primitive
        super().__init__({
            "start": In(stream.Signature(START)),
            "beats": In(stream.Signature(8 * arch.beat_bytes)),
            "bundles": Out(stream.Signature(self.shape.bundle_layout()))})

    def elaborate(self, platform):
        self.m = m = Module()
        self.go = go = Signal()  # all stages behind the queue move
        m.d.comb += go.eq(~self.bundles.valid | self.bundles.ready)
        taken, coded = self._cut_out()
        self.stages = [self.codes.step_out]
        for stage in range(1, LATENCY):
            self.stages.append(Signal(codes_layout(self.shape), name=f"codes_{stage}",
                                      reset_less=True))
            with m.If(go):
                m.d.sync += self.stages[stage].eq(self.stages[stage - 1])
        m.d.comb += self.bundles.valid.eq(delayed_flag(
            m, self.codes.valid & self.stages[0].last_sub, LATENCY, go))
        lows = self._selects(coded)
        self._weights(taken, lows)
        self._sideband()
        return m

    def _cut_out(self):
        """Cut out what steps take and keep it; return a step's codes and those of positions."""
        m, shape = self.m, self.shape
        beat_bits = 8 * shape.beat_bytes
        m.submodules.codes = self.codes = codes = CodeQueue(codes_layout(shape),
                                                            beat_bits + self._coded_bits())
        m.submodules.steps = steps = Steps(self.arch, shape)
        wiring.connect(m, wiring.flipped(self.start), steps.start)
        self.room = codes.room
        near, coded_near = self._gears(steps)
        now, step = steps.step, Signal(step_layout(shape), name="step")
        taken, coded = (Signal(bits, name=name, reset_less=True) for name, bits in (
            ("taken", beat_bits), ("coded", self._coded_bits())))
        with m.If(self.room):
            m.d.sync += [
                step.eq(now),
                taken.eq(window(m, near, now.offset[:COARSE_UNITS_LOG2], beat_bits,
                                beat_bits // layout.UNITS)),
                coded.eq(window(m, coded_near, now.coded_offset[:COARSE_BYTES_LOG2],
                                self._coded_bits(), 8))]
        wanted = {kind: self.room & step.valid & (step.kind == kind) for kind in Kind}
        self._keep_items(step, wanted, taken)
        m.d.comb += [
            self.coded_words.data.eq(taken), self.coded_words.write.eq(wanted[Kind.POSITIONS]),
            codes.step_in.eq(step.codes), codes.data_in.eq(Cat(taken, coded)),
            codes.write.eq(wanted[Kind.CODES]), codes.read.eq(self.go),
            steps.enable.eq(self.room),
            steps.through.eq(self.go & codes.valid & codes.step_out.end_of_segment)]
        return codes.data_out[:beat_bits], codes.data_out[beat_bits:]

    def _coded_bits(self):
        return positions.CODE_BITS * self.shape.half_windows

    def _register(self, value, clocks=1):
        return delayed(self.m, value, clocks, self.go)

    def _gears(self, steps):
        """Return the bits around what a step takes, from the beats and from position codes."""
        m, shape = self.m, self.shape
        beat_bits = 8 * shape.beat_bytes
        unit = beat_bits // layout.UNITS
        m.submodules.gear = gear = Gear(beat_bits, unit)
        m.submodules.coded_gear = coded = Gear(beat_bits, 8, every_clock=False,
                                               foreseen=True)
        most = SEGMENT_TILES * layout.positions_bytes(TILE_ROWS, max(numerics.GROUPS), 8,
                                                      self.arch)
        m.submodules.coded_words = self.coded_words = words = WordQueue(
            beat_bits, 1 << (most // shape.beat_bytes).bit_length())
        wiring.connect(m, wiring.flipped(self.beats), gear.words)
        wiring.connect(m, words.words, coded.words)
        m.d.comb += [
            steps.head.eq(gear.front), steps.ready.eq(gear.ready), steps.offset.eq(gear.offset),
            steps.fits.eq(gear.fits), gear.size.eq(steps.size), gear.take.eq(steps.take),
            gear.drop.eq(steps.drop),
            steps.coded_offset.eq(coded.offset), steps.coded_fits.eq(coded.fits),
            gear.rest.eq(steps.rest), coded.rest.eq(steps.coded_rest),
            coded.size.eq(steps.coded_size), coded.take.eq(steps.coded_take),
            coded.drop.eq(steps.coded_drop), coded.after.eq(steps.coded_after),
            coded.first.eq(steps.coded_first), coded.begins.eq(steps.coded_begins),
        ]
        return (delayed(m, self._coarse(gear.front, gear.offset, COARSE_UNITS_LOG2, beat_bits,
                                        unit), 1, self.room),
                delayed(m, self._coarse(coded.front, coded.offset, COARSE_BYTES_LOG2,
                                        self._coded_bits(), 8), 1, self.room))

    def _coarse(self, front, offset, log2, width, unit):
        """Return ``width`` bits from an offset on, and those before it up to ``2**log2`` units."""
        return window(self.m, front, offset[log2:], width + unit * ((1 << log2) - 1), unit << log2)

    def _keep_items(self, step, wanted, taken):
        """Write scales and zero points; those of a bundle's rows are read with its codes."""
        m, shape, codes = self.m, self.shape, self.codes.step_out
        items = []
        for name, bits, kind, index in (("scales", 16, Kind.SCALES, codes.scale),
                                        ("zero_points", 8, Kind.ZERO_POINTS, codes.zero_point)):
            m.submodules[name] = store = RowStore(bits, 8 * shape.beat_bytes, shape.rows)
            m.d.comb += [store.write.eq(wanted[kind]), store.word.eq(step.word),
                         store.odd_word.eq(step.codes.odd), store.data.eq(taken),
                         store.enable.eq(self.go), store.odd.eq(codes.odd), store.index.eq(index)]
            items.append(store.items)
        self.scales, self.zeros = items

    def _selects(self, coded):
        """Decode positions; return which slots hold the codes of 4 of 16, at the bundle's stage."""
        m, shape, step = self.m, self.shape, self.stages[0]
        halves = _cut(coded, positions.CODE_BITS, shape.half_windows)
        quarters = _cut(coded, layout.KEPT_PATTERNS[4], shape.half_windows)
        selects, lows = [], []
        for j, (half, quarter) in enumerate(zip(halves, quarters, strict=True)):
            # Of 12 of 16 a window has two half-windows.
            second = j >= shape.windows
            if second:
                quarter = Mux(step.kept == 3, quarters[j - shape.windows], quarter)
            m.submodules[f"decoder_{j}"] = decoder = PositionDecoder(second)
            m.d.comb += [decoder.enable.eq(self.go), decoder.kept.eq(step.kept),
                         decoder.code.eq(Mux(step.kept == 2, half, quarter)),
                         decoder.further.eq((Const(j, 8) >> step.windows_log2)[0])]
            selects.append(decoder.distances)
            lows.append(decoder.low)
        m.d.comb += self.bundles.payload.selects.eq(passive(m, Cat(selects)))
        return lows

    def _weights(self, taken, lows):
        """Cut out codes and subtract zero points."""
        shape, stages = self.shape, self.stages
        codes = self._put_together(taken, stages[0])
        placed = self._placed(codes, stages[1])
        points = _cut(self._by_half_window(self._points(self.zeros, stages[1]), stages[1]), 8,
                      shape.half_windows)
        held = self._register(self._held(stages[-2]))
        weights = []
        for at, quad in enumerate(placed):
            point = points[at // (layout.CASCADE // QUAD)]
            for k, difference in enumerate(self._less(quad, point)):
                slot = QUAD * at + k
                weights.append(self._weight(difference, held[at], lows[slot // layout.CASCADE],
                                            slot))
        self.m.d.comb += self.bundles.payload.weights.eq(passive(self.m, Cat(weights)))

    def _less(self, quad, point):
        """Return four codes less a zero point, two stages later."""
        self.m.submodules += (simd := Simd(QUAD, subtract=True, held=True,
                                           primitive=self.primitive))
        size = BITS // QUAD
        self.m.d.comb += [
            simd.enable.eq(self.go), simd.right.eq(_spread([point] * QUAD, size)),
            simd.left.eq(_spread(_cut(quad, 8, QUAD), size))]
        return [number[:9].as_signed() for number in _cut(simd.result, size, QUAD)]

    def _weight(self, difference, held, low, slot):
        """Return a slot's weight, 0 if it holds none."""
        m, k = self.m, slot % layout.CASCADE
        weight = Signal(signed(9), name=f"weight_{slot}", reset_less=True)
        there = held & ((self.stages[-1].kept != 1) | (low[k] if k < QUAD else ~low[k - QUAD]))
        clear = Signal(name=f"clear_{slot}")  # one signal, so that it is the register's reset
        m.d.comb += clear.eq(self.go & ~there)
        with m.If(self.go):
            m.d.sync += weight.eq(difference)
        with m.If(clear):
            m.d.sync += weight.eq(0)
        return weight

    def _put_together(self, taken, step):
        """Return the codes of a bundle in their order, 8 bits each, from those of its steps.

        There are ``slots`` codes or, of 4 of 16, half as many; the others are undefined.
        """
        m, shape = self.m, self.shape
        together, size = [], shape.beat_bytes
        at_once = [shape.parts_together(bits, 0) for bits in numerics.WEIGHT_BITS]
        for part in range(shape.parts):
            low, high, narrow = Signal(4 * size, reset_less=True), Signal(
                4 * size, name=f"high_{part}", reset_less=True), Signal(name=f"narrow_{part}")
            when = self.go & self.codes.valid & choose(
                step.width, [step.sub == part // count for count in at_once])
            m.d.comb += narrow.eq(when & (step.width != len(at_once) - 1))
            for at in range(size):
                first = [bits * (part % count * size + at)
                         for bits, count in zip(numerics.WEIGHT_BITS, at_once, strict=True)]
                choices = [Cat(taken[place:place + min(bits, 4)], Const(0, 4))[:4]
                           for place, bits in zip(first, numerics.WEIGHT_BITS, strict=True)]
                with m.If(when):
                    m.d.sync += [low.word_select(at, 4).eq(choose(step.width, choices)),
                                 high.word_select(at, 4).eq(taken[first[-1] + 4:first[-1] + 8])]
            with m.If(narrow):  # a reset of the registers, not logic before them
                m.d.sync += high.eq(0)
            together += [Cat(low.word_select(at, 4), high.word_select(at, 4))
                         for at in range(size)]
        return Cat(together)

    def _placed(self, codes, step):
        """Return each four slots' codes.

        Those of 4 of 16 go to two of them. Ref: PositionDecoder. Of 12 of 16 the last four codes
        of each window come after all others.
        """
        shape = self.shape
        quads = _cut(codes, 8 * QUAD, 2 * shape.half_windows)
        placed = [quads[0]] + [Mux(step.kept == 1, quads[at // 2], quad)
                               for at, quad in enumerate(quads) if at]
        for j in range(shape.windows):
            # With as few windows as would make a place that is further on, there is no window j.
            fewest = j.bit_length()
            rest = [quads[min((2 << max(log2, fewest)) + j, len(quads) - 1)]
                    for log2 in range(shape.windows.bit_length())]
            at = 2 * (shape.windows + j) + 1
            placed[at] = Mux(step.kept == 3, choose(step.windows_log2, rest), placed[at])
        return placed

    def _points(self, zeros, step):
        """Return the zero points of a bundle's rows."""
        default = choose(step.width, [Const(1 << (bits - 1), 8) for bits in numerics.WEIGHT_BITS])
        return Cat(Mux(step.zero_points, item, default)
                   for item in _cut(zeros, 8, self.shape.rows))

    def _region(self, j, step, what):
        """Return ``what`` of the region of a half-window, which depends on their number."""
        most = self.shape.half_windows.bit_length() - 1
        return choose(step.regions_log2, [what(j >> (most - log2)) for log2 in range(most + 1)])

    def _by_half_window(self, points, step):
        """Return the zero point of each half-window."""
        shape = self.shape
        points = _cut(points, 8, shape.rows)
        return Cat(self._region(j, step, lambda row: points[min(row, shape.rows - 1)])
                   for j in range(shape.half_windows))

    def _held(self, step):
        """Return which slots, four at a time, hold codes."""
        shape, held = self.shape, []
        for j in range(shape.half_windows):
            here = step.used[j] & self._region(j, step, lambda row: step.count > row)
            held += [here & (step.kept != 3) if j >= shape.windows else here, here]
        return Cat(held)

    def _sideband(self):
        m, shape = self.m, self.shape
        bundle, last = self.bundles.payload, self.stages[-1]
        m.d.comb += [bundle[name].eq(self._register(last[name]))
                     for name in ("regions_log2", "count", "chunk", "last_chunk", "last_of_tile",
                                  "end_of_strip")]
        m.d.comb += bundle.scales.eq(passive(m, self._register(self.scales, LATENCY - 1)))
        # The r-th row of a step is the present row with done + r present rows before it.
        step = self.stages[0]
        ranks = [Signal(4, name=f"rank_{row}") for row in range(TILE_ROWS)]
        for row, rank in enumerate(ranks):
            m.d.comb += rank.eq(ones([*step.present[:row], Const(0, 1)]))
        ranks = _cut(self._register(Cat(ranks)), 4, TILE_ROWS)
        step = self.stages[1]
        rows = []
        for r in range(shape.rows):
            wanted = (step.done + r)[:4]
            hits = [step.present[row] & (ranks[row] == wanted) for row in range(TILE_ROWS)]
            rows += [Cat(hits[row] for row in range(TILE_ROWS) if row >> bit & 1).any()
                     for bit in range(4)]
        rows = self._register(Cat(rows), LATENCY - 2)
        marks = 0
        for r, number in enumerate(_cut(rows[:4 * shape.rows], 4, shape.rows)):
            marks = marks | Mux(r < last.count, 1 << number, 0)
        m.d.comb += [bundle.rows.eq(self._register(rows)), bundle.mask.eq(self._register(marks))]
