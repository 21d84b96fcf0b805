"""The accelerator without its lanes, control registers and buses: only wiring."""

from amaranth.hdl import Cat, Const, DomainRenamer, Module, Mux, ResetSignal, Signal
from amaranth.lib import fifo, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from alula.hw import isa, rows as rows_of
from alula.hw.axi import ADDRESS_BITS, REQUEST
from alula.hw.buffers import ParamBuffer, VectorBuffer, write_layout
from alula.hw.csr import Error
from alula.hw.formats import COMMAND_BITS, instruction_layout
from alula.hw.gate import gated
from alula.hw.gather import Gather
from alula.hw.isa import BLOCK, WORD_BYTES, Queue
from alula.hw.lane.lane import socket_signature
from alula.hw.lane.prefetch import Load
from alula.hw.load import LoadUnit
from alula.hw.merger import Merger
from alula.hw.passive import passive
from alula.hw.queues import INDEX_BITS, WATCH, IssueQueue, Tokens
from alula.hw.sequencer import UNITS, Sequencer
from alula.hw.share import ReadShare
from alula.hw.step import StepTable
from alula.hw.store import BEAT, StoreUnit
from alula.hw.vector.unit import VectorUnit

_WORD = ceil_log2(WORD_BYTES)


def fork(m, source, sinks, wanted=1):
    """Give a stream's payload to each sink once; it is taken when the last has taken it.

    No sink waits for another: a sink may be ready only when it sees that something is valid. The
    source is told it may go on even when it offers nothing: what is valid is known late in a clock.
    ``wanted`` has a bit for each sink that takes part.
    """
    taken = Signal(len(sinks), name="taken")
    wanted = Cat(Const(wanted).replicate(len(sinks))) if isinstance(wanted, int) else wanted
    for at, sink in enumerate(sinks):
        m.d.comb += sink.valid.eq(source.valid & ~taken[at] & wanted[at])
    now = taken | Cat(*(sink.ready for sink in sinks)) | ~wanted
    m.d.comb += source.ready.eq(now.all())
    with m.If(source.valid):
        m.d.sync += taken.eq(Mux(now.all(), 0, now & wanted))


class Core(wiring.Component):
    """Units and queues, and what they tell the lanes.

    Members
    -------
    go, program, instructions, base : ``In``
        Start a program at a byte address; ``base`` is the control memory's.
    bases : ``In``
        Each lane's memory.
    ended : ``Out(1)``
    failed : ``Out(Error)``, failed_index
        See :class:`alula.hw.supervisor.Supervisor`.
    load_error, store_error : ``In(1)``
        Of the control memory's buses.
    clear, drain : ``In(1)``; idle : ``Out(1)``
        Of the lanes.
    requests, words, write_requests, write_beats, written
        To and from the reader and the writer of the control memory.
    lanes : ``In(socket_signature)`` of each lane
    watch : ``Out(WATCH)`` of each queue
        What it runs, for those who watch a simulation.
    beats : ``Out``
        How many of the lanes got a beat.
    """

    def __init__(self, arch):
        self.arch = arch
        super().__init__({
            "go": In(1), "program": In(ADDRESS_BITS), "instructions": In(32),
            "base": In(ADDRESS_BITS), "bases": In(ADDRESS_BITS).array(arch.lanes),
            "ended": Out(1), "failed": Out(Error), "failed_index": Out(INDEX_BITS),
            "load_error": In(1), "store_error": In(1),
            "clear": In(1), "drain": In(1), "idle": Out(1),
            "requests": Out(stream.Signature(REQUEST)),
            "words": In(stream.Signature(8 * WORD_BYTES)),
            "write_requests": Out(stream.Signature(REQUEST)),
            "write_beats": Out(stream.Signature(BEAT)),
            "written": In(1),
            "lanes": In(socket_signature(arch)).array(arch.lanes),
            "watch": Out(WATCH).array(len(UNITS)),
            "beats": Out(range(arch.lanes + 1)),
        })

    def elaborate(self, platform):
        m = Module()
        arch = self.arch
        m.submodules.sequencer = self.sequencer = Sequencer(arch)
        m.submodules.tokens = tokens = Tokens()
        m.submodules.gather = self.gather = Gather(arch)
        self.step, self.load, self.store = StepTable(arch), LoadUnit(arch), StoreUnit(arch)
        self.vector, self.merger = VectorUnit(arch), Merger(arch)
        self.queues = []
        for queue in UNITS:
            m.submodules[f"queue_{queue.name.lower()}"] = issue = IssueQueue(arch.queue_depth)
            wiring.connect(m, self.sequencer.queues[queue], issue.commands)
            wiring.connect(m, issue.tokens, tokens.queues[queue])
            self.queues.append(issue)
            watch = self.watch[len(self.queues) - 1]
            m.d.comb += [watch.runs.eq(issue.runs), watch.index.eq(issue.index)]
        wiring.connect(m, self.sequencer.tokens, tokens.queues[Queue.SYS])
        self._rest(m)
        self._control(m)
        self._memory(m)
        self._buffers(m)
        self._products(m)
        self._attention(m)
        self._lanes(m)
        self._errors(m)
        return m

    def _rest(self, m):
        """Units whose clocks rest; the vector unit also has the best logits, for two others."""
        active = {queue: issue.active for queue, issue in zip(UNITS, self.queues, strict=True)}
        stepping = Signal()
        step = stepping | self.step.read.valid | self.step.advance.valid
        m.d.sync += stepping.eq(step & ~(self.step.done | self.step.error))
        for name, unit, awake in (
                ("step", self.step, step),
                ("load", self.load, active[Queue.LD] | self.load.writes.valid),
                ("store", self.store, active[Queue.ST]),
                ("vector", self.vector, active[Queue.MISC] | active[Queue.ST] | step),
                ("merger", self.merger, active[Queue.MV] | self.merger.packets.valid
                 | self.merger.writes.valid | self.merger.clearing)):
            gated(m, name, awake)
            m.submodules[name] = DomainRenamer(name)(unit)

    def _control(self, m):
        """The sequencer, the step, and the units that take commands by themselves."""
        sequencer, step = self.sequencer, self.step
        queues = {queue: self.queues[queue] for queue in UNITS}
        for queue, unit in ((Queue.LD, self.load), (Queue.ST, self.store),
                            (Queue.MISC, self.vector)):
            wiring.connect(m, queues[queue].unit, unit.commands)
            m.d.comb += [queues[queue].done.eq(unit.done), unit.rows.eq(step.rows)]
        for unit in (self.load, self.store):
            m.d.comb += unit.base.eq(self.base)
            m.d.comb += [mine.eq(row) for mine, row in zip(unit.table, step.table, strict=True)]
        wiring.connect(m, sequencer.read, step.read)
        wiring.connect(m, sequencer.advance, step.advance)
        quiet = Cat(*(queue.idle for queue in self.queues)).all() & self.written
        m.d.comb += [
            sequencer.start.eq(self.go), sequencer.program.eq(self.program),
            sequencer.instructions.eq(self.instructions), sequencer.base.eq(self.base),
            sequencer.quiet.eq(quiet),
            sequencer.step_done.eq(step.done), sequencer.step_error.eq(step.error),
            sequencer.repeats.eq(step.repeats), sequencer.head.eq(step.head),
            sequencer.halves.eq(step.rows > isa.half(self.arch.rows)),
            step.base.eq(self.base), step.top_token.eq(self.vector.top_token),
        ]
        m.d.sync += self.ended.eq(sequencer.done)  # not before an error is known

    def _memory(self, m):
        m.submodules.share = share = ReadShare(3, 8 * WORD_BYTES)
        wiring.connect(m, share.requests, wiring.flipped(self.requests))
        # Who takes a word knows late in a clock whether it does; the reader is told by a queue.
        m.submodules.words = words = fifo.SyncFIFOBuffered(width=8 * WORD_BYTES, depth=2)
        m.d.comb += [words.w_data.eq(self.words.payload), words.w_en.eq(self.words.valid),
                     self.words.ready.eq(words.w_rdy)]
        wiring.connect(m, words.r_stream, share.beats)
        for client, unit in zip(share.clients, (self.sequencer, self.step, self.load),
                                strict=True):
            wiring.connect(m, unit.requests, client.requests)
            wiring.connect(m, client.beats, unit.words)
        wiring.connect(m, self.store.requests, wiring.flipped(self.write_requests))
        wiring.connect(m, self.store.beats, wiring.flipped(self.write_beats))
        m.d.comb += self.store.written.eq(self.written)

    def _buffers(self, m):
        arch, vector = self.arch, self.vector
        m.submodules.buffer = self.buffer = buffer = VectorBuffer(arch, 3)
        m.submodules.params = params = ParamBuffer(arch)
        self.result_writes, merges, loads = buffer.writes
        wiring.connect(m, self.merger.writes, merges)
        wiring.connect(m, self.load.writes, loads)
        wiring.connect(m, self.store.vector, buffer.reads)
        storing = ~self.queues[Queue.ST].idle
        m.d.comb += [
            buffer.read_enable.eq(vector.read_enable),
            buffer.read_address.eq(vector.read_address),
            vector.read_data.eq(buffer.read_data), self.store.vector_data.eq(buffer.read_data),
            buffer.writing.eq(vector.writes), buffer.write.address.eq(vector.write_address),
            buffer.write.data.eq(vector.write_data), buffer.write.mask.eq(vector.write_mask),
            params.address.eq(vector.param_address), vector.param_data.eq(params.data),
            params.write.eq(self.load.params),
            vector.top_row.eq(Mux(storing, self.store.top_row, self.step.top_row)),
            vector.top_index.eq(Mux(storing, self.store.top_index, 0)),
            self.store.top_value.eq(vector.top_value), self.store.top_token.eq(vector.top_token),
        ]

    def _all_done(self, m, name, pulses, end):
        """Return a signal that is high from the last of the pulses until ``end``.

        A lane may be done before the last lane has taken the command.
        """
        seen = Signal(len(pulses), name=name)
        now = seen | Cat(*pulses)
        m.d.sync += seen.eq(Mux(end, 0, now))
        return now.all()

    def _products(self, m):
        """Matrix products end when every lane has, and nothing is on its way."""
        queue, arch = self.queues[Queue.MM], self.arch
        product = queue.unit.payload
        fork(m, queue.unit, [lane.command for lane in self.lanes])
        m.d.comb += [lane.command.payload.eq(product) for lane in self.lanes]
        # Lanes know the rows as they are offered the product, which the queue shows a clock before.
        m.d.sync += [lane.tokens.eq(rows_of.count(arch, product, self.step.rows))
                     for lane in self.lanes]
        running = Signal()
        started = queue.unit.valid & queue.unit.ready
        done = self._all_done(m, "products_done", [lane.done for lane in self.lanes], queue.done)
        m.d.comb += queue.done.eq(running & done & self.gather.idle)
        m.d.sync += running.eq(started | (running & ~queue.done))
        word = self.gather.output.payload
        result = word.content.result
        layout = write_layout(self.arch)
        per_row = self.arch.vector_elements // self.arch.vector_width
        write = Signal(layout)
        m.d.comb += [
            write.address.eq((result.row + rows_of.first_row(arch, product)) * per_row
                             + result.block
                             * (BLOCK // self.arch.vector_width) + result.word),
            write.data.eq(result.values), write.mask.eq(-1),
            self.result_writes.payload.eq(write),
            self.result_writes.valid.eq(self.gather.output.valid & ~word.is_packet),
            self.merger.packets.valid.eq(self.gather.output.valid & word.is_packet),
            self.merger.packets.payload.eq(word.content.packet),
            self.gather.output.ready.eq(Mux(word.is_packet, self.merger.packets.ready,
                                            self.result_writes.ready)),
        ]

    def _attention(self, m):
        """The merger has an attention's command for as long as it runs."""
        queue, merger = self.queues[Queue.MV], self.merger
        fork(m, queue.unit, [lane.attend for lane in self.lanes])
        m.d.comb += [lane.attend.payload.eq(rows_of.tell(queue.unit.payload, self.step.rows))
                     for lane in self.lanes]
        running = Signal()
        started = queue.unit.valid & queue.unit.ready
        held = Signal(COMMAND_BITS)
        done = self._all_done(m, "attentions_done", [lane.attended for lane in self.lanes],
                              queue.done)
        merged = Signal()
        with m.If(started):
            m.d.sync += held.eq(queue.unit.payload)
        m.d.comb += [
            merger.command.valid.eq(running & ~merged), merger.command.payload.eq(held),
            merger.rows.eq(rows_of.count(self.arch, held, self.step.rows)),
            merger.top.eq(self.step.top),
            queue.done.eq(running & done & merged),
        ]
        m.d.sync += [
            running.eq(started | (running & ~queue.done)),
            merged.eq(~started & (merged | (merger.command.valid & merger.command.ready))),
        ]

    def _lanes(self, m):
        """What every lane is told, and what each is."""
        load = instruction_layout(isa.LoadStream)(self.load.lanes.payload)
        is_pages = load.opcode == isa.LoadPages.opcode
        # A load of pages goes to two queues of a lane.
        fork(m, self.load.lanes, [lane.loads for lane in self.lanes]
             + [lane.pages for lane in self.lanes],
             Cat(Const(-1, len(self.lanes)), is_pages.replicate(len(self.lanes))))
        stores = [lane.store for lane in self.lanes]
        storing, waiting = Signal(), Signal(len(stores))
        m.d.comb += self.store.lanes.ready.eq(~storing)
        held = Signal(COMMAND_BITS)
        with m.If(~storing & self.store.lanes.valid):
            m.d.sync += [storing.eq(1), waiting.eq(-1), held.eq(self.store.lanes.payload)]
        with m.Elif(storing):
            left = waiting & ~Cat(*(port.ready for port in stores))
            m.d.sync += [waiting.eq(left), storing.eq(left.any())]
            m.d.comb += self.store.lanes_done.eq(~left.any())
        for at, lane in enumerate(self.lanes):
            wiring.connect(m, wiring.flipped(lane.output), self.gather.lanes[at])
            m.d.comb += [
                lane.loads.payload.kind.eq(Mux(is_pages, Load.PAGES, Load.STREAM)),
                lane.loads.payload.address.eq(Cat(Const(0, _WORD), load.offset)),
                lane.loads.payload.index.eq(self.queues[Queue.LD].index),
                lane.pages.payload.eq(rows_of.tell(self.load.lanes.payload, self.step.rows)),
                lane.store.valid.eq(storing & waiting[at]),
                lane.store.payload.eq(rows_of.tell(held, self.step.rows)),
                lane.lane.eq(at), lane.base.eq(self.bases[at]),
                lane.drain.eq(self.drain), lane.reset.eq(ResetSignal() | self.clear),
            ]
            # Registers, because these go to the far ends of the device.
            m.d.sync += [
                lane.slot_words.eq(self.step.slot_words),
                lane.row.eq(self.step.row), lane.slot.eq(self.step.slot),
            ]
            for to, source in ((lane.codes, self.vector.codes), (lane.scales, self.vector.scales)):
                m.d.sync += [to[name].eq(passive(m, source[name]) if name in ("codes", "scale")
                                         else source[name]) for name, _ in source.shape()]
        m.d.comb += [
            self.idle.eq(Cat(*(lane.idle for lane in self.lanes)).all()),
            self.beats.eq(sum(lane.beat for lane in self.lanes)),
        ]

    def _errors(self, m):
        """The first error, and the instruction at fault, two clocks later."""
        load, store = self.queues[Queue.LD].index, self.queues[Queue.ST].index
        causes = []
        for name, happens, error, at in (
                ("sequencer", self.sequencer.error != Error.NONE, self.sequencer.error,
                 self.sequencer.index),
                ("load", self.load_error, Error.LOAD, Mux(
                    self.queues[Queue.LD].idle, self.sequencer.index, load)),
                ("store", self.store_error, Error.STORE, store),
                ("lane", Cat(lane.error for lane in self.lanes).any(), Error.LANE,
                 self._first_index()),
                ("lane_store", Cat(lane.write_error for lane in self.lanes).any(), Error.LANE,
                 store)):
            cause = [Signal(name=f"{name}_failed"), Signal(Error, name=f"{name}_error"),
                     Signal(INDEX_BITS, name=f"{name}_index")]
            m.d.sync += [part.eq(now) for part, now in zip(cause, (happens, error, at),
                                                           strict=True)]
            causes.append(cause)
        m.d.sync += [self.failed.eq(Error.NONE), self.failed_index.eq(self.sequencer.index)]
        for happened, error, index in reversed(causes):
            with m.If(happened):
                m.d.sync += [self.failed.eq(error), self.failed_index.eq(index)]

    def _first_index(self):
        """Return the instruction of the first lane with an error."""
        found = Const(0, INDEX_BITS)
        for lane in reversed(self.lanes):
            found = Mux(lane.error, lane.error_index, found)
        return found
