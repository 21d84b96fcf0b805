"""A case on the golden model and on the hardware, and what of their memories must be equal."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np

from alula.host.device import Device, GoldenDevice
from alula.host.rtl import RtlDevice
from alula.hw import isa, layout, numerics
from alula.hw.isa import WORD_BYTES
from alula.sim.memory import MemoryModel
from programs.generate import Case, Rows
from programs.values import floats

PATIENCE = 400_000  # clocks that no case comes near


def memory_model(seed: int) -> MemoryModel:
    """Return a memory that answers ideally, slowly, or when it likes."""
    chooser = random.Random(seed)
    kind = chooser.randrange(4)
    if kind == 0:
        return MemoryModel()
    if kind == 1:
        return MemoryModel(latency=chooser.choice([10, 60, 200]),
                           bandwidth=chooser.choice([0.2, 0.5, 0.9, 1.0]))
    return MemoryModel(latency=chooser.choice([1, 7, 40]),
                       bandwidth=chooser.choice([0.5, 1.0]), stall=chooser.uniform(0, 0.6),
                       seed=chooser.randrange(1 << 30))


class Pair:
    """Both devices with the same program and cache."""

    def __init__(self, case: Case, memory: MemoryModel | None = None) -> None:
        self.case, self.program = case, case.program
        self.golden = GoldenDevice(case.program)
        self.memory = memory or memory_model(case.seed)
        self.rtl = RtlDevice(case.program, memory=self.memory)
        self.rtl.simulation.patience = PATIENCE
        fill_caches(case, self.golden.machine.caches)
        for mine, theirs in zip(self.rtl.caches, self.golden.machine.caches, strict=True):
            mine[:] = theirs

    def write(self, step: Rows) -> None:
        """Write a step's table and its sequences' pages."""
        for device in (self.golden, self.rtl):
            write_step(device, step)

    def run(self, step: Rows) -> None:
        """Run a step on both, and compare every byte of memory."""
        self.write(step)
        with np.errstate(all="ignore"):
            self.golden.step()
        self.rtl.step()
        self.compare()

    def compare(self) -> None:
        equal_memories(self.golden, self.rtl, self._where)

    def _where(self, at: int) -> str:
        memory = self.program.memory
        for name in ("program", "params", "tables", "step", "pages", "logits", "top"):
            region = getattr(memory, name)
            if region.start <= at < region.stop:
                return f"{name}, byte {at - region.start}{self._stored(at)}"
        return f"control memory, byte {at}"

    def _stored(self, at: int) -> str:
        """Return which of the stored blocks a byte belongs to, if of the last store."""
        last = [insn for insn in self.program.instructions if isinstance(insn, isa.StoreRow)][-1]
        inside = at - last.offset * WORD_BYTES
        row, rest = divmod(inside, last.stride * WORD_BYTES)
        if row >= self.program.arch.rows or inside < 0:
            return ""
        return f" (row {row}, block {rest // 64}, element {rest % 64 // 4} of the last StoreRow)"


def fill_caches(case: Case, caches: list[np.ndarray]) -> None:
    """Give each lane's cache keys and values, as if earlier steps had written them."""
    chooser = random.Random(case.seed)
    generator = np.random.default_rng(case.seed)
    memory, lanes = case.program.memory, case.program.arch.lanes
    for cache in caches:
        cache[:] = generator.integers(0, 256, cache.size, np.uint8)
    for slot in range(memory.slots):
        for first, kv_heads, head_dim in case.layers:
            for lane in range(lanes):
                for index in range(len(layout.lane_units(lane, lanes, kv_heads))):
                    start = WORD_BYTES * (slot * memory.slot_words + first
                                          + index * layout.page_words(head_dim))
                    count = 2 * numerics.PAGE_TOKENS
                    scales = floats(chooser, count, tame=not case.hostile_cache)
                    caches[lane][start:start + 4 * count] = scales.view(np.uint8)


def write_step(device: Device, step: Rows) -> None:
    """Write a step's table and its sequences' pages."""
    memory = device.program.memory
    device.write(memory.step.start, step.header.tobytes() + step.rows.tobytes())
    for sequence, slots in enumerate(step.pages):
        device.write(memory.pages.start + sequence * memory.page_stride * WORD_BYTES,
                     slots.astype("<u4").tobytes())


def equal_memories(golden: GoldenDevice, rtl: RtlDevice,
                   where: Callable[[int], str] = "control memory, byte {}".format) -> None:
    """Compare the control memory and every lane's cache; ``where`` names a byte."""
    control = golden.machine.control
    _equal(rtl.control[:control.size], control, where)
    for lane, (mine, theirs) in enumerate(zip(rtl.caches, golden.machine.caches, strict=True)):
        _equal(mine, theirs, f"lane {lane}'s cache, byte {{}}".format)


def _equal(got: np.ndarray, want: np.ndarray,
           where: Callable[[int], str]) -> None:
    wrong = np.flatnonzero(got != want)
    if len(wrong):
        first = int(wrong[0]) & ~3
        raise AssertionError(
            f"{where(first)}, of {len(wrong)} bytes, must be "
            f"{want[first:first + 4].view('<u4')[0]:#010x}, not "
            f"{got[first:first + 4].view('<u4')[0]:#010x}")
