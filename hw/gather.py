"""Bring the lanes' results together: a tree of choices, a register at each."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, fifo, stream, wiring
from amaranth.lib.wiring import In, Out

from alula.hw.attention.merge import packet_layout
from alula.hw.choice import choose
from alula.hw.lane.drain import result_layout

DEPTH = 4  # words behind the tree
WIDE = 4  # streams that a choice is made of: a 6-input LUT a bit


def output_layout(arch):
    """What a lane sends: a word of a matrix product, or a word of a packet of an attention."""
    return data.StructLayout({
        "is_packet": 1,
        "last": 1,  # words up to one stay together: those of a packet that is not whole
        "content": data.UnionLayout({"result": result_layout(arch), "packet": packet_layout(arch)}),
    })


class Choice(wiring.Component):
    """Pass on up to four streams in turns, a packet at a time, with a register behind."""

    def __init__(self, layout, count):
        self.layout, self.count = layout, count
        super().__init__({"inputs": In(stream.Signature(layout)).array(count),
                          "output": Out(stream.Signature(layout))})

    def elaborate(self, platform):
        m = Module()
        held, locked = Signal(range(self.count)), Signal()  # whose turn it was; its packet goes on
        chosen, word = Signal(range(self.count)), Signal(self.layout)
        offers = Cat(port.valid for port in self.inputs)
        free, valid = ~self.output.valid | self.output.ready, Signal()
        m.d.comb += [
            chosen.eq(Mux(locked, held, choose(held, [
                self._after(turn, offers) for turn in range(self.count)]))),
            valid.eq(choose(chosen, list(offers))),
            word.eq(choose(chosen, [port.payload.as_value() for port in self.inputs])),
            *(port.ready.eq(free & (chosen == at)) for at, port in enumerate(self.inputs)),
        ]
        with m.If(free):
            m.d.sync += [self.output.valid.eq(valid), self.output.payload.eq(word)]
            with m.If(valid):
                m.d.sync += [held.eq(chosen), locked.eq(~word.last)]
        return m

    def _after(self, turn, offers):
        """Return whose turn it is after one's: the next that offers something, else its own."""
        found = Const(turn, range(self.count))
        for further in reversed(range(1, self.count)):
            other = (turn + further) % self.count
            found = Mux(offers[other], other, found)
        return found


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
            chosen = []
            for at in range(0, len(streams), WIDE):
                few = streams[at:at + WIDE]
                if len(few) == 1:
                    chosen += few
                    continue
                m.submodules += (node := Choice(layout, len(few)))
                for source, port in zip(few, node.inputs, strict=True):
                    wiring.connect(m, source, port)
                busy = busy | node.output.valid
                chosen.append(node.output)
            streams = chosen
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
