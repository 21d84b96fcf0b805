"""Cut a weight stream into the steps that the unpacker makes, one a clock."""


from itertools import product

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, enum, memory, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2, exact_log2

from alula.hw import layout
from alula.hw.choice import choose, ones
from alula.hw.isa import SEGMENT_TILES, TILE_ROWS
from alula.hw.lane.shape import (
    CHUNK_BITS,
    GROUPS_BITS,
    GROUPS_LOG2,
    KEPT,
    STRIPS_BITS,
    TileFormat,
    format_keys,
)

HEADER_BITS = sum(layout.HEADER_FIELDS.values())
START = data.StructLayout({"groups": GROUPS_BITS, "group_log2": 4, "strips": STRIPS_BITS})
# Rows of a full bundle and of a tile's last, its bundles, and whether that is the only one.
_COUNTS = data.StructLayout({"rows": 3, "final": 3, "left": range(TILE_ROWS + 1), "single": 1})
SUB_BITS = 2  # of the number of a step among those of its bundle


class Kind(enum.Enum, shape=2):
    """What a step takes from the stream."""

    SCALES = 0
    ZERO_POINTS = 1
    POSITIONS = 2
    CODES = 3


def codes_layout(shape):
    """Return the layout of how a bundle's codes, or some of them, are to be read.

    ``count`` rows of a tile's ``present`` rows are in a bundle, after ``done`` ones; a row, or its
    chunk, has ``2**windows_log2`` windows. ``sub`` numbers the steps of a bundle, which is there
    with the ``last_sub``. ``scale`` and ``zero_point`` number those of its rows in the segment, of
    which ``odd`` is the number's last bit.
    """
    return data.StructLayout({
        "width": 2, "kept": 2, "zero_points": 1, "windows_log2": 3,
        "regions_log2": shape.regions_bits, "count": 3, "done": 4, "present": TILE_ROWS,
        "used": shape.half_windows, "sub": SUB_BITS, "last_sub": 1, "chunk": CHUNK_BITS,
        "last_chunk": 1, "last_of_tile": 1, "end_of_segment": 1, "end_of_strip": 1,
        "odd": 1, "scale": 8, "zero_point": 8})


def step_layout(shape):
    """Return the layout of a step.

    ``offset`` and ``coded_offset`` are where what it takes begins: units in the stream's front,
    bytes in the position codes'. ``word`` numbers the words of a section; ``codes`` are of steps
    that take codes, but for ``odd``.
    """
    return data.StructLayout({
        "valid": 1, "kind": Kind, "offset": range(layout.UNITS),
        "coded_offset": range(shape.beat_bytes), "word": 8, "codes": codes_layout(shape)})


def _format_table(shape):
    """Return the layout and entries of the format constants, by group, kept quarters, width."""
    entries = []
    for key in format_keys():
        tile = TileFormat(shape, *key)
        entry = dict(regions_log2=tile.regions_log2,
                     last_chunk=tile.chunks - 1, step=tile.step_units, used=tile.used)
        for name, by_count in (("codes", tile.codes_units), ("coded", tile.position_bytes)):
            for rows in range(1, shape.rows + 1):
                entry[f"{name}_{rows}"] = by_count[min(rows, tile.rows)]
        entries.append(entry)
    fields = {name: max(1, max(entry[name] for entry in entries).bit_length())
              for name in entries[0]}
    return data.StructLayout(fields), entries


def _tile_layout(shape, table):
    """Return the layout of a tile as its steps need it.

    It has ``left`` bundles, or rows of chunks: of ``whole`` units of codes and ``whole_coded``
    bytes of position codes, the ``final`` one perhaps of fewer. The ``first`` may be the final one.
    """
    codes, coded = table[f"codes_{shape.rows}"].shape, table[f"coded_{shape.rows}"].shape
    return data.StructLayout({
        "present": TILE_ROWS, "kept": 2, "width": 2, "zero_points": 1,
        **{name: table[name].shape for name in ("regions_log2", "last_chunk", "step", "used")},
        "left": range(TILE_ROWS + 1),
        "whole": codes, "final": codes, "first": codes,
        "whole_coded": coded, "final_coded": coded, "first_coded": coded,
        "final_count": 3, "first_count": 3})


class Steps(wiring.Component):
    """Follow a stream's structure: which bytes are taken when, and what they are.

    Members
    -------
    start : ``In(stream of START)``
        A stream to come, of at least one strip; taken when the one before is through.
    enable : ``In(1)``
        The pipeline behind takes a step in this clock.
    through : ``In(1)``
        All codes of a segment are read; scales and zero points are kept of two segments.
    head : ``In(8 * beat_bytes)``, ready : ``In(1)``, offset : ``In``, fits : ``In(1)``
    size, rest : ``Out``, take, drop : ``Out(1)``; the first two are registers.
        The stream's :class:`alula.hw.lane.gear.Gear`, in units; ``head`` is its first word.
    coded_offset, coded_fits : ``In``; coded_size, coded_rest, coded_take, coded_drop : ``Out``
    coded_after, coded_first, coded_begins : ``Out``
        That of the position codes, in bytes.
    step : ``Out(step_layout)``
        A register; it changes when ``enable``.
    """

    def __init__(self, arch, shape):
        self.arch, self.shape = arch, shape
        size, coded = range(layout.UNITS + 1), shape.beat_bytes
        super().__init__({
            "start": In(stream.Signature(START)), "enable": In(1), "through": In(1),
            "head": In(8 * shape.beat_bytes), "ready": In(1), "offset": In(range(layout.UNITS)),
            "fits": In(1), "size": Out(size), "rest": Out(size), "take": Out(1), "drop": Out(1),
            "coded_offset": In(range(coded)), "coded_fits": In(1),
            "coded_size": Out(range(coded + 1)), "coded_rest": Out(range(coded + 1)),
            "coded_take": Out(1), "coded_drop": Out(1),
            "coded_after": Out(range(coded + 1)), "coded_first": Out(range(coded + 1)),
            "coded_begins": Out(1),
            "step": Out(step_layout(shape))})

    def elaborate(self, platform):
        self.m = m = Module()
        self.issue, self.kind = Signal(), Signal(Kind)
        self.tile_codes = Signal()  # codes are being taken
        self.last_tile, self.end_of_strip = Signal(), Signal()
        self.scales_left, self.zeros_left = (Signal(layout.TOTAL_BITS, name=name)
                                             for name in ("scales_left", "zeros_left"))
        self.positions_left = Signal(2 * layout.TOTAL_BITS)
        self.groups, self.group_log2 = Signal(GROUPS_BITS), Signal(4)
        self.strips, self.tiles = Signal(STRIPS_BITS), Signal(GROUPS_BITS)
        self.segment = Signal(range(SEGMENT_TILES + 1))  # tiles of this segment
        self._headers()
        self._tiles()
        self._plan()
        self._sections()
        self._describe()
        return m

    def _headers(self):
        """Keep the headers of a segment, and its totals."""
        m, per_beat = self.m, self.shape.beat_bytes // layout.HEADER_BYTES
        self.headers = Signal(HEADER_BITS * SEGMENT_TILES, reset_less=True)
        self.headed = Signal(range(SEGMENT_TILES + per_beat + 1))  # tiles whose headers are there
        self.read_head = Signal()
        self.head_words = Signal(range(SEGMENT_TILES + 1))  # of headers that are to come
        words = [self.head[32 * i:32 * i + HEADER_BITS] for i in range(per_beat)]
        scales, zeros, *positions = (self.head[32 * i + HEADER_BITS:32 * (i + 1)]
                                     for i in range(layout.TOTALS))
        with m.If(self.read_head):
            m.d.sync += self.headed.eq(self.headed + per_beat)
            self._begin_headers(self.head_words - per_beat)
            for first in range(0, SEGMENT_TILES, per_beat):
                with m.If(self.headed == first):
                    target = self.headers[first * HEADER_BITS:(first + per_beat) * HEADER_BITS]
                    m.d.sync += target.eq(Cat(words))
        with m.If(self.read_head & (self.headed == 0)):
            m.d.sync += [self.scales_left.eq(scales), self.zeros_left.eq(zeros),
                         self.positions_left.eq(Cat(positions))]

    def _begin_headers(self, words):
        """Next is a beat with some headers, or all of it."""
        per_beat = self.shape.beat_bytes // layout.HEADER_BYTES
        self.m.d.sync += self.head_words.eq(words)
        self._next_size(Mux(words > per_beat, layout.UNITS, self._units(
            words[:ceil_log2(per_beat + 1)], layout.HEADER_BYTES)))

    def _next_size(self, size, rest=None):
        rest = layout.UNITS - size if rest is None else rest
        self.m.d.sync += [self.size.eq(size), self.rest.eq(rest)]

    def _units(self, count, each):
        """Return the units that so many of ``each`` bytes take."""
        unit = layout.unit_bytes(self.arch)
        return count * (each // unit) if each > unit else count + (unit // each - 1) >> ceil_log2(
            unit // each)

    def _whole_units(self, count, each):
        """Return the units that so many of ``each`` bytes fill."""
        unit = layout.unit_bytes(self.arch)
        return count * (each // unit) if each > unit else count >> ceil_log2(unit // each)

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
        counts = Signal(_COUNTS, reset_less=True)
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
            m.d.sync += found.eq(read)
            self._count(counts, read)
        with m.If(plan):
            m.d.sync += self.next.eq(self._planned(found, counts, port.data))
        with m.If(self.load):
            m.d.sync += self.tile.eq(self.next)

    def _count(self, counts, header):
        """Keep how a tile's rows make bundles."""
        m = self.m
        count, rows_log2 = Signal(5), Signal(2)
        rows, rest = Signal(3), Signal(3)  # of a bundle, and of one that is not full
        m.d.comb += [
            count.eq(ones(header[:TILE_ROWS])), rows_log2.eq(self._rows_log2(header)),
            rows.eq(1 << rows_log2), rest.eq(count & (rows - 1)[:3])]
        m.d.sync += [
            counts.rows.eq(rows), counts.single.eq(count <= rows),
            counts.left.eq((count >> rows_log2) + ((rest != 0) | (count == 0))),
            counts.final.eq(Mux((rest == 0) & (count != 0), rows, rest))]

    def _planned(self, header, counts, constants):
        """Return a tile's layout from its header, its bundles and the constants of its format."""
        m, planned = self.m, Signal.like(self.next, name="planned")
        names = range(1, self.shape.rows + 1)
        single = counts.single
        m.d.comb += [
            planned.present.eq(header[:TILE_ROWS]),
            planned.kept.eq(header[TILE_ROWS + 2:TILE_ROWS + 4]),
            planned.width.eq(header[TILE_ROWS + 4:TILE_ROWS + 6]),
            planned.zero_points.eq(header[-1]),
            planned.left.eq(counts.left), planned.final_count.eq(counts.final),
            planned.first_count.eq(Mux(single, counts.final, counts.rows)),
        ]
        m.d.comb += [planned[name].eq(constants[name])
                     for name in ("regions_log2", "last_chunk", "step", "used")]
        for mine, theirs in (("", "codes"), ("_coded", "coded")):
            by_rows = [Const(0, 1), *(constants[f"{theirs}_{n}"] for n in names)]
            whole, final, first = (planned[f"{name}{mine}" if mine else name]
                                   for name in ("whole", "final", "first"))
            m.d.comb += [whole.eq(by_rows[self.shape.rows]),
                         final.eq(choose(counts.final, by_rows)),
                         first.eq(Mux(single, final, whole))]
        return planned

    def _rows_log2(self, header):
        """Return log2 of the most rows in a bundle of a tile."""
        rows = [layout.bundle_rows(1 << group_log2, kept, self.arch).bit_length() - 1
                for group_log2, kept in product(GROUPS_LOG2, KEPT)]
        kept = header[TILE_ROWS + 2:TILE_ROWS + 4]
        return choose(Cat(kept, (self.group_log2 - GROUPS_LOG2[0])[:3]),
                      [Const(log2, 2) for log2 in rows])

    def _plan(self):
        """Decide what the next step takes of a bundle's codes, a clock ahead."""
        m, tile, ahead = self.m, self.tile, self.next
        self.left = Signal.like(tile.left)  # bundles or rows, with this one
        self.done, self.count = Signal(5), Signal(3)  # rows through, and of this bundle
        self.chunk, self.sub = Signal(CHUNK_BITS), Signal(SUB_BITS)
        self.size_of_codes, after = Signal.like(self.size), Signal.like(tile.whole)
        self.first_size = Signal.like(tile.step)
        self.last_sub, self.no_codes = Signal(), Signal()
        self.no_coded = Signal()
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
            size = Mux(last, codes, step)
            m.d.sync += [self.size_of_codes.eq(size), after.eq(codes - step),
                         self.last_sub.eq(last), self.no_codes.eq(codes == 0)]
            with m.If(self.tile_codes):
                self._next_size(size)

        coded = Signal.like(tile.whole_coded)  # of the next bundle, if this tile has one
        m.d.comb += [coded.eq(Mux(final_next, tile.final_coded, tile.whole_coded)),
                     self.coded_after.eq(self.shape.beat_bytes - coded),
                     self.coded_first.eq(self.shape.beat_bytes - ahead.first_coded),
                     self.coded_begins.eq(self.load)]

        def take_coded(coded, rest):
            m.d.sync += [self.coded_size.eq(coded), self.no_coded.eq(coded == 0),
                         self.coded_rest.eq(rest)]

        with m.If(self.issue & self.tile_codes):
            take(after, tile.step)
            m.d.sync += self.sub.eq(self.sub + 1)
        with m.If(self.bundle_done):
            take(Mux(final_next, tile.final, tile.whole), tile.step)
            take_coded(coded, self.coded_after)
            m.d.sync += [self.sub.eq(0), self.chunk.eq(self.chunk + 1)]
            with m.If(self.row_done):
                m.d.sync += [self.chunk.eq(0), self.left.eq(self.left - 1),
                             self.done.eq(self.done + self.count)]
            with m.If(final_next):
                m.d.sync += self.count.eq(tile.final_count)
        m.d.comb += self.first_size.eq(Mux(ahead.first <= ahead.step, ahead.first, ahead.step))
        with m.If(self.load):
            take(ahead.first, ahead.step)
            take_coded(ahead.first_coded, self.coded_first)
            m.d.sync += [self.left.eq(ahead.left), self.count.eq(ahead.first_count),
                         self.done.eq(0), self.chunk.eq(0), self.sub.eq(0)]

    def _sections(self):
        """Go through a segment's sections."""
        m, shape, tile = self.m, self.shape, self.tile
        beat = shape.beat_bytes
        self.word = Signal(8)
        tiles_here = Signal(range(SEGMENT_TILES + 1))  # tiles of the segment that are begun
        self.scale, self.zero = Signal(9), Signal(9)  # of the segment, through
        there, nothing = Signal(), Signal()  # a step may be, and takes nothing
        last, empty = Signal(), Signal()  # of a section's next step
        has_zeros, has_positions = Signal(), Signal()
        self.odd, self.end_of_segment = Signal(), Signal()
        begun = Signal(2)  # segments whose codes are cut out and not read, at most two
        m.d.comb += self.end_of_segment.eq(self.finished & self.last_tile)
        m.d.sync += [begun.eq(begun + self.end_of_segment - self.through),
                     self.odd.eq(self.odd ^ self.end_of_segment)]
        m.d.comb += [self.last_tile.eq(tiles_here == self.segment),
                     self.end_of_strip.eq(self.tiles <= SEGMENT_TILES)]

        begin_segment = self._segments()

        def items(amount, each, taken=0):
            """Next is a step of a section: ``amount`` are left, less ``taken`` beats of them.

            One has ``each`` bytes.
            """
            most = beat // each
            bits = exact_log2(most)
            more = amount > most * (taken + 1)
            m.d.sync += [last.eq(~more), empty.eq(amount == most * taken)]
            here = Cat(amount[:bits], amount[bits] ^ taken)  # less than a beat, or a whole one
            rest = (most - here)[:bits + 1]
            self._next_size(Mux(more, layout.UNITS, self._units(here, each)), Mux(
                more, 0, self._whole_units(rest, each)))

        def section(state, kind, amount, each, after):
            """Take a section of what is counted in ``amount``, ``each`` bytes of one."""
            with m.State(state):
                m.d.comb += [self.kind.eq(kind), there.eq(1), nothing.eq(empty)]
                with m.If(self.issue):
                    m.d.sync += [amount.eq(amount - beat // each), self.word.eq(self.word + 1)]
                    items(amount, each, taken=1)
                    with m.If(last):
                        m.d.sync += self.word.eq(0)
                        after()

        def after_positions():
            comes = self.has_next & ~self.has_tile  # `load`, where no tile can end
            self._next_size(Mux(comes, self.first_size, self.size_of_codes))
            m.next = "CODES"

        def after_zeros():
            after_positions()
            with m.If(has_positions):
                items(self.positions_left, 1)
                m.next = "POSITIONS"

        def after_scales():
            after_zeros()
            with m.If(has_zeros):
                items(self.zeros_left, 1)
                m.next = "ZEROS"

        with m.FSM():
            with m.State("IDLE"):
                start = self.start.payload
                m.d.comb += self.start.ready.eq(1)
                m.d.sync += [self.groups.eq(start.groups), self.group_log2.eq(start.group_log2),
                             self.strips.eq(start.strips), self.tiles.eq(0)]
                with m.If(self.start.valid):
                    m.next = "COUNT"
            with m.State("COUNT"):
                m.next = "CUT"
            with m.State("CUT"):
                m.next = "BEGIN"
            with m.State("BEGIN"):
                begin_segment()
                m.next = "HEADERS"
            with m.State("HEADERS"):  # at the start of a beat, as are the position codes
                aligned = self.offset == 0
                m.d.comb += [self.drop.eq(~aligned), self.coded_drop.eq(self.coded_offset != 0),
                             self.read_head.eq(self.ready & aligned & ~begun[1])]
                with m.If(self.read_head & (self.head_words <= beat // layout.HEADER_BYTES)):
                    m.next = "TOTALS"
            with m.State("TOTALS"):
                m.d.sync += [has_zeros.eq(self.zeros_left != 0),
                             has_positions.eq(self.positions_left != 0)]
                items(self.scales_left, 2)
                m.next = "SCALES"
            section("SCALES", Kind.SCALES, self.scales_left, 2, after_scales)
            section("ZEROS", Kind.ZERO_POINTS, self.zeros_left, 1, after_zeros)
            section("POSITIONS", Kind.POSITIONS, self.positions_left, 1, after_positions)
            with m.State("CODES"):
                m.d.comb += [self.kind.eq(Kind.CODES), self.tile_codes.eq(1),
                             nothing.eq(self.no_codes),
                             there.eq(self.has_tile & (~self.last_sub | self.no_coded
                                                    | self.coded_fits))]
                with m.If(self.end_of_segment):
                    m.d.sync += [self.headed.eq(0), self.looked.eq(0)]
                    m.next = "HEADERS"
                    begin_segment()
                    with m.If(self.end_of_strip):
                        m.d.sync += self.strips.eq(self.strips - 1)
                        with m.If(self.strips == 1):
                            m.next = "IDLE"
        m.d.comb += [
            self.issue.eq(self.enable & there & (nothing | self.fits)),
            self.take.eq(self.issue | self.read_head),
            self.bundle_done.eq(self.issue & self.tile_codes & self.last_sub),
            self.coded_take.eq(self.bundle_done),
        ]
        with m.If(self.load):
            m.d.sync += tiles_here.eq(tiles_here + 1)
        with m.If(self.bundle_done & self.row_done):
            m.d.sync += self.scale.eq(self.scale + self.count)
            with m.If(tile.zero_points):
                m.d.sync += self.zero.eq(self.zero + self.count)
        with m.If(self.end_of_segment):
            m.d.sync += [tiles_here.eq(0), self.scale.eq(0), self.zero.eq(0)]

    def _segments(self):
        """Cut a strip's tiles into segments; return what begins the next one.

        What that is is known two clocks after a segment begins: of the first of a strip, too.
        """
        m = self.m
        left = Signal.like(self.tiles)  # in the strip with the next segment
        tiles, count, words = Signal.like(left), Signal.like(self.segment), Signal.like(
            self.head_words)
        many = left > SEGMENT_TILES
        m.d.sync += [
            left.eq(Mux(self.end_of_strip, self.groups, self.tiles - self.segment)),
            tiles.eq(left), count.eq(Mux(many, SEGMENT_TILES, left)),
            words.eq(Mux(many, SEGMENT_TILES, Mux(left < layout.TOTALS, layout.TOTALS, left)))]

        def begin():
            m.d.sync += [self.tiles.eq(tiles), self.segment.eq(count)]
            self._begin_headers(words)
        return begin

    def _describe(self):
        """Put what is issued into the step's register."""
        m, step, tile = self.m, self.step, self.tile
        codes = step.codes
        most = self.shape.windows.bit_length() - 1
        with m.If(self.enable):
            m.d.sync += [
                step.valid.eq(self.issue), step.kind.eq(self.kind), step.word.eq(self.word),
                step.offset.eq(self.offset), step.coded_offset.eq(self.coded_offset),
                codes.width.eq(tile.width), codes.kept.eq(tile.kept),
                codes.zero_points.eq(tile.zero_points),
                codes.windows_log2.eq(Mux(self.group_log2 - 4 < most, self.group_log2 - 4, most)),
                codes.regions_log2.eq(tile.regions_log2), codes.used.eq(tile.used),
                codes.count.eq(self.count), codes.done.eq(self.done),
                codes.present.eq(tile.present),
                codes.sub.eq(self.sub), codes.last_sub.eq(self.last_sub),
                codes.chunk.eq(self.chunk), codes.last_chunk.eq(self.row_done | (self.count == 0)),
                codes.last_of_tile.eq(self.last_step),
                codes.end_of_segment.eq(self.last_step & self.last_tile & self.last_sub),
                codes.end_of_strip.eq(self.last_step & self.last_tile & self.end_of_strip),
                codes.odd.eq(self.odd), codes.scale.eq(self.scale), codes.zero_point.eq(self.zero),
            ]
