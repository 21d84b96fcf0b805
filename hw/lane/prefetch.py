"""Fetch a lane's streams from memory ahead of their use, in the order of the commands."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, enum, fifo, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from alula.hw import layout
from alula.hw.axi import ADDRESS_BITS, AxiReader, read_signature
from alula.hw.formats import record_layout
from alula.hw.isa import WORD_BYTES
from alula.hw.lane.linear import DESCRIPTOR
from alula.hw.queues import INDEX_BITS
from alula.hw.ram import Ram

BEATS_BITS = 24
PIECE_BEATS = 64  # most beats of a request, so that a directory entry need not wait long
STREAMS = 16  # most streams that are fetched and not yet taken by the units
AHEAD = 4  # of those, most whose beats are not yet asked for in full
PIECES = 32  # most requests under way
RING_LATENCY = 2


class Load(enum.Enum, shape=1):
    STREAM = 0
    PAGES = 1


LOAD = data.StructLayout({"kind": Load, "address": ADDRESS_BITS, "index": INDEX_BITS})
PAGES = data.StructLayout({"address": ADDRESS_BITS, "beats": BEATS_BITS, "last": 1})


class Prefetch(wiring.Component):
    """Read what loads ask for into a ring.

    A weight stream's directory entry is read as soon as its load comes, in between the beats of
    the streams before it. Beats are asked for only when the ring has room for them.

    Members
    -------
    bus : AXI4 read channels
    error : ``Out(1)``, error_index : ``Out(INDEX_BITS)``
        High for a clock when a beat comes with an error response; the ``index`` of its load.
    drain, idle
        See :class:`AxiReader`.
    loads : ``In(stream of LOAD)``
        A stream's directory entry: its byte address less ``base``, a multiple of 16. ``index`` is
        the instruction's. A load of pages takes requests from ``page_requests`` up to a ``last``
        one.
    page_requests : ``In(stream of PAGES)``
        Byte address less ``base``, a multiple of a beat; at most ``PIECE_BEATS`` beats, and at
        least 1 unless it is the ``last``.
    base : ``In(64)``
        Byte address of the lane's memory, a multiple of 4096.
    streams : ``Out(stream of DESCRIPTOR)``
        The weight streams, as their directory entries come.
    read_pointer : ``In``
        The beat to read; ``data`` has it ``RING_LATENCY`` clocks later. All pointers count beats
        since reset, modulo twice the ring.
    available : ``Out``
        The next beat that is not there yet.
    release : ``In``
        The first beat that is still needed.
    """

    def __init__(self, arch):
        self.arch = arch
        self.depth = arch.prefetch_beats
        self.piece = min(PIECE_BEATS, self.depth // 4)
        pointer = range(2 * self.depth)
        super().__init__({
            "bus": Out(read_signature(arch.beat_bytes)), "error": Out(1),
            "error_index": Out(INDEX_BITS), "base": In(ADDRESS_BITS),
            "drain": In(1), "idle": Out(1),
            "loads": In(stream.Signature(LOAD)), "page_requests": In(stream.Signature(PAGES)),
            "streams": Out(stream.Signature(DESCRIPTOR)),
            "read_pointer": In(pointer), "data": Out(8 * arch.beat_bytes),
            "available": Out(pointer), "release": In(pointer)})

    def elaborate(self, platform):
        self.m = m = Module()
        m.submodules.reader = self.reader = reader = AxiReader(self.arch.beat_bytes)
        wiring.connect(m, reader.bus, wiring.flipped(self.bus))
        m.d.comb += [self.error.eq(reader.error), reader.drain.eq(self.drain),
                     self.idle.eq(reader.idle)]
        fetch = data.StructLayout({"kind": Load, "start": 32, "beats": BEATS_BITS,
                                   "index": INDEX_BITS})
        m.submodules.fetches = self.fetches = fifo.SyncFIFO(width=fetch.size, depth=AHEAD)
        m.submodules.descriptors = self.descriptors = fifo.SyncFIFO(
            width=DESCRIPTOR.size, depth=STREAMS)
        self.fetch, self.put = (data.View(fetch, part) for part in (self.fetches.r_data,
                                                                    self.fetches.w_data))
        piece = data.StructLayout({"directory": 1, "place": 2, "beats": range(self.piece + 1),
                                   "index": INDEX_BITS})
        m.submodules.pieces = self.pieces = fifo.SyncFIFO(width=piece.size, depth=PIECES)
        self.piece_in, self.piece_out = (data.View(piece, part) for part in (
            self.pieces.w_data, self.pieces.r_data))
        self._ask()
        self._answer()
        m.d.comb += [self.streams.valid.eq(self.descriptors.r_rdy),
                     self.streams.payload.as_value().eq(self.descriptors.r_data),
                     self.descriptors.r_en.eq(self.streams.ready)]
        return m

    def _ask(self):
        """Ask for directory entries first, then for a piece of the oldest fetch."""
        m, requests, load = self.m, self.reader.requests, self.loads.payload
        beat_log2 = self.arch.beat_bytes.bit_length() - 1
        self.entries = Signal(range(AHEAD + 1))  # directory reads under way
        held = Signal(range(STREAMS + 1))  # streams whose descriptors have or need a place
        asked = Signal(range(2 * self.depth))  # beats asked for, as a pointer
        room = Signal(range(2 * self.depth))
        directory, pages, beats = Signal(), Signal(), Signal()
        known, size, last, address, index = self._piece(beats)
        # What is asked for and not released stays below a ring, so the difference is exact. After a
        # piece the next one is not known before the room that it leaves is.
        m.d.sync += room.eq(self.depth - (asked - self.release)[:len(asked)])
        free = self.pieces.w_rdy & ~requests.valid  # a clock between two: no way through here
        reads = beats & (size != 0)  # a load of pages may end with a request of none
        m.d.comb += [
            directory.eq(free & self.loads.valid & (load.kind == Load.STREAM)
                         & (self.fetches.level + self.entries < AHEAD) & (held != STREAMS)),
            # Later than all streams before it, whose entries must have come.
            pages.eq(self.loads.valid & (load.kind == Load.PAGES) & (self.entries == 0)
                     & self.fetches.w_rdy),
            beats.eq(free & ~directory & known & (room >= size)),
            self.loads.ready.eq(directory | pages),
            self.pieces.w_en.eq(directory | reads),
            self.piece_in.directory.eq(directory),
            self.piece_in.place.eq(load.address[WORD_BYTES.bit_length() - 1:beat_log2]),
            self.piece_in.beats.eq(Mux(directory, 1, size)),
            self.piece_in.index.eq(Mux(directory, load.index, index)),
            self.error_index.eq(self.piece_out.index),
            self.fetches.r_en.eq(beats & last),
        ]
        taken = self.streams.valid & self.streams.ready
        m.d.sync += held.eq(held + directory - taken)
        self.load_pages = pages
        m.d.sync += self.entries.eq(self.entries + directory - self.entry_comes())
        with m.If(beats):
            m.d.sync += asked.eq(asked + size)
        with m.If(requests.ready):
            m.d.sync += requests.valid.eq(0)
        with m.If(free):
            m.d.sync += [
                requests.valid.eq(directory | reads),
                requests.payload.beats.eq(self.piece_in.beats),
                requests.payload.address.eq(self.base + Mux(
                    directory, Cat(self._zeros(beat_log2), load.address[beat_log2:]), address))]

    def _piece(self, taken):
        """Cut the oldest fetch into pieces, each in clocks of its own.

        Return whether the next one is ``known``, its beats, whether it is the fetch's last, its
        address, and the fetch's index.
        """
        m, fetch, wanted = self.m, self.fetch, self.page_requests
        beat_log2 = self.arch.beat_bytes.bit_length() - 1
        begun, known, last = Signal(), Signal(), Signal()  # of a stream's fetch, of a piece
        left, start = Signal(BEATS_BITS), Signal(ADDRESS_BITS)  # of a stream, behind the piece
        size, edge = Signal(range(self.piece + 1)), Signal(range(self.piece + 1))
        address = Signal(ADDRESS_BITS)
        is_pages = fetch.kind == Load.PAGES
        # Pieces end at multiples of their size: a burst each.
        m.d.comb += edge.eq(self.piece - start[beat_log2:beat_log2 + exact_log2(self.piece)])
        short = Signal()
        m.d.comb += [short.eq(left <= edge),
                     wanted.ready.eq(self.fetches.r_rdy & is_pages & ~known)]
        with m.If(known):
            with m.If(taken):
                m.d.sync += [known.eq(0), begun.eq(begun & ~last)]
        with m.Elif(self.fetches.r_rdy & is_pages):
            m.d.sync += [known.eq(wanted.valid), size.eq(wanted.payload.beats),
                         last.eq(wanted.payload.last), address.eq(wanted.payload.address)]
        with m.Elif(self.fetches.r_rdy & ~begun):
            m.d.sync += [begun.eq(1), left.eq(fetch.beats), start.eq(fetch.start * WORD_BYTES)]
        with m.Elif(self.fetches.r_rdy):
            here = Mux(short, left, edge)[:len(size)]
            m.d.sync += [known.eq(1), size.eq(here), last.eq(short), address.eq(start),
                         left.eq(left - here), start.eq(start + (here << beat_log2))]
        return known, size, last, address, fetch.index

    @staticmethod
    def _zeros(count):
        return Cat(0 for _ in range(count))

    def entry_comes(self):
        return self.reader.data.valid & self.reader.data.ready & self.piece_out.directory

    def _answer(self):
        """Sort beats into directory entries and the ring."""
        m, beat = self.m, self.reader.data
        entry = data.View(record_layout(layout.DIRECTORY_ENTRY), Signal(8 * WORD_BYTES))
        came, count = Signal(), Signal(range(self.piece + 1))
        comes = Signal()
        m.d.comb += [
            beat.ready.eq(self.pieces.r_rdy), comes.eq(beat.valid & beat.ready),
            self.pieces.r_en.eq(comes & (count + 1 == self.piece_out.beats)),
            entry.as_value().eq(beat.payload.word_select(self.piece_out.place, 8 * WORD_BYTES)),
        ]
        with m.If(comes):
            m.d.sync += count.eq(Mux(self.pieces.r_en, 0, count + 1))
        is_entry = comes & self.piece_out.directory
        descriptor = data.View(DESCRIPTOR, self.descriptors.w_data)
        m.d.comb += [
            came.eq(is_entry & (entry.beats != 0)),
            self.fetches.w_en.eq(came | self.load_pages),
            self.put.kind.eq(Mux(came, Load.STREAM, Load.PAGES)),
            self.put.start.eq(entry.start), self.put.beats.eq(entry.beats),
            self.put.index.eq(Mux(came, self.piece_out.index, self.loads.payload.index)),
            self.descriptors.w_en.eq(is_entry), descriptor.strips.eq(entry.strips),
            descriptor.exponent.eq(entry.exponent.as_signed()), descriptor.beats.eq(entry.beats)]

        m.submodules.ring = ring = Ram(
            shape=8 * self.arch.beat_bytes, depth=self.depth, style="ultra")
        write, read = ring.write_port(), ring.read_port()
        m.d.comb += [
            write.addr.eq(self.available), write.data.eq(beat.payload),
            write.en.eq(comes & ~self.piece_out.directory), read.addr.eq(self.read_pointer)]
        m.d.sync += self.data.eq(read.data)
        # A beat written now is not in the memory's answer before the next clock.
        with m.If(write.en):
            m.d.sync += self.available.eq(self.available + 1)


class BeatQueue(wiring.Component):
    """Read runs of beats from the ring, one a clock.

    Members
    -------
    fetch : ``In(stream of first, beats)``
        Beats to read, at least 1, from a pointer on; taken when the run before has been read.
    read_pointer : ``Out``; data, available : ``In``
        The ring's.
    release : ``Out``
        The first beat that this queue has not read yet.
    beats : ``Out(stream of 8 * beat_bytes)``
    """

    DEPTH = 6  # beats in flight and in the queue, so that it never waits for the ring

    def __init__(self, arch):
        self.arch = arch
        pointer = range(2 * arch.prefetch_beats)
        super().__init__({
            "fetch": In(stream.Signature(data.StructLayout({"first": pointer, "beats": 24}))),
            "read_pointer": Out(pointer), "data": In(8 * arch.beat_bytes), "available": In(pointer),
            "release": Out(pointer), "beats": Out(stream.Signature(8 * arch.beat_bytes))})

    def elaborate(self, platform):
        m = Module()
        m.submodules.queue = queue = fifo.SyncFIFO(width=8 * self.arch.beat_bytes,
                                                   depth=self.DEPTH)
        left, flight = Signal(24), Signal(RING_LATENCY)
        credit, read = Signal(range(self.DEPTH + 1), init=self.DEPTH), Signal()
        taken = self.beats.valid & self.beats.ready
        m.d.comb += [
            read.eq((left != 0) & (self.read_pointer != self.available) & (credit != 0)),
            self.fetch.ready.eq(left == 0), self.release.eq(self.read_pointer),
            queue.w_data.eq(self.data), queue.w_en.eq(flight[-1]),
            self.beats.payload.eq(queue.r_data), self.beats.valid.eq(queue.r_rdy),
            queue.r_en.eq(self.beats.ready)]
        m.d.sync += [flight.eq(Cat(read, flight)), credit.eq(credit + taken - read)]
        with m.If(read):
            m.d.sync += [self.read_pointer.eq(self.read_pointer + 1), left.eq(left - 1)]
        with m.Elif(self.fetch.valid & self.fetch.ready):
            m.d.sync += [self.read_pointer.eq(self.fetch.payload.first),
                         left.eq(self.fetch.payload.beats)]
        return m
