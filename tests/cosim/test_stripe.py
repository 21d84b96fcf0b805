"""A wide bus over narrow ports: what lies where, with ports that stall apart from each other."""

import itertools
import os
import random

import cocotb
import numpy as np
import pytest
from cocotb.clock import Clock
from cocotb.triggers import RisingEdge
from cocotbext.axi import AxiBus, AxiMaster, AxiRam, AxiResp, AxiSlave, Region
from cosimulate import simulate

from alula.hw.stripe import Stripe
from alula.hw.striping import arrange, block_bytes

SIZE = 1 << 16


def _pauses(seed, share):
    generator = random.Random(seed)
    return (generator.random() < share for _ in itertools.count())


async def _begin(dut, share, whole=None):
    """Start the clock; return the master and the one memory behind all ports, or the first ones."""
    ports = int(os.environ["PORTS"])
    cocotb.start_soon(Clock(dut.clk, 10, unit="ns").start())
    master = AxiMaster(AxiBus.from_prefix(dut, "bus_"), dut.clk, dut.rst)
    first = AxiRam(AxiBus.from_prefix(dut, "ports__0_"), dut.clk, dut.rst, size=SIZE)
    rams = [first] + [AxiRam(AxiBus.from_prefix(dut, f"ports__{at}_"), dut.clk, dut.rst,
                             mem=first.mem) for at in range(1, whole or ports)]
    for at, ram in enumerate(rams):
        for number, channel in enumerate((
                ram.write_if.aw_channel, ram.write_if.w_channel, ram.write_if.b_channel,
                ram.read_if.ar_channel, ram.read_if.r_channel)):
            channel.set_pause_generator(_pauses(10 * at + number, share))
    dut.rst.value = 1
    for _ in range(3):
        await RisingEdge(dut.clk)
    dut.rst.value = 0
    return master, first, ports


@cocotb.test()
@cocotb.parametrize(share=[0.0, 0.3, 0.7])
async def reads_and_writes_find_their_bytes(dut, share):
    master, ram, ports = await _begin(dut, share)
    size = len(dut.bus__rdata) // 8
    chooser = np.random.default_rng(1)
    content = chooser.integers(0, 256, SIZE, dtype=np.uint8)
    ram.write(0, arrange(content, ports, size).tobytes())
    for _ in range(25):
        beats = int(chooser.choice([1, 2, 7, 4096 // size]))
        start = int(chooser.integers(SIZE // size - beats)) * size
        if chooser.integers(2):
            # Any bytes, so with strobes.
            start += int(chooser.integers(size // 2))
            new = chooser.integers(0, 256, (beats - 1) * size + 9, dtype=np.uint8)
            content[start:start + new.size] = new
            await master.write(start, new.tobytes(), awid=0)
        else:
            got = await master.read(start, beats * size, arid=0)
            assert got.data == content[start:start + beats * size].tobytes()
    assert ram.read(0, SIZE) == arrange(content, ports, size).tobytes()


class _Broken(Region):
    async def _read(self, address, length, **_):
        raise OSError("no memory here")


@cocotb.test()
async def an_error_on_one_port_is_one_of_the_whole(dut):
    ports = int(os.environ["PORTS"])
    master, *_ = await _begin(dut, 0, whole=ports - 1)
    AxiSlave(AxiBus.from_prefix(dut, f"ports__{ports - 1}_"), dut.clk, dut.rst,
             target=_Broken(SIZE))
    assert (await master.read(0, len(dut.bus__rdata) // 8, arid=0)).resp != AxiResp.OKAY


@pytest.mark.parametrize("beat_bytes, ports", [(64, 4), (16, 2)])
def test_stripe(beat_bytes, ports):
    simulate(Stripe(beat_bytes, ports), __file__, extra={"PORTS": str(ports)})


def test_arrange():
    data = np.arange(3 * 8192, dtype=np.uint16).astype(np.uint8)
    assert arrange(data, 1, 16) is data
    laid = arrange(data[:-5], 2, 16)
    assert laid.size == data.size == 3 * block_bytes(2)
    assert (laid[:8] == data[:8]).all() and (laid[8:16] == data[16:24]).all()
    assert (laid[4096:4104] == data[8:16]).all()
    assert (laid[-5:] == 0).all()
