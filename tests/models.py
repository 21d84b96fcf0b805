"""Random decoders in the canonical form, of any shape and format."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from alula.compiler.compile import Options, compile
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
from alula.compiler.program import Program
from alula.hw.arch import ArchConfig


def random_codes(random: np.random.Generator, rows: int, cols: int, bits: int, group: int, *,
                 asymmetric: bool = False, zeros: float = 0.0, kept: int = 0,
                 dropped: float = 0.0) -> Codes:
    """Return random codes; shares of zeros, at most ``kept`` of 16, and dropped groups on top."""
    groups = -(-cols // group)
    codes = random.integers(0, 1 << bits, (rows, cols)).astype(np.uint8)
    points = (random.integers(0, 1 << bits, (rows, groups)) if asymmetric
              else np.full((rows, groups), 1 << (bits - 1))).astype(np.uint8)
    zero = random.random((rows, cols)) < zeros
    if kept:
        order = random.random((rows, -(-cols // 16), 16)).argsort(axis=-1)
        zero |= (order >= kept).reshape(rows, -1)[:, :cols]
    zero |= (random.random((rows, groups)) < dropped).repeat(group, axis=1)[:, :cols]
    spread = np.arange(cols) // group
    scales = (random.standard_normal((rows, groups)) * 0.02).astype(np.float16).astype(np.float32)
    return Codes(np.where(zero, points[:, spread], codes), scales, points)


def quantized(random: np.random.Generator, rows: int, cols: int, bits: int = 4, group: int = 32,
              **kind: float) -> QuantMatrix:
    held = random_codes(random, rows, cols, bits, group, **kind)  # type: ignore[arg-type]
    return QuantMatrix(name="m", rows=rows, cols=cols, bits=bits, group=group,
                       read=lambda a, b: Codes(*(part[a:b] for part in held)))


@dataclass(kw_only=True)
class Decoder:
    """Builds a random Llama-like graph."""

    layers: int = 3
    hidden: int = 96
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 16
    ffn: int = 192
    vocab: int = 515
    positions: int = 1024
    bits: int = 4
    group: int = 32
    qk_norm: bool = False
    bias: bool = False
    window: int = 0
    interleaved: bool = False
    activation: ActivationKind = ActivationKind.SILU
    kept: int = 0
    dropped: float = 0.0
    asymmetric: bool = False
    embedding: str = "f32"  # f32, f16, or the bits of a quantized table
    seed: int = 0

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        self.nodes: list[Node] = []

    def _add(self, name: str, op: Op, *inputs: str) -> str:
        self.nodes.append(Node(name, op, inputs))
        return name

    def _linear(self, name: str, rows: int, cols: int, source: str, bias: bool = False) -> str:
        matrix = quantized(self.random, rows, cols, self.bits, self.group, kept=self.kept,
                           dropped=self.dropped, asymmetric=self.asymmetric)
        values = self.random.standard_normal(rows).astype(np.float32) if bias else None
        return self._add(name, Linear(weight=matrix, bias=values), source)

    def _norm(self, name: str, source: str, size: int, heads: int = 1) -> str:
        gamma = self.random.random(size).astype(np.float32) + np.float32(0.5)
        return self._add(name, RmsNorm(gamma=gamma, eps=1e-5, heads=heads), source)

    def graph(self) -> Graph:
        x = self._add("embed", Embed(table=self._table()))
        angles = np.arange(self.positions)[:, None] * 1e4 ** -(
            np.arange(0, self.head_dim, 2) / self.head_dim)
        self.cos, self.sin = (f(angles).astype(np.float32) for f in (np.cos, np.sin))
        for layer in range(self.layers):
            x = self._layer(layer, x)
        head = self._linear("logits", self.vocab, self.hidden,
                            self._norm("norm", x, self.hidden), self.bias)
        return Graph(nodes=tuple(self.nodes), output=head, vocab=self.vocab,
                     positions=self.positions)

    def _table(self) -> Matrix:
        if self.embedding.startswith("q"):
            return quantized(self.random, self.vocab, self.hidden, int(self.embedding[1:]))
        held = self.random.standard_normal((self.vocab, self.hidden)).astype(np.float32)
        if self.embedding == "f16":
            held = held.astype(np.float16).astype(np.float32)
        return FloatMatrix(name="embed", rows=self.vocab, cols=self.hidden,
                           read=lambda a, b: held[a:b])

    def _layer(self, layer: int, x: str) -> str:
        normed = self._norm(f"{layer}.norm1", x, self.hidden)
        parts = []
        for part, heads in (("q", self.heads), ("k", self.kv_heads), ("v", self.kv_heads)):
            value = self._linear(f"{layer}.{part}", heads * self.head_dim, self.hidden, normed,
                                 self.bias)
            if part != "v":
                if self.qk_norm:
                    value = self._norm(f"{layer}.{part}_norm", value, self.head_dim, heads)
                value = self._add(f"{layer}.{part}_rope", Rope(
                    cos=self.cos, sin=self.sin, heads=heads, head_dim=self.head_dim,
                    interleaved=self.interleaved), value)
            parts.append(value)
        mixed = self._add(f"{layer}.mix", Attention(
            layer=layer, heads=self.heads, kv_heads=self.kv_heads, head_dim=self.head_dim,
            scale=self.head_dim ** -0.5, window=self.window), *parts)
        x = self._add(f"{layer}.add1", Add(), x, self._linear(
            f"{layer}.o", self.hidden, self.heads * self.head_dim, mixed))
        normed = self._norm(f"{layer}.norm2", x, self.hidden)
        gate, up = (self._linear(f"{layer}.{name}", self.ffn, self.hidden, normed)
                    for name in ("gate", "up"))
        act = self._add(f"{layer}.act", Activation(kind=self.activation), gate)
        down = self._linear(f"{layer}.down", self.hidden, self.ffn,
                            self._add(f"{layer}.mul", Mul(), act, up))
        return self._add(f"{layer}.add2", Add(), x, down)


def program(arch: ArchConfig, *, context: int = 512, sequences: int = 8,
            **decoder: object) -> Program:
    """Return a compiled random decoder."""
    return compile(Decoder(**decoder).graph(), arch,  # type: ignore[arg-type]
                   Options(context=context, sequences=sequences))
