"""Loops over repeated layers change no bits, whatever else the graph does with a layer's values."""

from dataclasses import replace

import numpy as np
import pytest
from models import Decoder

import alula.compiler.compile as steps
from alula.compiler.compile import Options, compile
from alula.compiler.fuse import fuse
from alula.compiler.graph import Add, Embed, FloatMatrix, Graph, Node
from alula.compiler.sections import Section, sections
from alula.host.device import GoldenDevice
from alula.host.session import Session
from alula.hw.arch import SIM

WIDE = replace(SIM, vector_elements=32_768, activation_elements=32_768, param_elements=32_768)
SMALL = dict(layers=4, hidden=32, heads=2, kv_heads=2, ffn=32, vocab=96, positions=128)


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
    graph = Decoder(**SMALL).graph()
    nodes = list(graph.nodes)
    norm, head = nodes[-2:]
    nodes[-2:] = [Node("skip", Add(), (*norm.inputs, source)), replace(norm, inputs=("skip",)),
                  head]
    return graph.with_nodes(nodes)


@pytest.mark.parametrize("source", ["embed", "0.add2", "1.add2", "2.add1", "3.add1"])
def test_value_used_after_the_loop(source, monkeypatch):
    assert _most_passes(_with_skip(source)) > 1
    _check(_with_skip(source), monkeypatch)


class _Embeds(Decoder):
    """Every layer adds a token embedding of its own."""

    def _layer(self, layer, x):
        held = self.random.standard_normal((self.vocab, self.hidden)).astype(np.float32)
        table = FloatMatrix(name=f"{layer}.table", rows=self.vocab, cols=self.hidden,
                            read=lambda a, b: held[a:b])
        token = self._add(f"{layer}.token", Embed(table=table))
        return super()._layer(layer, self._add(f"{layer}.add0", Add(), x, token))


def test_embedding_in_each_layer(monkeypatch):
    _check(_Embeds(**SMALL).graph(), monkeypatch)


class _Alternating(Decoder):
    """Odd layers have other heads and other rotary tables."""

    def _layer(self, layer, x):
        odd = layer % 2
        self.heads, self.kv_heads, self.head_dim = (4, 1, 16) if odd else (2, 2, 32)
        angles = np.arange(self.positions)[:, None] / (1e4 if odd else 1e2) ** (
            np.arange(0, self.head_dim, 2) / self.head_dim)
        self.cos, self.sin = (f(angles).astype(np.float32) for f in (np.cos, np.sin))
        return super()._layer(layer, x)


def test_layers_of_two_kinds(monkeypatch):
    graph = _Alternating(**SMALL | {"layers": 6}).graph()
    assert _most_passes(graph) == 3
    _check(graph, monkeypatch)


def test_head_like_the_layers(monkeypatch):
    """The logits are computed in chunks after everything else, so never in a loop."""
    made = Decoder(**SMALL | {"vocab": 32})
    held = made.random.standard_normal((32, 32)).astype(np.float32)
    x = made._add("embed", Embed(table=FloatMatrix(name="table", rows=32, cols=32,
                                                   read=lambda a, b: held[a:b])))
    for layer in range(4):
        x = made._linear(f"{layer}.linear", 32, 32, made._norm(f"{layer}.norm", x, 32))
    graph = Graph(nodes=tuple(made.nodes), output=x, vocab=32, positions=128)
    assert _most_passes(graph) == 3
    _check(graph, monkeypatch)
