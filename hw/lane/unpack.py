"""Unpack weight streams into bundles. Format: :mod:`alula.hw.layout`."""

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from alula.hw import numerics
from alula.hw.lane import positions
from alula.hw.lane.delay import delayed
from alula.hw.lane.positions import PositionDecoder
from alula.hw.lane.rowstore import RowStore
from alula.hw.lane.shape import CHUNK_BITS, LaneShape
from alula.hw.lane.steps import START, Kind, Steps, step_layout
from alula.hw.lane.window import window
from alula.hw.ram import Ram

GRANULE_BYTES = 16  # of the first of the two shifts
EXPANDED = 3  # stage at which codes and position codes are whole
DECODED = EXPANDED + 1  # stage at which the decoders take position codes
LATENCY = DECODED + positions.LATENCY  # stages to a bundle


def _cut(value, width, count):
    return [value[at * width:(at + 1) * width] for at in range(count)]


class Unpacker(wiring.Component):
    """Turn the beats of weight streams into bundles.

    A bundle a clock, if the buffer has its bytes. Absent rows take no time; a tile without any
    makes an empty bundle. A sparse row of more than two chunks, or of two that keep 12 of 16,
    takes further clocks for their positions.

    Members
    -------
    start : ``In(stream of START)``
        Tiles of a strip, log2 of their inputs, and strips (at least one) of a stream to come.
    beats : ``In(stream of 8 * beat_bytes)``
    bundles : ``Out(stream of LaneShape.bundle_layout)``
    """

    def __init__(self, arch):
        self.arch, self.shape = arch, LaneShape(arch)
        super().__init__({
            "start": In(stream.Signature(START)),
            "beats": In(stream.Signature(8 * arch.beat_bytes)),
            "bundles": Out(stream.Signature(self.shape.bundle_layout()))})

    def elaborate(self, platform):
        self.m = m = Module()
        shape = self.shape
        m.submodules.steps = steps = Steps(self.arch, shape)
        wiring.connect(m, wiring.flipped(self.start), steps.start)
        self.go = go = Signal()  # all stages move
        m.d.comb += [go.eq(~self.bundles.valid | self.bundles.ready), steps.enable.eq(go),
                     # A stalled step still reads the buffer.
                     self.beats.ready.eq(steps.room & go),
                     steps.wrote.eq(self.beats.valid & self.beats.ready)]
        beat_bits = 8 * shape.beat_bytes
        self.buffer = Signal(beat_bits * shape.buffer_beats, reset_less=True)
        m.d.comb += steps.head.eq(self.buffer.word_select(steps.slot, beat_bits))
        for slot, part in enumerate(_cut(self.buffer, beat_bits, shape.buffer_beats)):
            with m.If(steps.wrote & (steps.write_slot == slot)):
                m.d.sync += part.eq(self.beats.payload)

        self.stages = [steps.step]
        for stage in range(1, LATENCY):
            self.stages.append(Signal(step_layout(shape), name=f"step_{stage}", reset_less=True))
            with m.If(go):
                m.d.sync += self.stages[stage].eq(self.stages[stage - 1])
        valid = Signal(LATENCY)
        with m.If(go):
            m.d.sync += valid.eq(Cat(
                steps.step.valid & (steps.step.kind == Kind.CODES), valid))
        m.d.comb += self.bundles.valid.eq(valid[-1])

        code_bits = 8 * shape.part_slots
        coded_bits = positions.CODE_BITS * shape.part_half_windows
        raw, coded = [], []  # at stage 2
        for part in range(shape.rows):
            raw.append(self._shifted(steps.step.code_at[part], code_bits))
            coded.append(self._shifted(steps.step.position_at[part], coded_bits))
        items = self._items(Cat(raw))
        self._selects(coded)
        self._weights(raw, items)
        self._sideband(items)
        return m

    def _register(self, value):
        return delayed(self.m, value, 1, self.go)

    def _shifted(self, at, bits):
        """Return bits of the buffer from a bit address of stage 0, at stage 2."""
        m, granule = self.m, 8 * GRANULE_BYTES
        granule_log2 = granule.bit_length() - 1
        around = -(-(bits + granule - 1) // granule) * granule
        near = window(m, self.buffer, at[granule_log2:], around, granule, ring=True)
        near, fine = self._register(near), self._register(at[:granule_log2])
        return self._register(window(m, near, fine, bits))

    def _items(self, raw):
        """Write scales and zero points of stage 2, and return those of a step's rows, stage 3."""
        m, shape, step = self.m, self.shape, self.stages[2]
        stores = []
        for name, bits, kind, index in (("scales", 16, Kind.SCALES, step.item),
                                        ("zero_points", 8, Kind.ZERO_POINTS, step.zero_item)):
            m.submodules[name] = store = RowStore(bits, 8 * shape.slots, shape.rows)
            m.d.comb += [store.enable.eq(self.go), store.data.eq(raw), store.word.eq(step.item),
                         store.write.eq(step.valid & (step.kind == kind)), store.index.eq(index)]
            stores.append(store.items)
        return stores

    def _selects(self, coded):
        """Decode positions: from stage 2 to the bundle."""
        m, shape, step = self.m, self.shape, self.stages[2]
        width, count = positions.CODE_BITS, shape.half_windows
        per_part = shape.part_half_windows
        fields = []
        for j in range(count):
            part, inside = coded[j // per_part], j % per_part
            by_kept = [Const(0, 1), part[11 * inside:11 * inside + 11],
                       part[14 * inside:14 * inside + 14],
                       part[11 * (inside // 2):11 * (inside // 2) + 11]]
            field = Signal(width, name=f"field_{j}")
            # The decoder of an odd half-window is idle in 12 of 16.
            m.d.comb += field.eq(Array(by_kept)[step.kept] if j % 2 == 0
                                 else Mux(step.kept[0], by_kept[1], by_kept[2]))
            fields.append(field)
        codes = self._register(Cat(fields))
        step = self.stages[EXPANDED]
        m.submodules.chunks = held = Ram(shape=width * count, depth=1 << CHUNK_BITS)
        write, read = held.write_port(), held.read_port(domain="comb")
        chosen = Signal(width * count)
        # Unless 12 of 16 are kept, what is taken together is for two chunks.
        take, paired = Signal(CHUNK_BITS), step.kept != 3
        m.d.comb += [
            take.eq(Mux((step.kind == Kind.CODES) & paired, step.chunk >> 1, step.chunk)),
            write.addr.eq(take), read.addr.eq(take), write.data.eq(codes),
            write.en.eq(self.go & step.valid & step.chunked
                        & ((step.kind == Kind.POSITIONS) | (step.chunk == 0))),
            chosen.eq(Mux(step.chunk == 0, codes, Mux(
                paired & step.chunk[0], read.data[width * count // 2:], read.data)))]
        here, step = self._register(chosen), self.stages[DECODED]
        selects, decoders = [], []
        kept = self._register(self.stages[-1].kept)
        for j in range(count):
            m.submodules[f"decoder_{j}"] = decoder = PositionDecoder()
            m.d.comb += [decoder.enable.eq(self.go), decoder.kept.eq(step.kept),
                         decoder.code.eq(here[width * j:width * (j + 1)])]
            decoders.append(decoder)
            sparse = (decoder.first if j % 2 == 0
                      else Mux(kept == 3, decoders[j - 1].second, decoder.first))
            dense = sum((8 * (j % 2) + k) << 4 * k for k in range(8))
            selects.append(Mux(kept == 0, Const(dense, 32), sparse))
        m.d.comb += self.bundles.payload.selects.eq(Cat(selects))

    def _weights(self, raw, items):
        """Cut out codes and subtract zero points: from stage 2 to the bundle."""
        m, shape = self.m, self.shape
        step = self.stages[2]
        expanded = [self._placed(self._expanded(part, step.width), step.kept) for part in raw]
        codes = self._register(Cat(expanded))  # stage 3
        last = LATENCY - 1
        codes = delayed(m, codes, last - EXPANDED, self.go)
        step = self.stages[EXPANDED]
        default = Array(Const(1 << (bits - 1), 8) for bits in numerics.WEIGHT_BITS)[step.width]
        zeros = [Mux(step.zero_points, item, default) for item in _cut(items[1], 8, shape.rows)]
        by_part, there = [], []
        for part in range(shape.rows):
            row = Signal(range(shape.rows), name=f"row_of_{part}")
            m.d.comb += row.eq(part >> (shape.rows_log2 - step.rows_log2)[:2])
            by_part.append(Array(zeros)[row])
            there += [row < step.count] * shape.part_half_windows
        zeros = delayed(m, self._register(Cat(by_part)), last - EXPANDED - 1, self.go)
        low = Cat(there) & step.used
        odd = Const(sum(1 << j for j in range(1, shape.half_windows, 2)), shape.half_windows)
        # Slots 4 to 7 of a half-window hold codes unless it is 4 of 16, or the second of 12.
        high = low & Array([Const(-1, shape.half_windows), Const(0, shape.half_windows),
                            Const(-1, shape.half_windows), ~odd])[step.kept]
        low, high = (delayed(m, self._register(mask), last - EXPANDED - 1, self.go)
                     for mask in (low, high))
        zeros = _cut(zeros, 8, shape.rows)
        weights = []
        for slot, code in enumerate(_cut(codes, 8, shape.slots)):
            used = (low if slot % 8 < 4 else high)[slot // 8]
            difference = Signal(signed(9), name=f"weight_{slot}")
            m.d.comb += difference.eq(Mux(used, code - zeros[slot // shape.part_slots], 0))
            weights.append(difference)
        m.d.comb += self.bundles.payload.weights.eq(self._register(Cat(weights)))

    def _expanded(self, raw, width):
        """Return the codes of a part, 8 bits each."""
        count = self.shape.part_slots
        by_width = [Cat(Cat(raw[bits * k:bits * (k + 1)], Const(0, 8 - bits)) for k in range(count))
                    for bits in numerics.WEIGHT_BITS]
        return Array(by_width)[width]

    def _placed(self, codes, kept):
        """Return the codes of a part where their slots are."""
        m, count = self.m, self.shape.part_half_windows
        held = Signal(len(codes))
        m.d.comb += held.eq(codes)
        four = Cat(held[32 * j:32 * j + 64] if 32 * j + 64 <= len(held) else
                   Cat(held[32 * j:32 * j + 32], Const(0, 32)) for j in range(count))
        twelve = Cat(held[96 * (j // 2) + 64 * (j % 2):][:64] for j in range(count))
        return Array([held, four, held, twelve])[kept]

    def _sideband(self, items):
        m, shape, go = self.m, self.shape, self.go
        bundle, last = self.bundles.payload, self.stages[-1]
        m.d.comb += [bundle[name].eq(self._register(last[name]))
                     for name in ("rows_log2", "count", "chunk", "last_chunk", "last_of_tile",
                                  "end_of_strip")]
        m.d.comb += [bundle.shared.eq(self._register((last.kept == 0) | (last.kept == 3))),
                     bundle.scales.eq(delayed(m, items[0], LATENCY - EXPANDED, go))]
        # The r-th row of a step is the present row with done + r present rows before it.
        step = self.stages[0]
        ranks = [Signal(4, name=f"rank_{row}") for row in range(16)]
        for row, rank in enumerate(ranks):
            m.d.comb += rank.eq(sum((step.present[less] for less in range(row)), Const(0, 1)))
        ranks = _cut(self._register(Cat(ranks)), 4, 16)
        step = self.stages[1]
        rows = []
        for r in range(shape.rows):
            wanted = (step.done + r)[:4]
            hits = [step.present[row] & (ranks[row] == wanted) for row in range(16)]
            rows += [Cat(hits[row] for row in range(16) if row >> bit & 1).any()
                     for bit in range(4)]
        rows = delayed(m, self._register(Cat(rows)), LATENCY - 3, go)
        marks = 0
        for r, number in enumerate(_cut(rows, 4, shape.rows)):
            marks = marks | Mux(r < last.count, 1 << number, 0)
        m.d.comb += [bundle.rows.eq(self._register(rows)), bundle.mask.eq(self._register(marks))]
