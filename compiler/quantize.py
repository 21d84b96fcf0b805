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
from alula.compiler.recipe import Recipe
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
        return graph.with_nodes([_replace(node, _lazy(node, graph, recipe, None))
                                 if isinstance(node.op, Linear) else node
                                 for node in graph.nodes])
    return _calibrated(graph, recipe, method, report)


def _replace(node: Node, matrix: Matrix) -> Node:
    assert isinstance(node.op, Linear)
    return Node(node.name, replace(node.op, weight=matrix), node.inputs)


def _for_node(node: Node, graph: Graph, recipe: Recipe) -> Recipe:
    return replace(recipe, kept=0, dropped=0) if node.name == graph.output else recipe


def _lazy(node: Node, graph: Graph, recipe: Recipe, norms: F32 | None) -> QuantMatrix:
    assert isinstance(node.op, Linear)
    weight, recipe = node.op.weight, _for_node(node, graph, recipe)

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


def _padded(values: F32, unit: int) -> F32:
    return np.pad(values, ((0, 0), (0, -values.shape[1] % unit)))


def keep(values: F32, recipe: Recipe, norms: F32 | None) -> NDArray[np.bool_]:
    """Return which weights of some rows stay, ``(rows, cols)``.

    In each window of 16 inputs the ``kept`` highest scores stay; in each row the groups with the
    highest sums of squared scores stay.
    """
    rows, cols = values.shape
    score = np.abs(values) if norms is None else np.abs(values) * norms
    kept = np.ones(values.shape, bool)
    if recipe.kept:
        windows = _padded(score, WINDOW).reshape(rows, -1, WINDOW)
        order = np.argsort(-windows, axis=-1, kind="stable")
        chosen = np.zeros(windows.shape, bool)
        np.put_along_axis(chosen, order[..., :recipe.kept], True, axis=-1)
        kept &= chosen.reshape(rows, -1)[:, :cols]
    if recipe.dropped:
        sums = (_padded(score, recipe.group).reshape(rows, -1, recipe.group) ** 2).sum(axis=-1)
        count = round(sums.shape[1] * recipe.dropped / 100)
        chosen = np.ones(sums.shape, bool)
        np.put_along_axis(chosen, np.argsort(sums, axis=-1, kind="stable")[:, :count], False,
                          axis=-1)
        kept &= chosen.repeat(recipe.group, axis=1)[:, :cols]
    return kept


def group_scales(groups: F32, recipe: Recipe) -> tuple[F32, NDArray[np.uint8]]:
    """Return the scales, exact in fp16, and zero points of groups ``(..., group)``.

    Symmetric: the element farthest from zero becomes the lowest code, so a scale may be negative
    (ONNX Runtime's rule, which uses all ``2**bits`` codes). Asymmetric: the range, widened to hold
    zero, is spread over the codes.
    """
    levels, middle = (1 << recipe.bits) - 1, 1 << (recipe.bits - 1)
    if recipe.asymmetric:
        low, high = np.minimum(groups.min(-1), 0), np.maximum(groups.max(-1), 0)
        scales = _half((high - low) / np.float32(levels))
        with np.errstate(divide="ignore", invalid="ignore"):
            zero = np.where(scales == 0, middle, np.rint(-low / scales))
        return scales, np.clip(zero, 0, levels).astype(np.uint8)
    at = np.abs(groups).argmax(axis=-1)
    extreme = np.take_along_axis(groups, at[..., None], axis=-1)[..., 0]
    return _half(extreme / np.float32(-middle)), np.full(extreme.shape, middle, np.uint8)


def _half(scales: F32) -> F32:
    """Round to fp16, never to zero or infinity."""
    limited = np.clip(np.abs(scales), 2.0**-24, 65504) * (scales != 0)
    return np.copysign(limited, scales).astype(np.float16).astype(np.float32)


def encode(values: F32, scales: F32, zero_points: NDArray[np.uint8],
           bits: int) -> NDArray[np.uint8]:
    """Return the nearest codes of values under scales and zero points of the same shape."""
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.where(scales == 0, 0, np.rint(values / scales))
    return np.clip(steps + zero_points, 0, (1 << bits) - 1).astype(np.uint8)


def round_to_nearest(values: F32, recipe: Recipe) -> Codes:
    """Quantize rows: scales by :func:`group_scales`, each weight to the nearest code."""
    rows, cols = values.shape
    groups = _padded(values, recipe.group).reshape(rows, -1, recipe.group).astype(np.float32)
    scales, zeros = group_scales(groups, recipe)
    codes = encode(groups, scales[..., None], zeros[..., None], recipe.bits)
    return Codes(codes.reshape(rows, -1)[:, :cols], scales, zeros)


def prune_codes(rows: Codes, recipe: Recipe, norms: F32 | None) -> Codes:
    """Set codes of pruned weights to their zero points; scales stay."""
    if not (recipe.kept or recipe.dropped):
        return rows
    spread = np.arange(rows.codes.shape[1]) // recipe.group
    zeros = rows.zero_points[:, spread]
    values = (rows.codes.astype(np.float32) - zeros) * rows.scales[:, spread]
    return rows._replace(codes=np.where(keep(values, recipe, norms), rows.codes, zeros))


def _calibrated(graph: Graph, recipe: Recipe, method: Method, report: Report) -> Graph:
    """Run the calibration windows through the graph, quantizing each layer as it is reached."""
    assert method.windows is not None
    last = {name: at for at, node in enumerate(graph.nodes) for name in node.inputs}
    values: dict[str, NDArray[np.float32]] = {}
    nodes: list[Node] = []
    for at, node in enumerate(graph.nodes):
        given = [values[name] for name in node.inputs]
        if isinstance(node.op, Linear):
            node = _replace(node, _from_inputs(node, graph, recipe, method, given[0]))
            report(node.op.weight.rows * node.op.weight.cols)  # type: ignore[union-attr]
        nodes.append(node)
        if node.name != graph.output:
            values[node.name] = node_value(node.op, given, method.windows, np.float32)
        for name in node.inputs:
            if last[name] == at:
                values.pop(name, None)
    return graph.with_nodes(nodes)


def _from_inputs(node: Node, graph: Graph, recipe: Recipe, method: Method,
                 x: F32) -> QuantMatrix:
    """Quantize one layer, knowing its inputs ``(windows, tokens, cols)``."""
    flat = x.reshape(-1, x.shape[-1])
    norms = np.sqrt((flat.astype(np.float64) ** 2).sum(axis=0)).astype(np.float32)
    norms = norms if method.score is Score.WANDA else None
    assert isinstance(node.op, Linear)
    if method.rounding is Rounding.RTN or _same_format(node.op.weight, recipe):
        return _lazy(node, graph, recipe, norms)
    recipe = _for_node(node, graph, recipe)
    correction = _correction(flat)
    weight = node.op.weight
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
