"""Bring the lanes' results together: a tree of two-way choices, a register at each."""

from amaranth.hdl import Module, Mux, Signal, Value
from amaranth.lib import data, fifo, stream, wiring
from amaranth.lib.wiring import In, Out

from alula.hw.attention.merge import packet_layout
from alula.hw.lane.drain import result_layout

DEPTH = 4  # words behind the tree


def output_layout(arch):
    """What a lane sends: a word of a matrix product, or a word of a packet of an attention."""
    return data.StructLayout({
        "is_packet": 1,
        "last": 1,  # words up to one stay together: those of a packet that is not whole
        "content": data.UnionLayout({"result": result_layout(arch), "packet": packet_layout(arch)}),
    })


class Choice(wiring.Component):
    """Pass on two streams in turns, a packet at a time, with a register behind."""

    def __init__(self, layout):
        self.layout = layout
        super().__init__({"inputs": In(stream.Signature(layout)).array(2),
                          "output": Out(stream.Signature(layout))})

    def elaborate(self, platform):
        m = Module()
        held, locked = Signal(), Signal()  # whose turn it was, and whether its packet goes on
        chosen = Signal()
        first, second = self.inputs
        free = ~self.output.valid | self.output.ready
        m.d.comb += chosen.eq(Mux(locked, held, Mux(held, ~first.valid, second.valid)))
        word = Signal(self.layout)
        valid = Mux(chosen, second.valid, first.valid)
        m.d.comb += [
            word.eq(Mux(chosen, second.payload, first.payload)),
            first.ready.eq(free & ~chosen), second.ready.eq(free & chosen),
        ]
        with m.If(free):
            m.d.sync += [self.output.valid.eq(valid), self.output.payload.eq(word)]
            with m.If(valid):
                m.d.sync += [held.eq(chosen), locked.eq(~word.last)]
        return m


class Gather(wiring.Component):
    """Merge the outputs of all lanes.

    Members
    -------
    lanes : ``In(stream of output_layout)`` of each lane
    output : ``Out(stream of output_layout)``
    idle : ``Out(1)``
        Nothing is on its way.
    """

    def __init__(self, arch):
        self.arch = arch
        layout = output_layout(arch)
        super().__init__({"lanes": In(stream.Signature(layout)).array(arch.lanes),
                          "output": Out(stream.Signature(layout)), "idle": Out(1)})

    def elaborate(self, platform):
        m = Module()
        layout = output_layout(self.arch)
        streams = [wiring.flipped(lane) for lane in self.lanes]
        busy = 0
        while len(streams) > 1:
            nodes = []
            for at in range(0, len(streams) - 1, 2):
                m.submodules += (node := Choice(layout))
                wiring.connect(m, streams[at], node.inputs[0])
                wiring.connect(m, streams[at + 1], node.inputs[1])
                busy = busy | node.output.valid
                nodes.append(node.output)
            streams = nodes + streams[len(nodes) * 2:]
        # What comes behind takes a word or not; the tree is told a clock later.
        m.submodules.queue = queue = fifo.SyncFIFOBuffered(width=layout.size, depth=DEPTH)
        m.d.comb += [
            queue.w_data.eq(Value.cast(streams[0].payload)), queue.w_en.eq(streams[0].valid),
            streams[0].ready.eq(queue.w_rdy), Value.cast(self.output.payload).eq(queue.r_data),
            self.output.valid.eq(queue.r_rdy), queue.r_en.eq(self.output.ready),
        ]
        for lane in self.lanes:
            busy = busy | lane.valid
        m.d.comb += self.idle.eq(~busy & (queue.level == 0))
        return m
