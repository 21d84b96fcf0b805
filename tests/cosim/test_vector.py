"""The vector unit against the golden model: random instructions, every buffer, to the bit."""

import dataclasses
import os
import random

import cocotb
import numpy as np
import pytest
from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import memory, stream, wiring
from amaranth.lib.wiring import In, Out
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, FallingEdge
from cosimulate import simulate

from alula.hw import isa, layout
from alula.hw.arch import SIM
from alula.hw.formats import COMMAND_BITS
from alula.hw.vector.buffers import address_bits, param_bits
from alula.hw.vector.unit import VectorUnit
from alula.sim import golden

ARCHES = {width: dataclasses.replace(SIM, rows=4, vector_width=width, vector_elements=1024,
                                     param_elements=512, activation_elements=1024)
          for width in (4, 8, 16)}
VECTOR_BLOCKS, PARAM_BLOCKS, CODE_BLOCKS = 64, 32, 64
VECTOR, PARAM, CODES, SCALES = range(4)


class Bench(wiring.Component):
    """A vector unit with its buffers, which a test reads and writes while nothing runs."""

    def __init__(self, arch):
        self.arch = arch
        word = 32 * arch.vector_width
        super().__init__({
            "commands": In(stream.Signature(COMMAND_BITS)), "done": Out(1),
            "rows": In(range(arch.rows + 1)),
            "top_row": In(range(arch.rows)), "top_index": In(range(isa.TOP_K)), "top": Out(64),
            "select": In(2), "address": In(address_bits(arch)), "write": In(1),
            "data": In(word), "read": Out(word),
        })

    def elaborate(self, platform):
        m = Module()
        arch, word = self.arch, 32 * self.arch.vector_width
        m.submodules.unit = unit = VectorUnit(arch)
        wiring.connect(m, wiring.flipped(self.commands), unit.commands)
        m.d.comb += [self.done.eq(unit.done), unit.rows.eq(self.rows),
                     unit.top_row.eq(self.top_row), unit.top_index.eq(self.top_index),
                     self.top.eq(Cat(unit.top_value, unit.top_token))]
        host = Signal(arch.vector_width)
        vector = self._memory(m, word, 1 << address_bits(arch), VECTOR, 32)
        m.d.comb += [host.eq((self.write & (self.select == VECTOR)).replicate(arch.vector_width))]
        write = vector.write_port(granularity=32)
        m.d.comb += [write.addr.eq(Mux(host.any(), self.address, unit.write_address)),
                     write.data.eq(Mux(host.any(), self.data, unit.write_data)),
                     write.en.eq(host | unit.write_mask)]
        self._read(m, vector, unit.read_address, unit.read_data, unit.read_enable)
        params = self._memory(m, word, 1 << param_bits(arch), PARAM, word)
        write = params.write_port()
        m.d.comb += [write.addr.eq(self.address), write.data.eq(self.data),
                     write.en.eq(self.write & (self.select == PARAM))]
        self._read(m, params, unit.param_address, unit.param_data, 1)
        for name, place, width in (("codes", CODES, 128), ("scale", SCALES, 32)):
            port = unit.codes if name == "codes" else unit.scales
            kept = self._memory(m, width, arch.rows * CODE_BLOCKS, place, width)
            write = kept.write_port()
            m.d.comb += [write.addr.eq(Cat(port.block[:6], port.row)), write.data.eq(port[name]),
                         write.en.eq(port.valid)]
        return m

    def _memory(self, m, width, depth, place, granularity):
        kept = memory.Memory(shape=width, depth=depth, init=[])
        m.submodules += kept
        read = kept.read_port(domain="comb")
        m.d.comb += read.addr.eq(self.address)
        parts = max(1, width // len(self.read))
        with m.If(self.select == place):  # codes may be wider than a word: the host picks parts
            m.d.comb += self.read.eq(read.data)
            if parts > 1:
                m.d.comb += self.read.eq(read.data.word_select(self.data[:2], len(self.read)))
        return kept

    def _read(self, m, kept, address, result, enable):
        """Answer two clocks later; what was not asked for is rubbish."""
        read = kept.read_port()
        asked = Signal()
        m.d.comb += read.addr.eq(address)
        m.d.sync += [asked.eq(enable), result.eq(Mux(asked, read.data, ~0))]


class Host:
    """Drive the bench, with the golden machine beside it."""

    def __init__(self, dut, arch):
        self.dut, self.arch, self.width = dut, arch, arch.vector_width
        machine = golden.Machine.__new__(golden.Machine)
        machine.arch, machine.exact, machine.code_values = arch, frozenset(), None
        machine.vector = np.zeros((arch.rows, arch.vector_elements), np.float32)
        machine.codes = np.zeros((arch.rows, arch.activation_elements), np.int8)
        machine.code_scales = np.zeros((arch.rows, CODE_BLOCKS), np.float32)
        machine.params = np.zeros(arch.param_elements, np.float32)
        machine.top_values = np.full((arch.rows, isa.TOP_K), -np.inf, np.float32)
        machine.top_tokens = np.full((arch.rows, isa.TOP_K), layout.NO_TOKEN, np.uint32)
        machine.registers = [0] * isa.ADDRESS_REGISTERS
        self.machine = machine
        self.set_rows(arch.rows)

    async def start(self):
        self.dut.commands__valid.value = 0
        self.dut.write.value = 0
        Clock(self.dut.clk, 10, unit="ns").start()
        self.dut.rst.value = 1
        await ClockCycles(self.dut.clk, 3)
        self.dut.rst.value = 0
        await FallingEdge(self.dut.clk)

    def set_rows(self, rows):
        self.machine.rows = np.zeros(rows, layout.STEP_ROW)
        self.dut.rows.value = rows

    async def fill(self, vector, params):
        self.machine.vector[:], self.machine.params[:] = vector, params
        for place, array in ((VECTOR, vector), (PARAM, params)):
            self.dut.select.value = place
            self.dut.write.value = 1
            for at, word in enumerate(array.reshape(-1, self.width)):
                self.dut.address.value = at
                self.dut.data.value = int.from_bytes(word.tobytes(), "little")
                await FallingEdge(self.dut.clk)
        self.dut.write.value = 0

    async def read(self, place, count, size, part=0):
        """Return ``count`` words of ``size`` bytes."""
        self.dut.select.value = place
        self.dut.data.value = part
        words = []
        for at in range(count):
            self.dut.address.value = at
            await FallingEdge(self.dut.clk)
            words.append((int(self.dut.read.value) & ((1 << 8 * size) - 1)).to_bytes(
                size, "little"))
        return b"".join(words)

    async def run(self, instruction):
        """Execute an instruction on both; return its clocks."""
        golden.EXECUTE[type(instruction)](self.machine, instruction)
        dut = self.dut
        dut.commands__payload.value = int.from_bytes(isa.encode(instruction), "little")
        dut.commands__valid.value = 1
        while not dut.commands__ready.value:
            await FallingEdge(dut.clk)
        await FallingEdge(dut.clk)
        dut.commands__valid.value = 0
        clocks = 1
        while not dut.done.value:
            assert clocks < 60_000, f"{isa.text(instruction)} must end"
            await FallingEdge(dut.clk)
            clocks += 1
        await FallingEdge(dut.clk)
        return clocks

    async def check(self, instruction):
        """Compare everything the instruction could change."""
        machine, text = self.machine, isa.text(instruction)
        got = np.frombuffer(await self.read(VECTOR, machine.vector.size // self.width,
                                            4 * self.width), np.uint32)
        _equal(got, machine.vector.view(np.uint32).reshape(-1), f"{text}: vector")
        if isinstance(instruction, isa.Quantize):
            await self._check_codes(text)
        if isinstance(instruction, isa.SelectTop):
            await self._check_top(text)

    async def _check_codes(self, text):
        rows = self.arch.rows
        size = min(16, 4 * self.width)
        parts = [np.frombuffer(await self.read(CODES, rows * CODE_BLOCKS, size, part), np.int8)
                 .reshape(-1, size) for part in range(16 // size)]
        _equal(np.concatenate(parts, axis=1).reshape(rows, -1), self.machine.codes,
               f"{text}: codes")
        got = np.frombuffer(await self.read(SCALES, rows * CODE_BLOCKS, 4), np.uint32)
        _equal(got.reshape(rows, -1), self.machine.code_scales.view(np.uint32), f"{text}: scales")

    async def _check_top(self, text):
        for row in range(self.arch.rows):
            words = []
            for index in range(isa.TOP_K):
                self.dut.top_row.value = row
                self.dut.top_index.value = index
                for _ in range(2):
                    await FallingEdge(self.dut.clk)
                words.append(int(self.dut.top.value))
            got = np.array(words, np.uint64)
            _equal((got >> np.uint64(32)).astype(np.uint32), self.machine.top_tokens[row],
                   f"{text}: tokens of row {row}")
            _equal((got & np.uint64(0xFFFF_FFFF)).astype(np.uint32),
                   self.machine.top_values[row].view(np.uint32), f"{text}: values of row {row}")


def _equal(got, want, what):
    wrong = np.argwhere(got != want)
    assert not len(wrong), (f"{what} at {wrong[0].tolist()}, of {len(wrong)}, must be "
                            f"{want[tuple(wrong[0])]:#x}, not {got[tuple(wrong[0])]:#x}")


SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 2.0**-126, -(2.0**-126), 3e38,
                    127.5, 88.5, -88.0, 5e-20, 1e-30], np.float32)


def values(chooser, count):
    """Return numbers of many sizes; sometimes some that are special."""
    generator = np.random.default_rng(chooser.randrange(1 << 30))
    x = generator.standard_normal(count).astype(np.float32)
    kind = chooser.randrange(4)
    if kind == 1:
        x *= np.exp(generator.uniform(-20, 20, count)).astype(np.float32)
    if kind == 2:
        x = np.where(generator.random(count) < 0.1, generator.choice(SPECIAL, count), x)
    if kind == 3:
        x = np.rint(2 * x).astype(np.float32) * np.float32(0.5)  # ties
    return x.astype(np.float32)


def _spans(chooser, count, blocks, total=VECTOR_BLOCKS):
    """Return ``count`` places of ``blocks`` blocks that do not overlap."""
    order = list(range(total // blocks))
    chooser.shuffle(order)
    return [blocks * place for place in order[:count]]


def _size(chooser, most):
    return chooser.choice([chooser.randint(1, most), 16 * chooser.randint(1, most // 16)])


def combine(chooser):
    size = _size(chooser, 336)
    source, other, target = _spans(chooser, 3, -(-size // 16))
    shared = chooser.randrange(2)
    if shared:
        other = chooser.randint(0, PARAM_BLOCKS - -(-size // 16))
    target = chooser.choice([target, source] + [other] * (1 - shared))
    return isa.Combine(target=target, source=source, other=other, shared=shared, size=size,
                       function=chooser.choice(list(isa.Elementwise)))


def activate(chooser):
    size = _size(chooser, 336)
    source, other, target = _spans(chooser, 3, -(-size // 16))
    gated = chooser.randrange(2)
    return isa.Activate(target=chooser.choice([target, source]), source=source, other=other,
                        gated=gated, size=size, function=chooser.choice(list(isa.Function)))


def rms_norm(chooser):
    parts = chooser.choice([1, 1, 2, 3, 5])
    size = _size(chooser, 512) if parts == 1 else 16 * chooser.randint(1, 32 // parts)
    source, target = _spans(chooser, 2, -(-size // 16) * parts)
    return isa.RmsNorm(target=chooser.choice([target, source]), source=source,
                       gamma=chooser.randint(0, PARAM_BLOCKS - -(-size // 16)), size=size,
                       parts=parts, eps=chooser.choice([1e-5, 1e-6, 0.0]))


def rotate(chooser):
    interleaved = chooser.randrange(2)
    unit = 16 if interleaved else 32
    head = 16 * chooser.choice([2, 3, 4, 5])
    rotary = unit * chooser.randint(1, head // unit)
    heads = chooser.randint(1, 320 // head)
    source, target, cos = _spans(chooser, 3, head * heads // 16)
    cos = cos if head * heads // 16 >= 6 else VECTOR_BLOCKS - 6
    clear = [place for place in (source, target) if abs(place - cos) >= max(6, head * heads // 16)]
    if len(clear) < 2:
        source, target, cos = 0, 20, 58
    return isa.Rotate(target=chooser.choice([target, source]), source=source, cos=cos,
                      heads=heads, head_dim=head, rotary_dim=rotary, interleaved=interleaved)


def quantize(chooser):
    group = 16 * chooser.choice([1, 2, 3, 4, 8, 16, 31])
    size = _size(chooser, 960)
    blocks = -(-size // group) * group // 16
    if blocks > CODE_BLOCKS:
        group, blocks = 16, -(-size // 16)
    return isa.Quantize(target=chooser.randint(0, CODE_BLOCKS - blocks),
                        source=chooser.randint(0, VECTOR_BLOCKS - -(-size // 16)), size=size,
                        group=group, scale=chooser.choice([1.0, 0.125 * 1.4426950408889634]))


def select_top(chooser):
    size = _size(chooser, 900)
    first = chooser.choice([0, 1000, chooser.randrange(1 << 18)])
    limit = chooser.choice([(1 << 20) - 1, first + size // 2, first, first // 2, first + size])
    return isa.SelectTop(source=chooser.randint(0, VECTOR_BLOCKS - -(-size // 16)), size=size,
                         register=0, offset=first, limit=min(limit, (1 << 20) - 1),
                         clear=chooser.randrange(2))


KINDS = [combine, activate, rms_norm, rotate, quantize, select_top]


@cocotb.test()
@cocotb.parametrize(kind=KINDS)
async def instruction_equals_golden(dut, kind):
    arch = ARCHES[int(os.environ["VECTOR_WIDTH"])]
    host = Host(dut, arch)
    await host.start()
    chooser = random.Random(kind.__name__)
    await host.fill(values(chooser, arch.rows * arch.vector_elements).reshape(arch.rows, -1),
                    values(chooser, arch.param_elements))
    for turn in range(int(os.environ["VECTOR_TURNS"])):
        if turn % 3 == 0:
            await host.fill(
                values(chooser, arch.rows * arch.vector_elements).reshape(arch.rows, -1),
                values(chooser, arch.param_elements))
        host.set_rows(chooser.randint(1, arch.rows))
        instruction = kind(chooser)
        with np.errstate(all="ignore"):
            clocks = await host.run(instruction)
        dut._log.info("%d rows, %d clocks: %s", len(host.machine.rows), clocks,
                      isa.text(instruction))
        await host.check(instruction)


@pytest.mark.slow
@pytest.mark.parametrize("width", [4, 16])
def test_vector_unit(width):
    simulate(Bench(ARCHES[width]), __file__,
             extra={"VECTOR_WIDTH": str(width), "VECTOR_TURNS": "24"})
