"""The hardware itself as a device, in simulation."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from alula.compiler.program import Program
from alula.host.device import Counters, Report, Trace
from alula.hw import isa
from alula.sim.memory import MemoryModel
from alula.sim.rtl.build import library
from alula.sim.rtl.limits import check
from alula.sim.rtl.simulation import APART, BASE, Simulation


def _silent(name: str, total: float) -> Callable[[float], None]:
    return lambda made: None


@dataclass
class RtlDevice:
    """The generated Verilog of a program's build, simulated behind memory models.

    Parameters
    ----------
    memory
        How the memories answer; ideal if not given.
    report
        Told of the stages of building; see :func:`alula.sim.rtl.build.library`.
    trace
        Where waveforms go, and of which clocks.
    timing
        Keep only the time: what is computed is nothing. Ref: :mod:`alula.sim.cycles`.
    """

    program: Program
    memory: MemoryModel | None = None
    report: Report | None = None
    trace: Trace | None = None
    timing: bool = False
    name: str = "rtl"
    counters: Counters = field(default_factory=Counters)

    def __post_init__(self) -> None:
        check(self.program)
        arch, where = self.program.arch, self.program.memory
        built = library(arch, self.report or _silent, trace=self.trace is not None,
                        timing=self.timing)
        self.simulation = Simulation(built, arch)
        self.simulation.set_memory(self.memory or MemoryModel())
        if self.trace is not None:
            self.simulation.trace(self.trace.path, self.trace.start, self.trace.clocks)
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
        begun, beats, before = time.thread_time(), self._beats(), self.counters
        cycles = self.simulation.run()
        self.counters = Counters(before.cycles + cycles, before.lane_beats + self._beats() - beats,
                                 before.seconds + time.thread_time() - begun)

    def _beats(self) -> int:
        return sum(self.simulation.beats_read(1 + lane)
                   for lane in range(self.program.arch.lanes))


def figures(program: Program, spent: Counters, tokens: int) -> dict[str, float]:
    """Return what ``tokens`` tokens have cost on simulated hardware.

    ``macs_per_s`` counts products of weights that are kept. Seconds are those of one core at work
    on the simulation.
    """
    arch = program.arch
    moved = spent.lane_beats * arch.beat_bytes
    seconds = max(spent.seconds, 1e-9)
    return {
        "cycles_per_token": spent.cycles / tokens,
        "bytes_per_token": moved / tokens,
        "bandwidth_share": moved / (spent.cycles * arch.lanes * arch.beat_bytes),
        "cycles_per_s": spent.cycles / seconds,
        "macs_per_s": program.statistics["bytes"]["kept"] * tokens / seconds,
    }
