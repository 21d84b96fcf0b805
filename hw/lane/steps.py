"""Cut a weight stream into the steps that the unpacker makes, one a clock."""

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal
from amaranth.lib import data, enum, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from alula.hw import layout
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


class Kind(enum.Enum, shape=2):
    """What a step takes from the buffer."""

    SCALES = 0
    ZERO_POINTS = 1
    POSITIONS = 2  # of later chunks of a row
    CODES = 3  # with the positions at the row's start


def step_layout(shape):
    """Return the layout of a step.

    ``code_at`` and ``position_at`` are bit addresses in the buffer for each part. ``count`` rows
    of a tile's ``present`` rows are there, after ``done`` ones. ``item`` and ``zero_item`` number
    their scales and zero points in the segment; ``item`` is a word's number if a step writes them.
    """
    address = (8 * shape.buffer_beats * shape.beat_bytes - 1).bit_length()
    return data.StructLayout({
        "valid": 1, "kind": Kind, "code_at": data.ArrayLayout(address, shape.rows),
        "position_at": data.ArrayLayout(address, shape.rows), "width": 2, "kept": 2,
        "zero_points": 1, "rows_log2": 2, "count": 3, "done": 4, "present": TILE_ROWS,
        "used": shape.half_windows, "chunked": 1, "chunk": CHUNK_BITS, "last_chunk": 1,
        "last_of_tile": 1, "end_of_strip": 1, "item": 8, "zero_item": 8})


def _format_table(shape):
    """Return the layout and entries of the format constants, by group, kept quarters, width."""
    entries = []
    for key in format_keys():
        tile = TileFormat(shape, *key)
        entry = dict(rows_log2=tile.rows_log2, last_chunk=tile.chunks - 1,
                     chunked=int(tile.chunks > 1), positions=tile.positions_bytes,
                     last_entry=tile.entries - 1, entry_bits=tile.entry_bits,
                     chunk_bytes=tile.chunk_bytes, chunk_need=tile.chunk_need,
                     last_bytes=tile.last_bytes, used=tile.used)
        mask = 8 * shape.buffer_beats * shape.beat_bytes - 1
        for row in range(shape.rows):
            fits = row < 1 << tile.rows_log2
            entry[f"payload_{row + 1}"] = (row + 1) * tile.payload if fits else 0
            entry[f"code_bits_{row}"] = tile.code_bits[row] & mask
            entry[f"position_bits_{row}"] = tile.position_bits[row] & mask
        if tile.chunks > 1:
            entry["payload_1"] = 0
        entries.append(entry)
    fields = {name: max(1, max(entry[name] for entry in entries).bit_length())
              for name in entries[0]}
    return data.StructLayout(fields), entries


class _Tile:
    """A tile's constants and header in registers."""

    def __init__(self, constants):
        self.valid = Signal()
        self.header = Signal(HEADER_BITS, reset_less=True)
        self.count = Signal(5, reset_less=True)
        self.constants = constants


def _ones(bits):
    return sum((bit for bit in bits), Const(0, 1))


class Steps(wiring.Component):
    """Follow a stream's structure: which bytes are taken when, and what they are.

    Members
    -------
    start : ``In(stream of START)``
        A stream to come, of at least one strip; taken when the one before is through.
    enable : ``In(1)``
        The pipeline behind takes a step in this clock.
    wrote : ``In(1)``
        A beat is written to the buffer in this clock.
    room : ``Out(1)``
        The buffer has room for a beat.
    write_slot, slot : ``Out``
        The buffer's beats to write next, and at which the stream now is.
    head : ``In(8 * beat_bytes)``
        The beat at ``slot``.
    step : ``Out(step_layout)``
        A register; it changes when ``enable``.
    """

    def __init__(self, arch, shape):
        self.arch, self.shape = arch, shape
        slots = range(shape.buffer_beats)
        super().__init__({
            "start": In(stream.Signature(START)), "enable": In(1), "wrote": In(1), "room": Out(1),
            "write_slot": Out(slots), "slot": Out(slots), "head": In(8 * shape.beat_bytes),
            "step": Out(step_layout(shape))})

    def elaborate(self, platform):
        self.m = m = Module()
        shape = self.shape
        beat_log2 = shape.beat_bytes.bit_length() - 1
        span = 2 * shape.buffer_beats * shape.beat_bytes  # of byte addresses: twice the buffer
        self.at, self.written = Signal(range(span)), Signal(range(2 * shape.buffer_beats))
        self.available = Signal(range(span))
        self.need, self.advance = Signal(range(span)), Signal(range(span))
        self.issue = Signal()
        at_beat = self.at[beat_log2:]
        m.d.comb += [
            self.available.eq(Cat(Const(0, beat_log2), self.written) - self.at),
            self.room.eq((self.written - at_beat)[:len(self.written)] != shape.buffer_beats),
            self.write_slot.eq(self.written), self.slot.eq(at_beat),
        ]
        with m.If(self.wrote):
            m.d.sync += self.written.eq(self.written + 1)
        self.moved = Signal(range(span))
        m.d.comb += self.moved.eq(self.at + self.advance)

        self.groups, self.group_log2 = Signal(GROUPS_BITS), Signal(4)
        self.strips, self.tiles = Signal(STRIPS_BITS), Signal(GROUPS_BITS)
        self.segment = Signal(range(SEGMENT_TILES + 1))  # tiles of this segment
        m.d.comb += self.segment.eq(Mux(self.tiles > SEGMENT_TILES, SEGMENT_TILES, self.tiles))
        self._headers()
        self._tiles()
        self._sections()
        return m

    def _headers(self):
        """Keep the headers of a segment, and count its scales and zero points."""
        m, per_beat = self.m, self.shape.beat_bytes // layout.HEADER_BYTES
        self.headers = Signal(HEADER_BITS * SEGMENT_TILES, reset_less=True)
        self.headed = Signal(range(SEGMENT_TILES + per_beat + 1))  # tiles whose headers are there
        self.read_head = Signal()
        self.scales_left, self.zeros_left = Signal(9), Signal(9)
        self.counted = Signal(3, init=0)  # a beat of headers at each stage of counting
        words = [self.head[32 * i:32 * i + HEADER_BITS] for i in range(per_beat)]
        left = Signal(range(SEGMENT_TILES + 1))
        m.d.comb += left.eq(self.segment - self.headed)
        held, ones, zeros = [], [], []
        for i, word in enumerate(words):
            here = Signal(HEADER_BITS, reset_less=True)
            count, zero = Signal(5, reset_less=True), Signal(5, reset_less=True)
            m.d.sync += [here.eq(Mux(i < left, word, 0)), count.eq(_ones(here[:TILE_ROWS])),
                         zero.eq(Mux(here[-1], _ones(here[:TILE_ROWS]), 0))]
            held.append(here)
            ones.append(count)
            zeros.append(zero)
        self.scales_here, self.zeros_here = Signal(9), Signal(9)
        m.d.comb += [self.scales_here.eq(Mux(self.counted[1], sum(ones), 0)),
                     self.zeros_here.eq(Mux(self.counted[1], sum(zeros), 0))]
        m.d.sync += self.counted.eq(Cat(self.read_head, self.counted))
        with m.If(self.read_head):
            m.d.sync += self.headed.eq(self.headed + per_beat)
            for first in range(0, SEGMENT_TILES, per_beat):
                with m.If(self.headed == first):
                    target = self.headers[first * HEADER_BITS:(first + per_beat) * HEADER_BITS]
                    m.d.sync += target.eq(Cat(words))
        self.head_bytes = Signal(range(self.shape.beat_bytes + 1))
        m.d.comb += self.head_bytes.eq(Mux(left > per_beat, per_beat, left) << 2)

    def _tiles(self):
        """Look up the tiles of a segment, one ahead of the current one."""
        m = self.m
        table, entries = _format_table(self.shape)
        m.submodules.formats = rom = memory.Memory(
            shape=table, depth=len(entries), init=entries)
        port = rom.read_port()
        self.looked = Signal(range(SEGMENT_TILES + 1))  # tiles of the segment looked up
        first = Signal()
        header = Signal(HEADER_BITS, reset_less=True)
        self.next = ahead = _Tile(port.data)
        self.current = current = _Tile(Signal(table, reset_less=True))
        self.take = Signal()  # the next tile becomes the current one
        look, move = Signal(), Signal()
        m.d.comb += [
            move.eq(first & (~ahead.valid | self.take)),
            look.eq((self.looked < self.headed) & (self.looked != self.segment)
                    & (~first | move)),
            port.en.eq(move),
            port.addr.eq(Cat(header[TILE_ROWS + 4:TILE_ROWS + 6],
                             header[TILE_ROWS + 2:TILE_ROWS + 4], (self.group_log2 - 4)[:3])),
        ]
        with m.If(look):
            m.d.sync += [header.eq(self.headers.word_select(self.looked[:4], HEADER_BITS)),
                         self.looked.eq(self.looked + 1), first.eq(1)]
        with m.Elif(move):
            m.d.sync += first.eq(0)
        with m.If(move):
            m.d.sync += [ahead.header.eq(header), ahead.valid.eq(1),
                         ahead.count.eq(_ones(header[:TILE_ROWS]))]
        with m.Elif(self.take):
            m.d.sync += ahead.valid.eq(0)
        with m.If(self.take):
            m.d.sync += [current.header.eq(ahead.header), current.count.eq(ahead.count),
                         current.constants.eq(ahead.constants)]

    def _plan(self, constants, rows, chunk, positions):
        """Return the bytes that a step needs and advances by."""
        count = Mux(rows > self.shape.rows, self.shape.rows, rows)
        whole = [constants[f"payload_{n}"] for n in range(1, self.shape.rows + 1)]
        together = 1 << constants.rows_log2
        bytes_ = Array([Const(0, 1), *whole])[Mux(count > together, together, count)]
        last = chunk == constants.last_chunk
        need = Mux(positions, constants.positions,
                   Mux(last, constants.last_bytes, constants.chunk_need))
        advance = Mux(positions, 0,
                      Mux(last, constants.last_bytes, constants.chunk_bytes))
        chunked = constants.chunked & (rows != 0)
        return Mux(chunked, need, bytes_), Mux(chunked, advance, bytes_)

    def _sections(self):
        m, shape, tile = self.m, self.shape, self.current
        at, available = self.at, self.available
        beat_mask = shape.beat_bytes - 1
        section, word = Signal(range(shape.slots + 1)), Signal(8)
        constants = tile.constants
        rows, done = Signal(5), Signal(5)  # of the tile, still to come and through
        chunk, positions = Signal(CHUNK_BITS), Signal()
        coded = Signal(range(2048))  # bits of the row's position codes that are through
        tiles_here = Signal(range(SEGMENT_TILES + 1))  # tiles of the segment that are begun
        scale, zero = Signal(9), Signal(9)  # of the segment, through
        need, advance = Signal.like(self.need), Signal.like(self.advance)  # of the step of codes
        codes, scales, zeros = Signal(), Signal(), Signal()  # kind of step
        count = Signal(3)
        together = Signal(3)
        last_chunk, last_step, row_done = Signal(), Signal(), Signal()
        m.d.comb += [
            together.eq(1 << constants.rows_log2),
            count.eq(Mux(rows < together, rows, together)),
            last_chunk.eq(chunk == Mux(positions, constants.last_entry, constants.last_chunk)),
            row_done.eq(~positions & last_chunk),
            last_step.eq((rows <= together) & ((rows == 0) | row_done)),
        ]
        last_tile = tiles_here == self.segment
        end_of_strip = self.tiles <= SEGMENT_TILES

        with m.FSM() as phase:
            with m.State("IDLE"):
                start = self.start.payload
                m.d.comb += self.start.ready.eq(1)
                m.d.sync += [self.groups.eq(start.groups), self.group_log2.eq(start.group_log2),
                             self.strips.eq(start.strips), self.tiles.eq(start.groups)]
                with m.If(self.start.valid):
                    m.next = "HEADERS"
            with m.State("HEADERS"):
                m.d.comb += [self.read_head.eq(available >= shape.beat_bytes),
                             self.advance.eq(self.head_bytes)]
                with m.If(self.read_head):
                    m.d.sync += at.eq(self.moved)
                    with m.If(self.headed + shape.beat_bytes // 4 >= self.segment):
                        m.next = "COUNT"
            with m.State("COUNT"), m.If(~self.counted[0]):
                m.next = "SCALES"
            with m.State("SCALES"):
                m.d.comb += [
                    scales.eq(1),
                    section.eq(Mux(self.scales_left > shape.slots // 2, shape.slots,
                                   self.scales_left << 1)),
                    self.need.eq(section), self.advance.eq(section)]
                with m.If(self.issue):
                    m.d.sync += [self.scales_left.eq(self.scales_left - (section >> 1)),
                                 word.eq(word + 1)]
                    with m.If(self.scales_left <= shape.slots // 2):
                        m.d.sync += word.eq(0)
                        with m.If(self.zeros_left != 0):
                            m.next = "ZEROS"
                        with m.Else():
                            m.next = "CODES"
            with m.State("ZEROS"):
                m.d.comb += [
                    zeros.eq(1),
                    section.eq(Mux(self.zeros_left > shape.slots, shape.slots, self.zeros_left)),
                    self.need.eq(section), self.advance.eq(section)]
                with m.If(self.issue):
                    m.d.sync += [self.zeros_left.eq(self.zeros_left - section), word.eq(word + 1)]
                    with m.If(self.zeros_left <= shape.slots):
                        m.next = "CODES"
            with m.State("CODES"):
                m.d.comb += [codes.eq(1), self.need.eq(need), self.advance.eq(advance)]
                with m.If(self.issue & last_step & last_tile):
                    m.d.sync += [self.headed.eq(0), self.looked.eq(0),
                                 self.tiles.eq(self.tiles - self.segment)]
                    m.next = "HEADERS"
                    with m.If(end_of_strip):
                        m.d.sync += [self.tiles.eq(self.groups), self.strips.eq(self.strips - 1)]
                        with m.If(self.strips == 1):
                            m.next = "IDLE"
        with m.If(~phase.ongoing("SCALES") & ~phase.ongoing("ZEROS")):
            m.d.sync += [self.scales_left.eq(self.scales_left + self.scales_here),
                         self.zeros_left.eq(self.zeros_left + self.zeros_here)]
        m.d.comb += self.issue.eq(self.enable & (scales | zeros | (codes & tile.valid))
                                  & (available >= self.need))
        with m.If(self.issue):
            m.d.sync += at.eq(self.moved)
            with m.If(codes & last_step & last_tile):
                m.d.sync += at.eq((self.moved + beat_mask) & ~beat_mask)

        # The tile's next step, or the next tile's first: both are planned, and one is taken as
        # it turns out, since whether a step is issued is known late in a clock.
        finished = Signal()
        m.d.comb += [
            finished.eq(self.issue & codes & last_step),
            self.take.eq(self.next.valid & (~tile.valid | finished)),
        ]
        ahead = self.next
        # The positions of all takes but the first come before the codes.
        more, more_ahead, rows_left = Signal(), Signal(), Signal(5)
        m.d.comb += [
            rows_left.eq(rows - together),
            more.eq((constants.last_entry != 0) & (rows_left != 0)),
            more_ahead.eq((ahead.constants.last_entry != 0) & (ahead.count != 0))]
        rows_then, chunk_then, positions_then = Signal(5), Signal(CHUNK_BITS), Signal()
        coded_then = Signal.like(coded)
        m.d.comb += [
            rows_then.eq(Mux(row_done, rows_left, rows)),
            chunk_then.eq(Mux(row_done, more, Mux(last_chunk, 0, chunk + 1))),
            positions_then.eq(Mux(row_done, more, positions & ~last_chunk)),
            coded_then.eq(Mux(row_done, Mux(more, constants.entry_bits, 0), Mux(
                last_chunk, 0, coded + Mux(positions, constants.entry_bits, 0))))]
        to_come = (need, advance, rows, chunk, positions, coded)
        with m.If(self.take):
            m.d.sync += [tile.valid.eq(1), done.eq(0), tiles_here.eq(tiles_here + 1)]
            m.d.sync += [now.eq(then) for now, then in zip(to_come, (
                *self._plan(ahead.constants, ahead.count, more_ahead, more_ahead), ahead.count,
                more_ahead, more_ahead, Mux(more_ahead, ahead.constants.entry_bits, 0)),
                strict=True)]
        with m.Elif(finished):
            m.d.sync += tile.valid.eq(0)
        with m.Elif(self.issue & codes):
            m.d.sync += [now.eq(then) for now, then in zip(to_come, (
                *self._plan(constants, rows_then, chunk_then, positions_then), rows_then,
                chunk_then, positions_then, coded_then), strict=True)]
            with m.If(row_done):
                m.d.sync += done.eq(done + together)
        with m.If(self.issue & codes & row_done):
            m.d.sync += scale.eq(scale + count)
            with m.If(tile.header[-1]):
                m.d.sync += zero.eq(zero + count)
        with m.If(finished & last_tile):
            m.d.sync += [tiles_here.eq(0), scale.eq(0), zero.eq(0), word.eq(0)]

        step = self.step
        with m.If(self.enable):
            m.d.sync += [
                step.valid.eq(self.issue),
                step.kind.eq(Mux(codes, Mux(positions, Kind.POSITIONS, Kind.CODES),
                                 Mux(zeros, Kind.ZERO_POINTS, Kind.SCALES))),
                step.width.eq(Mux(codes, tile.header[TILE_ROWS + 4:TILE_ROWS + 6], 3)),
                step.kept.eq(Mux(codes, tile.header[TILE_ROWS + 2:TILE_ROWS + 4], 0)),
                step.zero_points.eq(tile.header[-1]), step.rows_log2.eq(constants.rows_log2),
                step.count.eq(count), step.done.eq(done), step.present.eq(tile.header[:TILE_ROWS]),
                step.used.eq(constants.used), step.chunked.eq(constants.chunked),
                step.chunk.eq(chunk), step.last_chunk.eq(last_chunk | (rows == 0)),
                step.last_of_tile.eq(last_step),
                step.end_of_strip.eq(last_step & last_tile & end_of_strip),
                step.item.eq(Mux(codes, scale, word)), step.zero_item.eq(zero),
            ]
            bit = Cat(Const(0, 3), at)
            for part in range(shape.rows):
                ahead = Mux(codes, constants[f"code_bits_{part}"], 8 * shape.part_slots * part)
                m.d.sync += [
                    step.code_at[part].eq(bit + ahead),
                    step.position_at[part].eq(bit + coded + constants[f"position_bits_{part}"])]
