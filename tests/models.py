"""Random decoders in the canonical form, of any shape and format."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alula.compiler.compile import Options, compile
from alula.compiler.graph import Codes, FloatMatrix, Graph, Matrix, QuantMatrix
from alula.compiler.program import Program
from alula.compiler.shapes import Shape, decoder
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
class Random:
    """Random weights of one format."""

    bits: int = 4
    group: int = 32
    kept: int = 0
    dropped: float = 0.0
    asymmetric: bool = False
    embedding: str = "f32"  # f32, f16, or q and the bits of a quantized table
    seed: int = 0

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)

    def matrix(self, rows: int, cols: int, source: str) -> QuantMatrix:
        return quantized(self.random, rows, cols, self.bits, self.group, kept=self.kept,
                         dropped=self.dropped, asymmetric=self.asymmetric)

    def vector(self, size: int, middle: float) -> NDArray[np.float32]:
        return (self.random.random(size) - 0.5 + middle).astype(np.float32)

    def table(self, rows: int, cols: int) -> Matrix:
        if self.embedding.startswith("q"):
            return quantized(self.random, rows, cols, int(self.embedding[1:]))
        held = self.random.standard_normal((rows, cols)).astype(np.float32)
        if self.embedding == "f16":
            held = held.astype(np.float16).astype(np.float32)
        return FloatMatrix(name="embed", rows=rows, cols=cols, read=lambda a, b: held[a:b])


SMALL = Shape(layers=3, hidden=96, heads=6, kv_heads=2, head_dim=16, ffn=192, vocab=515,
              positions=1024)


def random_decoder(**sizes: Any) -> Graph:
    """Return a random decoder: :data:`SMALL` with other sizes, :class:`Random` weights."""
    weights = {name: sizes.pop(name) for name in list(sizes) if name in vars(Random())}
    shape = replace(SMALL, **sizes)
    return decoder(shape, Random(**weights), shape.positions)


def program(arch: ArchConfig, *, context: int = 512, sequences: int = 8,
            **decoder: Any) -> Program:
    """Return a compiled random decoder."""
    return compile(random_decoder(**decoder), arch, Options(context=context, sequences=sequences))
