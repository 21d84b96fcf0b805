"""The rules of AXI4 on every master, and of AXI4-Lite on the control port.

Ref: ARM IHI 0022, A3.2.1 (offers stay), A3.4.1 (bursts), B1 (AXI4-Lite).
"""

from dataclasses import replace

import pytest
from amaranth.hdl import Cat, Const, Mux, ResetInserter, Signal
from prove import Bench

from alula.hw.arch import build
from alula.hw.axi import BOUNDARY_BYTES, INCREMENTING, AxiReader, AxiWriter, Bursts
from alula.hw.control import ControlRegisters
from alula.hw.csr import Register

BYTES = 64
_SHIFT = 6
OUTSTANDING = 3


def _ask(bench, requests):
    """Offer legal requests: whole beats, at least one."""
    bench.offer(requests)
    address, beats = requests.payload.address, requests.payload.beats
    bench.assume(~requests.valid | ((address[:_SHIFT] == 0) & (beats != 0)))


def _legal_burst(bench, valid, address, length):
    """An aligned burst that stays in its 4 KiB."""
    offset = address[:BOUNDARY_BYTES.bit_length() - 1]
    bench.must(~valid | (offset + ((length + 1) << _SHIFT) <= BOUNDARY_BYTES))
    bench.must(~valid | (address[:_SHIFT] == 0))


class _Asked:
    """What is asked for and not yet covered by bursts: one request and the one after it."""

    def __init__(self, bench, requests):
        self.m = bench.m
        self.address, self.left = Signal(64), Signal(25)
        self.next_address, self.next_left = Signal(64), Signal(25)
        self.taken = requests.valid & requests.ready
        self.request = requests.payload

    def burst(self, bench, happens, address, length):
        """A burst begins where the one before ended, and is no longer than what is left."""
        m, beats = self.m, length + 1
        bench.must(~happens | ((address == self.address) & (beats <= self.left)))
        left = Signal(25, name="left_after")
        m.d.comb += left.eq(self.left - Mux(happens, beats, 0))
        bench.must(~self.taken | (left == 0) | (self.next_left == 0))
        ends = left == 0
        m.d.sync += [
            self.left.eq(Mux(~ends, left, Mux(self.next_left != 0, self.next_left,
                                              Mux(self.taken, self.request.beats, 0)))),
            self.address.eq(Mux(~ends, self.address + Mux(happens, beats << _SHIFT, 0),
                                Mux(self.next_left != 0, self.next_address,
                                    self.request.address))),
            self.next_left.eq(Mux(self.taken & ~(ends & (self.next_left == 0)),
                                  self.request.beats, Mux(ends, 0, self.next_left))),
        ]
        with m.If(self.taken):
            m.d.sync += self.next_address.eq(self.request.address)

    def kept(self, bench, dut, valid, address, length):
        """For induction: what is asked for is on the bus, then in the cutter, and nowhere else."""
        busy, at, beats = (bench.inside(dut, name) for name in ("busy", "address", "beats"))
        offered = Mux(valid, length + 1, 0)
        rest = Signal(25, name="rest")
        self.m.d.comb += rest.eq(self.left - offered)
        bench.must(~valid | ((address == self.address) & (offered <= self.left)))
        first = (beats == rest) & (at == (self.address + (offered << _SHIFT))[:64])
        second = (beats == self.next_left) & (at == self.next_address)
        bench.must(Mux(rest != 0, busy & first & (self.next_left == 0),
                       Mux(self.next_left != 0, busy & second, ~busy)))


def _bursts(component):
    bench = Bench()
    dut = bench.add(component)
    _ask(bench, dut.requests)
    bench.take(dut.bursts)
    burst = dut.bursts.payload
    _legal_burst(bench, dut.bursts.valid, burst.address, burst.length)
    asked = _Asked(bench, dut.requests)
    asked.burst(bench, dut.bursts.valid & dut.bursts.ready, burst.address, burst.length)
    # For induction: the component holds one request and it is the one asked for.
    bench.must(asked.next_left == 0)
    bench.must(bench.inside(dut, "busy") == (asked.left != 0))
    bench.must((asked.left == 0) | ((bench.inside(dut, "beats") == asked.left)
                                    & (bench.inside(dut, "address") == asked.address)))
    bench.must((asked.left == 0) | (asked.address[:_SHIFT] == 0))
    bench.cover(dut.bursts.valid & (burst.length == 63) & (asked.left > 64))
    return bench


def test_bursts_cut_requests_in_order():
    bench = _bursts(Bursts(BYTES))
    bench.prove(2)
    bench.reach(4)


class _Unaligned(Bursts):
    """Cuts by length alone."""

    def elaborate(self, platform):
        m = super().elaborate(platform)
        m.d.comb += self.bursts.payload.length.eq(15)
        return m


def test_bursts_across_a_boundary_wrong():
    _bursts(_Unaligned(BYTES)).refute(4)


def _reader(component, tile=False):
    bench = Bench()
    m = bench.m
    cleared = bench.free(1, "cleared")
    dut = bench.add(component, within=ResetInserter(cleared))
    bus = dut.bus
    bench.surround(dut, but=("requests", "data"))
    _ask(bench, dut.requests)
    ask = bus.arvalid & bus.arready
    beat, end = bus.rvalid & bus.rready, bus.rvalid & bus.rready & bus.rlast
    under_way = Signal(8)
    m.d.sync += under_way.eq(under_way + ask - end)
    bench.assume(~bus.rvalid | (under_way != 0))
    bench.assume(bench.holds(bus.rvalid, bus.rready, bus.rdata, bus.rresp, bus.rlast))
    # It is reset as its documentation says; what offers to it is reset with it.
    bench.assume(~cleared | (dut.drain & dut.idle & ~dut.requests.valid))
    bench.assume(~bench.past(dut.drain & ~cleared) | dut.drain)

    bench.must(bench.holds(bus.arvalid, bus.arready, bus.araddr, bus.arlen, bus.arsize,
                           bus.arburst, bus.arid))
    _legal_burst(bench, bus.arvalid, bus.araddr, bus.arlen)
    bench.must((bus.arsize == _SHIFT) & (bus.arburst == INCREMENTING))
    bench.must(under_way <= OUTSTANDING)
    bench.must(~dut.idle | ((under_way == 0) & ~bus.arvalid))
    m.d.comb += dut.data.ready.eq(bench.free(1, "ready"))
    bench.must(dut.drain | bench.holds(dut.data.valid, dut.data.ready, dut.data.payload))
    # Every beat is passed on or, in a drain, dropped.
    bench.must(Mux(dut.drain, bus.rready & ~dut.data.valid,
                   (beat == (dut.data.valid & dut.data.ready))
                   & (dut.data.payload == bus.rdata)))
    bench.must(dut.error == (beat & (bus.rresp != 0)))
    # For induction.
    bench.must(bench.inside(dut, "flight") == under_way + bus.arvalid)
    bench.must(bench.inside(dut, "flight") <= OUTSTANDING)
    address, beats = bench.inside(dut, "address"), bench.inside(dut, "beats")
    bench.must(~bench.inside(dut, "busy") | ((address[:_SHIFT] == 0) & (beats != 0)))
    if tile:
        asked = _Asked(bench, dut.requests)
        bench.assume(~cleared & ~dut.drain)
        asked.burst(bench, ask, bus.araddr, bus.arlen)
        asked.kept(bench, dut, bus.arvalid, bus.araddr, bus.arlen)
        bench.must(~dut.idle | (asked.left == 0))
    bench.cover(under_way == OUTSTANDING)
    bench.cover(cleared)
    return bench


def test_reader_keeps_the_rules():
    bench = _reader(AxiReader(BYTES, OUTSTANDING))
    bench.prove(3)
    bench.reach(10)


def test_reader_asks_for_all_beats_in_order():
    _reader(AxiReader(BYTES, OUTSTANDING), tile=True).prove(1)


class _DropsValid(AxiReader):
    """Offers an address for one clock."""

    def elaborate(self, platform):
        m = super().elaborate(platform)
        with m.If(self.bus.arvalid):
            m.d.sync += self.bus.arvalid.eq(0)
        return m


class _AsksTooOften(AxiReader):
    """Counts to one more than it may."""

    def __init__(self, data_bytes, outstanding):
        super().__init__(data_bytes, outstanding + 1)


class _IdleEarly(AxiReader):
    """Is idle when all is asked for."""

    def elaborate(self, platform):
        m = super().elaborate(platform)
        m.d.comb += self.idle.eq(~self.bus.arvalid)
        return m


@pytest.mark.parametrize("broken", [_DropsValid, _AsksTooOften, _IdleEarly])
def test_reader_wrong(broken):
    _reader(broken(BYTES, OUTSTANDING)).refute(10)


def _writer(component, tile=False):
    bench = Bench()
    m = bench.m
    cleared = bench.free(1, "cleared")
    dut = bench.add(component, within=ResetInserter(cleared))
    bus = dut.bus
    bench.surround(dut, but=("requests",))
    _ask(bench, dut.requests)
    ask, send = bus.awvalid & bus.awready, bus.wvalid & bus.wready
    end, answer = send & bus.wlast, bus.bvalid & bus.bready
    asked, ended, sent = Signal(8), Signal(8), Signal(8)  # not answered; beats of this burst
    m.d.sync += [asked.eq(asked + ask - answer), ended.eq(ended + end - answer),
                 sent.eq(Mux(end, 0, sent + send))]
    bench.assume(~bus.bvalid | ((asked != 0) & (ended != 0)))
    bench.assume(bench.holds(bus.bvalid, bus.bready, bus.bresp))
    bench.assume(~cleared | (dut.drain & dut.idle & ~dut.requests.valid))
    bench.assume(~bench.past(dut.drain & ~cleared) | dut.drain)

    bench.must(bench.holds(bus.awvalid, bus.awready, bus.awaddr, bus.awlen, bus.awsize,
                           bus.awburst, bus.awid))
    # A byte that is not written may change.
    bytes_ = Cat(bit.replicate(8) for bit in bus.wstrb)
    bench.must(bench.holds(bus.wvalid, bus.wready, bus.wdata & bytes_, bus.wstrb, bus.wlast))
    _legal_burst(bench, bus.awvalid, bus.awaddr, bus.awlen)
    bench.must((bus.awsize == _SHIFT) & (bus.awburst == INCREMENTING))
    # Data does not go before its address is offered, and ends with the burst.
    bench.must(~bus.wvalid | (bus.wlast == (sent == bus.awlen)))
    bench.must(~bus.wvalid | bus.awvalid | (asked == ended + 1))
    bench.must((asked <= OUTSTANDING) & (ended <= OUTSTANDING) & bus.bready)
    bench.must(~dut.idle | ((asked == 0) & (ended == 0) & ~bus.awvalid & ~bus.wvalid))
    bench.must(dut.error == (bus.bvalid & (bus.bresp != 0)))
    # Outside of a drain every beat taken is sent, as it is.
    taken = dut.data.valid & dut.data.ready
    bench.must(dut.drain | ((taken == send) & (~send | (
        (bus.wdata == dut.data.payload.data) & (bus.wstrb == dut.data.payload.strobe)))))
    # In a drain it writes nothing but what it had already offered.
    offered = bench.past(bus.wvalid & ~bus.wready)
    bench.must(~bench.past(dut.drain) | offered | ~send | (bus.wstrb == 0))
    # For induction.
    flight, sending = bench.inside(dut, "flight"), bench.inside(dut, "sending")
    bench.must(~bench.inside(dut, "dropping") | dut.drain)
    bench.must(flight == asked + bus.awvalid)
    bench.must(flight == ended + sending)
    bench.must(flight <= OUTSTANDING)
    bench.must(~sending | (bench.inside(dut, "left") == bus.awlen - sent))
    bench.must((sent == 0) | (sending & (sent <= bus.awlen)))
    bench.must(~bus.awvalid | sending | (sent == 0))
    address, beats = bench.inside(dut, "address"), bench.inside(dut, "beats")
    bench.must(~bench.inside(dut, "busy") | ((address[:_SHIFT] == 0) & (beats != 0)))
    if tile:
        requests = _Asked(bench, dut.requests)
        bench.assume(~cleared & ~dut.drain)
        requests.burst(bench, ask, bus.awaddr, bus.awlen)
        requests.kept(bench, dut, bus.awvalid, bus.awaddr, bus.awlen)
        bench.must(~dut.idle | (requests.left == 0))
    bench.cover(asked == OUTSTANDING)
    bench.cover(cleared & (sent == 0) & bench.past(bus.bvalid))
    bench.cover(send & bus.wlast & (sent == 2))
    return bench


def test_writer_keeps_the_rules():
    bench = _writer(AxiWriter(BYTES, OUTSTANDING))
    bench.prove(3)
    bench.reach(14)


def test_writer_asks_for_all_beats_in_order():
    _writer(AxiWriter(BYTES, OUTSTANDING), tile=True).prove(1)


class _LastEarly(AxiWriter):
    """Ends a burst a beat early."""

    def elaborate(self, platform):
        m = super().elaborate(platform)
        m.d.comb += self.bus.wlast.eq(self.bus.awlen == 0)
        return m


class _ForgetsData(AxiWriter):
    """Takes data that the bus does not."""

    def elaborate(self, platform):
        m = super().elaborate(platform)
        m.d.comb += self.data.ready.eq(self.bus.wvalid)
        return m


class _DropsAtOnce(AxiWriter):
    """Changes what it offers when a drain begins."""

    def elaborate(self, platform):
        m = super().elaborate(platform)
        m.d.comb += self.bus.wstrb.eq(Mux(self.drain, 0, self.data.payload.strobe))
        return m


@pytest.mark.parametrize("broken", [_LastEarly, _ForgetsData, _DropsAtOnce])
def test_writer_wrong(broken):
    _writer(broken(BYTES, OUTSTANDING)).refute(10)


def _control(component):
    bench = Bench()
    dut, bus = bench.add(component), component.bus
    bench.surround(dut)
    for valid, ready, *payload in ((bus.awvalid, bus.awready, bus.awaddr),
                                   (bus.wvalid, bus.wready, bus.wdata, bus.wstrb),
                                   (bus.arvalid, bus.arready, bus.araddr)):
        bench.assume(bench.holds(valid, ready, *payload))
    bench.must(bench.holds(bus.bvalid, bus.bready, bus.bresp))
    bench.must(bench.holds(bus.rvalid, bus.rready, bus.rdata, bus.rresp))
    # One answer to each write and each read, in the clocks after.
    wrote, read = bus.awvalid & bus.awready, bus.arvalid & bus.arready
    bench.must(wrote == (bus.wvalid & bus.wready))
    writes, reads = Signal(2), Signal(2)
    bench.m.d.sync += [writes.eq(writes + wrote - (bus.bvalid & bus.bready)),
                       reads.eq(reads + read - (bus.rvalid & bus.rready))]
    bench.must((writes == bus.bvalid) & (reads == bus.rvalid))

    # A register that the host alone writes reads as written, byte by byte.
    plain = [Register.CONTROL + 4, Register.PROGRAM, Register.WATCHDOG, Register.LANE]
    chosen, byte = bench.constant(2, "chosen"), bench.constant(2, "byte")
    offset, word = Signal(12), Signal(8)
    bench.m.d.comb += offset.eq(Cat(*(Const(at, 12) for at in plain)).word_select(chosen, 12))
    with bench.m.If(wrote & (bus.awaddr[2:] == offset[2:]) & bus.wstrb.bit_select(byte, 1)):
        bench.m.d.sync += word.eq(bus.wdata.word_select(byte, 8))
    asked, expected = bench.past(read & (bus.araddr[2:] == offset[2:])), bench.past(word)
    bench.must(~asked | (bus.rdata.word_select(byte, 8) == expected))
    held = Cat(dut.control[32:], dut.program, dut.watchdog, dut.lanes[0][:32])
    bench.must(held.word_select(chosen, 32).word_select(byte, 8) == word)

    # ap_ctrl_chain: no start while it runs, nor before the host has seen it done.
    runs = Signal()
    bench.m.d.sync += runs.eq(dut.start | (runs & ~dut.finished))
    bench.assume(~dut.finished | runs)
    bench.must(~dut.start | ~runs)
    bench.must(bench.inside(dut, "running") == runs)
    bench.cover(asked & (word == 0xA5) & (chosen == 3))
    bench.cover(dut.start & bench.past(bench.past(dut.finished)))
    bench.cover(dut.interrupt)
    return bench


ARCH = replace(build("sim"), lanes=1, beat_bytes=16, lane_dsps=32)


def test_control_port():
    bench = _control(ControlRegisters(ARCH))
    bench.prove(3)
    bench.reach(12)


class _AnswersOnce(ControlRegisters):
    """Gives the answer to a write for one clock."""

    def elaborate(self, platform):
        m = super().elaborate(platform)
        with m.If(self.bus.bvalid):
            m.d.sync += self.bus.bvalid.eq(0)
        return m


class _ReadsAhead(ControlRegisters):
    """Takes a read while the answer to the one before still waits."""

    def elaborate(self, platform):
        m = super().elaborate(platform)
        m.d.comb += self.bus.arready.eq(1)
        return m


@pytest.mark.parametrize("broken", [_AnswersOnce, _ReadsAhead])
def test_control_port_wrong(broken):
    _control(broken(ARCH)).refute(8)
