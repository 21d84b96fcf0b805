"""The AXI masters against memories that stall at random."""

import itertools
import random

import cocotb
import pytest
from cocotb.clock import Clock
from cocotb.triggers import RisingEdge
from cocotbext.axi import AxiRamRead, AxiReadBus
from cosimulate import simulate

from alula.hw.axi import AxiReader


def _pauses(seed, share):
    generator = random.Random(seed)
    return (generator.random() < share for _ in itertools.count())


async def start(dut):
    cocotb.start_soon(Clock(dut.clk, 10, unit="ns").start())
    dut.rst.value = 1
    await RisingEdge(dut.clk)
    await RisingEdge(dut.clk)
    dut.rst.value = 0


@cocotb.test()
@cocotb.parametrize(share=[0.0, 0.3, 0.8])
async def reads_come_in_order(dut, share):
    await start(dut)
    ram = AxiRamRead(AxiReadBus.from_prefix(dut, "bus_"), dut.clk, dut.rst, size=1 << 16)
    size = len(dut.bus__rdata) // 8
    chooser = random.Random(1)
    ram.write(0, bytes(chooser.randrange(256) for _ in range(1 << 16)))
    ram.ar_channel.set_pause_generator(_pauses(2, share))
    ram.r_channel.set_pause_generator(_pauses(3, share))
    wanted, got = [], []
    requests = []
    for _ in range(20):
        beats = chooser.choice([1, 2, 7, 64, 300])
        address = chooser.randrange((1 << 16) // size - beats) * size
        requests.append((address, beats))
        wanted += [ram.read(address + at * size, size) for at in range(beats)]

    async def ask():
        for address, beats in requests:
            dut.requests__payload.value = address | beats << 64
            dut.requests__valid.value = 1
            await RisingEdge(dut.clk)
            while not dut.requests__ready.value:
                await RisingEdge(dut.clk)
        dut.requests__valid.value = 0

    task = cocotb.start_soon(ask())
    stalls = _pauses(4, share)
    for _ in range(200_000):
        dut.data__ready.value = not next(stalls)
        await RisingEdge(dut.clk)
        if dut.data__valid.value and dut.data__ready.value:
            got.append(dut.data__payload.value.to_unsigned().to_bytes(size, "little"))
        if len(got) == len(wanted):
            break
    await task
    assert got == wanted


@pytest.mark.parametrize("data_bytes", [16, 64])
def test_axi_reader(data_bytes):
    simulate(AxiReader(data_bytes), __file__)
