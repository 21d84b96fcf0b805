"""What tests compare with: the canonical graph in floating point, over one sequence of tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from alula.compiler.evaluate import evaluate, rows_of
from alula.compiler.graph import Graph, Matrix


def run(model: Graph, tokens: list[int], dtype: type = np.float64) -> NDArray[Any]:
    """Return the logits ``(tokens, vocab)`` of a causal pass over ``tokens``, without a cache."""
    return evaluate(model, np.array([tokens]), dtype)[0]


def dense(matrix: Matrix) -> NDArray[Any]:
    """Return all the rows of a matrix as fp32."""
    return rows_of(matrix, 0, matrix.rows)
