"""What a build takes of its part, by figures that were measured before: nothing is mapped here.

``python -m alula.boards.area`` measures; what it printed is kept here, with when and of what.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from alula.boards.area import RESOURCES, Part
from alula.boards.board import Board
from alula.hw.arch import ArchConfig

LIMIT = 0.80  # of a part, beyond which a build is refused
_AROUND = {"name", "lanes", "clock_hz", "channel_bytes", "control_bytes", "channel_bytes_per_s",
           "lane_ports", "one_memory"}


def lane_hash(arch: ArchConfig) -> str:
    """Return sixteen digits that change with any size that a lane's logic is made of."""
    sizes = {name: value for name, value in asdict(arch).items() if name not in _AROUND}
    return hashlib.sha256(json.dumps(sizes, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A lane by Yosys, and what is around the lanes of the build that it was measured in.

    When, and at which commit; later ones may have changed it. LUTs are those after packing
    (:mod:`alula.boards.packing`). What is around the lanes counts as it is for builds of fewer.
    """

    lane: str
    family: str
    date: str
    commit: str
    used: dict[str, float]
    around: dict[str, float]


MEASURED = (
    Measured(lane="c90d25733c846825", family="xcup",  # of u55c, u280 and u50
             date="2026-11-23", commit="a155a66",
             used={"lut": 29_156, "ff": 50_559, "bram": 38.5, "uram": 22, "dsp": 216},
             around={"lut": 71_734, "ff": 77_904, "bram": 205.5, "uram": 61, "dsp": 230}),
    Measured(lane="93b819b353518a6f", family="xc7",  # of pynq-z2
             date="2026-11-23", commit="a155a66",
             used={"lut": 13_572, "ff": 18_592, "bram": 28, "uram": 0, "dsp": 64},
             around={"lut": 27_280, "ff": 29_457, "bram": 31, "uram": 0, "dsp": 110}),
    Measured(lane="534df7c74814e83f", family="xcup",  # of zcu104
             date="2026-11-22", commit="80f26c2",
             used={"lut": 38_340, "ff": 77_490, "bram": 84, "uram": 14, "dsp": 389},
             around={"lut": 38_532, "ff": 39_419, "bram": 6, "uram": 46, "dsp": 134}),
    Measured(lane="c28e9839a5023014", family="xcup",  # of kv260
             date="2026-11-22", commit="1edc1f0",
             used={"lut": 38_237, "ff": 77_229, "bram": 73, "uram": 12, "dsp": 389},
             around={"lut": 37_714, "ff": 39_027, "bram": 6, "uram": 32, "dsp": 133}),
)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A build on its part, without the platform that it is linked with."""

    part: Part
    lanes: int
    lane: Measured

    def used(self, what: str) -> float:
        """Return how many of a resource all lanes and what is around them take."""
        return self.lanes * self.lane.used[what] + self.lane.around[what]

    def share(self, what: str) -> float:
        """Return that as a share of the part; infinite if the part has none."""
        room = getattr(self.part, what)
        return self.used(what) / room if room else float("inf") if self.used(what) else 0.0

    @property
    def over(self) -> list[str]:
        """The resources of which more than ``LIMIT`` is taken."""
        return [what for what in RESOURCES if self.share(what) > LIMIT]

    @property
    def most_lanes(self) -> int:
        """How many lanes stay within ``LIMIT``; may be none."""
        fit = min((LIMIT * getattr(self.part, what) - self.lane.around[what]) / count
                  for what, count in self.lane.used.items() if count)
        return max(0, int(fit))

    @property
    def source(self) -> str:
        return f"Yosys, {self.lane.date}, commit {self.lane.commit}; without the platform"

    def __str__(self) -> str:
        return ", ".join(f"{self.used(what):,.0f} {what.upper()} of {getattr(self.part, what):,} "
                         f"({self.share(what):.0%})" for what in RESOURCES)


def estimate(board: Board, arch: ArchConfig) -> Estimate | None:
    """Return what the lanes take, if a lane of these sizes was measured."""
    for measured in MEASURED:
        if (measured.family, measured.lane) == (board.part.family, lane_hash(arch)):
            return Estimate(part=board.part, lanes=arch.lanes, lane=measured)
    return None


def describe(board: Board, arch: ArchConfig) -> str:
    """Say what a build takes, or how that could be found out."""
    found = estimate(board, arch)
    if found:
        return f"{found} ({found.source})"
    return f"not measured; run python -m alula.boards.area {board.name}"


def check_room(board: Board, arch: ArchConfig) -> None:
    """Raise ValueError, with the numbers, if a build is known to take more than ``LIMIT``."""
    found = estimate(board, arch)
    if found is None or not found.over:
        return
    remedy = (f"--lanes {found.most_lanes} stays within it" if found.most_lanes
              else "no number of lanes stays within it")
    raise ValueError(
        f"{board.name}'s {arch.lanes} lanes must take at most {LIMIT:.0%} of {board.part.name}, "
        f"not {found} ({found.source}); {remedy}, --force writes the files anyway")
