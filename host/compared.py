"""A device whose answers another device confirms."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from alula.host.device import Counters, Device


class Mismatch(RuntimeError):
    """Two devices that must give the same bits do not."""


class Compared:
    """A device that runs beside a reference and gives only what both say, to the bit.

    ``compared`` is the number of bytes read so far, each equal. Steps run at the same time.
    """

    def __init__(self, device: Device, reference: Device) -> None:
        self.device, self.reference = device, reference
        self.name, self.program = device.name, device.program
        self.compared = 0
        self._beside = ThreadPoolExecutor(1)

    @property
    def counters(self) -> Counters | None:
        return self.device.counters

    def write(self, start: int, data: bytes) -> None:
        self.device.write(start, data)
        self.reference.write(start, data)

    def read(self, start: int, size: int) -> NDArray[np.uint8]:
        mine, theirs = self.device.read(start, size), self.reference.read(start, size)
        wrong = np.flatnonzero(mine != theirs)
        if wrong.size:
            raise Mismatch(
                f"{self.device.name} and {self.reference.name} must give the same bits, not differ "
                f"in {wrong.size} of {size} bytes from control address {start + wrong[0]} on; this "
                "is a defect of Alula: please report the command that shows it")
        self.compared += size
        return mine

    def step(self) -> None:
        reference = self._beside.submit(self.reference.step)
        try:
            self.device.step()
        finally:
            reference.result()
