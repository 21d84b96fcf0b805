"""Well-known models as shapes: their structure without weights, to plan with.

Ref: the ``config.json`` that each model was published with.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from alula.compiler.graph import (
    Activation,
    ActivationKind,
    Add,
    Attention,
    Codes,
    Embed,
    FloatMatrix,
    Graph,
    Linear,
    Matrix,
    Mul,
    Node,
    Op,
    QuantMatrix,
    RmsNorm,
    Rope,
)
from alula.compiler.recipe import Recipe
from alula.hw.layout import WINDOW


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a Llama-like decoder."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    positions: int
    qk_norm: bool = False
    qkv_bias: bool = False
    head_bias: bool = False
    window: int = 0
    interleaved: bool = False
    activation: ActivationKind = ActivationKind.SILU
    eps: float = 1e-5
    theta: float = 10_000.0


SHAPES = {
    "llama2-7b": Shape(layers=32, hidden=4096, heads=32, kv_heads=32, head_dim=128, ffn=11_008,
                       vocab=32_000, positions=4096),
    "llama2-13b": Shape(layers=40, hidden=5120, heads=40, kv_heads=40, head_dim=128, ffn=13_824,
                        vocab=32_000, positions=4096),
    "llama-3.1-8b": Shape(layers=32, hidden=4096, heads=32, kv_heads=8, head_dim=128, ffn=14_336,
                          vocab=128_256, positions=131_072, theta=500_000.0),
    "llama-3.2-1b": Shape(layers=16, hidden=2048, heads=32, kv_heads=8, head_dim=64, ffn=8192,
                          vocab=128_256, positions=131_072, theta=500_000.0),
    "tinyllama": Shape(layers=22, hidden=2048, heads=32, kv_heads=4, head_dim=64, ffn=5632,
                       vocab=32_000, positions=2048),
    "qwen2-7b": Shape(layers=28, hidden=3584, heads=28, kv_heads=4, head_dim=128, ffn=18_944,
                      vocab=152_064, positions=32_768, qkv_bias=True, eps=1e-6, theta=1e6),
    "qwen3-8b": Shape(layers=36, hidden=4096, heads=32, kv_heads=8, head_dim=128, ffn=12_288,
                      vocab=151_936, positions=40_960, qk_norm=True, eps=1e-6, theta=1e6),
}


class Weights(Protocol):
    """Where a decoder's weights come from."""

    def matrix(self, rows: int, cols: int, source: str) -> QuantMatrix:
        """Return the matrix of a linear layer that reads the value named ``source``."""

    def vector(self, size: int, middle: float) -> NDArray[np.float32]:
        """Return norm weights (around 1) or a bias (around 0)."""

    def table(self, rows: int, cols: int) -> Matrix:
        """Return the embedding table."""


class Zeros:
    """No weights: matrices have a format only."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.group = recipe, recipe.group
        self.spare = 0.0  # bits that the matrices so far have left of the recipe's average
        self.last = "", recipe.bits  # what was read, and with which width

    def matrix(self, rows: int, cols: int, source: str) -> QuantMatrix:
        bits = self._bits(rows * cols, source)
        groups, middle = -(-cols // self.group), 1 << (bits - 1)

        def read(start: int, stop: int) -> Codes:
            count = stop - start
            return Codes(np.zeros((count, cols), np.uint8), np.ones((count, groups), np.float32),
                         np.full((count, groups), middle, np.uint8))

        return QuantMatrix(name="zeros", rows=rows, cols=cols, bits=bits, group=self.group,
                           read=read)

    def _bits(self, weights: int, source: str) -> int:
        """Return a matrix's width: the wider one where the average so far allows it.

        Matrices of one source have one width, as :func:`alula.compiler.mixed.recipes` has it.
        """
        recipe, (before, bits) = self.recipe, self.last
        if recipe.average is None:
            return recipe.bits
        if source != before:
            wide = self.spare >= (recipe.bits - recipe.average) * weights
            bits = recipe.bits if wide else recipe.narrower
        self.last = source, bits
        self.spare += (recipe.average - bits) * weights
        return bits

    def vector(self, size: int, middle: float) -> NDArray[np.float32]:
        return np.full(size, middle, np.float32)

    def table(self, rows: int, cols: int) -> Matrix:
        return FloatMatrix(name="zeros", rows=rows, cols=cols,
                           read=lambda a, b: np.zeros((b - a, cols), np.float32))


class Sample(Zeros):
    """Weights of a recipe's structure: what is kept or dropped is random, the rest is not."""

    def __init__(self, recipe: Recipe, seed: int = 0) -> None:
        super().__init__(recipe)
        self.random = np.random.default_rng(seed)

    def matrix(self, rows: int, cols: int, source: str) -> QuantMatrix:
        plain, recipe = super().matrix(rows, cols, source), self.recipe

        def read(start: int, stop: int) -> Codes:
            found = plain.read(start, stop)
            middle = 1 << (plain.bits - 1)
            codes = np.full_like(found.codes, middle + 1)
            if recipe.kept:
                codes[self._pruned(codes.shape)] = middle
            if recipe.dropped:
                dropped = self._dropped(found.scales.shape)
                codes[np.repeat(dropped, self.group, axis=1)[:, :cols]] = middle
            zeros = found.zero_points + recipe.asymmetric
            return Codes(codes, found.scales, zeros.astype(np.uint8))

        return replace(plain, name="sample", read=read)

    def _pruned(self, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """Return which weights are zero: all but ``kept`` of each window; 64 rows are repeated."""
        rows, cols = shape
        windows = -(-cols // WINDOW)
        order = self.random.random((min(rows, 64), windows, WINDOW), np.float32).argsort(axis=-1)
        pruned = (order >= self.recipe.kept).reshape(len(order), windows * WINDOW)[:, :cols]
        return np.resize(pruned, shape)

    def _dropped(self, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """Return which groups are dropped: of each row the same share."""
        count = round(shape[1] * self.recipe.dropped / 100)
        return self.random.random(shape, np.float32).argsort(axis=1).argsort(axis=1) < count


def shape_graph(name: str, recipe: Recipe, positions: int | None = None) -> Graph:
    """Return the graph of a named shape; its matrices have formats, and zeros for weights."""
    if name not in SHAPES:
        raise ValueError(f"shape must be one of {', '.join(SHAPES)}, not {name!r}")
    shape = SHAPES[name]
    graph = decoder(shape, Zeros(recipe), min(positions or 4096, shape.positions))
    return replace(graph, architecture=name)


def decoder(shape: Shape, weights: Weights, positions: int) -> Graph:
    """Return a decoder of a shape with rotary tables for some positions."""
    return Builder(shape, weights, positions).graph()


class Builder:
    """Builds a decoder, node by node; a variation overrides :meth:`layer`."""

    def __init__(self, shape: Shape, weights: Weights, positions: int) -> None:
        self.shape, self.weights, self.positions = shape, weights, positions
        self.nodes: list[Node] = []
        angles = np.arange(positions)[:, None] * shape.theta ** -(
            np.arange(0, shape.head_dim, 2) / shape.head_dim)
        self.cos, self.sin = (f(angles).astype(np.float32) for f in (np.cos, np.sin))

    def add(self, name: str, op: Op, *inputs: str) -> str:
        self.nodes.append(Node(name, op, inputs))
        return name

    def linear(self, name: str, rows: int, source: str, cols: int, bias: bool = False) -> str:
        matrix = replace(self.weights.matrix(rows, cols, source), name=name)
        return self.add(name, Linear(
            weight=matrix, bias=self.weights.vector(rows, 0) if bias else None), source)

    def norm(self, name: str, source: str, size: int, heads: int = 1) -> str:
        return self.add(name, RmsNorm(gamma=self.weights.vector(size, 1), eps=self.shape.eps,
                                      heads=heads), source)

    def graph(self) -> Graph:
        shape = self.shape
        x = self.add("embed", Embed(table=self.weights.table(shape.vocab, shape.hidden)))
        for layer in range(shape.layers):
            x = self.layer(layer, x)
        head = self.linear("logits", shape.vocab, self.norm("norm", x, shape.hidden),
                           shape.hidden, shape.head_bias)
        return Graph(nodes=tuple(self.nodes), output=head, vocab=shape.vocab,
                     positions=self.positions)

    def layer(self, layer: int, x: str) -> str:
        return self.mlp(layer, self.attention(layer, x))

    def attention(self, layer: int, x: str) -> str:
        shape, at = self.shape, f"{layer}.attention"
        normed = self.norm(f"{at}.norm", x, shape.hidden)
        parts = []
        for part, heads in (("q", shape.heads), ("k", shape.kv_heads), ("v", shape.kv_heads)):
            value = self.linear(f"{at}.{part}", heads * shape.head_dim, normed, shape.hidden,
                                shape.qkv_bias)
            if part != "v":
                if shape.qk_norm:
                    value = self.norm(f"{at}.{part}_norm", value, shape.head_dim, heads)
                value = self.add(f"{at}.{part}_rope", Rope(
                    cos=self.cos, sin=self.sin, heads=heads, head_dim=shape.head_dim,
                    interleaved=shape.interleaved), value)
            parts.append(value)
        mixed = self.add(f"{at}.mix", Attention(
            layer=layer, heads=shape.heads, kv_heads=shape.kv_heads, head_dim=shape.head_dim,
            scale=shape.head_dim ** -0.5, window=shape.window), *parts)
        out = self.linear(f"{at}.o", shape.hidden, mixed, shape.heads * shape.head_dim)
        return self.add(f"{at}.add", Add(), x, out)

    def mlp(self, layer: int, x: str) -> str:
        shape, at = self.shape, f"{layer}.mlp"
        normed = self.norm(f"{at}.norm", x, shape.hidden)
        gate = self.linear(f"{at}.gate", shape.ffn, normed, shape.hidden)
        up = self.linear(f"{at}.up", shape.ffn, normed, shape.hidden)
        act = self.add(f"{at}.act", Activation(kind=shape.activation), gate)
        down = self.linear(f"{at}.down", shape.hidden, self.add(f"{at}.mul", Mul(), act, up),
                           shape.ffn)
        return self.add(f"{at}.add", Add(), x, down)
