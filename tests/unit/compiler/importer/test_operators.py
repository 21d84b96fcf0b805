"""Standard and ONNX Runtime operators one at a time, in small hand-made models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sketch import HEAD_DIM, HEADS, HIDDEN, Sketch

from alula.compiler.graph import Activation, Attention, Mul, RmsNorm, Rope
from alula.compiler.importer import Refused, import_model

Agrees = Callable[..., Any]
MICROSOFT = "com.microsoft"


def constant(sketch: Sketch, name: str, number: float) -> str:
    return sketch.tensor(name, np.array(number, np.float32))


# Activations

ACTIVATIONS: dict[str, tuple[str, Callable[[Sketch, str], str]]] = {
    "gelu": ("gelu", lambda s, x: s.add("Gelu", [x], "act")),
    "gelu-tanh": ("gelu_tanh", lambda s, x: s.add("Gelu", [x], "act", approximate="tanh")),
    "ms-gelu": ("gelu", lambda s, x: s.add("Gelu", [x], "act", domain=MICROSOFT)),
    "fast-gelu": ("gelu_tanh", lambda s, x: s.add("FastGelu", [x], "act", domain=MICROSOFT)),
    "quick-gelu": ("silu", lambda s, x: s.add("QuickGelu", [x], "act", domain=MICROSOFT,
                                              alpha=1.0)),
    "relu": ("relu", lambda s, x: s.add("Relu", [x], "act")),
    "x-sigmoid": ("silu", lambda s, x: s.add("Mul", [s.add("Sigmoid", [x], "sig"), x], "act")),
    "x-over-exp": ("silu", lambda s, x: s.add("Div", [x, s.add("Add", [s.add(
        "Exp", [s.add("Neg", [x], "neg")], "exp"), constant(s, "one", 1)], "sum")], "act")),
    "erf": ("gelu", lambda s, x: s.add("Mul", [s.add("Mul", [x, s.add("Add", [s.add("Erf", [s.add(
        "Div", [x, constant(s, "root", 2**0.5)], "div")], "erf"), constant(s, "one", 1)], "sum")],
        "mul"), constant(s, "half", 0.5)], "act")),
    "tanh": ("gelu_tanh", lambda s, x: s.add("Mul", [s.add("Mul", [x, constant(s, "half", 0.5)],
        "halved"), s.add("Add", [constant(s, "one", 1), s.add("Tanh", [s.add("Mul", [s.add("Add", [
            x, s.add("Mul", [s.add("Pow", [x, constant(s, "three", 3)], "cube"),
                             constant(s, "c", 0.044715)], "scaled")], "inner"),
            constant(s, "k", (2 / np.pi)**0.5)], "outer")], "tanh")], "sum")], "act")),
}


@pytest.mark.parametrize("form", ACTIVATIONS)
def test_activation(tmp_path: Path, agrees: Agrees, form: str) -> None:
    wanted, build = ACTIVATIONS[form]
    sketch = Sketch(23)
    sketch.x = sketch.linear(build(sketch, sketch.linear(sketch.x, "up", HIDDEN, 48)), "down", 48,
                             HIDDEN)
    graph, _ = agrees(sketch.save(tmp_path))
    assert [node.op.kind for node in graph.of(Activation)] == [wanted]


def test_swish(tmp_path: Path) -> None:
    """Swish came with opset 24; not every ONNX Runtime has it."""
    sketch = Sketch(24)
    sketch.x = sketch.add("Swish", [sketch.x], "act")
    graph, _ = import_model(sketch.save(tmp_path))
    assert [node.op.kind for node in graph.of(Activation)] == ["silu"]


def test_relu_squared(tmp_path: Path, agrees: Agrees) -> None:
    """An unknown function of one value that is a product of known ones is made of them."""
    sketch = Sketch(23)
    relu = sketch.add("Relu", [sketch.x], "relu")
    sketch.x = sketch.add("Mul", [relu, relu], "square")
    graph, _ = agrees(sketch.save(tmp_path))
    assert [len(list(graph.of(kind))) for kind in (Activation, Mul)] == [1, 1]


@pytest.mark.parametrize("kind, attributes, message", [
    ("Tanh", {}, r"an elementwise function must be silu, gelu, gelu_tanh, relu of one value"),
    ("Softmax", {}, r"input and axis must be attention scores and the last, not others"),
    ("LayerNormalization", {}, r"the operator must be one Alula lowers, not LayerNormalization; "
                               r"only RMS norms are lowered for now"),
])
def test_function_wrong(tmp_path: Path, kind: str, attributes: Any, message: str) -> None:
    sketch = Sketch(23)
    given = [sketch.x] + ([sketch.weight("g", HIDDEN)] if "Layer" in kind else [])
    sketch.x = sketch.add(kind, given, "act", **attributes)
    with pytest.raises(Refused, match=rf"^act \({kind}, opset 23\): {message}"):
        import_model(sketch.save(tmp_path))


def test_function_long_wrong(tmp_path: Path) -> None:
    """Each step doubles the work of the next: squares of squares must not take forever."""
    sketch = Sketch(23)
    for at in range(60):
        sketch.x = sketch.add("Mul", [sketch.x, sketch.x], f"square{at}")
    with pytest.raises(Refused, match=r"^square6 \(Mul, opset 23\): steps of one elementwise "
                                      r"function must be at most 64, not 127$"):
        import_model(sketch.save(tmp_path))


def test_quick_gelu_wrong(tmp_path: Path) -> None:
    sketch = Sketch(23)
    sketch.x = sketch.add("QuickGelu", [sketch.x], "act", domain=MICROSOFT)
    with pytest.raises(Refused, match=r"^act \(com.microsoft.QuickGelu, opset 1\): alpha must be "
                                      r"1.0, not 1.70"):
        import_model(sketch.save(tmp_path))


# Norms


@pytest.mark.parametrize("kind, domain", [("RMSNormalization", ""),
                                          ("SimplifiedLayerNormalization", ""),
                                          ("SimplifiedLayerNormalization", MICROSOFT)])
def test_norm(tmp_path: Path, agrees: Agrees, kind: str, domain: str) -> None:
    sketch = Sketch(23)
    sketch.x = sketch.add(kind, [sketch.x, sketch.weight("g", HIDDEN)], "norm", domain=domain,
                          epsilon=1e-3, axis=-1)
    # ONNX Runtime registers the name without a domain only.
    directory = sketch.save(tmp_path)
    graph, _ = import_model(directory) if domain else agrees(directory)
    assert next(graph.of(RmsNorm)).op.eps == pytest.approx(1e-3)


@pytest.mark.parametrize("outputs", [1, 4])
def test_skip_norm(tmp_path: Path, agrees: Agrees, outputs: int) -> None:
    sketch = Sketch(23)
    other = sketch.linear(sketch.x, "layer", HIDDEN, HIDDEN)
    names = ["normed", "", "", "sum"][:outputs]
    sketch.add("SkipSimplifiedLayerNormalization", [sketch.x, other, sketch.weight("g", HIDDEN)],
               "skip", domain=MICROSOFT, outputs=names, epsilon=1e-5)
    sketch.x = sketch.add("Mul", [names[0], names[-1]], "both")
    agrees(sketch.save(tmp_path))


@pytest.mark.parametrize("form", ["reciprocal", "divided", "power", "divided-by-root"])
@pytest.mark.parametrize("square", ["Pow", "Mul"])
def test_norm_chain(tmp_path: Path, agrees: Agrees, form: str, square: str) -> None:
    sketch = Sketch(23)
    x = sketch.add("Cast", [sketch.x], "cast", to=1)
    squared = sketch.add("Pow", [x, constant(sketch, "two", 2)], "sq") if square == "Pow" else (
        sketch.add("Mul", [x, x], "sq"))
    mean = sketch.add("ReduceMean", [squared, sketch.tensor("axes", np.array([-1]))], "mean")
    mean = sketch.add("Add", [constant(sketch, "eps", 1e-2), mean], "eps_add")
    if form == "power":
        root = sketch.add("Pow", [mean, constant(sketch, "minus", -0.5)], "pow")
    else:
        root = sketch.add("Sqrt", [mean], "root")
    if form == "reciprocal":
        root = sketch.add("Reciprocal", [root], "recip")
    elif form == "divided":
        root = sketch.add("Div", [constant(sketch, "one", 1), root], "recip")
    last = "Div" if form == "divided-by-root" else "Mul"
    x = sketch.add(last, [x, root], "normed")
    sketch.x = sketch.add("Mul", [sketch.weight("g", HIDDEN), x], "scaled")
    graph, _ = agrees(sketch.save(tmp_path))
    first = next(graph.of(RmsNorm))
    assert first.name == "scaled"
    assert first.op.eps == pytest.approx(1e-2)


def test_norm_without_gamma(tmp_path: Path, agrees: Agrees) -> None:
    sketch = Sketch(23)
    squared = sketch.add("Mul", [sketch.x, sketch.x], "sq")
    mean = sketch.add("ReduceMean", [squared, sketch.tensor("axes", np.array([-1]))], "mean")
    root = sketch.add("Sqrt", [sketch.add("Add", [mean, constant(sketch, "e", 1e-6)], "a")], "r")
    x = sketch.add("Div", [sketch.x, root], "normed")
    sketch.x = sketch.linear(x, "layer", HIDDEN, HIDDEN)
    agrees(sketch.save(tmp_path))


# Rotary embedding and attention


def projected(sketch: Sketch, kv_heads: int) -> tuple[str, str, str]:
    width = kv_heads * HEAD_DIM
    x = sketch.norm(sketch.x, "pre")
    return (sketch.linear(x, "q", HIDDEN, HIDDEN), sketch.linear(x, "k", HIDDEN, width),
            sketch.linear(x, "v", HIDDEN, width))


def finish(sketch: Sketch, attended: str) -> None:
    out = sketch.linear(attended, "o", HIDDEN, HIDDEN)
    sketch.x = sketch.add("Add", [sketch.x, out], "residual")


def standard(sketch: Sketch, query: str, key: str, value: str, *more: str, **attributes: Any
             ) -> None:
    """Attend with flat operands and finish the layer."""
    attributes = {"q_num_heads": HEADS, "kv_num_heads": 2, "is_causal": 1, **attributes}
    finish(sketch, sketch.add("Attention", [query, key, value, *more], "attention", **attributes))


@pytest.mark.parametrize("opset", [23, 24])
@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("flat", [True, False])
def test_standard_rotary(tmp_path: Path, agrees: Agrees, opset: int, interleaved: int,
                         flat: bool) -> None:
    sketch = Sketch(opset)
    cos, sin = sketch.tables()
    q, k, v = projected(sketch, 2)
    turned = []
    for x, count, name in ((q, HEADS, "q"), (k, 2, "k")):
        x = x if flat else sketch.heads(x, count, name)
        attributes = {"num_heads": count} if flat else {}
        turned.append(sketch.add("RotaryEmbedding", [x, cos, sin, "position_ids"], f"{name}.rope",
                                 interleaved=interleaved, **attributes))
    if flat:
        standard(sketch, *turned, v)
    else:
        found = sketch.add("Attention", [*turned, sketch.heads(v, 2, "v")], "attention",
                           is_causal=1)
        finish(sketch, sketch.flat(found, "out"))
    graph, _ = agrees(sketch.save(tmp_path))
    assert [node.op.interleaved for node in graph.of(Rope)] == [bool(interleaved)] * 2
    assert [node.op.heads for node in graph.of(Rope)] == [HEADS, 2]


def test_standard_rotary_gathered(tmp_path: Path, agrees: Agrees) -> None:
    """Without positions the tables come gathered, as mobius writes them; half the head turns."""
    sketch = Sketch(23)
    angles = np.arange(64)[:, None] / 50 ** (np.arange(4) / 4)
    tables = [sketch.add("Gather", [sketch.tensor(name, table.astype(np.float32)), "position_ids"],
                         f"{name}.at") for name, table in (("c", np.cos(angles)),
                                                           ("s", np.sin(angles)))]
    q, k, v = projected(sketch, 2)
    turned = [sketch.add("RotaryEmbedding", [x, *tables], f"{name}.rope", num_heads=count,
                         rotary_embedding_dim=8)
              for x, count, name in ((q, HEADS, "q"), (k, 2, "k"))]
    standard(sketch, *turned, v)
    graph, _ = agrees(sketch.save(tmp_path))
    assert {(node.op.rotary_dim, node.op.head_dim) for node in graph.of(Rope)} == {(8, 16)}


@pytest.mark.parametrize("interleaved", [0, 1])
def test_microsoft_rotary(tmp_path: Path, agrees: Agrees, interleaved: int) -> None:
    sketch = Sketch(23)
    cos, sin = sketch.tables()
    q, k, v = projected(sketch, 2)
    turned = [sketch.add("RotaryEmbedding", [x, "position_ids", cos, sin], f"{name}.rope",
                         domain=MICROSOFT, interleaved=interleaved)
              for x, name in ((q, "q"), (k, "k"))]
    standard(sketch, *turned, v)
    agrees(sketch.save(tmp_path))


def test_rotary_positions_wrong(tmp_path: Path) -> None:
    sketch = Sketch(23)
    cos, sin = sketch.tables()
    shifted = sketch.add("Add", ["position_ids", sketch.tensor("two", np.array(2))], "shift")
    q, k, v = projected(sketch, 2)
    q = sketch.add("RotaryEmbedding", [q, cos, sin, shifted], "rope", num_heads=HEADS)
    standard(sketch, q, k, v)
    with pytest.raises(Refused, match=r"^rope \(RotaryEmbedding, opset 23\): position_ids must be "
                                      r"0, 1, ... after 0 cached tokens, not \[2, 3, 4, 5\]$"):
        import_model(sketch.save(tmp_path))


@pytest.mark.parametrize("opset", [23, 24, 25])
@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_standard_attention(tmp_path: Path, agrees: Agrees, opset: int, cache: bool,
                            scale: float | None) -> None:
    sketch = Sketch(opset)
    more = ["", *sketch.past(0, 2)] if cache else []
    attributes: dict[str, Any] = {} if scale is None else {"scale": scale}
    if cache:
        attributes["outputs"] = ["attended", "present.0.key", "present.0.value"]
    q, k, v = projected(sketch, 2)
    standard(sketch, q, k, v, *more, **attributes)
    directory = sketch.save(tmp_path)
    # This ONNX Runtime has the operator up to opset 24.
    graph, _ = agrees(directory) if opset < 25 else import_model(directory)
    operation = next(graph.of(Attention)).op
    assert operation.scale == pytest.approx(scale or 0.25)
    assert (operation.heads, operation.kv_heads, operation.head_dim) == (HEADS, 2, HEAD_DIM)


def test_standard_attention_window(tmp_path: Path) -> None:
    sketch = Sketch(25)
    standard(sketch, *projected(sketch, 2), left_window_size=9)
    graph, _ = import_model(sketch.save(tmp_path))
    assert next(graph.of(Attention)).op.window == 10


@pytest.mark.parametrize("change, message", [
    ({"softcap": 30.0}, r"softcap must be 0.0, not 30.0; capped scores"),
    ({"is_causal": 0}, r"attention mask must be causal"),
    ({"q_num_heads": 5}, r"number of query heads must be a divisor of 64, not 5"),
    ({"right_window_size": 3}, r"right_window_size must be 0 or -1, not 3"),
])
def test_standard_attention_wrong(tmp_path: Path, change: Any, message: str) -> None:
    sketch = Sketch(25)
    standard(sketch, *projected(sketch, 2), **change)
    with pytest.raises(Refused, match=rf"^attention \(Attention, opset 25\): {message}"):
        import_model(sketch.save(tmp_path))


@pytest.mark.parametrize("cache", [False, True])
def test_multi_head_attention(tmp_path: Path, agrees: Agrees, cache: bool) -> None:
    sketch = Sketch(23)
    more = ["", "", "", *sketch.past(0, HEADS)] if cache else []
    found = sketch.add("MultiHeadAttention", [*projected(sketch, HEADS), *more], "attention",
                       domain=MICROSOFT, num_heads=HEADS, unidirectional=1,
                       outputs=["attended", "present.0.key", "present.0.value"][:3 if cache else 1])
    finish(sketch, found)
    graph, _ = agrees(sketch.save(tmp_path))
    assert next(graph.of(Attention)).op.kv_heads == HEADS


def grouped(sketch: Sketch, *, packed: bool = True, inputs: dict[int, str] | None = None,
            **attributes: Any) -> None:
    """Attend with GroupQueryAttention and finish the layer."""
    one = sketch.tensor("one", np.array([1]))
    total = sketch.add("ReduceSum", ["attention_mask", one], "total", keepdims=0)
    seqlens = sketch.add("Cast", [sketch.add("Sub", [total, one], "last")], "seqlens", to=6)
    length = sketch.add("Gather", [sketch.add("Shape", ["attention_mask"], "shape"),
                                   sketch.tensor("second", np.array(1))], "gather")
    length = sketch.add("Cast", [length], "length", to=6)
    cos, sin = sketch.tables()
    if packed:
        operands = [sketch.linear(sketch.norm(sketch.x, "pre"), "qkv", HIDDEN, 128), "", ""]
    else:
        operands = list(projected(sketch, 2))
    operands += [*sketch.past(0, 2), seqlens, length, cos, sin]
    for at, name in (inputs or {}).items():
        operands += [""] * (at + 1 - len(operands))
        operands[at] = name
    attributes = {"num_heads": HEADS, "kv_num_heads": 2, "do_rotary": 1, **attributes}
    finish(sketch, sketch.add("GroupQueryAttention", operands, "gqa", domain=MICROSOFT,
                              outputs=["gqa:0", "present.0.key", "present.0.value"], **attributes))


@pytest.mark.parametrize("attributes, wanted", [
    ({}, {"scale": 0.25, "window": 0}), ({"scale": 0.5}, {"scale": 0.5}),
    ({"local_window_size": 6}, {"window": 6}), ({"rotary_interleaved": 1}, {}),
    ({"do_rotary": 0}, {}),
], ids=str)
@pytest.mark.parametrize("packed", [True, False])
def test_group_query_attention(tmp_path: Path, agrees: Agrees, attributes: Any, wanted: Any,
                               packed: bool) -> None:
    sketch = Sketch(21)
    inputs = {7: "", 8: ""} if attributes.get("do_rotary") == 0 else {}
    grouped(sketch, packed=packed, inputs=inputs, **attributes)
    graph, _ = agrees(sketch.save(tmp_path))
    for name, value in wanted.items():
        assert getattr(next(graph.of(Attention)).op, name) == value


@pytest.mark.parametrize("attributes, inputs, message", [
    ({"softcap": 50.0}, {}, r"softcap must be 0.0, not 50.0; capped scores are not in the "
                            r"accelerator's softmax"),
    ({"causal": 0}, {}, r"causal must be 1, not 0"),
    ({}, {9: "length:0"}, r"position_ids must be 11, 12, ... after 11 cached tokens, not \[34\]"),
    ({"smooth_softmax": 1}, {}, r"smooth_softmax must be 0, not 1"),
    ({"num_heads": 3}, {}, r"num_heads must be a positive multiple of kv_num_heads, not 3 over 2"),
    ({"k_quant_type": "PER_TENSOR"}, {}, r"k_quant_type must be NONE, not PER_TENSOR; Alula "
                                         r"quantizes the key-value cache itself; re-export with "
                                         r"kv_cache_quant_scheme=none"),
    ({}, {12: "one"}, r"k_scale must be absent, not 'one'; Alula quantizes the key-value cache"),
    ({}, {10: "cos"}, r"attention_bias must be absent: attention is causal and nothing else"),
    ({}, {11: "cos"}, r"head_sink must be absent"),
    ({}, {5: "length"}, r"seqlens_k must be 33 for 34 unpadded tokens, not "),
])
def test_group_query_attention_wrong(tmp_path: Path, attributes: Any, inputs: dict[int, str],
                                     message: str) -> None:
    sketch = Sketch(21)
    if inputs.get(5):
        inputs = {5: "length:0"}
    grouped(sketch, inputs=inputs, **attributes)
    with pytest.raises(Refused, match=rf"^gqa \(com.microsoft.GroupQueryAttention, opset 1\): "
                                      rf"{message}"):
        import_model(sketch.save(tmp_path))


# What must not be read as something near it


def cut_tokens(sketch: Sketch) -> None:
    """Keep the first hundred tokens: nothing changes in a short text."""
    ends = [sketch.tensor(name, np.array([value])) for name, value in
            (("start", 0), ("stop", 100), ("axis", 1))]
    sketch.x = sketch.add("Slice", [sketch.x, *ends], "node")


def to_integers(sketch: Sketch) -> None:
    sketch.x = sketch.add("Cast", [sketch.x], "node", to=7)


def shared_bias(sketch: Sketch) -> None:
    """A layer's output is used with a bias and, through a Cast, without."""
    x = sketch.linear(sketch.x, "layer", HIDDEN, HIDDEN)
    biased = sketch.add("Add", [sketch.add("Cast", [x], "cast", to=1), sketch.weight("b", HIDDEN)],
                        "node")
    sketch.x = sketch.add("Mul", [biased, x], "both")


def gamma_of_tokens(sketch: Sketch) -> None:
    """A constant of the right size along the wrong axis."""
    squared = sketch.add("Mul", [sketch.x, sketch.x], "sq")
    mean = sketch.add("ReduceMean", [squared, sketch.tensor("axes", np.array([-1]))], "mean")
    x = sketch.add("Div", [sketch.x, sketch.add("Sqrt", [mean], "root")], "normed")
    sketch.x = sketch.add("Mul", [x, sketch.weight("g", HIDDEN, 1)], "node")


def other_tokens(sketch: Sketch) -> None:
    """An embedding of something that is not the tokens."""
    x = sketch.add("Gather", [sketch.weight("t", 64, HIDDEN), "position_ids"], "places")
    sketch.x = sketch.add("Add", [sketch.x, x], "node")


@pytest.mark.parametrize("build, message", [
    (cut_tokens, r"a slice of tokens must be all of them, or the latest of the cache, not "
                 r"range\(0, 100\) when there are many"),
    (to_integers, r"to must be a float type, not INT64"),
    (shared_bias, r"a constant vector must be added to the output of one linear layer, once"),
    (gamma_of_tokens, r"last axis of input 1 must be 64, not 1"),
    (other_tokens, r"operands must be rows and cosines or sines of their positions, not Add of a "
                   r"value and a computed one of shape \[1, 23, 64\]"),
])
def test_near_wrong(tmp_path: Path, build: Callable[[Sketch], None], message: str) -> None:
    sketch = Sketch(23)
    build(sketch)
    with pytest.raises(Refused, match=rf"^node \(\w+, opset 23\): {message}"):
        import_model(sketch.save(tmp_path))


def test_cropped_cache_wrong(tmp_path: Path) -> None:
    """A cache cut to its latest tokens hides the others, whatever the mask says."""
    sketch = Sketch(23)
    key, value = sketch.past(0, 2)
    ends = [sketch.tensor(name, np.array([at])) for name, at in
            (("start", -20), ("stop", 2**62), ("axis", 2))]
    cut = [sketch.add("Slice", [name, *ends], f"cut{at}") for at, name in enumerate((key, value))]
    q, k, v = projected(sketch, 2)
    joined = [sketch.add("Concat", [past, sketch.heads(x, 2, f"h{at}")], f"cat{at}", axis=2,
                         outputs=[f"present.0.{('key', 'value')[at]}"])
              for at, (past, x) in enumerate(zip(cut, (k, v), strict=True))]
    zero, one = (sketch.tensor(f"number{at}", np.array(at)) for at in (0, 1))
    total, tokens = (sketch.add("Gather", [sketch.add("Shape", [of], f"{name}.shape"),
                                           sketch.tensor(f"{name}.at", np.array(at))], name)
                     for of, at, name in ((joined[0], 2, "total"), ("input_ids", 1, "tokens")))
    first = sketch.add("Sub", [total, tokens], "first")
    keys = sketch.add("Range", [zero, total, one], "keys")
    queries = sketch.add("Unsqueeze", [sketch.add("Range", [first, total, one], "queries"),
                                       sketch.tensor("last", np.array([1]))], "column")
    mask = sketch.add("LessOrEqual", [keys, queries], "mask")
    found = sketch.add("Attention", [sketch.heads(q, HEADS, "hq"), *joined, mask], "attention")
    finish(sketch, sketch.flat(found, "out"))
    with pytest.raises(Refused, match=r"^attention \(Attention, opset 23\): attention mask must be "
                                      r"a window of at most 21, as the cache is cut to 20 tokens, "
                                      r"not none$"):
        import_model(sketch.save(tmp_path))
