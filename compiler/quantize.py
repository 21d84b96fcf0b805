"""Quantize and prune the linear layers of a graph, by a recipe.

Rounding to nearest and pruning by score look at one row at a time, so they stay lazy: rows are
quantized when they are read. GPTQ-style rounding corrects later inputs for the error of earlier
ones by the layer's input statistics, and is done at once.

Ref: Frantar et al., GPTQ, arXiv 2210.17323; Frantar and Alistarh, SparseGPT, arXiv 2301.00774;
Sun et al., Wanda, arXiv 2306.11695; group drop as in GQSA, arXiv 2412.17560.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from alula.compiler.evaluate import node_value, row_blocks, rows_of
from alula.compiler.graph import Codes, Graph, Linear, Matrix, Node, QuantMatrix
from alula.compiler.mixed import recipes
from alula.compiler.recipe import Recipe
from alula.compiler.rounding import encode, group_scales, padded, round_to_nearest
from alula.hw.layout import WINDOW

F32 = NDArray[np.float32]
Report = Callable[[int], None]


class Rounding(StrEnum):
    RTN = "rtn"  # each weight to the nearest code
    GPTQ = "gptq"  # errors corrected by the inputs' statistics


class Score(StrEnum):
    MAGNITUDE = "magnitude"  # |w|
    WANDA = "wanda"  # |w| times the norm of its input


@dataclass(frozen=True, kw_only=True)
class Method:
    """How a recipe is applied; ``GPTQ`` and ``WANDA`` need calibration windows."""

    rounding: Rounding = Rounding.RTN
    score: Score = Score.MAGNITUDE
    windows: NDArray[np.int64] | None = None  # (windows, tokens)

    def __post_init__(self) -> None:
        needs = self.rounding is Rounding.GPTQ or self.score is Score.WANDA
        if needs and (self.windows is None or not self.windows.size):
            raise ValueError(f"calibration text must be given for {self.rounding} rounding with "
                             f"{self.score} scores; use --calibration FILE")


def quantize(graph: Graph, recipe: Recipe, method: Method = Method(),
             report: Report = lambda weights: None) -> Graph:
    """Return the graph with every linear layer in the recipe's format; the head is not pruned.

    Layers that are quantized already keep their codes if their width and group are the recipe's.
    """
    if method.windows is None:
        chosen = recipes(graph, recipe, None)
        return graph.with_nodes([_replace(node, _lazy(node.op.weight, chosen[node.name], None))
                                 if isinstance(node.op, Linear) else node
                                 for node in graph.nodes])
    norms = None if recipe.average is None else _input_norms(graph, method.windows)
    return _calibrated(graph, recipes(graph, recipe, norms), method, report)


def _replace(node: Node, matrix: Matrix) -> Node:
    assert isinstance(node.op, Linear)
    return Node(node.name, replace(node.op, weight=matrix), node.inputs)


def _lazy(weight: Matrix, recipe: Recipe, norms: F32 | None) -> QuantMatrix:
    def read(start: int, stop: int) -> Codes:
        if _same_format(weight, recipe):
            assert isinstance(weight, QuantMatrix)
            return prune_codes(weight.read(start, stop), recipe, norms)
        values = rows_of(weight, start, stop)
        return round_to_nearest(np.where(keep(values, recipe, norms), values, 0), recipe)

    return QuantMatrix(name=weight.name, rows=weight.rows, cols=weight.cols, bits=recipe.bits,
                       group=recipe.group, read=read)


def _same_format(weight: Matrix, recipe: Recipe) -> bool:
    return (isinstance(weight, QuantMatrix)
            and (weight.bits, weight.group) == (recipe.bits, recipe.group))


def keep(values: F32, recipe: Recipe, norms: F32 | None) -> NDArray[np.bool_]:
    """Return which weights of some rows stay, ``(rows, cols)``.

    In each window of 16 inputs the ``kept`` highest scores stay; in each row the groups with the
    highest sums of squared scores stay.
    """
    rows, cols = values.shape
    score = np.abs(values) if norms is None else np.abs(values) * norms
    kept = np.ones(values.shape, bool)
    if recipe.kept:
        windows = padded(score, WINDOW).reshape(rows, -1, WINDOW)
        order = np.argsort(-windows, axis=-1, kind="stable")
        chosen = np.zeros(windows.shape, bool)
        np.put_along_axis(chosen, order[..., :recipe.kept], True, axis=-1)
        kept &= chosen.reshape(rows, -1)[:, :cols]
    if recipe.dropped:
        sums = (padded(score, recipe.group).reshape(rows, -1, recipe.group) ** 2).sum(axis=-1)
        count = round(sums.shape[1] * recipe.dropped / 100)
        chosen = np.ones(sums.shape, bool)
        np.put_along_axis(chosen, np.argsort(sums, axis=-1, kind="stable")[:, :count], False,
                          axis=-1)
        kept &= chosen.repeat(recipe.group, axis=1)[:, :cols]
    return kept


def prune_codes(rows: Codes, recipe: Recipe, norms: F32 | None) -> Codes:
    """Set codes of pruned weights to their zero points; scales stay."""
    if not (recipe.kept or recipe.dropped):
        return rows
    spread = np.arange(rows.codes.shape[1]) // recipe.group
    zeros = rows.zero_points[:, spread]
    values = (rows.codes.astype(np.float32) - zeros) * rows.scales[:, spread]
    return rows._replace(codes=np.where(keep(values, recipe, norms), rows.codes, zeros))


def _each_value(graph: Graph, windows: NDArray[np.int64],
                visit: Callable[[Node, list[F32]], Node]) -> list[Node]:
    """Run windows through a graph; each node is what ``visit`` makes of it and its inputs."""
    last = {name: at for at, node in enumerate(graph.nodes) for name in node.inputs}
    values: dict[str, F32] = {}
    nodes: list[Node] = []
    for at, node in enumerate(graph.nodes):
        given = [values[name] for name in node.inputs]
        nodes.append(visit(node, given))
        if node.name != graph.output:
            values[node.name] = node_value(nodes[-1].op, given, windows, np.float32)
        for name in node.inputs:
            if last[name] == at:
                values.pop(name, None)
    return nodes


def _calibrated(graph: Graph, chosen: dict[str, Recipe], method: Method, report: Report) -> Graph:
    """Run the calibration windows through the graph, quantizing each layer as it is reached."""
    def visit(node: Node, given: list[F32]) -> Node:
        if not isinstance(node.op, Linear):
            return node
        weight = node.op.weight
        made = _replace(node, _from_inputs(weight, chosen[node.name], method, given[0]))
        report(weight.rows * weight.cols)
        return made

    assert method.windows is not None
    return graph.with_nodes(_each_value(graph, method.windows, visit))


def _input_norms(graph: Graph, windows: NDArray[np.int64]) -> dict[str, F32]:
    """Return the norms of each linear layer's inputs, ``(cols,)``, before anything is rounded."""
    norms: dict[str, F32] = {}

    def visit(node: Node, given: list[F32]) -> Node:
        if isinstance(node.op, Linear):
            norms[node.name] = _norms(given[0])
        return node

    _each_value(graph, windows, visit)
    return norms


def _norms(x: F32) -> F32:
    flat = x.reshape(-1, x.shape[-1]).astype(np.float64)
    return np.sqrt((flat ** 2).sum(axis=0)).astype(np.float32)


def _from_inputs(weight: Matrix, recipe: Recipe, method: Method, x: F32) -> QuantMatrix:
    """Quantize one layer, knowing its inputs ``(windows, tokens, cols)``."""
    norms = _norms(x) if method.score is Score.WANDA else None
    if method.rounding is Rounding.RTN or _same_format(weight, recipe):
        return _lazy(weight, recipe, norms)
    correction = _correction(x.reshape(-1, x.shape[-1]))
    parts = [gptq(rows_of(weight, *span), correction, recipe, norms)
             for span in row_blocks(weight)]
    codes, scales, zeros = zip(*parts, strict=True)
    whole = Codes(np.concatenate(codes), np.concatenate(scales), np.concatenate(zeros))
    return QuantMatrix(name=weight.name, rows=weight.rows, cols=weight.cols, bits=recipe.bits,
                       group=recipe.group,
                       read=lambda a, b: Codes(whole.codes[a:b], whole.scales[a:b],
                                               whole.zero_points[a:b]))


_DAMPING = 0.01  # of the mean diagonal, as GPTQ


def _correction(x: F32) -> NDArray[np.float64]:
    """Return the upper Cholesky factor of the inverse of the inputs' second moments."""
    moments = x.T.astype(np.float64) @ x.astype(np.float64)
    mean = float(np.diag(moments).mean()) or 1.0
    moments[np.diag_indices_from(moments)] += _DAMPING * mean
    inverse = np.linalg.inv(moments)
    return np.asarray(np.linalg.cholesky((inverse + inverse.T) / 2).T, np.float64)


def gptq(values: F32, correction: NDArray[np.float64], recipe: Recipe,
         norms: F32 | None) -> Codes:
    """Quantize rows input by input, spreading each error over the inputs that follow."""
    rows, cols = values.shape
    count = -(-cols // recipe.group)
    left = values.astype(np.float64)
    codes = np.zeros((rows, cols), np.uint8)
    scales = np.zeros((rows, count), np.float32)
    zeros = np.zeros((rows, count), np.uint8)
    dropping = replace(recipe, kept=0)
    stays = keep(values, dropping, norms)  # groups are dropped by the original weights
    for at in range(count):
        span = slice(at * recipe.group, min((at + 1) * recipe.group, cols))
        block = left[:, span].astype(np.float32)
        kept = stays[:, span] & keep(block, replace(recipe, dropped=0),
                                     None if norms is None else norms[span])
        scales[:, at:at + 1], zeros[:, at:at + 1] = group_scales(
            np.where(kept, block, 0)[:, None], recipe)
        for column in range(span.start, span.stop):
            mask = kept[:, column - span.start]
            wanted = np.where(mask, left[:, column], 0).astype(np.float32)
            codes[:, column] = encode(wanted, scales[:, at], zeros[:, at], recipe.bits)
            got = (codes[:, column].astype(np.float64) - zeros[:, at]) * scales[:, at]
            error = (left[:, column] - got) / correction[column, column]
            left[:, column + 1:span.stop] -= np.outer(error, correction[column,
                                                                        column + 1:span.stop])
            left[:, column] = error  # kept for the inputs past this group
        left[:, span.stop:] -= left[:, span] @ correction[span, span.stop:]
    return Codes(codes, scales, zeros)
