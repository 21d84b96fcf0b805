"""All but the lanes: control registers, the bus to the control memory, and the core."""

from amaranth.hdl import ClockDomain, ClockSignal, DomainRenamer, Module, Mux, ResetSignal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from alula.hw import axi
from alula.hw.axi import AxiReader, AxiWriter
from alula.hw.control import ControlRegisters, lite_signature
from alula.hw.core import Core
from alula.hw.isa import WORD_BYTES
from alula.hw.lane.lane import socket_signature
from alula.hw.queues import WATCH
from alula.hw.sequencer import UNITS
from alula.hw.supervisor import Supervisor


def kernel_signature(arch):
    """Return the ports of a kernel."""
    return wiring.Signature({
        "s_axi_control": In(lite_signature()),
        "m_axi_control": Out(axi.signature(WORD_BYTES)),
        "interrupt": Out(1),
        "lanes": In(socket_signature(arch)).array(arch.lanes),
        "watch": Out(WATCH).array(len(UNITS)),
    })


class Kernel(wiring.Component):
    """What one lane or many need once.

    Members
    -------
    s_axi_control : AXI4-Lite slave
    m_axi_control : AXI4 master of ``isa.WORD_BYTES``
    interrupt : ``Out(1)``
    lanes : ``In(socket_signature)`` of each lane
    watch : ``Out(WATCH)`` of each queue
    """

    def __init__(self, arch):
        self.arch = arch
        super().__init__(kernel_signature(arch))

    def elaborate(self, platform):
        m = Module()
        m.submodules.registers = registers = ControlRegisters(self.arch)
        m.submodules.supervisor = supervisor = Supervisor()
        reader, writer, core = AxiReader(WORD_BYTES), AxiWriter(WORD_BYTES), Core(self.arch)
        # What a stopped run has asked for and not begun is forgotten with it.
        m.domains += ClockDomain("core", local=True)
        m.d.comb += [ClockSignal("core").eq(ClockSignal()),
                     ResetSignal("core").eq(ResetSignal() | supervisor.clear)]
        for name, part in (("reader", reader), ("writer", writer), ("core", core)):
            m.submodules[name] = DomainRenamer("core")(part)
        wiring.connect(m, wiring.flipped(self.s_axi_control), registers.bus)
        axi.join(m, self.m_axi_control, reader.bus, writer.bus)
        for mine, lane in zip(self.lanes, core.lanes, strict=True):
            wiring.connect(m, wiring.flipped(mine), lane)
        wiring.connect(m, core.requests, reader.requests)
        wiring.connect(m, reader.data, core.words)
        self._writes(m, writer, core, supervisor)
        shift = ceil_log2(WORD_BYTES)
        m.d.comb += [
            self.interrupt.eq(registers.interrupt),
            *(mine.eq(queue) for mine, queue in zip(self.watch, core.watch, strict=True)),
            supervisor.start.eq(registers.start), registers.finished.eq(supervisor.finished),
            supervisor.watchdog.eq(registers.watchdog), supervisor.status.eq(registers.status),
            registers.state.eq(supervisor.state), registers.error.eq(supervisor.error),
            registers.index.eq(supervisor.index), registers.cycles.eq(supervisor.cycles),
            core.go.eq(supervisor.go), core.instructions.eq(registers.instructions),
            core.program.eq(registers.control + (registers.program << shift)),
            core.base.eq(registers.control),
            supervisor.ended.eq(core.ended), supervisor.failed.eq(core.failed),
            supervisor.failed_index.eq(core.failed_index),
            core.load_error.eq(reader.error), core.store_error.eq(writer.error),
            core.drain.eq(supervisor.drain), core.clear.eq(supervisor.clear),
            core.written.eq(writer.idle),
            reader.drain.eq(supervisor.drain), writer.drain.eq(supervisor.drain),
            supervisor.idle.eq(reader.idle & writer.idle & core.idle),
        ]
        m.d.comb += [mine.eq(base) for mine, base in zip(core.bases, registers.lanes, strict=True)]
        m.d.sync += supervisor.beats.eq(supervisor.beats + core.beats)
        return m

    def _writes(self, m, writer, core, supervisor):
        """The status record is written when the core does not write."""
        mine = supervisor.requests.valid | supervisor.words.valid
        for to, status, other in ((writer.requests, supervisor.requests, core.write_requests),
                                  (writer.data, supervisor.words, core.write_beats)):
            m.d.comb += [
                to.valid.eq(Mux(mine, status.valid, other.valid)),
                to.payload.eq(Mux(mine, status.payload, other.payload)),
                status.ready.eq(to.ready), other.ready.eq(to.ready & ~mine),
            ]
