"""Cut a weight stream into the steps that the unpacker makes, one a clock."""

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal
from amaranth.lib import data, enum, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from alula.hw import layout, numerics
from alula.hw.choice import choose, ones
from alula.hw.isa import SEGMENT_TILES, TILE_ROWS
from alula.hw.lane.shape import (
    CHUNK_BITS,
    GROUPS_BITS,
    STRIPS_BITS,
    TileFormat,
    format_keys,
)

HEADER_BITS = sum(layout.HEADER_FIELDS.values())
START = data.StructLayout({"groups": GROUPS_BITS, "group_log2": 4, "strips": STRIPS_BITS})
SUB_BITS = 2  # of the number of a step among those of its bundle


class Kind(enum.Enum, shape=2):
    """What a step takes from the stream."""

    SCALES = 0
    ZERO_POINTS = 1
    POSITIONS = 2
    CODES = 3


def step_layout(shape):
    """Return the layout of a step.

    ``offset`` and ``coded_offset`` are where what it takes begins: bytes in the stream's front,
    bits in the position codes'. ``count`` rows of a tile's ``present`` rows are in a bundle, after
    ``done`` ones; a row, or its chunk, has ``2**windows_log2`` windows. ``sub`` numbers the steps
    of a bundle, which is there with the ``last_sub``. ``item`` and ``zero_item`` number the scales
    and zero points of its rows in the segment; ``item`` is a word's number if a step writes them.
    """
    return data.StructLayout({
        "valid": 1, "kind": Kind, "offset": range(shape.beat_bytes),
        "coded_offset": range(8 * shape.beat_bytes), "width": 2, "kept": 2, "zero_points": 1,
        "windows_log2": 3, "regions_log2": shape.regions_bits, "count": 3, "done": 4,
        "present": TILE_ROWS, "used": shape.half_windows, "sub": SUB_BITS, "last_sub": 1,
        "chunk": CHUNK_BITS, "last_chunk": 1, "last_of_tile": 1, "end_of_strip": 1, "item": 8,
        "zero_item": 8})


def _format_table(shape):
    """Return the layout and entries of the format constants, by group, kept quarters, width."""
    entries = []
    for key in format_keys():
        tile = TileFormat(shape, *key)
        entry = dict(regions_log2=tile.regions_log2, rows_log2=tile.rows.bit_length() - 1,
                     last_chunk=tile.chunks - 1, step=tile.step_bytes, used=tile.used,
                     phase=tile.chunks * tile.position_bits[1] % 8)
        for name, by_count in (("codes", tile.codes_bytes), ("coded", tile.position_bits)):
            for rows in range(1, shape.rows + 1):
                entry[f"{name}_{rows}"] = by_count[min(rows, tile.rows)]
        entries.append(entry)
    fields = {name: max(1, max(entry[name] for entry in entries).bit_length())
              for name in entries[0]}
    return data.StructLayout(fields), entries


def _tile_layout(shape, table):
    """Return the layout of a tile as its steps need it.

    It has ``left`` bundles, or rows of chunks: of ``whole`` bytes of codes and ``whole_coded``
    bits of position codes, the ``final`` one perhaps of fewer. The ``first`` may be the final one.
    ``pad`` bits follow the tile's position codes.
    """
    codes, coded = table[f"codes_{shape.rows}"].shape, table[f"coded_{shape.rows}"].shape
    return data.StructLayout({
        "present": TILE_ROWS, "kept": 2, "width": 2, "zero_points": 1,
        **{name: table[name].shape for name in ("regions_log2", "last_chunk", "step", "used")},
        "left": range(TILE_ROWS + 1), "pad": 3,
        "whole": codes, "final": codes, "first": codes,
        "whole_coded": coded, "final_coded": coded, "first_coded": coded,
        "final_count": 3, "first_count": 3})


def _times(count, factor):
    """Return a small product as a sum of shifts."""
    return sum((count << bit for bit in range(factor.bit_length()) if factor >> bit & 1),
               Const(0, 1))


class Steps(wiring.Component):
    """Follow a stream's structure: which bytes are taken when, and what they are.

    Members
    -------
    start : ``In(stream of START)``
        A stream to come, of at least one strip; taken when the one before is through.
    enable : ``In(1)``
        The pipeline behind takes a step in this clock.
    head : ``In(8 * beat_bytes)``, ready : ``In(1)``, offset : ``In``, fits : ``In(1)``
    size : ``Out``, take, drop : ``Out(1)``
        The stream's :class:`alula.hw.lane.gear.Gear`, in bytes; ``head`` is its first word.
    coded_offset, coded_fits : ``In``; coded_size, coded_take, coded_drop : ``Out``
        That of the position codes, in bits.
    step : ``Out(step_layout)``
        A register; it changes when ``enable``.
    """

    def __init__(self, arch, shape):
        self.arch, self.shape = arch, shape
        size, bits = range(shape.beat_bytes + 1), 8 * shape.beat_bytes
        super().__init__({
            "start": In(stream.Signature(START)), "enable": In(1),
            "head": In(bits), "ready": In(1), "offset": In(range(shape.beat_bytes)),
            "fits": In(1), "size": Out(size), "take": Out(1), "drop": Out(1),
            "coded_offset": In(range(bits)), "coded_fits": In(1),
            "coded_size": Out(range(bits + 1)), "coded_take": Out(1), "coded_drop": Out(1),
            "step": Out(step_layout(shape))})

    def elaborate(self, platform):
        self.m = m = Module()
        self.issue, self.kind = Signal(), Signal(Kind)
        self.tile_codes = Signal()  # codes are being taken
        self.last_tile, self.end_of_strip = Signal(), Signal()
        self.scales_left, self.zeros_left = Signal(9), Signal(9)
        self.groups, self.group_log2 = Signal(GROUPS_BITS), Signal(4)
        self.strips, self.tiles = Signal(STRIPS_BITS), Signal(GROUPS_BITS)
        self.segment = Signal(range(SEGMENT_TILES + 1))  # tiles of this segment
        self._headers()
        self._count_positions()
        self._tiles()
        self._plan()
        self._sections()
        self._describe()
        return m

    def _headers(self):
        """Keep the headers of a segment, and count its scales and zero points."""
        m, per_beat = self.m, self.shape.beat_bytes // layout.HEADER_BYTES
        self.headers = Signal(HEADER_BITS * SEGMENT_TILES, reset_less=True)
        self.headed = Signal(range(SEGMENT_TILES + per_beat + 1))  # tiles whose headers are there
        self.read_head = Signal()
        self.sparse = Signal()  # a tile of the segment is
        self.counted = Signal(3)  # a beat of headers at each stage of counting
        words = [self.head[32 * i:32 * i + HEADER_BITS] for i in range(per_beat)]
        left = Signal(range(SEGMENT_TILES + 1))
        m.d.comb += left.eq(self.segment - self.headed)
        counts, zeros, sparse = [], [], []
        for i, word in enumerate(words):
            here = Signal(HEADER_BITS, reset_less=True)
            count, zero = Signal(5, reset_less=True), Signal(5, reset_less=True)
            m.d.sync += [here.eq(Mux(i < left, word, 0)), count.eq(ones(here[:TILE_ROWS])),
                         zero.eq(Mux(here[-1], ones(here[:TILE_ROWS]), 0))]
            counts.append(count)
            zeros.append(zero)
            sparse.append(here[TILE_ROWS:TILE_ROWS + 4].any())
        self.scales_here, self.zeros_here = Signal(9), Signal(9)
        m.d.comb += [self.scales_here.eq(Mux(self.counted[1], sum(counts), 0)),
                     self.zeros_here.eq(Mux(self.counted[1], sum(zeros), 0))]
        m.d.sync += self.counted.eq(Cat(self.read_head, self.counted))
        with m.If(self.counted[0] & Cat(sparse).any()):
            m.d.sync += self.sparse.eq(1)
        with m.If(self.read_head):
            m.d.sync += self.headed.eq(self.headed + per_beat)
            for first in range(0, SEGMENT_TILES, per_beat):
                with m.If(self.headed == first):
                    target = self.headers[first * HEADER_BITS:(first + per_beat) * HEADER_BITS]
                    m.d.sync += target.eq(Cat(words))
        self.head_bytes = Signal(range(self.shape.beat_bytes + 1))
        m.d.comb += self.head_bytes.eq(Mux(left > per_beat, per_beat, left) << 2)

    def _count_positions(self):
        """Count the bytes of the segment's position codes, a tile a clock."""
        m = self.m
        self.weighed = Signal(range(SEGMENT_TILES + 1))  # tiles that are looked at
        self.positions_left = Signal(range(layout.positions_bytes(
            SEGMENT_TILES * TILE_ROWS, max(numerics.GROUPS), 8) + 1))
        self.positions_more, self.positions_known = Signal(10), Signal()
        header = Signal(HEADER_BITS, reset_less=True)
        count, kept = Signal(5, reset_less=True), Signal(2, reset_less=True)
        bits, here = Signal(8, reset_less=True), Signal(10)  # of a row's windows, of the tile
        valid, look = Signal(3), Signal()
        by_kept = Array([Const(0, 1), *(_times(count, layout.KEPT_PATTERNS[4 * quarters])
                                        for quarters in (1, 2, 3))])
        m.d.comb += [
            look.eq((self.weighed < self.headed) & (self.weighed != self.segment)),
            here.eq(((bits << (self.group_log2 - 4)[:3]) + 7) >> 3),
            self.positions_known.eq((self.weighed == self.segment) & ~valid.any()),
        ]
        m.d.sync += [
            valid.eq(Cat(look, valid)), self.weighed.eq(self.weighed + look),
            header.eq(self.headers.word_select(self.weighed[:4], HEADER_BITS)),
            count.eq(ones(header[:TILE_ROWS])), kept.eq(header[TILE_ROWS + 2:TILE_ROWS + 4]),
            bits.eq(by_kept[kept]),
        ]
        m.d.comb += self.positions_more.eq(Mux(valid[2], here, 0))

    def _tiles(self):
        """Look up the tiles of a segment, three ahead of the current one."""
        m = self.m
        table, entries = _format_table(self.shape)
        m.submodules.formats = rom = memory.Memory(
            shape=table, depth=len(entries), init=entries, attrs={"rom_style": "block"})
        port = rom.read_port()
        layout_ = _tile_layout(self.shape, table)
        self.looked = Signal(range(SEGMENT_TILES + 1))  # tiles of the segment looked up
        self.next, self.tile = (Signal(layout_, name=name, reset_less=True)
                                for name in ("next_tile", "tile"))
        self.has_next, self.has_tile = Signal(), Signal()
        self.load = Signal()  # the next tile becomes the current one
        read, found = (Signal(HEADER_BITS, name=name, reset_less=True)
                       for name in ("read_header", "found_header"))
        has_read, has_found = Signal(), Signal()
        count = Signal(5, reset_less=True)
        look, find, plan = Signal(), Signal(), Signal()
        m.d.comb += [
            plan.eq(has_found & ~self.has_next),  # `load` is known too late in a clock
            find.eq(has_read & (~has_found | plan)),
            look.eq((self.looked < self.headed) & (self.looked != self.segment)
                    & (~has_read | find)),
            port.en.eq(find),
            port.addr.eq(Cat(read[TILE_ROWS + 4:TILE_ROWS + 6],
                             read[TILE_ROWS + 2:TILE_ROWS + 4], (self.group_log2 - 4)[:3])),
        ]
        m.d.sync += [has_read.eq(look | (has_read & ~find)),
                     has_found.eq(find | (has_found & ~plan)),
                     self.has_next.eq(plan | (self.has_next & ~self.load)),
                     self.looked.eq(self.looked + look)]
        with m.If(look):
            m.d.sync += read.eq(self.headers.word_select(self.looked[:4], HEADER_BITS))
        with m.If(find):
            m.d.sync += [found.eq(read), count.eq(ones(read[:TILE_ROWS]))]
        with m.If(plan):
            m.d.sync += self.next.eq(self._planned(found, count, port.data))
        with m.If(self.load):
            m.d.sync += self.tile.eq(self.next)

    def _planned(self, header, count, constants):
        """Return a tile's layout from its header, its rows and the constants of its format."""
        m, planned = self.m, Signal.like(self.next, name="planned")
        names = range(1, self.shape.rows + 1)
        rest = Signal(3)  # rows of a bundle that is not full
        full, single = Signal(5), Signal()
        m.d.comb += [
            rest.eq(count & ((1 << constants.rows_log2) - 1)),
            full.eq(count >> constants.rows_log2), single.eq(planned.left == 1),
            planned.present.eq(header[:TILE_ROWS]),
            planned.kept.eq(header[TILE_ROWS + 2:TILE_ROWS + 4]),
            planned.width.eq(header[TILE_ROWS + 4:TILE_ROWS + 6]),
            planned.zero_points.eq(header[-1]),
            planned.left.eq(full + ((rest != 0) | (count == 0))),
            planned.pad.eq(0 - count * constants.phase),
            planned.final_count.eq(Mux((rest == 0) & (count != 0), 1 << constants.rows_log2,
                                       rest)),
            planned.first_count.eq(Mux(single, planned.final_count, 1 << constants.rows_log2)),
        ]
        m.d.comb += [planned[name].eq(constants[name])
                     for name in ("regions_log2", "last_chunk", "step", "used")]
        for mine, theirs in (("", "codes"), ("_coded", "coded")):
            by_rows = [Const(0, 1), *(constants[f"{theirs}_{n}"] for n in names)]
            whole, final, first = (planned[f"{name}{mine}" if mine else name]
                                   for name in ("whole", "final", "first"))
            pad = planned.pad if mine else 0
            m.d.comb += [whole.eq(by_rows[self.shape.rows]),
                         final.eq(choose(planned.final_count, by_rows)),
                         first.eq(Mux(single, final + Mux(constants.last_chunk == 0, pad, 0),
                                      whole))]
        return planned

    def _plan(self):
        """Decide what the next step takes of a bundle's codes, a clock ahead."""
        m, shape, tile, ahead = self.m, self.shape, self.tile, self.next
        self.left = Signal.like(tile.left)  # bundles or rows, with this one
        self.done, self.count = Signal(5), Signal(3)  # rows through, and of this bundle
        self.chunk, self.sub = Signal(CHUNK_BITS), Signal(SUB_BITS)
        self.size_of_codes, after = (Signal(range(shape.slots + 1), name=name)
                                     for name in ("size_of_codes", "after"))
        self.last_sub, self.no_codes = Signal(), Signal()
        self.coded, self.no_coded = Signal.like(tile.first_coded), Signal()
        self.row_done, self.last_step = Signal(), Signal()
        self.bundle_done, self.finished = Signal(), Signal()
        single, final_next = Signal(), Signal()
        m.d.comb += [
            single.eq(self.left == 1), self.row_done.eq(self.chunk == tile.last_chunk),
            final_next.eq(self.row_done & (self.left == 2)),
            self.last_step.eq(single & (self.row_done | (self.count == 0))),
            self.finished.eq(self.bundle_done & self.last_step),
            self.load.eq(self.has_next & (~self.has_tile | self.finished)),
        ]
        m.d.sync += self.has_tile.eq(self.load | (self.has_tile & ~self.finished))

        def take(codes, step):
            last = codes <= step
            m.d.sync += [self.size_of_codes.eq(Mux(last, codes, step)), after.eq(codes - step),
                         self.last_sub.eq(last), self.no_codes.eq(codes == 0)]

        with m.If(self.issue & self.tile_codes):
            take(after, tile.step)
            m.d.sync += self.sub.eq(self.sub + 1)
        with m.If(self.bundle_done):
            take(Mux(final_next, tile.final, tile.whole), tile.step)
            last = Mux(self.row_done, final_next & (tile.last_chunk == 0),
                       single & (self.chunk + 1 == tile.last_chunk))
            coded = Mux(final_next, tile.final_coded, tile.whole_coded)
            m.d.sync += [self.sub.eq(0), self.coded.eq(coded + Mux(last, tile.pad, 0)),
                         self.no_coded.eq(coded == 0), self.chunk.eq(self.chunk + 1)]
            with m.If(self.row_done):
                m.d.sync += [self.chunk.eq(0), self.left.eq(self.left - 1),
                             self.done.eq(self.done + self.count)]
            with m.If(final_next):
                m.d.sync += self.count.eq(tile.final_count)
        with m.If(self.load):
            take(ahead.first, ahead.step)
            m.d.sync += [self.left.eq(ahead.left), self.count.eq(ahead.first_count),
                         self.done.eq(0), self.chunk.eq(0), self.sub.eq(0),
                         self.coded.eq(ahead.first_coded),
                         self.no_coded.eq(ahead.first_coded == 0)]

    def _sections(self):
        """Go through a segment's sections."""
        m, shape, tile = self.m, self.shape, self.tile
        beat = shape.beat_bytes
        self.word = Signal(8)
        tiles_here = Signal(range(SEGMENT_TILES + 1))  # tiles of the segment that are begun
        self.scale, self.zero = Signal(9), Signal(9)  # of the segment, through
        there, nothing = Signal(), Signal()  # a step may be, and takes nothing
        # What a section's next step takes is known a clock ahead.
        size, known, last, empty = Signal.like(self.size), Signal(), Signal(), Signal()
        m.d.comb += [self.last_tile.eq(tiles_here == self.segment),
                     self.end_of_strip.eq(self.tiles <= SEGMENT_TILES)]

        def segment_of(tiles):
            """Of so many tiles left in the strip, up to sixteen are the next segment."""
            m.d.sync += [self.tiles.eq(tiles), self.segment.eq(
                Mux(tiles > SEGMENT_TILES, SEGMENT_TILES, tiles))]

        def items(amount, each):
            """Next is a step of scales or zero points, ``each`` bytes of one."""
            most = beat // each
            m.d.sync += [known.eq(1), last.eq(amount <= most), empty.eq(amount == 0),
                         size.eq(Mux(amount > most, most, amount) << (each - 1))]

        def positions(left):
            m.d.sync += [self.positions_left.eq(left), size.eq(Mux(left >= beat, beat, left)),
                         known.eq((left >= beat) | (self.positions_known & (left != 0)))]

        def section(state, kind, amount, each, after):
            """Take a section of what is counted in ``amount``, ``each`` bytes of one."""
            with m.State(state):
                m.d.comb += [self.kind.eq(kind), there.eq(known), nothing.eq(empty)]
                with m.If(self.issue):
                    m.d.sync += [amount.eq(amount - (size >> (each - 1))),
                                 self.word.eq(self.word + 1)]
                    items(amount - beat // each, each)
                    with m.If(last):
                        m.d.sync += self.word.eq(0)
                        after()

        def after_zeros():
            m.next = "CODES"
            with m.If(self.sparse):
                positions(total)
                m.next = "POSITIONS"

        def after_scales():
            after_zeros()
            with m.If(self.zeros_left != 0):
                items(self.zeros_left, 1)
                m.next = "ZEROS"

        total = Signal.like(self.positions_left)
        m.d.comb += total.eq(self.positions_left + self.positions_more)
        m.d.sync += self.positions_left.eq(total)
        with m.FSM() as phase:
            with m.State("IDLE"):
                start = self.start.payload
                m.d.comb += self.start.ready.eq(1)
                m.d.sync += [self.groups.eq(start.groups), self.group_log2.eq(start.group_log2),
                             self.strips.eq(start.strips)]
                segment_of(start.groups)
                with m.If(self.start.valid):
                    m.next = "HEADERS"
            with m.State("HEADERS"):  # at the start of a beat, as are the position codes
                aligned = self.offset == 0
                m.d.comb += [self.drop.eq(~aligned), self.coded_drop.eq(self.coded_offset != 0),
                             self.read_head.eq(self.ready & aligned)]
                with m.If(self.read_head & (self.headed + beat // 4 >= self.segment)):
                    m.next = "COUNT"
            with m.State("COUNT"), m.If(~self.counted[0]):
                items(self.scales_left + self.scales_here, 2)
                m.next = "SCALES"
            section("SCALES", Kind.SCALES, self.scales_left, 2, after_scales)
            section("ZEROS", Kind.ZERO_POINTS, self.zeros_left, 1, after_zeros)
            with m.State("POSITIONS"):
                m.d.comb += [self.kind.eq(Kind.POSITIONS), there.eq(known)]
                positions(total)
                with m.If(self.issue):
                    positions(total - size)
                with m.If(self.positions_known & (self.positions_left
                                                  == Mux(self.issue, size, 0))):
                    m.next = "CODES"
            with m.State("CODES"):
                m.d.comb += [self.kind.eq(Kind.CODES), self.tile_codes.eq(1),
                             nothing.eq(self.no_codes),
                             there.eq(self.has_tile & (~self.last_sub | self.no_coded
                                                    | self.coded_fits))]
                with m.If(self.finished & self.last_tile):
                    m.d.sync += [self.headed.eq(0), self.looked.eq(0), self.weighed.eq(0),
                                 self.sparse.eq(0)]
                    m.next = "HEADERS"
                    segment_of(self.tiles - self.segment)
                    with m.If(self.end_of_strip):
                        m.d.sync += self.strips.eq(self.strips - 1)
                        segment_of(self.groups)
                        with m.If(self.strips == 1):
                            m.next = "IDLE"
        with m.If(~phase.ongoing("SCALES") & ~phase.ongoing("ZEROS")):
            m.d.sync += [self.scales_left.eq(self.scales_left + self.scales_here),
                         self.zeros_left.eq(self.zeros_left + self.zeros_here)]
        m.d.comb += [
            # Not in the states, so that it is a choice of three, at the start of a long way.
            self.size.eq(Mux(phase.ongoing("CODES"), self.size_of_codes,
                             Mux(phase.ongoing("HEADERS"), self.head_bytes, size))),
            self.issue.eq(self.enable & there & (nothing | self.fits)),
            self.take.eq(self.issue | self.read_head),
            self.bundle_done.eq(self.issue & self.tile_codes & self.last_sub),
            self.coded_size.eq(self.coded), self.coded_take.eq(self.bundle_done),
        ]
        with m.If(self.load):
            m.d.sync += tiles_here.eq(tiles_here + 1)
        with m.If(self.bundle_done & self.row_done):
            m.d.sync += self.scale.eq(self.scale + self.count)
            with m.If(tile.zero_points):
                m.d.sync += self.zero.eq(self.zero + self.count)
        with m.If(self.finished & self.last_tile):
            m.d.sync += [tiles_here.eq(0), self.scale.eq(0), self.zero.eq(0)]

    def _describe(self):
        """Put what is issued into the step's register."""
        m, step, tile = self.m, self.step, self.tile
        codes = self.tile_codes
        most = self.shape.windows.bit_length() - 1
        with m.If(self.enable):
            m.d.sync += [
                step.valid.eq(self.issue), step.kind.eq(self.kind),
                step.offset.eq(self.offset), step.coded_offset.eq(self.coded_offset),
                step.width.eq(tile.width), step.kept.eq(tile.kept),
                step.zero_points.eq(tile.zero_points),
                step.windows_log2.eq(Mux(self.group_log2 - 4 < most, self.group_log2 - 4, most)),
                step.regions_log2.eq(tile.regions_log2), step.used.eq(tile.used),
                step.count.eq(self.count), step.done.eq(self.done),
                step.present.eq(tile.present),
                step.sub.eq(self.sub), step.last_sub.eq(self.last_sub),
                step.chunk.eq(self.chunk), step.last_chunk.eq(self.row_done | (self.count == 0)),
                step.last_of_tile.eq(self.last_step),
                step.end_of_strip.eq(self.last_step & self.last_tile & self.end_of_strip),
                step.item.eq(Mux(codes, self.scale, self.word)), step.zero_item.eq(self.zero),
            ]
