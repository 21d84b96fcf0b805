"""Layers in pieces: which, how long, and that the whole stays the same to the bit."""

from dataclasses import replace

import numpy as np
import pytest
from models import random_decoder

import alula.compiler.pieces as pieces_module
from alula.compiler.compile import Options, compile as compile_graph
from alula.compiler.fuse import fuse
from alula.compiler.graph import Attention, Gate, Linear
from alula.compiler.pieces import Pieces, _runs, cut, rows
from alula.compiler.recipe import parse
from alula.compiler.shapes import shape_graph
from alula.host.device import GoldenDevice
from alula.host.session import Session
from alula.hw import isa
from alula.hw.arch import SIM, U55C


@pytest.mark.parametrize("size, unit, most", [(11008, 256, 5), (512, 32, 1), (1000, 256, 3),
                                              (100, 256, 4), (14336, 256, 7)])
def test_runs_cover(size, unit, most):
    runs = _runs(size, unit, most)
    assert len(runs) <= most
    assert [start for start, _ in runs] == list(np.cumsum([0, *(count for _, count in runs)])[:-1])
    assert sum(count for _, count in runs) == size
    assert all(count % unit == 0 for _, count in runs[:-1])


def test_last_run_is_short():
    runs = _runs(11008, 256, 5)
    assert runs[-1][1] <= min(count for _, count in runs[:-1]) * 0.6


def test_cut_llama():
    graph = fuse(shape_graph("llama2-7b", parse("w4g128"), 256))
    pieces = cut(graph, U55C)
    gates = list(graph.of(Gate))
    assert len(pieces.gates) == len(gates) == 32
    for node in graph.of(Linear):
        covered = sorted(run for piece in pieces.of(node) for run in piece)
        assert sum(count for _, count in covered) == node.op.weight.rows
        assert all(a + n == b for (a, n), (b, _) in zip(covered, covered[1:], strict=False))
    # Every piece but the last of a gate keeps all 32 lanes as busy as any other.
    for runs in pieces.gates.values():
        assert all(2 * count % (16 * U55C.lanes) == 0 for _, count in runs)


def test_values_are_last():
    graph = fuse(shape_graph("llama-3.1-8b", parse("w4g128"), 256))
    pieces = cut(graph, U55C)
    attentions = list(graph.of(Attention))
    cut_layers = [name for name in pieces.rows if "attention" in name]
    assert len(cut_layers) == len(attentions)
    assert all(pieces.rows[name] == [((0, 5120),), ((5120, 1024),)] for name in cut_layers)


def test_rows_of_runs():
    matrix = next(node.op.weight for node in random_decoder(layers=1).of(Linear))
    runs = ((16, 32), (0, 16))
    whole, part = matrix.read(0, matrix.rows), rows(matrix, runs).read(0, 48)
    np.testing.assert_array_equal(part.codes, np.concatenate([whole.codes[16:48],
                                                              whole.codes[:16]]))


def test_same_bits_in_pieces(monkeypatch):
    """A model cut into many pieces and one that is not say the same."""
    graph = random_decoder(layers=2)
    found = []
    for cutter in (lambda graph, arch: Pieces(), cut):
        monkeypatch.setattr(pieces_module, "GATED", 32)
        monkeypatch.setattr("alula.compiler.emit.cut", cutter)
        program = compile_graph(graph, SIM, Options(context=128, sequences=2))
        session = Session(GoldenDevice(program))
        session.open()
        found.append((len([i for i in program.instructions if isinstance(i, isa.Linear)]),
                      session.feed(0, [3, 1, 4, 1, 5], all_logits=True)))
    assert found[0][0] < found[1][0]
    np.testing.assert_array_equal(found[0][1].view(np.uint32), found[1][1].view(np.uint32))


def test_logits_take_turns():
    """Of a large vocabulary one chunk is searched and stored while the next is computed."""
    graph = shape_graph("tinyllama", parse("w4g128"), 256)
    program = compile_graph(graph, U55C, images=False)
    stores = [i for i in program.instructions if isinstance(i, isa.StoreRow)]
    assert len(stores) == 2 and stores[0].source != stores[1].source
    small = compile_graph(graph, replace(U55C, vector_elements=22_528), images=False)
    assert small.memory.logits.size >= 4 * graph.vocab
