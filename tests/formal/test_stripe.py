"""A wide bus over narrow ports: AXI's rules on each, and each takes everything once, in order."""

import pytest
from amaranth.hdl import Cat
from prove import Bench

from alula.hw.axi import BOUNDARY_BYTES
from alula.hw.stripe import Stripe

PORTS, BYTES = 2, 16
_OFFERS = {"ar": ("araddr", "arlen"), "aw": ("awaddr", "awlen"), "w": ("wdata", "wstrb", "wlast")}


def _stripe(component):
    bench = Bench()
    dut = bench.add(component)
    bench.surround(dut)
    bus = dut.bus
    for channel, names in _OFFERS.items():
        _given(bench, dut, channel, [getattr(bus, name) for name in names],
               [[getattr(port, name) for name in names] for port in dut.ports])
    for channel, names in {"r": ("rdata", "rresp", "rlast"), "b": ("bresp",)}.items():
        _gathered(bench, dut, channel, names)
    # What a burst of the bus keeps, bursts of the ports keep.
    offset, length = bus.araddr[:BOUNDARY_BYTES.bit_length() - 1], bus.arlen + 1
    bench.assume((offset + length * BYTES <= BOUNDARY_BYTES) & (bus.araddr[:4] == 0))
    for port in dut.ports:
        offset = port.araddr[:BOUNDARY_BYTES.bit_length() - 1]
        bench.must(offset + length * (BYTES // PORTS) <= BOUNDARY_BYTES)
        bench.must((port.araddr[:3] == 0) & (port.arsize == 3) & (port.awsize == 3))
    bench.must(dut.ports[0].araddr != dut.ports[1].araddr)
    bench.cover(bench.count(bus.arvalid & bus.arready) == 2)
    bench.cover(bench.count(bus.rvalid & bus.rready) == 2)
    return bench


def _given(bench, dut, channel, ours, theirs):
    """What the bus offers is taken once by each port before it is taken from the bus."""
    bus = dut.bus
    valid, ready = getattr(bus, f"{channel}valid"), getattr(bus, f"{channel}ready")
    bench.assume(bench.holds(valid, ready, *ours))
    number, which = bench.count(valid & ready), bench.inside(dut, f"{channel}taken")
    for port, offers, has in zip(dut.ports, theirs, which, strict=True):
        offered, taken = getattr(port, f"{channel}valid"), getattr(port, f"{channel}ready")
        bench.must(bench.holds(offered, taken, *offers))
        ahead = (bench.count(offered & taken) - number)[:8]
        bench.must((ahead == 0) | ((ahead == 1) & valid))
        bench.must(~offered | (ahead == 0))
        bench.must(has == ahead)  # for induction
    bench.must(~which.all())


def _gathered(bench, dut, channel, names):
    """What comes from all ports goes to the bus at once; an error of one is one of the bus."""
    valid, ready = getattr(dut.bus, f"{channel}valid"), getattr(dut.bus, f"{channel}ready")
    for port in dut.ports:
        there, taken = getattr(port, f"{channel}valid"), getattr(port, f"{channel}ready")
        bench.assume(bench.holds(there, taken, *(getattr(port, name) for name in names)))
        bench.must((there & taken) == (valid & ready))
    responses = [getattr(port, f"{channel}resp") for port in dut.ports]
    bench.must((getattr(dut.bus, f"{channel}resp") == 0) == (Cat(responses) == 0))
    bench.must(bench.holds(valid, ready, getattr(dut.bus, f"{channel}resp")))


def test_stripe_keeps_the_rules():
    bench = _stripe(Stripe(BYTES, PORTS))
    bench.prove(2)
    bench.reach(6)


class _TakesTogether(Stripe):
    """Goes on as soon as one port has taken an address."""

    def elaborate(self, platform):
        m = super().elaborate(platform)
        m.d.comb += self.bus.arready.eq(Cat(port.arready for port in self.ports).any())
        return m


class _LosesErrors(Stripe):
    """Passes on one port's response."""

    def elaborate(self, platform):
        m = super().elaborate(platform)
        m.d.comb += self.bus.rresp.eq(self.ports[0].rresp)
        return m


@pytest.mark.parametrize("broken", [_TakesTogether, _LosesErrors])
def test_stripe_wrong(broken):
    _stripe(broken(BYTES, PORTS)).refute(5)
