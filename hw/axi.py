"""AXI4 masters: long reads and writes cut into legal bursts.

Ref: AMBA AXI Protocol Specification, ARM IHI 0022. Rules kept: a burst does not cross a 4 KiB
boundary (A3.4.1) and has at most 256 beats; VALID does not wait for READY, and what it offers does
not change until READY (A3.2.1). One ID, so answers come in order.
"""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from alula.hw.striping import PAGE_BYTES as BOUNDARY_BYTES

BURST_BEATS = 256
ADDRESS_BITS = 64
INCREMENTING = 1  # AxBURST
BEATS_BITS = 24  # of one request


def read_signature(data_bytes):
    """Read channels of a master."""
    return wiring.Signature({
        "arid": Out(1), "araddr": Out(ADDRESS_BITS),
        "arlen": Out(8), "arsize": Out(3), "arburst": Out(2),
        "arvalid": Out(1), "arready": In(1),
        "rid": In(1), "rdata": In(8 * data_bytes), "rresp": In(2), "rlast": In(1),
        "rvalid": In(1), "rready": Out(1),
    })


def write_signature(data_bytes):
    """Write channels of a master."""
    return wiring.Signature({
        "awid": Out(1), "awaddr": Out(ADDRESS_BITS),
        "awlen": Out(8), "awsize": Out(3), "awburst": Out(2),
        "awvalid": Out(1), "awready": In(1),
        "wdata": Out(8 * data_bytes), "wstrb": Out(data_bytes), "wlast": Out(1),
        "wvalid": Out(1), "wready": In(1),
        "bid": In(1), "bresp": In(2), "bvalid": In(1), "bready": Out(1),
    })


def signature(data_bytes):
    """All channels of a master."""
    return wiring.Signature(dict(read_signature(data_bytes).members)
                            | dict(write_signature(data_bytes).members))


def join(m, outside, read=None, write=None):
    """Connect a master's read and write halves to one port that has all channels."""
    for half in (read, write):
        if half is not None:
            for name, member in half.signature.members.items():
                ours, theirs = getattr(half, name), getattr(outside, name)
                m.d.comb += (theirs.eq(ours) if member.flow is Out else ours.eq(theirs))


REQUEST = data.StructLayout({"address": ADDRESS_BITS, "beats": BEATS_BITS})


class Bursts(wiring.Component):
    """Cut requests into bursts.

    Members
    -------
    requests : ``In(stream of REQUEST)``
        Byte address, a multiple of ``data_bytes``, and beats, at least 1. Taken a clock after the
        last burst of the one before, so that no path leads through here.
    bursts : ``Out(stream of address, length)``
        ``length`` is beats minus 1, as AXI has it.
    """

    def __init__(self, data_bytes):
        self.data_bytes = data_bytes
        super().__init__({
            "requests": In(stream.Signature(REQUEST)),
            "bursts": Out(stream.Signature(data.StructLayout({
                "address": ADDRESS_BITS, "length": 8}))),
        })

    def elaborate(self, platform):
        m = Module()
        shift = self.data_bytes.bit_length() - 1
        most = min(BURST_BEATS, BOUNDARY_BYTES // self.data_bytes)
        address, beats = Signal(ADDRESS_BITS, name="address"), Signal(BEATS_BITS)
        busy = Signal()  # address and beats hold what is left of a request
        room, size = Signal(range(most + 1)), Signal(range(most + 1))
        m.d.comb += [
            room.eq(most - address[shift:shift + most.bit_length() - 1]),
            size.eq(Mux(beats < room, beats, room)),
            self.bursts.valid.eq(busy),
            self.bursts.payload.address.eq(address),
            self.bursts.payload.length.eq(size - 1),
        ]
        last = beats == size
        m.d.comb += self.requests.ready.eq(~busy)
        with m.If(busy & self.bursts.ready):
            m.d.sync += [address.eq(address + (size << shift)), beats.eq(beats - size),
                         busy.eq(~last)]
        with m.If(self.requests.ready):
            m.d.sync += [
                busy.eq(self.requests.valid),
                address.eq(self.requests.payload.address),
                beats.eq(self.requests.payload.beats),
            ]
        return m


class AxiReader(wiring.Component):
    """Read runs of beats, in the order asked.

    Parameters
    ----------
    data_bytes
        Width of the port.
    outstanding
        Most bursts asked for and not yet answered in full.

    Members
    -------
    bus : AXI4 read channels
    requests : ``In(stream of REQUEST)``
    data : ``Out(stream of 8 * data_bytes bits)``
        The beats of all requests in order. Not ready stalls the bus, which AXI allows.
    error : ``Out(1)``
        High for a clock when a beat comes with an error response. The beat is passed on.
    drain : ``In(1)``
        Ask for no more, and drop what comes; when then ``idle``, the reader may be reset.
    idle : ``Out(1)``
        Nothing is asked for that has not come.
    """

    def __init__(self, data_bytes, outstanding=16):
        self.data_bytes, self.outstanding = data_bytes, outstanding
        super().__init__({
            "bus": Out(read_signature(data_bytes)),
            "requests": In(stream.Signature(REQUEST)),
            "data": Out(stream.Signature(8 * data_bytes)),
            "error": Out(1),
            "drain": In(1),
            "idle": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        bus = self.bus
        m.submodules.bursts = bursts = Bursts(self.data_bytes)
        wiring.connect(m, wiring.flipped(self.requests), bursts.requests)
        flight = Signal(range(self.outstanding + 1))
        asked, answered = Signal(), Signal()
        # A register between the bursts and the bus: its offer must not change, `flight` may.
        with m.If(~bus.arvalid | bus.arready):
            m.d.comb += bursts.bursts.ready.eq((flight != self.outstanding) & ~self.drain)
            m.d.comb += asked.eq(bursts.bursts.valid & bursts.bursts.ready)
            m.d.sync += [
                bus.arvalid.eq(asked),
                bus.araddr.eq(bursts.bursts.payload.address),
                bus.arlen.eq(bursts.bursts.payload.length),
            ]
        m.d.comb += [
            bus.arsize.eq(self.data_bytes.bit_length() - 1),
            bus.arburst.eq(INCREMENTING),
            self.data.payload.eq(bus.rdata),
            self.data.valid.eq(bus.rvalid & ~self.drain),
            bus.rready.eq(self.data.ready | self.drain),
            answered.eq(bus.rvalid & bus.rready & bus.rlast),
            self.error.eq(bus.rvalid & bus.rready & (bus.rresp != 0)),
            self.idle.eq((flight == 0) & (~bursts.bursts.valid | self.drain)),
        ]
        m.d.sync += flight.eq(flight + asked - answered)
        return m


class AxiWriter(wiring.Component):
    """Write runs of beats.

    Members
    -------
    bus : AXI4 write channels
    requests : ``In(stream of REQUEST)``
    data : ``In(stream of data, strobe)``
        The beats of all requests in order; may come before or after their request.
    error : ``Out(1)``
        High for a clock when a burst is answered with an error.
    drain : ``In(1)``
        Begin no more, and end what is begun by writing nothing; when then ``idle``, the writer may
        be reset.
    idle : ``Out(1)``
        Every write asked for is in memory.
    """

    def __init__(self, data_bytes, outstanding=16):
        self.data_bytes, self.outstanding = data_bytes, outstanding
        super().__init__({
            "bus": Out(write_signature(data_bytes)),
            "requests": In(stream.Signature(REQUEST)),
            "data": In(stream.Signature(data.StructLayout({
                "data": 8 * data_bytes, "strobe": data_bytes}))),
            "error": Out(1),
            "drain": In(1),
            "idle": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        bus = self.bus
        m.submodules.bursts = bursts = Bursts(self.data_bytes)
        wiring.connect(m, wiring.flipped(self.requests), bursts.requests)
        flight = Signal(range(self.outstanding + 1))
        left = Signal(8)  # beats of the burst still to send, minus 1
        sending = Signal()
        asked, answered, last = Signal(), Signal(), Signal()
        m.d.comb += last.eq(bus.wvalid & bus.wready & bus.wlast)
        dropping = Signal()  # in a drain, but not before what was offered is taken
        with m.If(~bus.wvalid | bus.wready):
            m.d.sync += dropping.eq(self.drain)
        # One burst's address at a time; the next follows as its data ends.
        with m.If((~bus.awvalid | bus.awready) & (~sending | last)):
            m.d.comb += bursts.bursts.ready.eq((flight != self.outstanding) & ~self.drain)
            m.d.comb += asked.eq(bursts.bursts.valid & bursts.bursts.ready)
        with m.If(asked):
            m.d.sync += [
                bus.awvalid.eq(1),
                bus.awaddr.eq(bursts.bursts.payload.address),
                bus.awlen.eq(bursts.bursts.payload.length),
                left.eq(bursts.bursts.payload.length),
                sending.eq(1),
            ]
        with m.Else():
            with m.If(bus.awready):
                m.d.sync += bus.awvalid.eq(0)
            with m.If(last):
                m.d.sync += sending.eq(0)
            with m.Elif(bus.wvalid & bus.wready):
                m.d.sync += left.eq(left - 1)
        m.d.comb += [
            bus.awsize.eq(self.data_bytes.bit_length() - 1),
            bus.awburst.eq(INCREMENTING),
            bus.wdata.eq(self.data.payload.data),
            bus.wstrb.eq(Mux(dropping, 0, self.data.payload.strobe)),
            bus.wlast.eq(left == 0),
            bus.wvalid.eq((self.data.valid | dropping) & sending),
            self.data.ready.eq(bus.wready & sending),
            bus.bready.eq(1),
            answered.eq(bus.bvalid),
            self.error.eq(bus.bvalid & (bus.bresp != 0)),
            self.idle.eq((flight == 0) & (~bursts.bursts.valid | self.drain)),
        ]
        m.d.sync += flight.eq(flight + asked - answered)
        return m
