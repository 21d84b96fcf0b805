"""A sweep over sizes of builds: tokens a second against what they take of a device."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from alula.compiler.compile import CompileError
from alula.compiler.place import PlaceError
from alula.compiler.recipe import Recipe
from alula.compiler.shapes import SHAPES
from alula.host.perf import Model, measure, shape_program, step_bytes
from alula.hw.arch import ArchConfig
from alula.hw.ram import MODULE as RAM_MODULE
from alula.hw.top import LANE_MODULE
from alula.sim.rtl.build import described
from alula.sim.rtl.limits import LimitError, check

_MODULE = re.compile(r"^module \\?(\S+?)[ (;].*?^endmodule", re.MULTILINE | re.DOTALL)
_RAM = re.compile(rf"{RAM_MODULE} #\((.*?)\) \S+ \(", re.DOTALL)
_PARAMETER = re.compile(r"\.(DEPTH|WIDTH)\(32'd(\d+)\)")


@dataclass(frozen=True)
class Point:
    """A build, what it takes, and what it would do with a model.

    ``slices`` are DSP slices of the chains, ``memory_bits`` those of all on-chip memories of more
    than a few words; the rest of a device is not estimated here: see ``python -m
    alula.boards.area``.
    """

    arch: ArchConfig
    slices: int
    memory_bits: int
    decode_tokens_per_s: float
    bandwidth_share: float
    prefill_tokens_per_s: float | None

    def facts(self) -> dict[str, Any]:
        arch = self.arch
        return {"lanes": arch.lanes, "lane_dsps": arch.lane_dsps, "rows": arch.rows,
                "prefetch_beats": arch.prefetch_beats, "chain_dsps": self.slices,
                "memory_bits": self.memory_bits, "decode_tokens_per_s": self.decode_tokens_per_s,
                "bandwidth_share": self.bandwidth_share,
                "prefill_tokens_per_s": self.prefill_tokens_per_s}


def candidates(board: ArchConfig, **choices: Sequence[int]) -> list[ArchConfig]:
    """Return the board's build with every combination of some sizes; raise if one is illegal."""
    names = [name for name, values in choices.items() if values]
    found = []
    for values in product(*(choices[name] for name in names)):
        sizes: dict[str, Any] = dict(zip(names, values, strict=True))
        label = "-".join([board.name, *(f"{name}{value}" for name, value in sizes.items())])
        found.append(replace(board, **sizes, name=label))
    return found


def memory_bits(verilog: str, lanes: int) -> int:
    """Return the bits of the memories in a build's Verilog, those of a lane once for each."""
    total = 0
    for module in _MODULE.finditer(verilog):
        times = lanes if module[1].startswith(LANE_MODULE) else 1
        for ram in _RAM.finditer(module[0]):
            sizes = {name: int(value) for name, value in _PARAMETER.findall(ram[1])}
            if len(sizes) == 2:
                total += times * sizes["DEPTH"] * sizes["WIDTH"]
    return total


def explore(builds: Sequence[ArchConfig], shape: str, recipe: Recipe, memory: str, context: int,
            prompt: int,
            advance: Callable[[float], None] = lambda count: None,
            ) -> tuple[list[Point], dict[str, str]]:
    """Measure each build; return also, by name, why a build cannot hold the model.

    Each is simulated, so each is built.
    """
    if shape not in SHAPES:
        raise ValueError(f"shape must be one of {', '.join(SHAPES)}, not {shape!r}")
    points: list[Point] = []
    refused: dict[str, str] = {}
    layers = SHAPES[shape].layers
    for arch in builds:
        try:
            program = shape_program(shape, recipe, arch, max(context, prompt) + 1)
            check(program)
        except (PlaceError, CompileError, LimitError) as error:
            refused[arch.name] = str(error)
            advance(1)
            continue
        model = Model(program, memory, layers)
        speed = measure(model, context, prompt=prompt, weights=step_bytes(program, layers))
        facts = speed.facts()
        text = described(arch, _silent).read_text(encoding="utf-8")
        points.append(Point(arch, arch.lanes * arch.lane_dsps, memory_bits(text, arch.lanes),
                            facts["decode_tokens_per_s"], facts["bandwidth_share"],
                            facts.get("prefill_tokens_per_s")))
        advance(1)
    return points, refused


def _silent(name: str, total: float) -> Callable[[float], None]:
    return lambda made: None


def pareto(points: Sequence[Point]) -> list[Point]:
    """Return the builds that no other beats in speed with as few slices and memory bits."""
    def beaten(point: Point) -> bool:
        return any(other.decode_tokens_per_s >= point.decode_tokens_per_s
                   and other.slices <= point.slices and other.memory_bits <= point.memory_bits
                   and (other.decode_tokens_per_s, -other.slices, -other.memory_bits)
                   != (point.decode_tokens_per_s, -point.slices, -point.memory_bits)
                   for other in points)
    return [point for point in points if not beaten(point)]
