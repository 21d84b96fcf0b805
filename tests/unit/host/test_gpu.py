"""The GPU's kernels, interpreted on the processor, give the golden model's bits."""

import os

import numpy as np
import pytest

os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton is loaded
pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("triton", reason="triton is not installed")

from programs.archs import ARCHS  # noqa: E402
from programs.generate import case  # noqa: E402
from programs.pair import Pair  # noqa: E402

from alula.host.device import GoldenDevice  # noqa: E402
from alula.host.gpu.device import GpuDevice  # noqa: E402


class Interpreted(GpuDevice):
    """The device with its memories as a pair compares them."""

    @property
    def caches(self):
        return list(self.cache.numpy())

    @property
    def control_bytes(self):
        return self.read(0, self.program.memory.top.stop)


class GpuPair(Pair):
    """The golden model and the interpreted kernels, with the same program and cache."""

    def __init__(self, made):
        self.case, self.program = made, made.program
        self.golden = GoldenDevice(made.program)
        self.rtl = Interpreted(made.program)
        self._fill_caches()

    def compare(self):
        np.testing.assert_array_equal(self.rtl.control_bytes, self.golden.machine.control)
        for mine, theirs in zip(self.rtl.caches, self.golden.machine.caches, strict=True):
            np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("seed", range(8))
def test_random_program(seed):
    made = case(seed, ARCHS["sim"])
    pair = GpuPair(made)
    for step in made.steps:
        pair.run(step)
