"""Share one read port of a memory between units."""

from amaranth.hdl import Module, Signal
from amaranth.lib import data, fifo, stream, wiring
from amaranth.lib.wiring import In, Out

from alula.hw.axi import BEATS_BITS, REQUEST

_PENDING = 16  # requests under way


class ReadShare(wiring.Component):
    """Let several clients use one reader; the lower number goes first.

    Members
    -------
    clients : requests in, beats out, for each
        Each gets the beats of its own requests, in its own order. A client that does not take its
        beats holds up the others.
    requests, beats : to and from the reader
    """

    def __init__(self, clients, bits):
        self.count = clients
        super().__init__({
            "clients": In(wiring.Signature({
                "requests": Out(stream.Signature(REQUEST)),
                "beats": In(stream.Signature(bits))})).array(clients),
            "requests": Out(stream.Signature(REQUEST)),
            "beats": In(stream.Signature(bits)),
        })

    def elaborate(self, platform):
        m = Module()
        chosen, granted = Signal(range(self.count)), Signal()  # whose request is the next
        free = Signal()
        entry = data.StructLayout({"owner": range(self.count), "beats": BEATS_BITS})
        m.submodules.order = order = fifo.SyncFIFOBuffered(width=entry.size, depth=_PENDING)
        head = data.View(entry, order.r_data)
        taken = Signal(BEATS_BITS)  # beats of the head that went by
        entering = data.View(entry, order.w_data)
        with m.If(~granted):  # in a clock of its own, so that no client waits for another's logic
            for at in reversed(range(self.count)):
                with m.If(self.clients[at].requests.valid):
                    m.d.sync += [chosen.eq(at), granted.eq(1)]
        with m.Elif(free):
            m.d.sync += granted.eq(0)
        m.d.comb += [free.eq(granted & ~self.requests.valid & order.w_rdy),
                     entering.owner.eq(chosen)]
        with m.If(self.requests.ready):
            m.d.sync += self.requests.valid.eq(0)
        for at, client in enumerate(self.clients):
            asks = client.requests
            with m.If(chosen == at):
                m.d.comb += [asks.ready.eq(free), order.w_en.eq(free & asks.valid),
                             entering.beats.eq(asks.payload.beats)]
                with m.If(free):
                    m.d.sync += [self.requests.valid.eq(asks.valid),
                                 self.requests.payload.eq(asks.payload)]
            m.d.comb += client.beats.payload.eq(self.beats.payload)
            with m.If(order.r_rdy & (head.owner == at)):
                m.d.comb += [
                    client.beats.valid.eq(self.beats.valid),
                    self.beats.ready.eq(client.beats.ready),
                ]
        with m.If(self.beats.valid & self.beats.ready):
            m.d.sync += taken.eq(taken + 1)
            with m.If(taken + 1 == head.beats):
                m.d.comb += order.r_en.eq(1)
                m.d.sync += taken.eq(0)
        return m
