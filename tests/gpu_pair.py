"""The golden model and the GPU device with the same program and caches, compared byte by byte."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from programs.generate import Case
from programs.pair import Pair, fill_caches

from alula.host.device import GoldenDevice
from alula.host.gpu.device import GpuDevice


class GpuPair(Pair):
    """Runs a case's steps on both.

    Parameters
    ----------
    choices
        For :class:`GpuDevice`.
    """

    def __init__(self, made: Case, **choices: Any) -> None:
        self.case, self.program = made, made.program
        self.golden = GoldenDevice(made.program)
        fill_caches(made, self.golden.machine.caches)
        self.rtl: Any = GpuDevice(made.program, **choices)
        self.rtl.cache.copy_(torch.from_numpy(np.stack(self.golden.machine.caches)))

    def compare(self) -> None:
        control = self.golden.machine.control
        np.testing.assert_array_equal(self.rtl.read(0, control.size), control)
        np.testing.assert_array_equal(self.rtl.cache.cpu().numpy(),
                                      np.stack(self.golden.machine.caches))


def check(made: Case, **choices: Any) -> None:
    """Run a case's steps on both; raise AssertionError at the first that differs."""
    pair = GpuPair(made, **choices)
    for step in made.steps:
        pair.run(step)
