"""Which layers of a model get the wider codes, when a recipe mixes two widths.

The error of a layer is what quantizing adds to its output, relative to it: with the inputs' norms,
from calibration text, or all inputs alike. Layers that gain most for each bit spent are widened
until the average is reached. Ref: mixed precision as in FlightLLM, arXiv 2401.03868, section 5.2,
which takes sensitivities from gradients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from alula.compiler.evaluate import row_blocks, rows_of
from alula.compiler.graph import Graph, Linear, Matrix, dequantize
from alula.compiler.recipe import Recipe
from alula.compiler.rounding import round_to_nearest

F32 = NDArray[np.float32]


def recipes(graph: Graph, recipe: Recipe, norms: Mapping[str, F32] | None) -> dict[str, Recipe]:
    """Return the recipe of each linear layer, by its name; the head's does not prune.

    Parameters
    ----------
    norms
        Of each layer's inputs, ``(cols,)``.
    """
    plain = replace(recipe, average=None)
    weights = {node.name: node.op.weight for node in graph.nodes if isinstance(node.op, Linear)}
    wide = set(weights)
    if recipe.average is not None:
        wide = _widened(weights, recipe, norms or {})
    found = {name: plain if name in wide else replace(plain, bits=recipe.narrower)
             for name in weights}
    if graph.output in found:
        found[graph.output] = replace(found[graph.output], kept=0, dropped=0)
    return found


def _widened(weights: dict[str, Matrix], recipe: Recipe, norms: Mapping[str, F32]) -> set[str]:
    """Return the layers that get the wider codes."""
    sizes = {name: matrix.rows * matrix.cols for name, matrix in weights.items()}
    step = recipe.bits - recipe.narrower
    left = (recipe.mean_bits - recipe.narrower) * sum(sizes.values())
    gains = {name: (_error(matrix, replace(recipe, bits=recipe.narrower), norms.get(name))
                    - _error(matrix, recipe, norms.get(name))) / sizes[name]
             for name, matrix in weights.items()}
    wide = set()
    for name in sorted(weights, key=lambda name: -gains[name]):
        if step * sizes[name] <= left:
            wide.add(name)
            left -= step * sizes[name]
    return wide


def _error(matrix: Matrix, recipe: Recipe, norms: F32 | None) -> float:
    """Return the squared error of rounding a layer's weights, relative to their squares."""
    error = whole = 0.0
    for span in row_blocks(matrix):
        values = rows_of(matrix, *span)
        found = dequantize(round_to_nearest(values, recipe), recipe.group)[:, :values.shape[1]]
        scale = 1.0 if norms is None else norms
        error += float(np.square((found - values) * scale, dtype=np.float64).sum())
        whole += float(np.square(values * scale, dtype=np.float64).sum())
    return error / whole if whole else 0.0
