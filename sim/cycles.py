"""The cycle model: the accelerator's own hardware description, without what it computes.

When anything happens depends on the program, the step table, the headers of the weight streams and
how memories answer, and on no weight, activation or sum. So the simulated Verilog is built with the
macro ``ALULA_TIMING``, under which data is zero (:mod:`alula.hw.passive`) and the logic that makes
it is gone. What is left is the same state machines, queues, tokens, buffers and buses: there is no
second description that could be wrong, and no constant to fit. One thing does depend on data: how
many logits enter a list of the best ones. Here they are as few as can be.

Here is what a watched run tells: when each instruction ran, and what each lane's port did.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from alula.hw import isa
from alula.hw.isa import Instruction, Queue
from alula.sim.rtl.simulation import REASONS, Simulation


@dataclass(frozen=True)
class Work:
    """A unit's work on an instruction: clocks from ``begin`` to ``end``, since the run began."""

    queue: Queue
    index: int
    begin: int
    end: int


@dataclass(frozen=True)
class Profile:
    """What a run did.

    Attributes
    ----------
    cycles
        Clocks from the start to the end.
    reasons
        Mean over the lanes of the clocks by :data:`REASONS`: those that carry a beat, and what the
        others wait for.
    busy
        Clocks by ``(queue, instruction's name)`` in which a unit works on it.
    lane_beats
        Clocks of each lane that carry a beat.
    works
        Every piece of work in order; empty for a profile that is a sum.
    """

    cycles: int
    reasons: dict[str, float]
    lane_beats: NDArray[np.int64]
    busy: Counter[tuple[str, str]] = field(default_factory=Counter)
    works: tuple[Work, ...] = ()

    @property
    def beats(self) -> float:
        """Beats of a lane."""
        return self.reasons["beat"]

    def combine(self, other: Profile, times: int) -> Profile:
        """Return the profile of this run and ``times`` of another."""
        reasons = {name: count + times * other.reasons[name]
                   for name, count in self.reasons.items()}
        busy = Counter({key: count + times * other.busy[key] for key, count in self.busy.items()})
        return Profile(self.cycles + times * other.cycles, reasons,
                       self.lane_beats + times * other.lane_beats, busy)


def profile(simulation: Simulation, instructions: Sequence[Instruction], cycles: int) -> Profile:
    """Return what a watched run of some instructions did."""
    works = tuple(_works(simulation.events()))
    clocks = simulation.reasons()
    busy: Counter[tuple[str, str]] = Counter()
    for work in works:
        busy[work.queue.name, type(instructions[work.index]).__name__] += work.end - work.begin
    return Profile(cycles, dict(zip(REASONS, clocks.mean(axis=0).tolist(), strict=True)),
                   clocks[:, REASONS.index("beat")].astype(np.int64), busy, works)


def _works(events: NDArray[np.void]) -> Iterator[Work]:
    """Yield the work that events tell of, by its beginning."""
    if not len(events):
        return
    start = int(events["clock"].min())
    begun: dict[int, tuple[int, int]] = {}
    found = []
    for clock, queue, index, begins in events[["clock", "queue", "index", "begins"]].tolist():
        if begins:
            begun[queue] = clock, index
        else:
            first, index = begun.pop(queue)
            found.append(Work(Queue(queue), index, first - start, clock - start))
    yield from sorted(found, key=lambda work: work.begin)


def layer_loops(instructions: Sequence[Instruction]) -> list[int]:
    """Return which instructions begin loops over layers: those with attention in their body."""
    open_loops: list[int] = []
    found: list[int] = []
    for index, instruction in enumerate(instructions):
        if isinstance(instruction, isa.Loop):
            open_loops.append(index)
        elif isinstance(instruction, isa.EndLoop):
            open_loops.pop()
        elif isinstance(instruction, isa.Attend):
            inner = [at for at in open_loops
                     if _loop(instructions, at).source is isa.Count.IMMEDIATE]
            found += [at for at in inner[-1:] if at not in found]
    return found


def _loop(instructions: Sequence[Instruction], at: int) -> isa.Loop:
    loop = instructions[at]
    assert isinstance(loop, isa.Loop)
    return loop


def with_passes(instructions: Sequence[Instruction], loops: Sequence[int],
                passes: int) -> list[Instruction]:
    """Return a program whose layers run ``passes`` times; ``loops`` are its :func:`layer_loops`.

    A loop with fewer passes than the first has the others in front or behind.
    """
    changed = list(instructions)
    most = _loop(instructions, loops[0]).count
    for at in loops:
        loop = _loop(instructions, at)
        changed[at] = replace(loop, count=passes - (most - loop.count))
    return changed
