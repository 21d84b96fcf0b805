"""The unpacker against the model: every format, bundles taken at random."""

import os

import cocotb
import numpy as np
import pytest
from cocotb.triggers import RisingEdge
from cosimulate import simulate
from lanes import arch_of, beats_of, mixed, pauses, start

from alula.hw.lane.shape import LaneShape
from alula.hw.lane.unpack import Unpacker


def _arch():
    return arch_of(os.environ["ALULA_TEST_ARCH"])


class Rebuilt:
    """A matrix put together from bundles."""

    def __init__(self, shape, weights):
        self.shape, self.weights = shape, weights
        self.codes = np.zeros((weights.strips * 16, weights.groups * weights.group), np.int16)
        self.scales = np.zeros((weights.strips * 16, weights.groups), np.float32)
        self.strip = self.tile = 0

    def take(self, bundle):
        shape, group = self.shape, self.weights.group
        region = shape.half_windows >> bundle["regions_log2"].to_unsigned()
        for r in range(bundle["count"].to_unsigned()):
            row = self.strip * 16 + (bundle["rows"].to_unsigned() >> 4 * r & 15)
            half = np.uint16(bundle["scales"].to_unsigned() >> 16 * r & 0xFFFF).view(np.float16)
            self.scales[row, self.tile] = half
            for j in range(r * region, (r + 1) * region):
                self._half_window(bundle, row, j, j % shape.windows % (group // 16))
        self._mask_check(bundle, region)
        if bundle["last_of_tile"]:
            self.tile += 1
        if bundle["end_of_strip"]:
            assert self.tile == self.weights.groups
            self.tile, self.strip = 0, self.strip + 1

    def _half_window(self, bundle, row, j, window):
        first = (self.tile * self.weights.group + bundle["chunk"].to_unsigned() * self.shape.slots
                 + window * 16)
        weights, selects = bundle["_weights"], bundle["_selects"]
        for slot in range(8 * j, 8 * j + 8):
            if weights[slot]:
                at = first + slot % 8 + selects[slot]
                assert self.codes[row, at] == 0
                self.codes[row, at] = weights[slot]

    def _mask_check(self, bundle, region):
        count = bundle["count"].to_unsigned()
        assert not any(bundle["_weights"][8 * region * count:])


def parse(shape, layout, value):
    bundle = {}
    number = value.to_unsigned()
    for name, field in layout:
        bundle[name] = Field(number >> field.offset & (1 << field.width) - 1)
    weights, selects = bundle["weights"].number, bundle["selects"].number
    signed = [weights >> 9 * s & 511 for s in range(shape.slots)]
    bundle["_weights"] = [w - 512 if w >> 8 else w for w in signed]
    bundle["_selects"] = [selects >> 4 * s & 15 for s in range(shape.slots)]
    return bundle


class Field:
    def __init__(self, number):
        self.number = number

    def to_unsigned(self):
        return self.number

    def __bool__(self):
        return bool(self.number)


async def _run(dut, matrices, stall_in, stall_out, seed):
    arch = _arch()
    shape = LaneShape(arch)
    layout = shape.bundle_layout()
    layout = list(layout)
    await start(dut)
    beats = [beat for matrix in matrices for beat in beats_of(matrix.data, arch.beat_bytes)]
    taken = 0

    async def begin():
        for matrix in matrices:
            dut.start__payload.value = (matrix.groups | matrix.group_log2 << 15
                                        | matrix.strips << 19)
            dut.start__valid.value = 1
            await RisingEdge(dut.clk)
            while not dut.start__ready.value:
                await RisingEdge(dut.clk)
        dut.start__valid.value = 0

    async def feed():
        nonlocal taken
        stalls = pauses(seed, stall_in)
        for beat in beats:
            while next(stalls):
                dut.beats__valid.value = 0
                await RisingEdge(dut.clk)
            dut.beats__valid.value = 1
            dut.beats__payload.value = beat
            await RisingEdge(dut.clk)
            while not dut.beats__ready.value:
                await RisingEdge(dut.clk)
            taken += 1
        dut.beats__valid.value = 0

    cocotb.start_soon(begin())
    cocotb.start_soon(feed())
    stalls = pauses(seed + 1, stall_out)
    clocks = idle = 0
    for matrix in matrices:
        rebuilt = Rebuilt(shape, matrix)
        while rebuilt.strip < matrix.strips:
            dut.bundles__ready.value = not next(stalls)
            await RisingEdge(dut.clk)
            clocks += taken > 0
            idle += 1
            assert idle < 3000, f"no bundle of strip {rebuilt.strip}, tile {rebuilt.tile}"
            if dut.bundles__valid.value and dut.bundles__ready.value:
                idle = 0
                rebuilt.take(parse(shape, layout, dut.bundles__payload.value))
        wanted = matrix.unpacked()
        np.testing.assert_array_equal(rebuilt.codes, wanted.codes)
        np.testing.assert_array_equal(rebuilt.scales, wanted.scales)
    assert taken == len(beats)
    return len(beats) / clocks


@cocotb.test()
@cocotb.parametrize(group=[16, 32, 64, 128, 256])
async def every_format(dut, group):
    generator = np.random.default_rng(group)
    matrices = []
    for bits in (2, 3, 4, 8):
        for rows, tiles in ((16, 1), (20, 2), (36, 19)):
            tiles = min(tiles, 2048 // group + 1)
            matrices.append(mixed(generator, rows, tiles * group - 5, bits, group,
                                  _arch()))
    await _run(dut, matrices, 0.1, 0.1, group)


@cocotb.test()
@cocotb.parametrize(kind=["dense", "half", "absent"])
async def rate(dut, kind):
    generator = np.random.default_rng(1)
    group = min(128, _arch().lane_dsps)
    uniform = {"dense": dict(), "half": dict(kept=8), "absent": dict(dropped=0.5)}[kind]
    matrix = mixed(generator, 32, 33 * group, 4, group, _arch(), uniform=uniform)
    share = await _run(dut, [matrix], 0, 0, 5)
    dut._log.info(f"{kind}: {share:.3f} beats a clock")
    assert share > 0.9


@pytest.mark.parametrize("arch", ["narrow", "middle", pytest.param(
    "deep", marks=pytest.mark.slow)])
def test_unpack(arch):
    simulate(Unpacker(arch_of(arch)), __file__, extra={"ALULA_TEST_ARCH": arch})
