"""Queues of commands, one for each unit, and the tokens that order them."""

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import data, fifo, stream, wiring
from amaranth.lib.wiring import In, Out

from alula.hw import isa
from alula.hw.formats import COMMAND_BITS, instruction_layout

INDEX_BITS = 16  # of an instruction in the program
QUEUES = len(isa.Queue)
COMMAND = data.StructLayout({"word": COMMAND_BITS, "index": INDEX_BITS})
WATCH = data.StructLayout({"runs": 1, "index": INDEX_BITS})  # what a queue runs
HEADER = instruction_layout(isa.Sync)  # the fields that every instruction has, at their places


def token_port():
    """What a queue tells and asks of the tokens."""
    return wiring.Signature({
        "wait": Out(QUEUES), "present": In(1), "take": Out(1),
        "release": Out(QUEUES), "give": Out(1),
    })


class Tokens(wiring.Component):
    """Count the tokens from each queue to each other.

    Members
    -------
    queues : six token ports
        ``present`` says that there is one from every queue in ``wait``; ``take`` takes them,
        ``give`` gives one to every queue in ``release``, both in the same clock.
    none : ``Out(1)``
        No token is left anywhere.
    """

    def __init__(self):
        super().__init__({"queues": In(token_port()).array(QUEUES), "none": Out(1)})

    def elaborate(self, platform):
        m = Module()
        counts = [[Signal(range(isa.TOKEN_LIMIT + 1), name=f"from{a}_to{b}")
                   for b in range(QUEUES)] for a in range(QUEUES)]
        for at, port in enumerate(self.queues):
            m.d.comb += port.present.eq(Cat(
                counts[giver][at].any() | ~port.wait[giver] for giver in range(QUEUES)).all())
        for giver, row in enumerate(counts):
            for taker, count in enumerate(row):
                given = self.queues[giver].give & self.queues[giver].release[taker]
                taken = self.queues[taker].take & self.queues[taker].wait[giver]
                with m.If(given & ~taken):
                    m.d.sync += count.eq(count + 1)
                with m.Elif(taken & ~given):
                    m.d.sync += count.eq(count - 1)
        m.d.comb += self.none.eq(~Cat(count for row in counts for count in row).any())
        return m


class IssueQueue(wiring.Component):
    """Hold a unit's commands and start each when its tokens are there.

    Members
    -------
    commands : ``In(stream of COMMAND)``
        In program order.
    unit : ``Out(stream of COMMAND_BITS)``
        The command to run; held until taken. ``Sync`` never gets here.
    done : ``In(1)``
        A pulse when the command taken last has ended; not in the clock it is taken.
    index : ``Out(INDEX_BITS)``
        Which instruction runs or waits; runs : ``Out(1)``, whether it runs.
    idle : ``Out(1)``
        Nothing waits and nothing runs.
    active : ``Out(1)``
        A command is offered or runs.
    tokens : token port
    """

    def __init__(self, depth):
        self.depth = depth
        super().__init__({
            "commands": In(stream.Signature(COMMAND)),
            "unit": Out(stream.Signature(COMMAND_BITS)),
            "done": In(1),
            "index": Out(INDEX_BITS),
            "runs": Out(1),
            "idle": Out(1),
            "active": Out(1),
            "tokens": Out(token_port()),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.fifo = queue = fifo.SyncFIFOBuffered(
            width=COMMAND.size, depth=self.depth)
        command = data.View(COMMAND, queue.r_data)
        header = data.View(HEADER, command.word)
        busy, sync = Signal(), Signal()
        ended = Signal()  # a clock after the unit's word, which comes from far
        ready = Signal()  # the command has its tokens
        m.d.comb += [
            queue.w_data.eq(self.commands.payload),
            queue.w_en.eq(self.commands.valid),
            self.commands.ready.eq(queue.w_rdy),
            sync.eq(header.opcode == isa.Sync.opcode),
            self.unit.payload.eq(command.word),
            self.index.eq(command.index),
            self.tokens.wait.eq(header.wait),
            self.tokens.release.eq(header.release),
            self.idle.eq(~queue.r_rdy),
            self.active.eq(busy | self.unit.valid), self.runs.eq(busy),
        ]
        m.d.sync += ended.eq(self.done)
        with m.If(busy):
            m.d.comb += [self.tokens.give.eq(ended), queue.r_en.eq(ended)]
            with m.If(ended):
                m.d.sync += busy.eq(0)
        with m.Elif(ready):
            m.d.comb += self.unit.valid.eq(1)
            m.d.sync += [busy.eq(self.unit.ready), ready.eq(~self.unit.ready)]
        with m.Elif(queue.r_rdy & self.tokens.present):
            m.d.comb += [self.tokens.take.eq(1), self.tokens.give.eq(sync), queue.r_en.eq(sync)]
            m.d.sync += ready.eq(~sync)
        return m
