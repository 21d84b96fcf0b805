"""The register map and the ``ap_ctrl_chain`` protocol, by a host that is not ours.

An AXI4-Lite master and an AXI4 memory of cocotbext-axi, which pause at random, against the control
registers, the supervisor and the writer of the status record; the test plays the core.
"""

import itertools
import random
from dataclasses import replace

import cocotb
import numpy as np
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, RisingEdge
from cocotbext.axi import AxiLiteBus, AxiLiteMaster, AxiRamWrite, AxiWriteBus
from cosimulate import simulate

from alula.hw.arch import SIM
from alula.hw.axi import AxiWriter, write_signature
from alula.hw.control import ControlRegisters, lite_signature
from alula.hw.csr import STATUS, STATUS_MAGIC, Ctrl, Error, Register, State
from alula.hw.isa import WORD_BYTES
from alula.hw.queues import INDEX_BITS
from alula.hw.supervisor import CLEAR_CLOCKS, Supervisor

ARCH = replace(SIM, lanes=3)
START, DONE, IDLE, READY, CONTINUE = (1 << bit for bit in (
    Ctrl.START, Ctrl.DONE, Ctrl.IDLE, Ctrl.READY, Ctrl.CONTINUE))


class Bench(wiring.Component):
    """All of the kernel that a host talks to."""

    def __init__(self):
        super().__init__({
            "s_axi": In(lite_signature()), "m_axi": Out(write_signature(WORD_BYTES)),
            "interrupt": Out(1), "go": Out(1), "ended": In(1), "failed": In(Error),
            "failed_index": In(INDEX_BITS), "drain": Out(1), "idle": In(1), "clear": Out(1),
            "beats": In(64),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.registers = registers = ControlRegisters(ARCH)
        m.submodules.supervisor = supervisor = Supervisor()
        m.submodules.writer = writer = AxiWriter(WORD_BYTES)
        wiring.connect(m, wiring.flipped(self.s_axi), registers.bus)
        wiring.connect(m, writer.bus, wiring.flipped(self.m_axi))
        wiring.connect(m, supervisor.requests, writer.requests)
        wiring.connect(m, supervisor.words, writer.data)
        for name in ("ended", "failed", "failed_index", "beats"):
            m.d.comb += getattr(supervisor, name).eq(getattr(self, name))
        for name in ("go", "drain", "clear"):
            m.d.comb += getattr(self, name).eq(getattr(supervisor, name))
        for name in ("state", "error", "index", "cycles"):
            m.d.comb += getattr(registers, name).eq(getattr(supervisor, name))
        m.d.comb += [
            supervisor.start.eq(registers.start), registers.finished.eq(supervisor.finished),
            supervisor.watchdog.eq(registers.watchdog), supervisor.status.eq(registers.status),
            supervisor.idle.eq(writer.idle & self.idle), writer.drain.eq(supervisor.drain),
            self.interrupt.eq(registers.interrupt),
        ]
        return m


def _pauses(seed, share):
    generator = random.Random(seed)
    return (generator.random() < share for _ in itertools.count())


class Host:
    def __init__(self, dut, share):
        self.dut = dut
        self.lite = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axi_"), dut.clk, dut.rst)
        self.memory = AxiRamWrite(AxiWriteBus.from_prefix(dut, "m_axi_"), dut.clk, dut.rst,
                                  size=1 << 16)
        write, read = self.lite.write_if, self.lite.read_if
        for seed, channel in enumerate((
                write.aw_channel, write.w_channel, write.b_channel, read.ar_channel,
                read.r_channel, self.memory.aw_channel, self.memory.w_channel,
                self.memory.b_channel)):
            channel.set_pause_generator(_pauses(seed, share))

    async def start(self):
        Clock(self.dut.clk, 10, unit="ns").start()
        for name in ("ended", "failed", "failed_index", "beats"):
            getattr(self.dut, name).value = 0
        self.dut.idle.value = 1
        self.dut.rst.value = 1
        await ClockCycles(self.dut.clk, 4)
        self.dut.rst.value = 0
        await ClockCycles(self.dut.clk, 2)

    async def put(self, offset, value):
        await self.lite.write_dword(offset, value)

    async def get(self, offset):
        return await self.lite.read_dword(offset)

    async def end(self, clocks):
        """Play a core that ends some clocks after it is started."""
        while not self.dut.go.value:
            await RisingEdge(self.dut.clk)
        await ClockCycles(self.dut.clk, clocks)
        self.dut.ended.value = 1
        await RisingEdge(self.dut.clk)
        self.dut.ended.value = 0

    async def interrupted(self, clocks=2000):
        for _ in range(clocks):
            if self.dut.interrupt.value:
                return
            await RisingEdge(self.dut.clk)
        raise AssertionError(f"an interrupt must come within {clocks} clocks")

    def status(self, address):
        return np.frombuffer(self.memory.read(address, STATUS.itemsize), STATUS)[0]


@cocotb.test()
@cocotb.parametrize(share=[0.0, 0.4])
async def registers_keep_what_is_written(dut, share):
    host = Host(dut, share)
    await host.start()
    chooser = random.Random(1)
    wide = [Register.CONTROL, Register.STATUS, *(Register.LANE + 8 * lane
                                                 for lane in range(ARCH.lanes))]
    offsets = [*wide, *(offset + 4 for offset in wide), Register.PROGRAM, Register.INSTRUCTIONS,
               Register.WATCHDOG]
    values = {offset: chooser.getrandbits(32) for offset in offsets}
    for offset, value in values.items():
        await host.put(offset, value)
    for offset, value in values.items():
        assert await host.get(offset) == value
    await host.lite.write(Register.PROGRAM + 1, b"\xAB")  # a byte alone
    kept = values[Register.PROGRAM] & ~0xFF00 | 0xAB00
    assert await host.get(Register.PROGRAM) == kept
    digest = int(ARCH.hash, 16)
    constants = {Register.HASH: digest & 0xFFFF_FFFF, Register.HASH + 4: digest >> 32,
                 Register.LANES: ARCH.lanes, Register.STATE: State.IDLE,
                 Register.ERROR: Error.NONE, 0x200: 0}
    for offset, value in constants.items():
        await host.put(offset, 0xFFFF_FFFF)  # read only
        assert await host.get(offset) == value
    assert await host.get(Register.CTRL) == IDLE


@cocotb.test()
@cocotb.parametrize(share=[0.0, 0.4])
async def runs_by_the_protocol(dut, share):
    host = Host(dut, share)
    await host.start()
    await host.put(Register.STATUS, 0x440)
    await host.put(Register.GIE, 1)
    await host.put(Register.IER, 1)
    for run in range(1, 4):
        dut.beats.value = 100 * run
        dut.failed_index.value = 7 * run
        core = cocotb.start_soon(host.end(50 * run))
        await host.put(Register.CTRL, START)
        if run == 3:
            assert not await host.get(Register.CTRL) & (IDLE | DONE)
        await host.interrupted()
        await core
        status = host.status(0x440)
        assert (status["magic"], status["error"], status["runs"]) == (STATUS_MAGIC, 0, run)
        assert (status["index"], status["beats"]) == (7 * run, 100 * run)
        assert 50 * run <= status["cycles"] <= 50 * run + 4
        assert await host.get(Register.CYCLES) == status["cycles"]
        assert await host.get(Register.ISR) == 1
        await host.put(Register.ISR, 1)  # a one toggles
        assert await host.get(Register.ISR) == 0
        assert not dut.interrupt.value
        assert await host.get(Register.CTRL) == DONE | IDLE | READY
        assert await host.get(Register.CTRL) == DONE | IDLE  # ready is cleared by reading
        await host.put(Register.CTRL, CONTINUE)
        assert await host.get(Register.CTRL) == IDLE


@cocotb.test()
async def a_start_waits_for_continue(dut):
    host = Host(dut, 0.2)
    await host.start()
    core = cocotb.start_soon(host.end(5))
    await host.put(Register.CTRL, START)
    await core
    while not await host.get(Register.CTRL) & DONE:
        pass
    await host.put(Register.CTRL, START)
    assert await host.get(Register.CTRL) & (START | DONE | IDLE) == START | DONE
    for _ in range(100):
        assert not dut.go.value
        await RisingEdge(dut.clk)
    core = cocotb.start_soon(host.end(5))
    await host.put(Register.CTRL, CONTINUE)
    await core
    while not await host.get(Register.CTRL) & DONE:
        pass


@cocotb.test()
async def interrupts_only_where_enabled(dut):
    host = Host(dut, 0.0)
    await host.start()
    for enable, sources in ((0, 3), (1, 0), (1, 1), (1, 2), (1, 3)):
        await host.put(Register.GIE, enable)
        await host.put(Register.IER, sources)
        core = cocotb.start_soon(host.end(3))
        await host.put(Register.CTRL, START)
        await core
        while not await host.get(Register.CTRL) & DONE:
            pass
        assert bool(dut.interrupt.value) == bool(enable and sources)
        assert await host.get(Register.ISR) == sources
        await host.put(Register.ISR, sources)
        assert not dut.interrupt.value
        await host.put(Register.CTRL, CONTINUE)


@cocotb.test()
@cocotb.parametrize(cause=["core", "watchdog"])
async def an_error_drains_and_resets(dut, cause):
    """No transfer is cut: the core is reset when the buses are idle, then the record is written."""
    host = Host(dut, 0.3)
    await host.start()
    await host.put(Register.STATUS, 0x80)
    await host.put(Register.GIE, 1)
    await host.put(Register.IER, 1)
    if cause == "watchdog":
        await host.put(Register.WATCHDOG, 60)
    await host.put(Register.CTRL, START)
    while not dut.go.value and await host.get(Register.STATE) != State.RUNNING:
        pass
    dut.idle.value = 0
    dut.failed_index.value = 33
    if cause == "core":
        await ClockCycles(dut.clk, 20)
        dut.failed.value = Error.LANE
        await RisingEdge(dut.clk)
        dut.failed.value = Error.NONE
        dut.failed_index.value = 99
    while not dut.drain.value:
        await RisingEdge(dut.clk)
    assert await host.get(Register.STATE) == State.DRAINING
    for _ in range(100):
        assert dut.drain.value and not dut.clear.value and not dut.interrupt.value
        await RisingEdge(dut.clk)
    dut.idle.value = 1
    cleared = 0
    for _ in range(2000):
        await RisingEdge(dut.clk)
        cleared += int(dut.clear.value)
        if dut.interrupt.value:
            break
    assert cleared == CLEAR_CLOCKS
    status = host.status(0x80)
    wanted = Error.LANE if cause == "core" else Error.WATCHDOG
    assert (status["magic"], status["error"], status["index"]) == (STATUS_MAGIC, wanted, 33)
    if cause == "watchdog":
        assert status["cycles"] in (60, 61)
    assert await host.get(Register.ERROR) == wanted
    assert await host.get(Register.INDEX) == 33
    # The next run, without a reset.
    await host.put(Register.WATCHDOG, 0)
    await host.put(Register.ISR, 1)
    await host.put(Register.CTRL, CONTINUE)
    core = cocotb.start_soon(host.end(9))
    await host.put(Register.CTRL, START)
    await core
    await host.interrupted()
    assert host.status(0x80)["error"] == Error.NONE
    assert await host.get(Register.ERROR) == Error.NONE


def test_control():
    simulate(Bench(), __file__)
