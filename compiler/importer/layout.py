"""Operators that only move elements: reshapes, transposes, slices, casts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from alula.compiler.importer.coverage import Disposition
from alula.compiler.importer.evaluate_ops import reshape_target, split_sizes
from alula.compiler.importer.lowering import Lowering, lowers
from alula.compiler.importer.model import Op
from alula.compiler.importer.values import Axes, Value, regroup, shape

MOVED = "a change of layout: the accelerator keeps one row for each token"


def moved(lowering: Lowering, op: Op, axes: Axes) -> tuple[Value, ...]:
    """Return input 0 laid out along ``axes``."""
    lowering.note(op, Disposition.FOLDED, MOVED)
    return (replace(lowering.values[op.input(0)], axes=axes),)


@lowers("Identity", "Cast", "CastLike", "Dropout")
def same(lowering: Lowering, op: Op) -> tuple[Value, ...]:
    """Pass a value on: the accelerator computes in fp32 whatever types the exporter chose."""
    return moved(lowering, op, lowering.values[op.input(0)].axes)


@lowers("Reshape")
def reshape(lowering: Lowering, op: Op) -> tuple[Value, ...]:
    axes = lowering.values[op.input(0)].axes
    wanted = lowering.evaluate(op.input(1), lowering.layout)
    target = reshape_target(op, shape(axes, lowering.layout), wanted)
    found = regroup(axes, target, lowering.layout)
    if found is None:
        raise op.refuse("shape", "one that keeps tokens apart", list(target))
    return moved(lowering, op, found)
