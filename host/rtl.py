"""The hardware itself as a device, in simulation."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alula.compiler.program import Program
from alula.hw import isa
from alula.sim.rtl.build import Report, library
from alula.sim.rtl.limits import check
from alula.sim.rtl.simulation import APART, BASE, MemoryModel, Simulation


@dataclass
class Counters:
    """What a device has done since it was made."""

    steps: int = 0
    cycles: int = 0  # from start to end of each step
    lane_beats: int = 0  # read through the lanes' ports
    seconds: float = 0.0  # of simulation


def _silent(name: str, total: float) -> Callable[[float], None]:
    return lambda made: None


@dataclass
class RtlDevice:
    """The generated Verilog of a program's build, simulated behind memory models.

    Parameters
    ----------
    memory
        How the memories answer.
    report
        Told of the stages of building; see :func:`alula.sim.rtl.build.library`.
    trace
        File for the waveforms of ``trace_clocks`` clocks from the first step on.
    """

    program: Program
    memory: MemoryModel = MemoryModel()
    report: Report = _silent
    trace: Path | None = None
    trace_clocks: int = 10_000
    name: str = "rtl"
    counters: Counters = field(default_factory=Counters)

    def __post_init__(self) -> None:
        check(self.program)
        arch, where = self.program.arch, self.program.memory
        built = library(arch, self.report, trace=self.trace is not None)
        self.simulation = Simulation(built, arch)
        self.simulation.set_memory(self.memory)
        self.control = np.zeros(-(-where.top.stop // 64) * 64, np.uint8)
        self.control[:self.program.control.size] = self.program.control
        code = np.frombuffer(isa.assemble(self.program.instructions), np.uint8)
        self.control[where.program.start:where.program.start + code.size] = code
        self.simulation.attach(0, BASE, self.control, writable=True)
        starts, self.caches = [], []  # the lanes' memories, and what they keep
        for lane, image in enumerate(self.program.lanes):
            start = BASE + (1 + lane) * APART
            starts.append(start)
            weights = np.zeros(-(-image.size // 64) * 64, np.uint8)
            weights[:image.size] = image
            cache = np.zeros(where.cache.size, np.uint8)
            self.simulation.attach(1 + lane, start, weights, writable=False)
            self.caches.append(cache)
            if cache.size:
                self.simulation.attach(1 + lane, start + where.cache.start, cache, writable=True)
        self.simulation.load(BASE, starts, where.program.start, len(self.program.instructions))

    def write(self, start: int, data: bytes) -> None:
        raw = np.frombuffer(data, np.uint8)
        self._bytes(start, raw.size)[:] = raw

    def read(self, start: int, size: int) -> NDArray[np.uint8]:
        return self._bytes(start, size).copy()

    def _bytes(self, start: int, size: int) -> NDArray[np.uint8]:
        if not 0 <= start <= start + size <= self.control.size:
            raise ValueError(f"a control address must be below {self.control.size}, not "
                             f"{start + size}")
        return self.control[start:start + size]

    def step(self) -> None:
        if self.trace is not None and not self.counters.steps:
            self.simulation.trace(self.trace, self.trace_clocks)
        begun, beats = time.perf_counter(), self._beats()
        self.counters.cycles += self.simulation.run()
        self.counters.seconds += time.perf_counter() - begun
        self.counters.lane_beats += self._beats() - beats
        self.counters.steps += 1

    def figures(self) -> dict[str, float]:
        """Return what the steps so far have cost, as simulated."""
        counters, arch = self.counters, self.program.arch
        moved = counters.lane_beats * arch.beat_bytes
        return {
            "steps": counters.steps,
            "cycles_per_step": counters.cycles / max(counters.steps, 1),
            "bytes_per_step": moved / max(counters.steps, 1),
            "bandwidth_share": moved / max(counters.cycles * arch.lanes * arch.beat_bytes, 1),
            "cycles_per_s": counters.cycles / max(counters.seconds, 1e-9),
        }

    def _beats(self) -> int:
        return sum(self.simulation.beats_read(1 + lane)
                   for lane in range(self.program.arch.lanes))
