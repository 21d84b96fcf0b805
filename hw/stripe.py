"""A lane's beats, striped over several narrower AXI ports: what a Zynq's processor offers.

A port of the processing system carries 128 bits where its memory gives four times that. Each beat
is cut into as many parts as there are ports, and each port reads or writes its parts at addresses
of its own: see :mod:`alula.hw.striping`. A burst of the lane is one burst of as many beats on every
port, and within 4 KiB there too.
"""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from alula.hw import axi

_PAGE = exact_log2(axi.BOUNDARY_BYTES)


def port_address(address, port, ports):
    """Return where a port finds its part of the beat at an address."""
    shift = exact_log2(ports)
    return Cat(address[shift:_PAGE + shift], Const(port, shift), address[_PAGE + shift:])


class Stripe(wiring.Component):
    """Join several ports to one wide one.

    Members
    -------
    bus : AXI4 slave of ``beat_bytes``
    ports : AXI4 masters of ``beat_bytes // ports``
        Ports need not keep step: an address or data is taken when every port has taken its part,
        and comes when every port has it. An error on one is an error of the whole.
    """

    def __init__(self, beat_bytes, ports):
        self.beat_bytes, self.count = beat_bytes, ports
        super().__init__({
            "bus": In(axi.signature(beat_bytes)),
            "ports": Out(axi.signature(beat_bytes // ports)).array(ports),
        })

    def elaborate(self, platform):
        m = Module()
        part = self.beat_bytes // self.count
        for channel in ("ar", "aw", "w"):
            self._give(m, channel)
        for channel in ("r", "b"):
            self._gather(m, channel)
        for at, port in enumerate(self.ports):
            for channel in ("ar", "aw"):
                m.d.comb += [
                    getattr(port, f"{channel}addr").eq(port_address(
                        getattr(self.bus, f"{channel}addr"), at, self.count)),
                    getattr(port, f"{channel}len").eq(getattr(self.bus, f"{channel}len")),
                    getattr(port, f"{channel}size").eq(exact_log2(part)),
                    getattr(port, f"{channel}burst").eq(axi.INCREMENTING),
                ]
            m.d.comb += [
                port.wdata.eq(self.bus.wdata.word_select(at, 8 * part)),
                port.wstrb.eq(self.bus.wstrb.word_select(at, part)),
                port.wlast.eq(self.bus.wlast),
                self.bus.rdata.word_select(at, 8 * part).eq(port.rdata),
            ]
        m.d.comb += self.bus.rlast.eq(self.ports[0].rlast)
        return m

    def _give(self, m, channel):
        """Offer what the bus offers to each port until it takes it."""
        valid = getattr(self.bus, f"{channel}valid")
        taken = Signal(self.count, name=f"{channel}taken")
        for at, port in enumerate(self.ports):
            m.d.comb += getattr(port, f"{channel}valid").eq(valid & ~taken[at])
        now = taken | Cat(getattr(port, f"{channel}ready") for port in self.ports)
        m.d.comb += getattr(self.bus, f"{channel}ready").eq(now.all())
        with m.If(valid):
            m.d.sync += taken.eq(Mux(now.all(), 0, now))

    def _gather(self, m, channel):
        """Offer to the bus what all ports have; take it from all at once."""
        valids = Cat(getattr(port, f"{channel}valid") for port in self.ports)
        m.d.comb += getattr(self.bus, f"{channel}valid").eq(valids.all())
        response = 0
        for port in self.ports:
            m.d.comb += getattr(port, f"{channel}ready").eq(
                getattr(self.bus, f"{channel}ready") & valids.all())
            response = response | getattr(port, f"{channel}resp")
        m.d.comb += getattr(self.bus, f"{channel}resp").eq(response)
