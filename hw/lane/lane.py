"""A lane: one memory channel's prefetch, unpacker, multipliers and accumulators, wired up."""

from amaranth.hdl import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from alula.hw.axi import ADDRESS_BITS, read_signature
from alula.hw.formats import COMMAND_BITS
from alula.hw.lane.accumulate import ScaleAccumulate, result_layout
from alula.hw.lane.activation import CODES, SCALES, ActivationBuffer
from alula.hw.lane.chain import Chain
from alula.hw.lane.linear import LinearUnit
from alula.hw.lane.prefetch import LOAD, PAGES, BeatQueue, Prefetch
from alula.hw.lane.unpack import Unpacker


class Lane(wiring.Component):
    """Compute one lane's share of matrix products.

    Members
    -------
    bus, error, base, loads, page_requests
        See :class:`Prefetch`.
    command, tokens, lane, done
        See :class:`LinearUnit`.
    codes, scales
        See :class:`ActivationBuffer`.
    results
        See :class:`ScaleAccumulate`.
    beat : ``Out(1)``
        High in a clock in which the unpacker takes a beat.
    """

    def __init__(self, arch, primitive=False):
        self.arch, self.primitive = arch, primitive
        super().__init__({
            "bus": Out(read_signature(arch.beat_bytes)), "error": Out(1), "base": In(ADDRESS_BITS),
            "loads": In(stream.Signature(LOAD)), "page_requests": In(stream.Signature(PAGES)),
            "command": In(stream.Signature(COMMAND_BITS)), "tokens": In(7), "lane": In(6),
            "done": Out(1), "codes": In(CODES), "scales": In(SCALES),
            "results": Out(stream.Signature(result_layout(arch))), "beat": Out(1)})

    def elaborate(self, platform):
        m, arch = Module(), self.arch
        m.submodules.prefetch = prefetch = Prefetch(arch)
        m.submodules.queue = queue = BeatQueue(arch)
        m.submodules.unpacker = unpacker = Unpacker(arch)
        m.submodules.activations = activations = ActivationBuffer(arch)
        m.submodules.linear = linear = LinearUnit(arch)
        m.submodules.chain = chain = Chain(arch, self.primitive)
        m.submodules.accumulate = accumulate = ScaleAccumulate(arch)

        wiring.connect(m, prefetch.bus, wiring.flipped(self.bus))
        wiring.connect(m, wiring.flipped(self.loads), prefetch.loads)
        wiring.connect(m, wiring.flipped(self.page_requests), prefetch.page_requests)
        wiring.connect(m, wiring.flipped(self.command), linear.command)
        wiring.connect(m, prefetch.streams, linear.streams)
        wiring.connect(m, queue.beats, unpacker.beats)
        wiring.connect(m, linear.start, unpacker.start)
        wiring.connect(m, unpacker.bundles, linear.bundles)
        wiring.connect(m, accumulate.results, wiring.flipped(self.results))

        cursor = Signal.like(queue.read_pointer)  # the ring's first beat that no unit has taken on
        m.d.comb += [
            prefetch.base.eq(self.base), self.error.eq(prefetch.error),
            queue.fetch.valid.eq(linear.fetch.valid), linear.fetch.ready.eq(queue.fetch.ready),
            queue.fetch.payload.first.eq(cursor),
            queue.fetch.payload.beats.eq(linear.fetch.payload),
            prefetch.read_pointer.eq(queue.read_pointer), prefetch.release.eq(queue.release),
            queue.data.eq(prefetch.data), queue.available.eq(prefetch.available),
            self.beat.eq(queue.beats.valid & queue.beats.ready),
        ]
        with m.If(linear.fetch.valid & linear.fetch.ready):
            m.d.sync += cursor.eq(cursor + linear.fetch.payload)

        m.d.comb += [
            linear.tokens.eq(self.tokens), linear.lane.eq(self.lane), self.done.eq(linear.done),
            activations.codes.eq(self.codes), activations.scales.eq(self.scales),
            activations.pair.eq(linear.pair), activations.word.eq(linear.word),
            activations.block.eq(linear.block),
            linear.even.eq(activations.even), linear.odd.eq(activations.odd),
            linear.even_scale.eq(activations.even_scale),
            linear.odd_scale.eq(activations.odd_scale),
            chain.weights.eq(linear.weights), chain.lo.eq(linear.lo), chain.hi.eq(linear.hi),
            chain.valid.eq(linear.valid),
            accumulate.taps.eq(chain.taps), accumulate.valid.eq(linear.tag_valid),
            accumulate.tag.eq(linear.tag), accumulate.scales.eq(linear.scales),
            accumulate.begin.eq(linear.begin), accumulate.first.eq(linear.first),
            accumulate.tokens.eq(self.tokens), accumulate.exponent.eq(linear.exponent),
            linear.drained.eq(accumulate.drained),
        ]
        return m
