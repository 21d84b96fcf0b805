"""The sequencer: runs a program's control, and sends every other instruction to its queue."""

from amaranth.hdl import Array, Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from alula.hw import isa
from alula.hw.axi import ADDRESS_BITS, REQUEST
from alula.hw.csr import Error
from alula.hw.formats import COMMAND_BITS, instruction_layout
from alula.hw.isa import Count, Queue, Rows
from alula.hw.queues import COMMAND, INDEX_BITS, token_port
from alula.hw.ram import Ram

UNITS = [queue for queue in Queue if queue is not Queue.SYS]
_WORD = ceil_log2(isa.WORD_BYTES)


def _legal(word):
    """Return whether a word is an instruction: a known opcode, and no field out of its values."""
    opcode = word[:isa.HEADER_BITS["opcode"]]
    rows = instruction_layout(isa.Sync)(word).rows
    legal = []
    for number, cls in isa.INSTRUCTIONS.items():
        layout = instruction_layout(cls)
        fields = layout(word)
        checks = [fields[name] < len(spec["kind"]) for name, spec in cls.operands().items()
                  if spec["kind"] not in (int, float) and len(spec["kind"]) < 1 << spec["width"]]
        legal.append((opcode == number) & Cat(*checks).all())
    return Cat(legal).any() & (rows < len(Rows))


def _resolved(word, registers):
    """Return a word whose ``offset``, where it has one, has its address register added."""
    result = word
    for number, cls in isa.INSTRUCTIONS.items():
        if {"offset", "register"} <= cls.operands().keys():
            fields = instruction_layout(cls)(word)
            at = instruction_layout(cls)["offset"].offset
            total = (fields.offset + registers[fields.register])[:32]
            moved = Cat(word[:at], total, word[at + 32:])
            result = Mux(word[:8] == number, moved, result)
    return result


class Sequencer(wiring.Component):
    """Fetch a program, then run it.

    Members
    -------
    start : ``In(1)``
        Begin, if idle.
    program, instructions
        Byte address of the program, and how many instructions it has.
    requests, words
        To and from the reader of the control memory.
    queues : ``Out(stream of COMMAND)`` for each unit, in the order of ``isa.Queue``
        Commands with their addresses resolved, in program order.
    tokens : the token port of ``SYS``
    quiet : ``In(1)``
        Every queue is empty, and every write is in memory.
    read, advance, step_done, step_error, repeats, head
        To and from the step table.
    halves : ``In(1)``
        The step has rows of the second half.
    base : ``In(64)``
        Address of the control memory.
    done : ``Out(1)``
        A pulse when the program has ended.
    error : ``Out(Error)``
        Not ``NONE`` in the clock in which the sequencer finds one; it then stays where it is.
    index : ``Out(INDEX_BITS)``
        The instruction being run.
    """

    def __init__(self, arch):
        self.arch = arch
        super().__init__({
            "start": In(1),
            "program": In(ADDRESS_BITS),
            "instructions": In(32),
            "requests": Out(stream.Signature(REQUEST)),
            "words": In(stream.Signature(COMMAND_BITS)),
            "queues": Out(stream.Signature(COMMAND)).array(len(UNITS)),
            "tokens": Out(token_port()),
            "quiet": In(1),
            "read": Out(stream.Signature(ADDRESS_BITS)),
            "advance": Out(stream.Signature(0)),
            "step_done": In(1),
            "step_error": In(1),
            "repeats": In(20),
            "head": In(1),
            "halves": In(1),
            "base": In(ADDRESS_BITS),
            "done": Out(1),
            "error": Out(Error),
            "index": Out(INDEX_BITS),
        })

    def elaborate(self, platform):
        m = Module()
        arch = self.arch
        m.submodules.code = code = Ram(
            shape=COMMAND_BITS, depth=arch.program_instructions, style=arch.core_memory)
        store, fetch = code.write_port(), code.read_port()
        pc = Signal(range(arch.program_instructions + 1))
        word = Signal(COMMAND_BITS)
        resolved = Signal(COMMAND_BITS)
        registers = Array(Signal(32, name=f"register_{at}") for at in range(isa.ADDRESS_REGISTERS))
        legal = Signal()
        fields = {cls: instruction_layout(cls)(word) for cls in isa.INSTRUCTIONS.values()}
        opcode = fields[isa.Sync].opcode
        target = Signal(range(len(Queue)))
        begun, fits = Signal(), Signal()  # a start whose request is not taken yet; and may be made
        m.d.comb += [
            store.addr.eq(pc), store.data.eq(self.words.payload),
            fetch.addr.eq(pc),
            self.index.eq(pc),
            self.tokens.wait.eq(fields[isa.Sync].wait),
            self.tokens.release.eq(fields[isa.Sync].release),
        ]
        m.d.sync += fits.eq((self.instructions != 0)
                            & (self.instructions <= arch.program_instructions))
        m.d.sync += [  # a clock after the word
            legal.eq(_legal(word) & (pc < self.instructions)),
            resolved.eq(_resolved(word, registers)),
            target.eq(Mux(opcode == isa.Sync.opcode, fields[isa.Sync].target, opcode[4:]))]
        for queue in self.queues:
            m.d.comb += [queue.payload.word.eq(resolved), queue.payload.index.eq(pc)]

        with m.FSM():
            with m.State("idle"):
                m.d.sync += [pc.eq(0), begun.eq(self.start | (begun & fits & ~self.requests.ready))]
                m.d.comb += [
                    self.requests.payload.address.eq(self.program),
                    self.requests.payload.beats.eq(self.instructions),
                    self.requests.valid.eq(begun & fits),
                ]
                m.d.sync += [register.eq(0) for register in registers]
                with m.If(begun & ~fits):
                    m.next = "refuse"
                with m.Elif(begun & self.requests.ready):
                    m.next = "load"
            with m.State("refuse"):
                m.d.comb += self.error.eq(Error.PROGRAM)
                m.next = "stopped"
            with m.State("load"):
                m.d.comb += [self.words.ready.eq(1), store.en.eq(self.words.valid)]
                with m.If(self.words.valid):
                    m.d.sync += pc.eq(pc + 1)
                    with m.If(pc + 1 == self.instructions):
                        m.d.sync += pc.eq(0)
                        m.next = "fetch"
            with m.State("fetch"):
                m.next = "decode"
            with m.State("decode"):
                m.d.sync += word.eq(fetch.data)
                m.next = "resolve"
            with m.State("resolve"):
                m.next = "check"
            with m.State("check"):
                with m.If(~legal):
                    m.d.comb += self.error.eq(Error.OPCODE)
                    m.next = "stopped"
                with m.Elif(target == Queue.SYS):
                    m.next = "wait"
                with m.Else():
                    m.next = "send"
            with m.State("send"):
                for queue in UNITS:
                    with m.If(target == queue):
                        m.d.comb += self.queues[queue].valid.eq(1)
                        with m.If(self.queues[queue].ready):
                            m.d.sync += pc.eq(pc + 1)
                            m.next = "fetch"
            with m.State("wait"):
                with m.If(self.tokens.present):
                    m.d.comb += self.tokens.take.eq(1)
                    m.next = "run"
            self._run(m, pc, fields, resolved, registers, opcode)
            self._skip(m, pc, fetch.data)
            with m.State("release"):
                m.d.comb += self.tokens.give.eq(1)
                m.d.sync += pc.eq(pc + 1)
                m.next = "fetch"
            with m.State("stopped"):
                pass
        return m

    def _run(self, m, pc, fields, resolved, registers, opcode):
        """The SYS instructions."""
        starts = Array(Signal(pc.shape(), name=f"start_{at}") for at in range(isa.LOOP_DEPTH))
        left = Array(Signal(20, name=f"left_{at}") for at in range(isa.LOOP_DEPTH))
        depth = Signal(range(isa.LOOP_DEPTH + 1))
        count = Signal(20)
        loop, step = fields[isa.Loop], instruction_layout(isa.ReadStep)(resolved)
        passes = loop.count
        for source, known in ((Count.REPEATS, self.repeats), (Count.HEAD, self.head),
                              (Count.WHOLE, ~self.halves), (Count.HALVES, self.halves)):
            passes = Mux(loop.source == source, known, passes)
        m.d.comb += self.read.payload.eq(self.base + (step.offset << _WORD))
        m.d.sync += count.eq(passes)
        with m.State("run"):
            m.next = "release"
            with m.Switch(opcode):
                with m.Case(isa.End.opcode):
                    m.next = "run"
                    with m.If(self.quiet):
                        m.d.comb += self.done.eq(1)
                        m.d.sync += depth.eq(0)
                        m.next = "idle"
                with m.Case(isa.ReadStep.opcode):
                    m.d.comb += self.read.valid.eq(1)
                    m.next = "run"
                    with m.If(self.read.ready):
                        m.next = "step"
                with m.Case(isa.Advance.opcode):
                    m.d.comb += self.advance.valid.eq(1)
                    m.next = "run"
                    with m.If(self.advance.ready):
                        m.next = "step"
                with m.Case(isa.Loop.opcode):
                    m.d.sync += [depth.eq(depth + 1), starts[depth].eq(pc), left[depth].eq(count)]
                    with m.If(count == 0):
                        m.d.sync += [depth.eq(depth), pc.eq(pc + 1)]
                        m.d.comb += self.tokens.give.eq(1)
                        m.next = "skip"
                    with m.Elif(depth == isa.LOOP_DEPTH):
                        m.d.comb += self.error.eq(Error.OPCODE)
                        m.next = "stopped"
                with m.Case(isa.EndLoop.opcode):
                    top = (depth - 1)[:ceil_log2(isa.LOOP_DEPTH)]
                    m.d.sync += left[top].eq(left[top] - 1)
                    with m.If(depth == 0):
                        m.d.comb += self.error.eq(Error.OPCODE)
                        m.next = "stopped"
                    with m.Elif(left[top] == 1):
                        m.d.sync += depth.eq(depth - 1)
                    with m.Else():
                        m.d.sync += pc.eq(starts[top])
                with m.Case(isa.SetAddress.opcode):
                    insn = fields[isa.SetAddress]
                    m.d.sync += registers[insn.register].eq(insn.value)
                with m.Case(isa.AddAddress.opcode):
                    insn = fields[isa.AddAddress]
                    m.d.sync += registers[insn.register].eq(registers[insn.register] + insn.value)
        with m.State("step"):
            with m.If(self.step_done):
                m.next = "release"
            with m.Elif(self.step_error):
                m.d.comb += self.error.eq(Error.STEP)
                m.next = "stopped"

    def _skip(self, m, pc, code):
        """Pass over the body of a loop that does not run, to after its end."""
        inner = Signal(INDEX_BITS)  # loops inside it that have not ended
        with m.State("skip"):
            m.next = "skip look"
        with m.State("skip look"):
            m.next = "skip"
            m.d.sync += pc.eq(pc + 1)
            with m.If(pc >= self.instructions):
                m.d.comb += self.error.eq(Error.OPCODE)
                m.next = "stopped"
            with m.Elif(code[:8] == isa.Loop.opcode):
                m.d.sync += inner.eq(inner + 1)
            with m.Elif(code[:8] == isa.EndLoop.opcode):
                m.d.sync += inner.eq(inner - 1)
                with m.If(inner == 0):
                    m.d.sync += inner.eq(0)
                    m.next = "fetch"
