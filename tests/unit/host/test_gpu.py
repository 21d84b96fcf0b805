"""The GPU's kernels, interpreted on the processor, give the golden model's bits."""

import os
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton is loaded
pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("triton", reason="triton is not installed")

from programs.archs import ARCHS  # noqa: E402
from programs.generate import case  # noqa: E402
from programs.pair import Pair  # noqa: E402

from alula.compiler.compile import compile  # noqa: E402
from alula.compiler.importer import import_model  # noqa: E402
from alula.host.device import GoldenDevice  # noqa: E402
from alula.host.gpu.device import INTERPRETED, GpuDevice  # noqa: E402
from alula.host.session import Session  # noqa: E402
from alula.hw.arch import SIM  # noqa: E402


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

    def __init__(self, made, **choices):
        self.case, self.program = made, made.program
        self.golden = GoldenDevice(made.program)
        self.rtl = Interpreted(made.program, **choices)
        self._fill_caches()

    def compare(self):
        np.testing.assert_array_equal(self.rtl.control_bytes, self.golden.machine.control)
        for mine, theirs in zip(self.rtl.caches, self.golden.machine.caches, strict=True):
            np.testing.assert_array_equal(mine, theirs)


def check(made, **choices):
    pair = GpuPair(made, **choices)
    for step in made.steps:
        pair.run(step)


@pytest.mark.parametrize("seed", [31, 61, 62, 63, 64])
def test_random_program(seed):
    check(case(seed, ARCHS["sim"]))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_program_fused(seed):
    """Vector instructions run in every program of the launch that follows."""
    check(case(seed, ARCHS["sim"], rows=2), tuning=FUSED)


FUSED = replace(INTERPRETED, columns=64, row_columns=32, tile=64, fused_rows=4)


@pytest.fixture(scope="module", params=["dense", "sparse"])
def model(request):
    graph, _ = import_model(Path(str(files("alula.host.bundled"))) / request.param)
    return compile(graph, SIM)


@pytest.mark.parametrize("chunk", [1, 4, 16])
def test_bundled_model(model, chunk):
    tokens = np.random.default_rng(chunk).integers(0, model.model.vocab, max(3, chunk)).tolist()
    golden, gpu = Session(GoldenDevice(model)), Session(GpuDevice(model))
    want, got = (session.feed(session.open(), tokens, chunk=chunk, all_logits=True)
                 for session in (golden, gpu))
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))
