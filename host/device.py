"""The seam between hosts and machines: a device is memory, and a start button."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from alula.compiler.program import Program
from alula.sim.golden import Machine


class Device(Protocol):
    """Something that runs programs; host code cannot tell which."""

    name: str
    program: Program

    def write(self, start: int, data: bytes) -> None:
        """Write to the control memory, from byte ``start`` on."""

    def read(self, start: int, size: int) -> NDArray[np.uint8]:
        """Read bytes of the control memory."""

    def step(self) -> None:
        """Run the program once, from its first instruction to its end."""


class GoldenDevice:
    """The golden model as a device."""

    name = "golden"

    def __init__(self, program: Program, exact: frozenset[str] = frozenset()) -> None:
        self.program = program
        self.machine = Machine(program, exact)

    def write(self, start: int, data: bytes) -> None:
        self.machine.write_control(start, data)

    def read(self, start: int, size: int) -> NDArray[np.uint8]:
        return self.machine.control_bytes(start, size).copy()

    def step(self) -> None:
        self.machine.run()


DEVICES = ("golden", "rtl")
Report = Callable[[str, float], Callable[[float], None]]


def open_device(name: str, program: Program, report: Report | None = None) -> Device:
    """Return a device by name, the program loaded.

    ``report`` is told of the stages of making the device, as
    :func:`alula.sim.rtl.build.library` has it.
    """
    if name == "golden":
        return GoldenDevice(program)
    if name == "rtl":
        from alula.host.rtl import RtlDevice

        return RtlDevice(program, report=report) if report else RtlDevice(program)
    raise ValueError(f"device must be one of {', '.join(DEVICES)}, not {name!r}")
