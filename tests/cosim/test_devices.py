"""One program, every device, the same bits: simulated hardware, processor, interpreted GPU kernels.

The bundled models, steps of 1, 4 and 16 rows, and steps whose rows are of several sequences.
"""

import os
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton is loaded

from alula.compiler.compile import Options, compile as compile_graph  # noqa: E402
from alula.compiler.importer import import_model  # noqa: E402
from alula.host.device import GoldenDevice, open_device  # noqa: E402
from alula.host.session import Row, Session  # noqa: E402
from alula.hw.arch import SIM  # noqa: E402

SEQUENCES = 3


@pytest.fixture(scope="module", params=["dense", "sparse"])
def program(request):
    graph, _ = import_model(Path(str(files("alula.host.bundled"))) / request.param)
    return compile_graph(graph, SIM, Options(context=256), name=request.param)


@pytest.fixture(scope="module", params=[
    "rtl", "cpu", pytest.param("cuda", marks=pytest.mark.slow)])  # minutes of interpreting
def pair(request, program):
    if request.param == "cuda":
        pytest.importorskip("triton", reason="triton is not installed")
    return Session(GoldenDevice(program)), Session(open_device(request.param, program))


def _logits(session, run):
    """Return what a run of new sequences makes, the sequences forgotten after it."""
    sequences = [session.open() for _ in range(SEQUENCES)]
    try:
        return run(session, sequences)
    finally:
        for sequence in sequences:
            session.close(sequence)


def _same(pair, run):
    want, got = (_logits(session, run) for session in pair)
    assert want.size
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))


@pytest.mark.parametrize("rows", [1, 4, 16])
def test_rows_of_a_step(pair, rows):
    tokens = np.random.default_rng(rows).integers(0, 512, 2 * rows + 1).tolist()
    _same(pair, lambda session, sequences: session.feed(
        sequences[0], tokens, chunk=rows, all_logits=True))


def test_mixed_batches(pair):
    """Prompts of some sequences beside single tokens of others."""
    random = np.random.default_rng(0)
    turns = [(5, 1, 10), (1, 3, 1), (1, 1, 1)]
    tokens = [[random.integers(0, 512, count).tolist() for count in turn] for turn in turns]

    def run(session, sequences):
        found = []
        for turn in tokens:
            rows = []
            for sequence, given in zip(sequences, turn, strict=True):
                start = session.lengths[sequence]
                rows += [Row(sequence, token, start + at, len(rows) + at - 1 if at else -1, True)
                         for at, token in enumerate(given)]
            session.step(rows)
            found += [session.logits(row) for row in range(len(rows))]
        return np.stack(found)

    _same(pair, run)
