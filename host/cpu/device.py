"""The processor as a device."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from alula.compiler.program import Program
from alula.host.cpu.machine import CpuMachine, widths
from alula.host.cpu.warm import kernels

_ONE_AT_A_TIME = Lock()  # not every threading layer of numba's takes calls from several threads
Report = Callable[[str, float], Callable[[float], None]]


class CpuDevice:
    """The processor as a device: the golden model's bits, by compiled kernels on packed weights.

    Parameters
    ----------
    report
        Is called with each stage's name and amount as it begins; what it returns is called with
        the amount done since.
    fast
        Use AVX-512; by default if the processor has what is needed of it.

    Raises
    ------
    MachineError, StreamError
        If a weight stream breaks the format.
    """

    name = "cpu"
    counters = None

    def __init__(self, program: Program, report: Report | None = None,
                 fast: bool | None = None) -> None:
        report = report or (lambda name, amount: lambda made: None)
        self.program = program
        self.machine = CpuMachine(program, fast=fast)
        calls = kernels(self.machine, widths(program))
        advance = report("load kernels (compiled the first time)", len(calls))
        with _ONE_AT_A_TIME:
            for call in calls:
                call()
                advance(1)
            size = sum(image.size for image in program.lanes)
            self.machine.load(report("read the weights", size))

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that a step reads, scales and headers included."""
        return sum(matrix.size for matrix in self.machine.packed.values())

    def write(self, start: int, data: bytes) -> None:
        self.machine.write_control(start, data)

    def read(self, start: int, size: int) -> NDArray[np.uint8]:
        return self.machine.control_bytes(start, size).copy()

    def step(self) -> None:
        with _ONE_AT_A_TIME:
            self.machine.run()
