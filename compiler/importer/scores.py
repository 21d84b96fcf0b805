"""Decomposed attention: score matrices, their masks and softmax."""

from __future__ import annotations

from alula.compiler.importer.lowering import Lowering
from alula.compiler.importer.model import Op
from alula.compiler.importer.values import Scores


def adjusted(lowering: Lowering, op: Op, value: Scores, at: int) -> Scores:
    raise NotImplementedError
