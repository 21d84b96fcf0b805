"""Quantizing and pruning: the rules hold, and calibration helps."""

from dataclasses import replace

import numpy as np
import pytest
from models import random_decoder

from alula.compiler.compile import Options, compile
from alula.compiler.evaluate import evaluate, rows_of
from alula.compiler.graph import FloatMatrix, Graph, Linear, Node, dequantize
from alula.compiler.quantize import (
    Method,
    Rounding,
    Score,
    gptq,
    quantize,
)
from alula.compiler.recipe import Recipe, RecipeError, parse
from alula.compiler.rounding import round_to_nearest
from alula.compiler.shapes import SHAPES, Zeros, decoder, shape_graph
from alula.hw.arch import SIM
from alula.hw.isa import Loop

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
    ("w3.5g128+8:16", Recipe(bits=4, group=128, kept=8, average=3.5)),
    ("w5.0g32", Recipe(bits=8, group=32, average=5.0)),
])
def test_recipe(text, recipe):
    assert parse(text) == recipe and str(recipe) == text


@pytest.mark.parametrize("text, message", [
    ("q4", "a recipe must look like w4g64"),
    ("w5g64", r"a recipe's bits must be one of \(2, 3, 4, 8\), or an average of two such as 3.5, "
              "not 5"),
    ("w8.5g64", "a recipe's average of bits must be between 2 and 8, not 8.5"),
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


def _bits(graph):
    """Return the width of each layer, and the mean of all weights'."""
    found = {node.name: node.op.weight for node in graph.of(Linear)}
    sizes = {name: matrix.rows * matrix.cols for name, matrix in found.items()}
    mean = sum(found[name].bits * size for name, size in sizes.items()) / sum(sizes.values())
    return {name: matrix.bits for name, matrix in found.items()}, mean


def _on_lattice(graph, recipes):
    """Return a graph in which some layers are what a recipe can say without an error."""
    def rounded(node):
        if node.name not in recipes:
            return node
        weight, recipe = node.op.weight, parse(recipes[node.name])
        values = dequantize(round_to_nearest(rows_of(weight, 0, weight.rows), recipe), recipe.group)
        return Node(node.name, Linear(weight=FloatMatrix(
            name=node.name, rows=weight.rows, cols=weight.cols,
            read=lambda a, b: values[a:b]), bias=node.op.bias), node.inputs)
    return graph.with_nodes([rounded(node) for node in graph.nodes])


def _sources(graph):
    """Return the layers that read each value."""
    found = {}
    for node in graph.nodes:
        if isinstance(node.op, Linear):
            found.setdefault(node.inputs[0], []).append(node.name)
    return list(found.values())


@pytest.mark.parametrize("calibrated", [False, True])
def test_mixed_widths(calibrated):
    """The average is kept and nearly reached; layers that gain get the wide codes."""
    graph = _float_graph(layers=3)
    groups = _sources(graph)
    needless, needy = groups[2] + groups[3], groups[5] + groups[6]
    graph = _on_lattice(graph, dict.fromkeys(needless, "w3g32") | dict.fromkeys(needy, "w4g32"))
    method = Method(windows=RANDOM.integers(0, 515, (2, 16))) if calibrated else Method()
    made = quantize(graph, parse("w3.5g32"), method)
    widths, mean = _bits(made)
    assert {widths[name] for name in needless} == {3} and {widths[name] for name in needy} == {4}
    assert all(len({widths[name] for name in group}) == 1 for group in groups)
    assert 3.3 < mean <= 3.5
    narrow = evaluate(quantize(graph, parse("w3g32"), method), np.arange(20)[None])
    mixed, wanted = (evaluate(each, np.arange(20)[None]) for each in (made, graph))
    assert np.square(mixed - wanted).mean() < np.square(narrow - wanted).mean()


def test_mixed_shape():
    """A shape alternates so that the average is kept; its layers stay alike, so they are a loop."""
    graph = shape_graph("llama2-7b", parse("w3.5g128"))
    widths, mean = _bits(graph)
    assert set(widths.values()) == {3, 4} and 3.4 < mean < 3.52
    assert all(len({widths[name] for name in group}) == 1 for group in _sources(graph))
    small = replace(SHAPES["tinyllama"], layers=4, hidden=256, ffn=512, heads=4, kv_heads=2,
                    head_dim=64, vocab=512)
    made = compile(decoder(small, Zeros(parse("w3.5g64")), 64), SIM, Options(context=64))
    loops = [i for i in made.instructions if isinstance(i, Loop) and i.count == small.layers]
    assert len(loops) == 1
