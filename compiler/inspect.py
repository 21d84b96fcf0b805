"""Look at a model's weights: format, zeros and bytes of each linear layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from alula.compiler.graph import FloatMatrix, Linear, Matrix, QuantMatrix
from alula.compiler.importer import import_model
from alula.compiler.pack import PackStats, pack_strips
from alula.hw.arch import U55C

_ROWS = 1 << 22  # weights looked at together
_ARCH = U55C  # padding, which is small, depends on it


def describe_weights(directory: Path) -> list[dict[str, Any]]:
    """Return the facts of each linear layer of a model directory, in order.

    ``zeros`` is the share of weights whose code is its zero point, ``dropped`` the share of
    (row, group) pairs that are zero throughout, ``bytes`` what Alula would store.
    """
    graph, _ = import_model(directory)
    return [_describe(node.op.weight) for node in graph.nodes if isinstance(node.op, Linear)]


def _describe(matrix: Matrix) -> dict[str, Any]:
    facts: dict[str, Any] = {"name": matrix.name, "rows": matrix.rows, "cols": matrix.cols}
    if isinstance(matrix, FloatMatrix):
        return {**facts, "format": "float", "zeros": "", "dropped": "",
                "bytes": 4 * matrix.rows * matrix.cols}
    zeros, dropped, stats = _count(matrix)
    return {**facts, "format": f"w{matrix.bits}g{matrix.group}",
            "zeros": round(zeros / (matrix.rows * matrix.cols), 4),
            "dropped": round(dropped / (matrix.rows * matrix.groups), 4), "bytes": stats.total}


def _count(matrix: QuantMatrix) -> tuple[int, int, PackStats]:
    zeros, dropped, stats = 0, 0, PackStats()
    step = max(16, _ROWS // matrix.cols // 16 * 16)
    spread = np.arange(matrix.cols) // matrix.group
    starts = np.arange(0, matrix.cols, matrix.group)
    for start in range(0, matrix.rows, step):
        rows = matrix.read(start, min(start + step, matrix.rows))
        zero = rows.codes == rows.zero_points[:, spread]
        zeros += int(zero.sum())
        dropped += int(np.logical_and.reduceat(zero, starts, axis=1).sum())
        pack_strips(rows, matrix.bits, matrix.group, 0, _ARCH, stats)
    return zeros, dropped, stats
