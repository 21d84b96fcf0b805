"""The seam between hosts and machines: a device is memory, and a start button."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from alula.compiler.program import Program
from alula.host.cards import place
from alula.sim.golden import Machine
from alula.sim.memory import MemoryModel


@dataclass(frozen=True)
class Counters:
    """What hardware has done: clocks from start to end of each step, beats that lanes read.

    ``seconds`` is the time a core has worked on simulating it.
    """

    cycles: int = 0
    lane_beats: int = 0
    seconds: float = 0.0

    def __sub__(self, other: Counters) -> Counters:
        return Counters(self.cycles - other.cycles, self.lane_beats - other.lane_beats,
                        self.seconds - other.seconds)


class Device(Protocol):
    """Something that runs programs; host code cannot tell which."""

    @property
    def name(self) -> str: ...

    @property
    def program(self) -> Program: ...

    @property
    def counters(self) -> Counters | None:
        """What it has done since it was made, if it counts."""

    def write(self, start: int, data: bytes) -> None:
        """Write to the control memory, from byte ``start`` on."""

    def read(self, start: int, size: int) -> NDArray[np.uint8]:
        """Read bytes of the control memory."""

    def step(self) -> None:
        """Run the program once, from its first instruction to its end."""


class GoldenDevice:
    """The golden model as a device."""

    name = "golden"
    counters = None

    def __init__(self, program: Program, exact: frozenset[str] = frozenset()) -> None:
        self.program = program
        self.machine = Machine(program, exact)

    def write(self, start: int, data: bytes) -> None:
        self.machine.write_control(start, data)

    def read(self, start: int, size: int) -> NDArray[np.uint8]:
        return self.machine.control_bytes(start, size).copy()

    def step(self) -> None:
        self.machine.run()


CARDS = {place.ALVEO: "alula.host.cards.alveo",  # and their modules
         place.PYNQ: "alula.host.cards.zynq"}
DEVICES = ("auto", "rtl", "golden", "cpu", "cuda", *CARDS)
AUTO_LANES = 4  # larger builds take too long to simulate unless someone asks for it
Report = Callable[[str, float], Callable[[float], None]]


@dataclass(frozen=True)
class Trace:
    """A file for the waveforms of some clocks of a simulation, counted from reset."""

    path: Path
    start: int = 0
    clocks: int = 20_000

    def __post_init__(self) -> None:
        if not self.path.parent.is_dir() or self.path.is_dir():
            raise ValueError(f"a trace must go to a file in a folder that exists, not {self.path}")


def resolve(name: str, program: Program) -> tuple[str, str]:
    """Return which device a name means for a program, and why, if that is not plain."""
    if place.kind_of(name) not in DEVICES:
        raise ValueError(f"device must be one of {', '.join(DEVICES)}, not {name!r}")
    if name != "auto":
        return name, ""
    from alula.sim.rtl.build import NO_COMPILER, compiler
    from alula.sim.rtl.limits import LimitError, check

    if program.arch.lanes > AUTO_LANES:
        return "golden", (f"the hardware of {program.arch.name} is simulated only on request, "
                          "with --device rtl; running the golden model")
    if compiler() is None:
        return "golden", f"{NO_COMPILER}; running the golden model"
    try:
        check(program)
    except LimitError as error:
        return "golden", f"{error}; running the golden model"
    return "rtl", ""


def check_simulated(name: str, memory: MemoryModel | None, trace: Trace | None) -> None:
    """Raise ValueError if what only a simulation has is asked of another device."""
    if name not in ("auto", "rtl") and (memory or trace):
        raise ValueError(f"memory models and traces are for the device rtl, not {name}")


def open_device(name: str, program: Program, report: Report | None = None, *,
                memory: MemoryModel | None = None, trace: Trace | None = None) -> Device:
    """Return a device by its name, not ``auto``, the program loaded.

    Cards may be named with their number and bundle: see :class:`alula.host.cards.place.Place`.

    Parameters
    ----------
    report
        Is told of the stages of making the device, as :func:`alula.sim.rtl.build.library` has it.
    memory, trace
        For the rtl device: how its memories answer, and where waveforms go.
    """
    if name == "rtl":
        from alula.host.rtl import RtlDevice

        return RtlDevice(program, memory=memory, report=report, trace=trace)
    check_simulated(name, memory, trace)
    if name == "golden":
        return GoldenDevice(program)
    if name == "cpu":
        from alula.host.cpu.device import CpuDevice  # takes a second to import

        return CpuDevice(program, report)
    if name == "cuda":
        from alula.host import gpu

        device: Device = gpu.open_device(program)
        return device
    kind, where = place.parse(name)
    if kind in CARDS:
        card: Device = import_module(CARDS[kind]).open_device(program, where, report=report)
        return card
    raise ValueError(f"device must be one of {', '.join(DEVICES[1:])}, not {name!r}")
