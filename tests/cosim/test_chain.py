"""The chain's sums: at every level of its tree, and each slot's own."""

import os

import cocotb
import numpy as np
from cocotb.triggers import RisingEdge
from cosimulate import simulate
from lanes import arch_of, start

from alula.hw.lane.chain import OWN_BITS, OWN_LATENCY, Chain, tap_bits, tap_latency
from alula.hw.lane.shape import LaneShape

CLOCKS = 300


def joined(values, bits):
    return sum((int(value) & (1 << bits) - 1) << bits * at for at, value in enumerate(values))


def split(number, bits, count):
    parts = [number >> bits * at & (1 << bits) - 1 for at in range(count)]
    return [part - (part >> bits - 1 << bits) for part in parts]


class Driver:
    """Drive operands; ``lo`` and ``hi`` of slot ``k`` of a half-window go in k clocks later."""

    def __init__(self, dut, slots):
        self.dut, self.late = dut, np.zeros((8, 2, slots), int)

    def drive(self, weights, lo, hi, valid=1, first=0, shared=0):
        dut, k = self.dut, np.arange(len(weights)) % 8
        self.late = np.concatenate([[[lo, hi]], self.late[:-1]])
        lo, hi = self.late[k, :, np.arange(len(weights))].T
        dut.weights.value, dut.shared.value = joined(weights, 9), shared
        dut.lo.value, dut.hi.value = joined(lo, 8), joined(hi, 8)
        dut.valid.value, dut.first.value = valid, first


@cocotb.test()
async def taps(dut):
    """Random and extreme operands every clock."""
    shape = LaneShape(arch_of(os.environ["ALULA_TEST_ARCH"]))
    random = np.random.default_rng(1)
    await start(dut)
    driver = Driver(dut, shape.slots)
    dut.accumulate.value = 0
    wanted = []
    count = shape.half_windows
    for at in range(CLOCKS):
        weights = random.integers(-255, 256, shape.slots)
        lo, hi = random.integers(-127, 128, (2, shape.slots))
        if at % 3 == 0:
            weights = np.full(shape.slots, 255) * random.choice([-1, 1])
            lo, hi = (np.full(shape.slots, 127) * random.choice([-1, 1]) for _ in range(2))
        driver.drive(weights, lo, hi)
        wanted.append([(weights * part).reshape(count, 8).sum(axis=1) for part in (lo, hi)])
        await RisingEdge(dut.clk)
        number, offset = dut.taps.value.to_unsigned(), 0
        for level in range(count.bit_length()):
            size = tap_bits(level)
            sums = split(number >> offset, size, 2 * (count >> level))
            offset += 2 * (count >> level) * size
            before = at - tap_latency(level)
            if before >= 0:
                exact = [part.reshape(-1, 1 << level).sum(axis=1) for part in wanted[before]]
                np.testing.assert_array_equal(sums, np.concatenate(exact), f"level {level}")


@cocotb.test()
async def own_sums(dut):
    """Sums of 64 products of 8-bit codes and a shared weight, with idle clocks in between."""
    shape = LaneShape(arch_of(os.environ["ALULA_TEST_ARCH"]))
    random = np.random.default_rng(2)
    await start(dut)
    driver = Driver(dut, shape.slots)
    dut.accumulate.value = 1
    for _ in range(6):
        total = np.zeros(shape.slots, np.int64)
        for at in range(64):
            weights = random.integers(-127, 128, shape.slots)
            shared, nothing = int(random.integers(256)), np.zeros(shape.slots, int)
            while random.random() < 0.3:
                driver.drive(weights, weights, weights, valid=0, shared=255 - shared)
                await RisingEdge(dut.clk)
            driver.drive(weights, nothing, nothing, first=at == 0, shared=shared)
            await RisingEdge(dut.clk)
            total += weights * shared
        for _ in range(OWN_LATENCY + 9):
            driver.drive(weights, weights, weights, valid=0)
            await RisingEdge(dut.clk)
        np.testing.assert_array_equal(
            split(dut.own.value.to_unsigned(), OWN_BITS, shape.slots), total)


def test_chain():
    simulate(Chain(arch_of("narrow")), __file__, extra={"ALULA_TEST_ARCH": "narrow"})
