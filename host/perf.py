"""How fast a program or a known model's shape would run on a board: the cycle model, driven."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from alula.compiler.compile import Options, compile as compile_graph
from alula.compiler.program import Program
from alula.compiler.recipe import Recipe
from alula.compiler.shapes import SHAPES, Sample, decoder
from alula.host.device import Report
from alula.host.rtl import RtlDevice
from alula.host.session import Row, Session
from alula.hw import isa
from alula.hw.arch import ArchConfig
from alula.sim.cycles import Profile, layer_loops, profile, with_passes
from alula.sim.memory import DRAMS, MemoryModel

MEMORIES = {"u55c": "hbm2", "u280": "hbm2", "u50": "hbm2", "zcu104": "ddr4-2400",
            "kv260": "ddr4-2400", "pynq-z2": "ddr3-1050"}
PASSES = 3  # of the loop over layers that are simulated; the others are like the last


def memory_of(arch: ArchConfig) -> str:
    """Return the name of the memory model that is behind a build's lanes."""
    return MEMORIES.get(arch.name, "ideal")


def shape_program(name: str, recipe: Recipe, arch: ArchConfig, context: int) -> Program:
    """Return a program of a known shape with as many layers as are simulated, and weights to match.

    Its instructions are those of the whole model but for the count of the loop over layers.
    """
    if name not in SHAPES:
        raise ValueError(f"shape must be one of {', '.join(SHAPES)}, not {name!r}")
    shape = SHAPES[name]
    layers = min(PASSES, shape.layers)
    graph = decoder(replace(shape, layers=layers), Sample(recipe),
                    min(max(context, 64), shape.positions))
    return compile_graph(graph, arch, Options(context=context, sequences=arch.rows),
                         name=f"{name}, {recipe}")


@dataclass
class Model:
    """A program on the cycle model, step by step.

    Parameters
    ----------
    layers
        Passes of the loop over layers that count; the program's own if None.
    timing
        If false, the whole hardware is simulated, data and all.
    """

    program: Program
    memory: str = "ideal"
    layers: int | None = None
    report: Report | None = None
    timing: bool = True
    last_layer: Profile | None = None  # of the step before, if layers were counted
    seconds: float = 0.0  # spent in simulation
    clocks: int = 0  # simulated

    def __post_init__(self) -> None:
        self.device = RtlDevice(self.program, MemoryModel.parse(self.memory), self.report,
                                timing=self.timing)
        self.loops = layer_loops(self.program.instructions)
        if self.loops:
            loop = self.program.instructions[self.loops[0]]
            assert isinstance(loop, isa.Loop)
            self.layers = self.layers or loop.count
        elif self.layers is not None and self.layers > PASSES:
            raise ValueError(f"the layers of {self.program.model.name} must be alike, to count "
                             f"{self.layers} from {PASSES}")
        self.session = Session(self.device)
        self._run([Row(self.session.open(), 0, 0)], self.program.instructions)  # after reset
        self.session.close(0)

    def step(self, sequences: int, tokens: int, context: int, *, head: bool = True) -> Profile:
        """Return the profile of a step: some tokens of each sequence after ``context`` others.

        The layers after those simulated are counted like the last one simulated.
        """
        opened = [self.session.open() for _ in range(sequences)]
        rows: list[Row] = []
        for sequence in opened:
            self.session.lengths[sequence] = context
            rows += [Row(sequence, 0, context + at, len(rows) + at - 1 if at else -1,
                         head and at == tokens - 1) for at in range(tokens)]
        try:
            return self._profile(rows)
        finally:
            for sequence in opened:
                self.session.close(sequence)

    def _profile(self, rows: list[Row]) -> Profile:
        if not self.loops or self.layers is None or self.layers < PASSES:
            self.last_layer = None
            return self._run(rows, self.program.instructions)
        most, self.last_layer = self._last_pass(rows)
        return replace(most.combine(self.last_layer, self.layers - PASSES), works=most.works)

    def _last_pass(self, rows: list[Row]) -> tuple[Profile, Profile]:
        """Return the profile of a step with the passes that are simulated, and of the last."""
        most, fewer = (self._run(rows, with_passes(self.program.instructions, self.loops, passes))
                       for passes in (PASSES, PASSES - 1))
        return most, most.combine(fewer, -1)

    def _run(self, rows: list[Row], code: list[isa.Instruction]) -> Profile:
        begun, before = time.perf_counter(), self.device.counters.cycles
        self.device.write(self.program.memory.program.start, isa.assemble(code))
        self.device.simulation.watch(True)
        self.session.step(rows)
        cycles = self.device.counters.cycles - before
        self.seconds += time.perf_counter() - begun
        self.clocks += cycles
        return profile(self.device.simulation, code, cycles)


@dataclass(frozen=True)
class Speed:
    """What a board would do with a model; everything is simulated.

    ``decode`` is the profile of a step that makes a token of each sequence, ``layer`` that of one
    of its layers, ``prefill`` that of all steps of a prompt; only the last of them makes logits.
    """

    program: Program
    memory: str
    decode: Profile
    batch: int
    context: int
    prompt: int = 0
    prefill: Profile | None = None
    layer: Profile | None = None
    weights: dict[str, int] = field(default_factory=dict)  # bytes of a step by kind

    @property
    def arch(self) -> ArchConfig:
        return self.program.arch

    @property
    def decode_tokens_per_s(self) -> float:
        return self.batch * self.arch.clock_hz / self.decode.cycles

    @property
    def peak(self) -> float:
        """Bytes a second of all lanes' memory."""
        return self.arch.lanes * self.arch.channel_bytes_per_s

    @property
    def bus_bytes(self) -> float:
        """Bytes that all lanes read for a step."""
        return self.decode.beats * self.arch.lanes * self.arch.beat_bytes

    @property
    def cache_bytes(self) -> float:
        return max(0.0, self.bus_bytes - sum(self.weights.values()))

    def facts(self) -> dict[str, Any]:
        """Return everything as plain values."""
        seconds = self.decode.cycles / self.arch.clock_hz
        useful = self.bus_bytes - self.weights.get("padding", 0)
        dram = DRAMS.get(self.memory)
        waits = self.decode.reasons
        facts: dict[str, Any] = {
            "model": self.program.model.name, "board": self.arch.name, "memory": self.memory,
            "context": self.context, "batch": self.batch, "basis": "simulated: RTL without data",
            "clock_hz": self.arch.clock_hz,
            "decode_tokens_per_s": self.decode_tokens_per_s,
            "decode_cycles": self.decode.cycles,
            "bandwidth_share": useful / seconds / self.peak,
            "bus_share": self.bus_bytes / seconds / self.peak,
            "bytes_per_token": useful / self.batch,
            "bytes": {**self.weights, "cache": self.cache_bytes},
            "stalls": {name: count / self.decode.cycles for name, count in waits.items()
                       if name != "beat"},
            "cycles_by_unit": _by_unit(self.decode),
        }
        if self.layer is not None:
            facts |= {"layer_cycles": self.layer.cycles,
                      "layer_cycles_by_unit": _by_unit(self.layer)}
        if dram is not None and dram.picojoules_per_bit is not None:
            facts["dram_energy_estimate_j_per_token"] = (
                8e-12 * dram.picojoules_per_bit * self.bus_bytes / self.batch)
        if self.prefill is not None:
            prefill = self.prefill.cycles / self.arch.clock_hz
            facts |= {"prompt": self.prompt, "prefill_tokens_per_s": self.prompt / prefill,
                      "time_to_first_token_s": prefill}
        return facts


def _by_unit(profile: Profile) -> dict[str, int]:
    return {f"{queue} {name}": count for (queue, name), count in sorted(profile.busy.items())}


def check_request(program: Program, context: int, batch: int, prompt: int) -> None:
    """Raise ValueError if a program has no room for what is to be measured."""
    rows, most = program.arch.rows, program.memory.context
    if not 1 <= batch <= rows:
        raise ValueError(f"the batch must be from 1 to {rows} sequences, not {batch}")
    if not 0 <= context < most or not 0 <= prompt < most:
        raise ValueError(f"context and prompt must be at most {most - 1} tokens, not "
                         f"{max(context, prompt)}; compile with a larger --context")


def measure(model: Model, context: int, *, batch: int = 1, prompt: int = 0,
            weights: dict[str, int] | None = None,
            advance: Callable[[float], None] = lambda share: None) -> Speed:
    """Return how fast a program would run.

    Parameters
    ----------
    context
        Tokens in the cache of each sequence when a token is made.
    batch
        Sequences that make a token in a step.
    prompt
        Tokens of a prompt whose steps are measured at its beginning and its end, the steps between
        being taken to grow evenly.
    weights
        Bytes that a step reads by kind, from the packer.
    """
    check_request(model.program, context, batch, prompt)
    decode = model.step(batch, 1, context)
    layer = model.last_layer
    advance(0.3 if prompt else 1.0)
    prefill = _prefill(model, prompt, advance) if prompt else None
    return Speed(model.program, model.memory, decode, batch, context, prompt, prefill, layer,
                 weights or {})


def _prefill(model: Model, prompt: int, advance: Callable[[float], None]) -> Profile:
    """Return the profile of a prompt's steps; only the last one makes logits."""
    rows = model.program.arch.rows
    steps, rest = divmod(prompt, rows)
    sizes = [rows] * steps + ([rest] if rest else [])
    last = model.step(1, sizes[-1], prompt - sizes[-1])
    advance(0.2)
    if len(sizes) == 1:
        return replace(last, works=())
    first = model.step(1, rows, 0, head=False)
    advance(0.25)
    if len(sizes) == 2:
        return first.combine(last, 1)
    end = model.step(1, rows, prompt - sizes[-1] - rows, head=False)
    advance(0.25)
    between = len(sizes) - 3  # steps whose time lies evenly between that of the two
    ends = first.combine(end, 1)
    middle = Profile(ends.cycles * between // 2,
                     {name: count * between / 2 for name, count in ends.reasons.items()},
                     ends.lane_beats * between // 2)
    return ends.combine(middle, 1).combine(last, 1)


def step_bytes(program: Program, layers: int | None = None) -> dict[str, int]:
    """Return the bytes of weights that a step reads, by kind.

    ``layers`` counts the last layer of a program that has only the first few.
    """
    by_matrix: dict[str, dict[str, int]] = program.statistics["by_matrix"]
    held = program.model.layers
    found: dict[str, int] = {}
    for name, kinds in by_matrix.items():
        times = 1
        if layers is not None and name.startswith(f"{held - 1}."):
            times += layers - held
        for kind in ("codes", "scales", "zero_points", "positions", "headers", "padding"):
            found[kind] = found.get(kind, 0) + times * kinds[kind]
    return found
