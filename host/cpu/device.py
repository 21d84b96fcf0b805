"""The processor as a device."""

from __future__ import annotations

from threading import Lock

import numpy as np
from numpy.typing import NDArray

from alula.compiler.program import Program
from alula.host.cpu.machine import CpuMachine, Progress

_ONE_AT_A_TIME = Lock()  # not every threading layer of numba's takes calls from several threads


class CpuDevice:
    """The processor as a device: the golden model's bits, by compiled kernels on packed weights.

    Parameters
    ----------
    progress
        Is told of the bytes of weights read, while the device is made.
    fast
        Use AVX-512; by default if the processor has what is needed of it.
    """

    name = "cpu"
    counters = None

    def __init__(self, program: Program, progress: Progress | None = None,
                 fast: bool | None = None) -> None:
        self.program = program
        self.machine = CpuMachine(program, progress=progress, fast=fast)

    def write(self, start: int, data: bytes) -> None:
        self.machine.write_control(start, data)

    def read(self, start: int, size: int) -> NDArray[np.uint8]:
        return self.machine.control_bytes(start, size).copy()

    def step(self) -> None:
        with _ONE_AT_A_TIME:
            self.machine.run()
