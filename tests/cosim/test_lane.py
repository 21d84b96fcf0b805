"""A lane's matrix products against the numerics contract, bit for bit."""

import os
from pathlib import Path

import cocotb
import numpy as np
import pytest
from cocotb.triggers import RisingEdge
from cocotbext.axi import AxiRamRead, AxiReadBus
from cosimulate import simulate
from lanes import arch_of, extreme, mixed, pauses, start
from products import Products

from alula.hw import isa, layout, numerics
from alula.hw.lane.slice import DSP48E1, DSP48E2

LANE = 1
SIZE = 1 << 19
PRIMITIVES = [Path(__file__).parent / name for name in ("dsp48e1.v", "dsp48e2.v", "muxf7.v")]


def _arch():
    return arch_of(os.environ["ALULA_TEST_ARCH"])


class Bench:
    """A lane with its memory; commands go in, results are compared."""

    def __init__(self, dut, seed, stall=0.0, tokens=1):
        self.dut, self.arch, self.tokens, self.stall = dut, _arch(), tokens, stall
        self.random = np.random.default_rng(seed)
        self.seed = seed
        self.ram = AxiRamRead(AxiReadBus.from_prefix(dut, "bus_"), dut.clk, dut.rst, size=SIZE)
        if stall:
            self.ram.ar_channel.set_pause_generator(pauses(seed, stall))
            self.ram.r_channel.set_pause_generator(pauses(seed + 1, stall))
        self.commands, self.wanted = [], {}
        self.entry, self.free = 16 * self.random.integers(0, 4), 8192
        self.target = self.clocks = self.beats = 0

    def add(self, weights, cols, exponent, source):
        """Put a matrix into memory and note what multiplying by it must give."""
        size = len(weights.data)
        entry = np.zeros(1, layout.DIRECTORY_ENTRY)
        entry["start"], entry["beats"] = self.free // 16, size // self.arch.beat_bytes
        entry["exponent"], entry["strips"] = exponent, weights.strips
        self.ram.write(4096 + self.entry, entry.tobytes())
        self.ram.write(4096 + self.free, weights.data.tobytes())
        self.free += size
        assert self.free + 4096 < SIZE
        command = isa.Linear(target=self.target, source=source, inputs=cols,
                             outputs=weights.strips * 16, group_log2=weights.group_log2)
        self.commands.append((self.entry, command, weights, exponent))
        self.entry += 16

    def expect(self, codes, scales):
        for _, command, weights, exponent in self.commands:
            groups, group = weights.groups, weights.group
            parts = weights.unpacked()
            x = codes[:self.tokens, command.source * 16:][:, :groups * group]
            blocks = command.source + np.arange(groups) * group // 16
            result = numerics.linear(
                parts.codes.reshape(-1, groups, group).transpose(1, 0, 2).astype(np.float32),
                parts.scales.T, x.reshape(self.tokens, groups, group),
                scales[:self.tokens, blocks], exponent)
            yield result.view(np.uint32)

    async def fill(self, blocks, extremes):
        """Write random activations; return codes and scales."""
        dut, tokens = self.dut, self.tokens
        codes = self.random.integers(-127, 128, (tokens, blocks * 16)).astype(np.int8)
        if extremes:
            codes[::2], codes[1::2] = 127, -127
        scales = self.random.standard_normal((tokens, blocks)).astype(np.float32)
        for row in range(tokens):
            for block in range(blocks):
                part = codes[row, 16 * block:16 * block + 16].tobytes()
                at = 1 | row << 1 | block << 7
                dut.codes.value = at | int.from_bytes(part, "little") << 23
                dut.scales.value = at | int(scales[row, block].view(np.uint32)) << 23
                await RisingEdge(dut.clk)
        dut.codes.value = dut.scales.value = 0
        return codes, scales

    async def load(self):
        stalls = pauses(self.seed + 3, self.stall)
        for entry, *_ in self.commands:
            while next(stalls):
                await RisingEdge(self.dut.clk)
            await self._send("loads", int(entry) << 1)

    async def command(self):
        for _, command, *_ in self.commands:
            await self._send("command", int.from_bytes(isa.encode(command), "little"))

    async def _send(self, name, value):
        dut = self.dut
        valid, ready = getattr(dut, f"{name}__valid"), getattr(dut, f"{name}__ready")
        valid.value = 1
        getattr(dut, f"{name}__payload").value = value
        await RisingEdge(dut.clk)
        while not ready.value:
            await RisingEdge(dut.clk)
        valid.value = 0

    async def run(self, blocks, extremes=False):
        dut, arch = self.dut, self.arch
        await start(dut)
        dut.base.value, dut.lane.value, dut.tokens.value = 4096, LANE, self.tokens
        codes, scales = await self.fill(blocks, extremes)
        cocotb.start_soon(self.load())
        cocotb.start_soon(self.command())
        stalls = pauses(self.seed + 4, self.stall)
        width, words = arch.vector_width, 16 // arch.vector_width
        idle = 0
        word_bits = max(1, (words - 1).bit_length())
        for wanted, (_, command, weights, _) in zip(self.expect(codes, scales), self.commands,
                                                    strict=True):
            for strip in range(weights.strips):
                for token in range(self.tokens):
                    for word in range(words):
                        while True:
                            dut.results__ready.value = not next(stalls)
                            await RisingEdge(dut.clk)
                            idle += 1
                            assert idle < 20_000, f"no result of {command}, strip {strip}"
                            beat = int(dut.beat.value)
                            self.beats += beat
                            self.clocks += self.beats > 0
                            if beat:
                                self.last = self.clocks
                            if dut.results__valid.value and dut.results__ready.value:
                                break
                        idle = 0
                        got = dut.results__payload.value.to_unsigned()
                        block = command.target + strip * arch.lanes + LANE
                        assert got & 63 == token and got >> 6 & 0xFFFF == block
                        assert got >> 22 & (1 << word_bits) - 1 == word
                        values = got >> 22 + word_bits
                        values = [values >> 32 * i & 0xFFFF_FFFF for i in range(width)]
                        first = strip * 16 + word * width
                        np.testing.assert_array_equal(
                            np.array(values, np.uint32), wanted[token, first:first + width],
                            f"{command} strip {strip} token {token} word {word}")


@cocotb.test()
@cocotb.parametrize(tokens=[1, 2, 5, 16])
async def dense(dut, tokens):
    bench = Bench(dut, tokens, tokens=min(tokens, _arch().rows))
    group = bench.arch.lane_dsps
    for strips in (1, 2, 3):
        weights = mixed(bench.random, 16 * strips, 4 * group, 4, group, bench.arch, -10, dict())
        bench.add(weights, 4 * group, -10, 0)
    await bench.run(4 * group // 16)


@cocotb.test()
@cocotb.parametrize(group=[16, 32, 64, 128, 256], stall=[0.0, 0.4])
async def every_format(dut, group, stall):
    """All kinds of tiles mixed, several products back to back, none of them, odd sources."""
    bench = Bench(dut, group, stall, tokens=1 + group // 16 % bench_rows())
    slots = bench.arch.lane_dsps
    tiles = 18 if group <= 64 else 3
    for bits in (2, 3, 4, 8):
        for rows, some in ((16, 1), (20, tiles), (0, 2)):
            cols = some * group - 5
            exponent = int(bench.random.integers(-20, 5))
            weights = mixed(bench.random, rows, cols, bits, group, bench.arch, exponent)
            bench.target += 8
            step = min(group, slots) // 16
            bench.add(weights, cols, exponent, step * int(bench.random.integers(0, 4)))
    await bench.run((tiles * group + 3 * min(group, slots)) // 16)


@cocotb.test()
async def largest_sums(dut):
    """No sum is too narrow."""
    bench = Bench(dut, 3, tokens=min(4, bench_rows()))
    for group in (16, 64, 256):
        bench.add(extreme(16, 512, group, bench.arch), 512, 0, 0)
    await bench.run(32, extremes=True)


def bench_rows():
    return _arch().rows


@cocotb.test()
@cocotb.parametrize(kind=["dense", "half", "absent"])
async def rate(dut, kind):
    """Every beat is taken in the clock in which it can be, at one token."""
    bench = Bench(dut, 1)
    beat = bench.arch.beat_bytes
    group, tiles = (32, 64) if beat == 16 else (128, 32)
    uniform = {"dense": dict(), "half": dict(kept=8), "absent": dict(dropped=0.5)}[kind]
    weights = mixed(bench.random, 32, tiles * group, 4, group, bench.arch, uniform=uniform)
    bench.add(weights, tiles * group, 0, 0)
    await bench.run(tiles * group // 16)
    share = bench.beats / bench.last
    dut._log.info(f"{kind}: {bench.beats} beats in {bench.last} clocks, {share:.3f}; "
                  f"results after {bench.clocks}")
    assert bench.beats == len(weights.data) // beat
    assert share > {"dense": 0.95, "half": 0.92, "absent": 0.92}[kind]


WIDE = pytest.param("wide", marks=pytest.mark.slow)


@pytest.mark.parametrize("arch", ["narrow", "one row", WIDE])
def test_lane(arch):
    simulate(Products(arch_of(arch)), __file__, extra={"ALULA_TEST_ARCH": arch})


@pytest.mark.parametrize("arch", ["narrow", "one row", WIDE])
def test_lane_of_primitives(arch):
    """As cards get it: DSP slices and multiplexers are instances."""
    primitive = DSP48E1 if arch == "one row" else DSP48E2
    simulate(Products(arch_of(arch), primitive), __file__, extra={"ALULA_TEST_ARCH": arch},
             models=PRIMITIVES)
