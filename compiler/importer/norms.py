"""Root-mean-square norms: fused operators and the chains exporters make of them."""

from __future__ import annotations

import math

import numpy as np

from alula.compiler.graph import Add, RmsNorm
from alula.compiler.importer.lowering import Lowering, lowers, settles
from alula.compiler.importer.model import Op
from alula.compiler.importer.values import Axes, Normed, Rows, Value, merged

SIMPLIFIED = ("", "com.microsoft")


@lowers("SimplifiedLayerNormalization", "RMSNormalization", domains=SIMPLIFIED)
def rms_normalization(lowering: Lowering, op: Op) -> tuple[Value, ...]:
    rows = lowering.settle(op, 0)
    axis = op.get("axis", -1)
    if axis not in (-1, len(rows.axes) - 1):
        raise op.refuse("axis", "the last one", axis)
    epsilon = 1e-5
    return (normalize(lowering, op, rows, 1, op.get("epsilon", epsilon)),)


@lowers("SkipSimplifiedLayerNormalization", domains=SIMPLIFIED)
def skip_normalization(lowering: Lowering, op: Op) -> tuple[Value, ...]:
    """Lower ``norm(input + skip + bias)``; output 3 is the sum, the residual of the next block."""
    given, skip = lowering.flat(op, 0), lowering.flat(op, 1)
    if op.input(3):
        raise op.refuse("bias", "absent", f"{op.input(3)!r}")
    for at, name in ((1, "mean"), (2, "inv_std_var")):
        if op.output(at) and lowering.uses[op.output(at)]:
            raise op.refuse(f"output {name}", "unused", "used")
    total = lowering.emit_flat(op, Add(), (given.node, skip.node), given.width, "/sum")
    normed = normalize(lowering, op, total, 2, op.get("epsilon", 1e-5))
    return normed, total, total, total


def normalize(lowering: Lowering, op: Op, rows: Rows, gamma: int, eps: float) -> Rows:
    """Emit the norm of each run of the last axis, scaled by input ``gamma`` of ``op``."""
    heads, size = parts(op, rows)
    return emit_norm(lowering, op, rows, lowering.vector(op, gamma, size), eps, heads)


def parts(op: Op, rows: Rows) -> tuple[int, int]:
    """Return how many runs of how many elements the last axis splits a row into."""
    last = merged(rows.axes[-1])
    if len(last) != 1 or last[0].stride != 1 or not isinstance(last[0].size, int):
        raise op.refuse("last axis", "consecutive elements of a row", "an arrangement of them")
    return rows.width // last[0].size, last[0].size


def emit_norm(lowering: Lowering, op: Op, rows: Rows, gamma: np.ndarray, eps: float,
              heads: int, suffix: str = "") -> Rows:
    if not (math.isfinite(eps) and eps >= 0):
        raise op.refuse("epsilon", "a number from 0", eps)
    return lowering.emit(op, RmsNorm(gamma=gamma, eps=eps, heads=heads), (rows.node,), rows.axes,
                         rows.width, suffix)


@settles(Normed)
def settle_normed(lowering: Lowering, op: Op, value: Normed) -> Rows:
    """Make a norm that no gamma follows."""
    return scaled_norm(lowering, op, value, value.axes, None)


def scaled_norm(lowering: Lowering, op: Op, value: Normed, axes: Axes,
                gamma: np.ndarray | None) -> Rows:
    """Make the norm of a chain, with ``gamma`` (ones if None)."""
    heads, size = parts(op, value.of)
    scale = np.ones(size, np.float32) if gamma is None else gamma
    return emit_norm(lowering, op, value.of, scale, value.eps, heads)
