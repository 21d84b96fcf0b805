"""Which layers of a model get the wider codes, when a recipe mixes two widths.

The error of a layer is what quantizing adds to its output, relative to it: with the inputs' norms,
from calibration text, or all inputs alike. Layers that gain most for each bit spent are widened
until the average is reached. Those that read the same value have the same width: they are made
one, and so the model's layers stay alike, and a loop. Ref: FlightLLM, arXiv 2401.03868, mixes
widths too.
"""

from __future__ import annotations

from collections import defaultdict
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
        sources = {node.name: node.inputs[0] for node in graph.nodes if node.name in weights}
        wide = _widened(weights, sources, recipe, norms or {})
    found = {name: plain if name in wide else replace(plain, bits=recipe.narrower)
             for name in weights}
    if graph.output in found:
        found[graph.output] = replace(found[graph.output], kept=0, dropped=0)
    return found


def _widened(weights: dict[str, Matrix], sources: dict[str, str], recipe: Recipe,
             norms: Mapping[str, F32]) -> set[str]:
    """Return the layers that get the wider codes; ``sources`` has what each reads."""
    sizes, gains = defaultdict[str, int](int), defaultdict[str, float](float)
    for name, matrix in weights.items():
        sizes[sources[name]] += matrix.rows * matrix.cols
        gains[sources[name]] += (
            _error(matrix, replace(recipe, bits=recipe.narrower), norms.get(name))
            - _error(matrix, recipe, norms.get(name)))
    step = recipe.bits - recipe.narrower
    left = (recipe.mean_bits - recipe.narrower) * sum(sizes.values())
    wide = set()
    for source in sorted(sizes, key=lambda source: -gains[source] / sizes[source]):
        if step * sizes[source] <= left:
            wide.add(source)
            left -= step * sizes[source]
    return {name for name in weights if sources[name] in wide}


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
