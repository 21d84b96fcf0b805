"""The control registers on AXI4-Lite, with the ``ap_ctrl_chain`` protocol, and the watchdog."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from alula.hw.axi import ADDRESS_BITS
from alula.hw.csr import CONTROL_BYTES, Ctrl, Error, Register, State
from alula.hw.queues import INDEX_BITS

ADDRESS = (CONTROL_BYTES - 1).bit_length()


def lite_signature():
    """An AXI4-Lite master of 32 bits. Ref: ARM IHI 0022, part B."""
    return wiring.Signature({
        "awaddr": Out(ADDRESS), "awprot": Out(3), "awvalid": Out(1), "awready": In(1),
        "wdata": Out(32), "wstrb": Out(4), "wvalid": Out(1), "wready": In(1),
        "bresp": In(2), "bvalid": In(1), "bready": Out(1),
        "araddr": Out(ADDRESS), "arprot": Out(3), "arvalid": Out(1), "arready": In(1),
        "rdata": In(32), "rresp": In(2), "rvalid": In(1), "rready": Out(1),
    })


class ControlRegisters(wiring.Component):
    """The registers of :class:`alula.hw.csr.Register`.

    Members
    -------
    bus : AXI4-Lite slave
    interrupt : ``Out(1)``
    start : ``Out(1)``
        A pulse when the host starts a run.
    finished : ``In(1)``
        A pulse when the run has ended, well or not, and the status record is in memory.
    state, error, index, cycles : ``In``
        What the host reads of the run.
    control, status, program, instructions, watchdog, lanes
        What the host has written.
    """

    def __init__(self, arch):
        self.arch = arch
        super().__init__({
            "bus": In(lite_signature()),
            "interrupt": Out(1),
            "start": Out(1),
            "finished": In(1),
            "state": In(State),
            "error": In(Error),
            "index": In(INDEX_BITS),
            "cycles": In(64),
            "control": Out(ADDRESS_BITS),
            "status": Out(ADDRESS_BITS),
            "program": Out(32),
            "instructions": Out(32),
            "watchdog": Out(32),
            "lanes": Out(ADDRESS_BITS).array(arch.lanes),
        })

    def elaborate(self, platform):
        m = Module()
        bus = self.bus
        write, address = Signal(), Signal(ADDRESS)
        m.d.comb += [
            # One write at a time, when both its address and its data are there.
            write.eq(bus.awvalid & bus.wvalid & ~bus.bvalid),
            bus.awready.eq(write), bus.wready.eq(write),
            address.eq(Cat(Const(0, 2), bus.awaddr[2:])),
            bus.arready.eq(~bus.rvalid),
        ]
        with m.If(write):
            m.d.sync += bus.bvalid.eq(1)
        with m.Elif(bus.bready):
            m.d.sync += bus.bvalid.eq(0)
        mask = Cat(bit.replicate(8) for bit in bus.wstrb)

        def writable(offset, target):
            with m.If(write & (address == offset)):
                m.d.sync += target.eq((target & ~mask) | (bus.wdata & mask))

        readable = self._arguments(writable)
        readable |= self._protocol(m, write & (address == Register.CTRL),
                                   write & (address == Register.ISR), writable)
        with m.If(bus.arvalid & bus.arready):
            m.d.sync += [bus.rvalid.eq(1), bus.rdata.eq(0)]
            with m.Switch(Cat(Const(0, 2), bus.araddr[2:])):
                for offset, value in readable.items():
                    with m.Case(offset):
                        m.d.sync += bus.rdata.eq(value)
        with m.Elif(bus.rready):
            m.d.sync += bus.rvalid.eq(0)
        return m

    def _arguments(self, writable):
        """Return the plain registers by offset, those the host writes made writable."""
        wide = {Register.CONTROL: self.control, Register.STATUS: self.status}
        wide |= {Register.LANE + 8 * at: lane for at, lane in enumerate(self.lanes)}
        narrow = {Register.PROGRAM: self.program, Register.INSTRUCTIONS: self.instructions,
                  Register.WATCHDOG: self.watchdog}
        for offset, value in wide.items():
            narrow |= {offset: value[:32], offset + 4: value[32:]}
        for offset, value in narrow.items():
            writable(offset, value)
        digest = int(self.arch.hash, 16)
        return narrow | {
            Register.STATE: self.state, Register.ERROR: self.error, Register.INDEX: self.index,
            Register.CYCLES: self.cycles[:32], Register.CYCLES + 4: self.cycles[32:],
            Register.HASH: Const(digest & 0xFFFF_FFFF, 32), Register.HASH + 4: Const(digest >> 32),
            Register.LANES: Const(len(self.lanes), 32),
        }

    def _protocol(self, m, ctrl_written, isr_written, writable):
        """Return CTRL and the interrupt registers by offset.

        Ref: UG1399, "Block-level control protocols": start is cleared as the run is taken; done is
        held until the host writes continue; the next start waits for that.
        """
        start, done, running = Signal(name="begin"), Signal(name="done"), Signal()
        ready = Signal()
        enable, sources, events = Signal(32), Signal(32), Signal(2)
        written = Signal(32)
        m.d.comb += [
            written.eq(Mux(self.bus.wstrb[0], self.bus.wdata, 0)),
            self.start.eq(start & ~running & ~done),
            self.interrupt.eq(enable[0] & events.any()),
            ready.eq(self.finished),
        ]
        with m.If(ctrl_written & written[Ctrl.START]):
            m.d.sync += start.eq(1)
        with m.Elif(self.start):
            m.d.sync += start.eq(0)
        with m.If(self.start):
            m.d.sync += running.eq(1)
        with m.If(self.finished):
            m.d.sync += [running.eq(0), done.eq(1)]
        with m.Elif(ctrl_written & written[Ctrl.CONTINUE]):
            m.d.sync += done.eq(0)
        writable(Register.GIE, enable)
        writable(Register.IER, sources)
        happened = Cat(self.finished & sources[0], self.finished & sources[1])
        m.d.sync += events.eq((events | happened) ^ Mux(isr_written, written[:2], 0))
        seen = Signal()  # ready is read once
        with m.If(self.finished):
            m.d.sync += seen.eq(1)
        with m.Elif(self.bus.arvalid & self.bus.arready
                    & (self.bus.araddr[2:] == Register.CTRL >> 2)):
            m.d.sync += seen.eq(0)
        return {Register.CTRL: Cat(start, done, ~running & ~start, seen),
                Register.GIE: enable, Register.IER: sources, Register.ISR: events}
