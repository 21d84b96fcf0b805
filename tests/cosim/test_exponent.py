"""Softmax's functions on little hardware, against the contract."""

import cocotb
import numpy as np
from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, FallingEdge
from cosimulate import simulate

from alula.hw import fp, numerics
from alula.hw.attention.exponent import Inverse, exp2
from alula.hw.pipe import Pipe

BATCH = 64  # numbers
DEPTH = 60  # clocks, more than a power takes


class Powers(wiring.Component):
    """Take a batch of numbers at ``load``, one of them each other clock, at either turn."""

    load: In(1)
    numbers: In(32 * BATCH)
    results: Out(32 * BATCH)

    def elaborate(self, platform):
        m = Module()
        p = Pipe(m)
        turn, left, numbers = Signal(), Signal(range(BATCH + 1)), Signal(32 * BATCH)
        taken = (left != 0) & ~turn
        m.d.sync += turn.eq(~turn)
        with m.If(self.load):
            m.d.sync += [numbers.eq(self.numbers), left.eq(BATCH)]
        with m.Elif(taken):
            m.d.sync += [numbers.eq(numbers >> 32), left.eq(left - 1)]
        result = exp2(p, p.input(numbers[:32]), turn)
        assert result.stage < DEPTH
        with m.If(p.at(p.input(taken, reset=True), result.stage)):
            m.d.sync += self.results.eq(Cat(self.results[32:], result.signal))
        return m


def _near(count):
    """Return numbers whose powers are numbers, and ties and neighbours of them."""
    random = np.random.default_rng(2)
    halves = np.arange(-254, 258, dtype=np.float32) / 2
    edges = [np.nextafter(halves, np.float32(way)) for way in (-np.inf, np.inf)]
    return np.concatenate([halves, *edges, random.uniform(-130, 1, count).astype(np.float32),
                           random.uniform(-1, 1, count).astype(np.float32)]).view(np.uint32)


def _words(seed, count):
    """Return any words, exponents near 1's, and both ends of the range; NaNs are canonical."""
    random = np.random.default_rng(seed)
    words = random.integers(0, 1 << 32, (3, count), np.uint32)
    words[1] = words[1] & 0x807F_FFFF | random.integers(100, 136, count, np.uint32) << 23
    words[2] = words[2] & 0x807F_FFFF | random.choice([0, 1, 2, 253, 254, 255], count) << 23
    words = words.reshape(-1)
    nan = (words & 0x7F80_0000 == 0x7F80_0000) & (words & 0x7F_FFFF != 0)
    words[nan & (words & 1 == 0)] &= 0xFF80_0000
    return np.where(nan & (words & 1 == 1), np.uint32(fp.NAN), words).astype(np.uint32)


def _numbers(count):
    found = np.concatenate([_near(count), _words(1, count)])
    return found[:len(found) // BATCH * BATCH].reshape(-1, BATCH)


async def _reset(dut):
    Clock(dut.clk, 10, unit="ns").start()
    dut.rst.value = 1
    await ClockCycles(dut.clk, 2)
    dut.rst.value = 0
    await FallingEdge(dut.clk)


@cocotb.test()
async def powers_equal_the_contract(dut):
    await _reset(dut)
    for batch in _numbers(20_000):
        dut.numbers.value = int.from_bytes(batch.tobytes(), "little")
        dut.load.value = 1
        await FallingEdge(dut.clk)
        dut.load.value = 0
        for _ in range(2 * BATCH + DEPTH):
            await FallingEdge(dut.clk)
        raw = dut.results.value.to_unsigned().to_bytes(4 * BATCH, "little")
        wanted = numerics.exp2(numerics.canonical(batch.view(np.float32))).view(np.uint32)
        wrong = np.flatnonzero(np.frombuffer(raw, np.uint32) != wanted)
        assert not wrong.size, f"exp2({batch[wrong[0]]:#x}) must be {wanted[wrong[0]]:#x}"


@cocotb.test()
async def inverses_equal_the_contract(dut):
    await _reset(dut)
    for bits in _words(3, 300):
        dut.start.value, dut.x.value = 1, int(bits)
        await FallingEdge(dut.clk)
        dut.start.value = 0
        for _ in range(30):
            await FallingEdge(dut.clk)
        x = numerics.canonical(np.array(bits).view(np.float32))
        inverse = numerics.mul(numerics.reciprocal(x), np.float32(numerics.SOFTMAX_MAX))
        wanted = [np.where(x == 0, np.float32(0), inverse),
                  numerics.mul(x, np.float32(1 / numerics.SOFTMAX_MAX))]
        got = [dut.inverse.value.to_unsigned(), dut.back.value.to_unsigned()]
        assert got == [int(w.view(np.uint32)) for w in wanted], f"of {bits:#x}"


def test_exp2():
    simulate(Powers(), __file__, names="powers_equal_the_contract")


def test_inverse():
    simulate(Inverse(), __file__, names="inverses_equal_the_contract")
