"""Quantizing and pruning: the rules hold, and calibration helps."""

import numpy as np
import pytest
from models import random_decoder

from alula.compiler.evaluate import evaluate, rows_of
from alula.compiler.graph import FloatMatrix, Graph, Linear, Node, dequantize
from alula.compiler.quantize import (
    Method,
    Rounding,
    Score,
    gptq,
    quantize,
    round_to_nearest,
)
from alula.compiler.recipe import Recipe, RecipeError, parse

RANDOM = np.random.default_rng(0)
VALUES = RANDOM.standard_normal((20, 100)).astype(np.float32)


def _float_graph(**decoder) -> Graph:
    """Return a random decoder with float weights."""
    graph = random_decoder(**decoder)

    def as_float(node: Node) -> Node:
        if not isinstance(node.op, Linear):
            return node
        held = rows_of(node.op.weight, 0, node.op.weight.rows)
        held = held + RANDOM.standard_normal(held.shape).astype(np.float32) * 0.01
        return Node(node.name, Linear(weight=FloatMatrix(
            name=node.name, rows=held.shape[0], cols=held.shape[1],
            read=lambda a, b: held[a:b]), bias=node.op.bias), node.inputs)
    return graph.with_nodes([as_float(node) for node in graph.nodes])


@pytest.mark.parametrize("text, recipe", [
    ("w4g64", Recipe(bits=4, group=64)),
    ("w3g128a", Recipe(bits=3, group=128, asymmetric=True)),
    ("w4g32+8:16", Recipe(bits=4, group=32, kept=8)),
    ("w8g16+drop50", Recipe(bits=8, group=16, dropped=50)),
])
def test_recipe(text, recipe):
    assert parse(text) == recipe and str(recipe) == text


@pytest.mark.parametrize("text, message", [
    ("q4", "a recipe must look like w4g64"),
    ("w5g64", r"a recipe's bits must be one of \(2, 3, 4, 8\), not 5"),
    ("w4g48", r"a recipe's group must be one of \(16, 32, 64, 128, 256\), not 48"),
    ("w4g64+2:4", "sparsity must be counted in windows of 16: 8:16 instead of 2:4"),
    ("w4g64+5:5", "a recipe's sparsity must be N:M"),
    ("w4g64+drop100", "a recipe must drop less than 100 %"),
])
def test_recipe_wrong(text, message):
    with pytest.raises(RecipeError, match=f"^{message}"):
        parse(text)


@pytest.mark.parametrize("text", ["w2g16", "w3g32", "w4g64", "w8g256", "w4g32a", "w2g16a"])
def test_round_to_nearest(text):
    recipe = parse(text)
    rows = round_to_nearest(VALUES, recipe)
    scales = np.repeat(np.abs(rows.scales), recipe.group, axis=1)[:, :100]
    error = np.abs(dequantize(rows, recipe.group) - VALUES)
    clipped = 1.0 if recipe.asymmetric else 1.01  # the code opposite the extreme may be missing
    assert (error <= clipped * scales * (1 if not recipe.asymmetric else 0.51) + 1e-6).all()
    assert (rows.scales == rows.scales.astype(np.float16)).all()
    assert rows.codes.max() < 1 << recipe.bits


def test_signed_scale_puts_the_extreme_on_the_lowest_code():
    """ONNX Runtime's rule: the element farthest from zero is code 0, so scales are signed."""
    rows = round_to_nearest(VALUES[:, :64], parse("w4g32"))
    groups = VALUES[:, :64].reshape(20, 2, 32)
    extreme = np.abs(groups).argmax(-1)
    assert (np.take_along_axis(rows.codes.reshape(20, 2, 32), extreme[..., None], -1) == 0).all()
    assert (rows.scales < 0).any() and (rows.scales > 0).any()


@pytest.mark.parametrize("text, kept", [("w4g32+8:16", 8), ("w4g16+4:16", 4), ("w8g64+12:16", 12)])
@pytest.mark.parametrize("score", list(Score))
@pytest.mark.parametrize("rounding", list(Rounding))
def test_kept_of_sixteen(text, kept, score, rounding):
    graph = _float_graph(layers=1, hidden=64, ffn=64, heads=2)
    windows = RANDOM.integers(0, 515, (2, 16))
    made = quantize(graph, parse(text), Method(rounding=rounding, score=score, windows=windows))
    for node in made.of(Linear):
        rows = node.op.weight.read(0, node.op.weight.rows)
        zero = rows.codes == rows.zero_points[:, :1]
        counts = (~zero).reshape(zero.shape[0], -1, 16).sum(-1)
        assert counts.max() > kept if node.name == made.output else counts.max() <= kept


def test_dropped_groups():
    made = quantize(_float_graph(layers=1), parse("w4g32+drop50"))
    node = next(made.of(Linear))
    rows = node.op.weight.read(0, node.op.weight.rows)
    empty = (rows.codes == 8).reshape(rows.codes.shape[0], -1, 32).all(-1)
    assert (empty.sum(-1) == round(empty.shape[1] / 2)).all()


def test_existing_codes_are_kept():
    graph = random_decoder(layers=1)
    before, after = (next(g.of(Linear)).op.weight for g in (graph, quantize(graph, parse("w4g32"))))
    np.testing.assert_array_equal(before.read(0, 10).codes, after.read(0, 10).codes)


def test_gptq_beats_rounding():
    """On inputs that are correlated, GPTQ's output error is well below round-to-nearest's."""
    mix = RANDOM.standard_normal((100, 100)) * 0.3 + np.eye(100)
    x = (RANDOM.standard_normal((500, 100)) @ mix).astype(np.float32)
    graph_free = parse("w3g32")
    from alula.compiler.quantize import _correction

    wanted = x @ VALUES.T
    errors = [np.square(x @ dequantize(rows, 32).T - wanted).mean() for rows in (
        gptq(VALUES, _correction(x), graph_free, None), round_to_nearest(VALUES, graph_free))]
    assert errors[0] < 0.7 * errors[1]


def test_quantized_model_is_near_float():
    graph = _float_graph(layers=2)
    windows = RANDOM.integers(0, 515, (1, 30))
    wanted = evaluate(graph, windows)
    got = evaluate(quantize(graph, parse("w8g16")), windows)
    assert np.sqrt(np.mean((got - wanted) ** 2)) < 0.02 * (wanted.max() - wanted.min())


def test_calibration_wrong():
    with pytest.raises(ValueError, match="^calibration text must be given for gptq rounding"):
        Method(rounding=Rounding.GPTQ)
