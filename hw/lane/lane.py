"""A lane: one memory channel's prefetch, unpacker, multipliers and accumulators, wired up."""


from amaranth.hdl import Array, DomainRenamer, Module, Mux, Signal
from amaranth.lib import fifo, stream, wiring
from amaranth.lib.wiring import In, Out

from alula.hw import axi
from alula.hw.attention.attend import AttendUnit
from alula.hw.attention.fetch import PageFetch
from alula.hw.attention.keyvalue import KeyValueStore
from alula.hw.attention.merge import LEVELS
from alula.hw.axi import ADDRESS_BITS, AxiWriter
from alula.hw.formats import COMMAND_BITS
from alula.hw.gate import gated
from alula.hw.gather import output_layout
from alula.hw.lane import chain as dsp_chain
from alula.hw.lane.accumulate import ScaleAccumulate
from alula.hw.lane.activation import CODES, SCALES, ActivationBuffer
from alula.hw.lane.chain import Chain
from alula.hw.lane.linear import LinearUnit
from alula.hw.lane.prefetch import LOAD, BeatQueue, Prefetch
from alula.hw.lane.shape import LaneShape
from alula.hw.lane.unpack import Unpacker
from alula.hw.queues import INDEX_BITS
from alula.hw.ram import Ram
from alula.hw.step import SLOT_BITS, row_layout, row_port, slot_port

PAGE_LOADS = 4  # loads of pages that wait


def lane_signature(arch):
    """Return the ports of a lane."""
    commands = stream.Signature(COMMAND_BITS)
    return wiring.Signature({
        "bus": Out(axi.signature(arch.beat_bytes)), "base": In(ADDRESS_BITS),
        "error": Out(1), "error_index": Out(INDEX_BITS), "write_error": Out(1),
        "drain": In(1), "idle": Out(1),
        "loads": In(stream.Signature(LOAD)), "pages": In(commands),
        "command": In(commands), "done": Out(1),
        "attend": In(commands), "attended": Out(1), "store": In(commands),
        "lane": In(6), "tokens": In(7), "slot_words": In(32),
        "row": In(row_port(arch)), "slot": In(slot_port(arch)),
        "codes": In(CODES), "scales": In(SCALES),
        "output": Out(stream.Signature(output_layout(arch))), "beat": Out(1)})


def socket_signature(arch):
    """Return what the rest of the accelerator has of a lane: all but its bus, and its reset."""
    members = dict(lane_signature(arch).members)
    del members["bus"]
    return wiring.Signature(members | {"reset": In(1)})


class Lane(wiring.Component):
    """Compute one lane's share of matrix products and of attention, and keep its cache.

    Members
    -------
    bus : AXI4 master
    base, error, error_index, loads
        See :class:`Prefetch`.
    write_error : ``Out(1)``
    drain, idle
        See :class:`AxiReader`.
    pages : ``In(stream of isa.LoadPages)``
        One for each load of pages in ``loads``.
    command, done
        Matrix products; see :class:`LinearUnit`.
    attend, attended
        Attention; see :class:`AttendUnit`.
    store : ``In(stream of isa.StoreKeyValue)``
        Taken when it is written.
    lane : which one
    tokens, slot_words : of the step
    row, slot
        The step's rows, and where its pages are.
    codes, scales
        See :class:`ActivationBuffer`.
    output : ``Out(stream of output_layout)``
        What :class:`alula.hw.gather.Gather` takes.
    beat : ``Out(1)``
        High in a clock in which the unpacker takes a beat.
    """

    def __init__(self, arch, primitive=""):
        self.arch, self.primitive = arch, primitive
        super().__init__(lane_signature(arch))

    def elaborate(self, platform):
        m, arch = Module(), self.arch
        m.submodules.prefetch = prefetch = Prefetch(arch)
        m.submodules.queue = queue = BeatQueue(arch)
        m.submodules.activations = activations = ActivationBuffer(arch)
        unpacker = Unpacker(arch, self.primitive)
        linear, accumulate = LinearUnit(arch, self.primitive), ScaleAccumulate(arch)
        chain = Chain(arch, self.primitive)
        attention = AttendUnit(arch, dsp_chain.tap_latency(chain.levels - 1),
                               dsp_chain.OWN_LATENCY)
        keys = KeyValueStore(arch)
        self._rest(m, chain, attention, keys, unpacker, linear, accumulate)
        table = self._table(m)
        self._fetch(m, prefetch, table)

        wiring.connect(m, wiring.flipped(self.loads), prefetch.loads)
        wiring.connect(m, wiring.flipped(self.command), linear.command)
        wiring.connect(m, wiring.flipped(self.attend), attention.commands)
        wiring.connect(m, wiring.flipped(self.store), keys.command)
        wiring.connect(m, prefetch.streams, linear.streams)
        wiring.connect(m, queue.beats, unpacker.beats)
        wiring.connect(m, linear.start, unpacker.start)
        wiring.connect(m, unpacker.bundles, linear.bundles)
        for unit in (attention, keys):
            m.d.comb += unit.lane.eq(self.lane)
            m.d.comb += [mine.eq(row) for mine, row in zip(unit.table, table, strict=True)]

        self._ring(m, prefetch, queue, linear, attention)
        self._activations(m, activations, linear, attention, keys)
        self._chain(m, chain, linear, attention)
        self._output(m, accumulate, attention)
        writer = self._write(m, keys)
        axi.join(m, self.bus, prefetch.bus, writer.bus)
        m.d.comb += [
            prefetch.base.eq(self.base), self.error.eq(prefetch.error),
            self.error_index.eq(prefetch.error_index),
            prefetch.drain.eq(self.drain), self.idle.eq(prefetch.idle & writer.idle),
            self.beat.eq(queue.beats.valid & queue.beats.ready),
            linear.tokens.eq(self.tokens), linear.lane.eq(self.lane), self.done.eq(linear.done),
            self.attended.eq(attention.done),
            accumulate.taps.eq(chain.taps), accumulate.valid.eq(linear.tag_valid),
            accumulate.regions_log2.eq(linear.regions_log2), accumulate.tag.eq(linear.tag),
            accumulate.scales.eq(linear.scales),
            accumulate.begin.eq(linear.begin), accumulate.first.eq(linear.first),
            accumulate.tokens.eq(self.tokens), accumulate.exponent.eq(linear.exponent),
            linear.drained.eq(accumulate.drained),
        ]
        return m

    def _rest(self, m, chain, attention, keys, unpacker, linear, accumulate):
        """Products, attention and cache writes have clocks that rest."""
        running = Signal()
        m.d.sync += running.eq((running | self.attend.valid) & ~attention.done)
        multiplies = self.command.valid | linear.busy
        attends = self.attend.valid | running
        for name, awake, units in (
                ("product", multiplies, {"unpacker": unpacker, "accumulate": accumulate}),
                ("attention", attends, {"attention": attention}),
                ("chain", multiplies | attends, {"linear": linear, "chain": chain}),
                ("keys", self.store.valid, {"keys": keys})):
            gated(m, name, awake)
            for unit, component in units.items():
                m.submodules[unit] = DomainRenamer(name)(component)

    def _table(self, m):
        """Keep the rows of the step."""
        rows = [Signal(row_layout(self.arch), name=f"row_{at}") for at in range(self.arch.rows)]
        gated(m, "table", self.row.valid)
        with m.If(self.row.valid):
            m.d.table += Array(rows)[self.row.index].eq(self.row.row)
        return rows

    def _slots(self, m, name, reader):
        """Keep the slots of the step's pages, for one reader."""
        m.submodules[name] = store = Ram(
            shape=SLOT_BITS, depth=self.arch.page_entries)
        write, read = store.write_port(), store.read_port()
        m.d.comb += [write.addr.eq(self.slot.entry), write.data.eq(self.slot.slot),
                     write.en.eq(self.slot.valid), read.addr.eq(reader.entry),
                     reader.slot.eq(read.data), reader.slot_words.eq(self.slot_words)]

    def _fetch(self, m, prefetch, table):
        fetch = PageFetch(self.arch, prefetch.piece)
        m.submodules.loads = waiting = fifo.SyncFIFO(width=COMMAND_BITS, depth=PAGE_LOADS)
        gated(m, "fetch", waiting.r_rdy | fetch.requests.valid)
        m.submodules.fetch = DomainRenamer("fetch")(fetch)
        self._slots(m, "fetch_slots", fetch)
        wiring.connect(m, fetch.requests, prefetch.page_requests)
        m.d.comb += [
            waiting.w_data.eq(self.pages.payload), waiting.w_en.eq(self.pages.valid),
            self.pages.ready.eq(waiting.w_rdy), fetch.command.valid.eq(waiting.r_rdy),
            fetch.command.payload.eq(waiting.r_data), waiting.r_en.eq(fetch.command.ready),
            fetch.lane.eq(self.lane),
        ]
        m.d.comb += [mine.eq(row) for mine, row in zip(fetch.table, table, strict=True)]

    def _ring(self, m, prefetch, queue, linear, attention):
        """The unpacker's queue or attention reads the ring, never both."""
        cursor = Signal.like(queue.read_pointer)  # the first beat that no unit has taken on
        m.d.comb += [
            queue.fetch.valid.eq(linear.fetch.valid), linear.fetch.ready.eq(queue.fetch.ready),
            queue.fetch.payload.first.eq(cursor),
            queue.fetch.payload.beats.eq(linear.fetch.payload),
            prefetch.read_pointer.eq(Mux(attention.busy, attention.ring_pointer,
                                         queue.read_pointer)),
            queue.data.eq(prefetch.data), queue.available.eq(prefetch.available),
            attention.ring_begin.eq(cursor), attention.ring_data.eq(prefetch.data),
            attention.ring_available.eq(prefetch.available),
        ]
        # Between runs the queue's pointer may be behind what attention has given back. What is free
        # is known a clock later than it could be, which cuts the way to the prefetcher's requests.
        m.d.sync += prefetch.release.eq(Mux(attention.busy, attention.ring_release,
                                            Mux(queue.fetch.ready, cursor, queue.release)))
        with m.If(linear.fetch.valid & linear.fetch.ready):
            m.d.sync += cursor.eq(cursor + linear.fetch.payload)
        with m.Elif(attention.done):
            m.d.sync += cursor.eq(attention.ring_release)

    def _activations(self, m, activations, linear, attention, keys):
        """A product's reads go before attention's, and those before the cache's writes."""
        attends = attention.busy & attention.reads
        m.d.comb += [
            keys.granted.eq(keys.reads & ~linear.reads & ~attends),
            activations.write_codes.eq(self.codes), activations.write_scales.eq(self.scales),
        ]
        for name in ("row", "word", "block"):
            other = Mux(keys.granted, getattr(keys, name), getattr(attention, name))
            m.d.comb += getattr(activations, name).eq(
                Mux(linear.reads, getattr(linear, name), other))
        for unit in (linear, attention, keys):
            m.d.comb += [unit.codes.eq(activations.codes), unit.scale.eq(activations.scale)]

    def _chain(self, m, chain, linear, attention):
        port, slot_of = attention.chain, LaneShape(self.arch).dense_slot
        wiring.connect(m, port.query, linear.query)
        top = chain.taps[f"level_{chain.levels - 1}"]
        accumulate = attention.busy & port.accumulate
        m.d.comb += [
            linear.keyed.eq(port.codes), linear.keyed_blocks.eq(port.blocks),
            chain.accumulate.eq(accumulate), chain.first.eq(port.first),
            chain.shared.eq(Mux(accumulate, port.weight, 0)),
            chain.valid.eq(Mux(attention.busy, port.valid, linear.valid)),
            chain.weights.eq(linear.weights), chain.lo.eq(linear.lo), chain.hi.eq(linear.hi),
            port.sum.eq(top[:len(top) // 2].as_signed()),
            *(own.eq(chain.own.word_select(slot_of(at), dsp_chain.OWN_BITS))
              for at, own in enumerate(port.own)),
        ]

    def _output(self, m, accumulate, attention):
        """Packets go out first; attention and products do not run together."""
        packets, results = attention.packets, accumulate.results
        word = self.output.payload
        m.d.comb += [
            self.output.valid.eq(packets.valid | results.valid),
            word.is_packet.eq(packets.valid),
            word.last.eq(~packets.valid | packets.payload.last
                         | (packets.payload.level == LEVELS)),
            packets.ready.eq(self.output.ready),
            results.ready.eq(self.output.ready & ~packets.valid),
            word.content.result.eq(results.payload),
        ]
        with m.If(packets.valid):
            m.d.comb += word.content.packet.eq(packets.payload)

    def _write(self, m, keys):
        m.submodules.writer = writer = AxiWriter(self.arch.beat_bytes)
        self._slots(m, "store_slots", keys)
        wiring.connect(m, keys.requests, writer.requests)
        wiring.connect(m, keys.beats, writer.data)
        m.d.comb += [keys.base.eq(self.base), keys.written.eq(writer.idle),
                     self.write_error.eq(writer.error), writer.drain.eq(self.drain)]
        return writer
