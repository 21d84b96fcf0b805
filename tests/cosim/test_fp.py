"""Floating point pipelines against the contract: every operation on the same operands.

Operands go through in batches, a set each clock, so that the simulation is rarely interrupted.
"""

import cocotb
import numpy as np
from amaranth.hdl import Cat, Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, FallingEdge
from cosimulate import simulate

from alula.hw import fp, functions, numerics
from alula.hw.pipe import Pipe

BATCH = 64  # operand sets
DEPTH = 160  # clocks, more than any operation takes
NAMES = ("mul", "add", "add_positive", "sub", "div", "from_int", "from_narrow", "scale_int",
         "to_int", "to_weight", "from_half", "maximum", "scale", "exp", "reciprocal",
         "rsqrt", "compare")
LIMITS = (-127, 127)
WEIGHT_LIMITS = (0, 255)
LATENCIES = {"mul": fp.MUL_LATENCY, "add": fp.ADD_LATENCY, "div": fp.DIV_LATENCY,
             "from_int": fp.FROM_INT_LATENCY, "from_narrow": fp.FROM_INT_LATENCY,
             "scale_int": fp.SCALE_INT_LATENCY, "to_int": fp.TO_INT_LATENCY}


def _build(p, a, b):
    """Return the result of each operation."""
    low = p.apply(lambda a: a[:16], a, latency=0)
    small = p.apply(lambda b: b[:9].as_signed(), b, latency=0, shape=signed(9))
    whole = p.apply(lambda a: a.as_signed(), a, latency=0)
    narrow = p.apply(lambda a: a[:20].as_signed(), a, latency=0)
    sum_ = p.apply(lambda a: a[8:].as_signed(), a, latency=0)
    scale = p.apply(lambda b: b[16:], b, latency=0)
    return {
        "mul": fp.multiply(p, a, b), "add": p.add(a, b),
        "add_positive": fp.add(p, p.absolute(a), p.absolute(b), positive=True),
        "sub": p.sub(a, b), "div": p.div(a, b),
        "from_int": fp.from_int(p, whole), "from_narrow": fp.from_int(p, narrow),
        "scale_int": fp.scale_int(p, sum_, scale),
        "to_int": fp.to_int(p, a, *LIMITS), "to_weight": fp.to_int(p, a, *WEIGHT_LIMITS),
        "from_half": fp.from_half(p, low), "maximum": fp.maximum(p, a, b),
        "scale": p.scale_by_power(a, small),
        "exp": functions.exp(p, a), "reciprocal": functions.reciprocal(p, a),
        "rsqrt": functions.rsqrt(p, a),
        "compare": p.apply(lambda a, b: Cat(fp.greater(a, b), fp.equal(a, b)), a, b),
    }


class Bench(wiring.Component):
    """Take a batch of operands at ``load``; ``DEPTH + BATCH`` clocks later it is in ``results``.

    Results are words, one operation's batch after the other, the first set lowest.
    """

    load: In(1)
    operands: In(64 * BATCH)
    results: Out(32 * BATCH * len(NAMES))

    def elaborate(self, platform):
        m = Module()
        p = Pipe(m)
        sets, left = Signal(64 * BATCH), Signal(range(BATCH + 1))
        with m.If(self.load):
            m.d.sync += [sets.eq(self.operands), left.eq(BATCH)]
        with m.Elif(left != 0):
            m.d.sync += [sets.eq(sets >> 64), left.eq(left - 1)]
        results = _build(p, p.input(sets[:32]), p.input(sets[32:64]))
        assert tuple(results) == NAMES
        for name, latency in LATENCIES.items():
            assert results[name].stage == latency, f"{name} takes {results[name].stage} clocks"
        valid, *words = p.together(p.input(left != 0, reset=True), *results.values())
        assert p.stage(*results.values()) < DEPTH
        for at, word in enumerate(words):
            wide = Signal(signed(32) if word.shape().signed else 32, name=f"result_{at}")
            kept = Signal(32 * BATCH, name=f"results_{at}")
            m.d.comb += [wide.eq(word),
                         self.results[32 * BATCH * at:32 * BATCH * (at + 1)].eq(kept)]
            with m.If(valid):
                m.d.sync += kept.eq(Cat(kept[32:], wide))
        return m


def _ints(x, *limits):
    return numerics.round_to_int(x, *limits).view(np.uint32)


def wanted(a, b):
    """Return the word of each operation, in numpy."""
    x, y = numerics.canonical(a.view(np.float32)), numerics.canonical(b.view(np.float32))
    narrow = (a.astype(np.int64) << 44 >> 44).astype(np.int32)
    power = (b.astype(np.int64) & 511 ^ 256) - 256
    scale = numerics.canonical((b >> 16).astype(np.uint16).view(np.float16).astype(np.float32))
    both_nan = np.isnan(x) | np.isnan(y)
    with np.errstate(all="ignore"):
        return {
            "mul": numerics.mul(x, y), "add": numerics.add(x, y),
            "add_positive": numerics.add(abs(x), abs(y)), "sub": numerics.sub(x, y),
            "div": numerics.div(x, y), "from_int": numerics.from_int(a.view(np.int32)),
            "from_narrow": numerics.from_int(narrow),
            "scale_int": numerics.mul(numerics.from_int(a.view(np.int32) >> 8), scale),
            "to_int": _ints(x, *LIMITS),
            "to_weight": _ints(x, *WEIGHT_LIMITS),
            "from_half": numerics.canonical(
                (a & 0xFFFF).astype(np.uint16).view(np.float16).astype(np.float32)),
            "maximum": np.where(both_nan, np.float32(np.nan), np.where(x >= y, x, y)),
            "scale": numerics.scale_by_power(x, power),
            "exp": numerics.exp(x), "reciprocal": numerics.reciprocal(x),
            "rsqrt": numerics.rsqrt(x),
            "compare": ((x > y) | (x == y) * 2).astype(np.uint32),
        }


def _edges():
    """Return words where something changes: exponents' ends, ties, fractions' ends."""
    exponents = [0, 1, 2, 23, 24, 25, 102, 103, 104, 112, 113, 125, 126, 127, 128, 129, 133, 134,
                 135, 149, 150, 151, 190, 191, 229, 252, 253, 254, 255]
    fractions = [0, 1, 2, 3, 0x3FFFFF, 0x400000, 0x400001, 0x5A8279, 0x5A827A, 0x7FFFFD, 0x7FFFFE,
                 0x7FFFFF]
    words = [e << 23 | f for e in exponents for f in fractions]
    numbers = np.array([126, 128, 150, 126.00001, 127.99999, 126.5, 127.5, 0.5, 1.5, 2.5, 254.5,
                        255.5, 88.72283, 87.33654, 2**-1.5], np.float32).view(np.uint32).tolist()
    return np.array([s << 31 | w for s in (0, 1) for w in words + numbers], np.uint32)


def operands(seed, count):
    """Return pairs of words of many kinds, ``(count, 2)``; NaNs are canonical."""
    random = np.random.default_rng(seed)
    raw = random.integers(0, 1 << 32, (count, 2), dtype=np.uint32)
    edges = _edges()
    kind = random.integers(0, 8, count)
    near = kind < 3  # exponents near 127, so that functions and sums have something to do
    exponent = random.integers(115, 139, (count, 2), dtype=np.uint32)
    raw[near] = raw[near] & 0x807F_FFFF | exponent[near] << 23
    close = kind == 3  # sums that cancel
    raw[close, 1] = (raw[close, 0] ^ 0x8000_0000) + random.integers(-4, 5, close.sum()).astype(
        np.uint32)
    wild = kind == 4
    raw[wild] = random.choice(edges, (wild.sum(), 2))
    small = kind == 5  # products and quotients near the smallest number
    total = random.integers(124, 131, small.sum(), dtype=np.uint32)
    first = random.integers(1, 124, small.sum(), dtype=np.uint32)
    raw[small, 0] = raw[small, 0] & 0x807F_FFFF | first << 23
    raw[small, 1] = raw[small, 1] & 0x807F_FFFF | (total - first) << 23
    ones = small & (raw[:, 0] & 1 == 0)  # significands that round up to a power of two
    raw[ones, 1] |= 0x7F_FFF0
    raw[ones, 0] &= 0xFF80_0007
    nan = (raw & 0x7F80_0000 == 0x7F80_0000) & (raw & 0x7F_FFFF != 0)
    return np.where(nan, np.uint32(fp.NAN), raw)


def _batches(count):
    edges = _edges()
    pairs = np.stack(np.meshgrid(edges, edges[::7]), -1).reshape(-1, 2)
    pairs = np.concatenate([pairs, operands(1, count)])
    nan = (pairs & 0x7F80_0000 == 0x7F80_0000) & (pairs & 0x7F_FFFF != 0)
    pairs = np.where(nan, np.uint32(fp.NAN), pairs)
    return pairs[:len(pairs) // BATCH * BATCH].reshape(-1, BATCH, 2).astype(np.uint32)


@cocotb.test()
async def operations_equal_the_contract(dut):
    Clock(dut.clk, 10, unit="ns").start()
    dut.rst.value = 1
    await ClockCycles(dut.clk, 2)
    dut.rst.value = 0
    for batch in _batches(100_000):
        await FallingEdge(dut.clk)
        dut.operands.value = int.from_bytes(batch.tobytes(), "little")
        dut.load.value = 1
        await FallingEdge(dut.clk)
        dut.load.value = 0
        await ClockCycles(dut.clk, DEPTH + BATCH)
        size = 4 * BATCH * len(NAMES)
        raw = dut.results.value.to_unsigned().to_bytes(size, "little")
        got = dict(zip(NAMES, np.frombuffer(raw, np.uint32).reshape(-1, BATCH), strict=True))
        a, b = batch[:, 0].copy(), batch[:, 1].copy()
        for name, words in wanted(a, b).items():
            words = words.view(np.uint32)
            wrong = np.flatnonzero(words != got[name])
            assert not wrong.size, (
                f"{name}({a[wrong[0]]:#x}, {b[wrong[0]]:#x}) must be {words[wrong[0]]:#x}, "
                f"not {got[name][wrong[0]]:#x}")


def test_fp():
    simulate(Bench(), __file__)
