"""The prefetch ring: streams and pages come in the order of the loads, whatever stalls."""

import random

import cocotb
import numpy as np
from cocotb.triggers import RisingEdge
from cocotbext.axi import AxiRamRead, AxiReadBus
from cosimulate import simulate
from lanes import arch_of, pauses, start

from alula.hw import layout
from alula.hw.lane.prefetch import PIECE_BEATS, RING_LATENCY, Prefetch

SIZE, BASE, RING = 1 << 20, 8192, 256


def _arch():
    return arch_of("middle")


async def send(dut, name, values, stalls):
    valid, ready = getattr(dut, f"{name}__valid"), getattr(dut, f"{name}__ready")
    for value in values:
        while next(stalls):
            await RisingEdge(dut.clk)
        valid.value = 1
        getattr(dut, f"{name}__payload").value = value
        await RisingEdge(dut.clk)
        while not ready.value:
            await RisingEdge(dut.clk)
        valid.value = 0


@cocotb.test()
@cocotb.parametrize(share=[0.0, 0.5])
async def loads_come_in_order(dut, share):
    beat = _arch().beat_bytes
    chooser = random.Random(3)
    dut.base.value = BASE
    await start(dut)
    ram = AxiRamRead(AxiReadBus.from_prefix(dut, "bus_"), dut.clk, dut.rst, size=SIZE)
    memory = np.random.default_rng(1).integers(0, 256, SIZE, np.uint8)
    loads, pages, beats, streams = [], [], [], []
    for number in range(40):
        if chooser.random() < 0.3:
            runs = [(chooser.randrange(4096, 8000) * beat, chooser.randint(1, PIECE_BEATS))
                    for _ in range(chooser.randint(1, 5))]
            for at, (address, count) in enumerate(runs):
                pages.append(address | count << 64 | (at == len(runs) - 1) << 88)
                beats += [(address, at) for at in range(count)]
            loads.append(1)
            continue
        first, count = chooser.randrange(2048, 8000) * beat, chooser.choice([0, 1, 3, 64, 65, 400])
        entry = np.zeros(1, layout.DIRECTORY_ENTRY)
        entry["start"], entry["beats"], entry["strips"] = first // 16, count, number
        entry["exponent"] = chooser.randint(-60, 60)
        place = 16 * chooser.randrange(64) + 1024 * number
        memory[BASE + place:][:16] = entry.view(np.uint8)
        loads.append(place << 1)
        streams.append((int(entry["exponent"][0]), number, count))
        beats += [(first, at) for at in range(count)]
    ram.write(0, memory.tobytes())
    if share:
        ram.ar_channel.set_pause_generator(pauses(2, share))
        ram.r_channel.set_pause_generator(pauses(3, share))
    cocotb.start_soon(send(dut, "loads", loads, pauses(4, share)))
    cocotb.start_soon(send(dut, "page_requests", pages, pauses(5, share)))
    stalls, taken = pauses(6, share), []

    async def take_streams():
        while True:
            dut.streams__ready.value = not next(stalls)
            await RisingEdge(dut.clk)
            if dut.streams__valid.value and dut.streams__ready.value:
                got = dut.streams__payload.value.to_unsigned()
                exponent = (got & 1023) - (got >> 9 & 1) * 1024
                taken.append((exponent, got >> 10 & 0xFF_FFFF, got >> 34))

    cocotb.start_soon(take_streams())
    pointer, flight, at, idle, clocks = 0, [], 0, 0, 0
    while at < len(beats):
        await RisingEdge(dut.clk)
        clocks += 1
        idle += 1
        assert idle < 2000, f"no beat after {at}"
        flight.append(pointer if pointer != dut.available.value.to_unsigned() and
                      not next(stalls) else None)
        dut.read_pointer.value = pointer
        if flight[-1] is not None:
            pointer = (pointer + 1) % (2 * RING)
        # What is set after this edge is read at the next one, and comes RING_LATENCY later.
        if len(flight) > RING_LATENCY + 1 and flight[-RING_LATENCY - 2] is not None:
            idle = 0
            address, place = beats[at]
            wanted = memory[BASE + address + place * beat:][:beat].tobytes()
            assert dut.data.value.to_unsigned().to_bytes(beat, "little") == wanted, f"beat {at}"
            at += 1
            dut.release.value = at % (2 * RING)
    for _ in range(200):
        await RisingEdge(dut.clk)
    assert taken == streams
    dut._log.info(f"{len(beats)} beats in {clocks} clocks")
    assert share or clocks < 1.1 * len(beats) + 500


def test_prefetch():
    simulate(Prefetch(_arch()), __file__)
