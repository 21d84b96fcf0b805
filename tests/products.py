"""A lane with the ports of its matrix products only, for their tests."""

from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from alula.hw.axi import ADDRESS_BITS, join, read_signature
from alula.hw.formats import COMMAND_BITS
from alula.hw.lane.activation import CODES, SCALES
from alula.hw.lane.drain import result_layout
from alula.hw.lane.lane import Lane
from alula.hw.lane.prefetch import LOAD


class Products(wiring.Component):
    """See :class:`alula.hw.lane.lane.Lane`."""

    def __init__(self, arch, primitive=""):
        self.arch, self.primitive = arch, primitive
        super().__init__({
            "bus": Out(read_signature(arch.beat_bytes)), "base": In(ADDRESS_BITS),
            "loads": In(stream.Signature(LOAD)), "command": In(stream.Signature(COMMAND_BITS)),
            "tokens": In(7), "lane": In(6), "done": Out(1), "codes": In(CODES),
            "scales": In(SCALES), "results": Out(stream.Signature(result_layout(arch))),
            "beat": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.inner = inner = Lane(self.arch, self.primitive)
        wiring.connect(m, wiring.flipped(self.loads), inner.loads)
        wiring.connect(m, wiring.flipped(self.command), inner.command)
        for name in ("base", "tokens", "lane", "codes", "scales"):
            m.d.comb += getattr(inner, name).eq(getattr(self, name))
        for name in ("done", "beat"):
            m.d.comb += getattr(self, name).eq(getattr(inner, name))
        half = read_signature(self.arch.beat_bytes).create(path=("half",))
        for name, member in half.signature.members.items():
            mine, theirs = getattr(half, name), getattr(inner.bus, name)
            m.d.comb += mine.eq(theirs) if member.flow is Out else theirs.eq(mine)
        join(m, self.bus, half)
        m.d.comb += [
            self.results.valid.eq(inner.output.valid),
            self.results.payload.eq(inner.output.payload.content.result),
            inner.output.ready.eq(self.results.ready),
        ]
        return m
