"""Loops over repeated layers change no bits, whatever else the graph does with a layer's values."""

from dataclasses import replace

import numpy as np
import pytest
from models import SMALL, Random

import alula.compiler.compile as steps
from alula.compiler.compile import Options, compile
from alula.compiler.fuse import fuse
from alula.compiler.graph import Add, Embed, Graph, Node
from alula.compiler.sections import Section, sections
from alula.compiler.shapes import Builder
from alula.host.device import GoldenDevice
from alula.host.session import Session
from alula.hw.arch import SIM

WIDE = replace(SIM, vector_elements=32_768, activation_elements=32_768, param_elements=32_768)
SHAPE = replace(SMALL, layers=4, hidden=32, heads=2, kv_heads=2, ffn=32, vocab=96, positions=128)


def _graph(builder=Builder, shape=SHAPE):
    return builder(shape, Random(), shape.positions).graph()


def _logits(graph, arch=WIDE):
    session = Session(GoldenDevice(compile(graph, arch, Options(context=128, sequences=1))))
    return session.feed(session.open(), [3, 5, 7, 1, 2], all_logits=True)


def _check(graph, monkeypatch):
    looped = _logits(graph)
    monkeypatch.setattr(steps, "sections", lambda graph: [Section((graph.nodes,))])
    np.testing.assert_array_equal(looped, _logits(graph))


def _most_passes(graph):
    return max(len(part.passes) for part in sections(fuse(graph)))


def _with_skip(source):
    """Return a decoder that adds an earlier value to the last layer's."""
    graph = _graph()
    nodes = list(graph.nodes)
    norm, head = nodes[-2:]
    nodes[-2:] = [Node("skip", Add(), (*norm.inputs, source)), replace(norm, inputs=("skip",)),
                  head]
    return graph.with_nodes(nodes)


@pytest.mark.parametrize("source", ["embed", "0.mlp.add", "1.mlp.add", "2.attention.add",
                                    "3.attention.add"])
def test_value_used_after_the_loop(source, monkeypatch):
    assert _most_passes(_with_skip(source)) > 1
    _check(_with_skip(source), monkeypatch)


class _Embeds(Builder):
    """Every layer adds a token embedding of its own."""

    def layer(self, layer, x):
        table = self.weights.table(self.shape.vocab, self.shape.hidden)
        token = self.add(f"{layer}.token", Embed(table=table))
        return super().layer(layer, self.add(f"{layer}.add", Add(), x, token))


def test_embedding_in_each_layer(monkeypatch):
    _check(_graph(_Embeds), monkeypatch)


class _Alternating(Builder):
    """Odd layers have other heads and other rotary tables."""

    def layer(self, layer, x):
        odd = layer % 2
        heads, kv_heads, head_dim = (4, 1, 16) if odd else (2, 2, 32)
        self.shape = replace(self.shape, heads=heads, kv_heads=kv_heads, head_dim=head_dim)
        angles = np.arange(self.positions)[:, None] / (1e4 if odd else 1e2) ** (
            np.arange(0, head_dim, 2) / head_dim)
        self.cos, self.sin = (f(angles).astype(np.float32) for f in (np.cos, np.sin))
        return super().layer(layer, x)


def test_layers_of_two_kinds(monkeypatch):
    graph = _graph(_Alternating, replace(SHAPE, layers=6))
    assert _most_passes(graph) == 3
    _check(graph, monkeypatch)


def test_head_like_the_layers(monkeypatch):
    """The logits are computed in chunks after everything else, so never in a loop."""
    made = Builder(SHAPE, Random(), SHAPE.positions)
    x = made.add("embed", Embed(table=made.weights.table(32, 32)))
    for layer in range(4):
        x = made.linear(f"{layer}.linear", 32, made.norm(f"{layer}.norm", x, 32), 32)
    graph = Graph(nodes=tuple(made.nodes), output=x, vocab=32, positions=128)
    assert _most_passes(graph) == 3
    _check(graph, monkeypatch)
