"""Masks that are causal attention in some spelling, and masks that are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sketch import HEADS, HIDDEN, Sketch

from alula.compiler.graph import Attention
from alula.compiler.importer import Refused, import_model

Agrees = Callable[..., Any]
Mask = Callable[[Sketch], str]


def behind(sketch: Sketch) -> str:
    """Return how far each key is behind each query, ``(tokens, tokens)``."""
    rows, cols = (sketch.add("Unsqueeze", ["position_ids", number(sketch, f"axis{at}", [at])],
                             f"positions{at}") for at in (2, 1))
    return sketch.add("Sub", [rows, cols], "behind")


def number(sketch: Sketch, name: str, value: Any) -> str:
    return sketch.tensor(name, np.array(value))


def causal(sketch: Sketch) -> str:
    return sketch.add("GreaterOrEqual", [behind(sketch), number(sketch, "zero", 0)], "causal")


def windowed(sketch: Sketch, size: int) -> str:
    near = sketch.add("Less", ["behind:0", number(sketch, "size", size)], "near")
    return sketch.add("And", [near, "causal:0"], "windowed")


def added(sketch: Sketch, never: float, kept: str = "causal:0") -> str:
    return sketch.add("Where", [kept, number(sketch, "open", np.float32(0)),
                                number(sketch, "never", np.float32(never))], "added")


def attended(sketch: Sketch, mask: str, *, spelled: bool, use: str = "add") -> None:
    """Attend with four heads under a mask, by ai.onnx Attention or spelled out."""
    x = sketch.norm(sketch.x, "pre")
    q, k, v = (sketch.heads(sketch.linear(x, name, HIDDEN, HIDDEN), HEADS, f"{name}.heads")
               for name in "qkv")
    mask = sketch.add("Unsqueeze", [mask, sketch.tensor("axis", np.array([1]))], "mask4")
    if not spelled:
        found = sketch.add("Attention", [q, k, v, mask], "attention")
    else:
        turned = sketch.add("Transpose", [k], "turned", perm=[0, 1, 3, 2])
        scores = sketch.add("MatMul", [q, turned], "scores")
        scores = sketch.add("Div", [scores, number(sketch, "root", np.float32(4))], "scaled")
        never = number(sketch, "lowest", np.float32(-np.inf))
        if use == "add":
            scores = sketch.add("Add", [scores, mask], "masked")
        else:
            order = [mask, scores, never] if use == "keep" else [mask, never, scores]
            scores = sketch.add("Where", order, "masked")
        weights = sketch.add("Softmax", [scores], "weights", axis=-1)
        found = sketch.add("MatMul", [weights, v], "attention")
    out = sketch.linear(sketch.flat(found, "out"), "o", HIDDEN, HIDDEN)
    sketch.x = sketch.add("Add", [sketch.x, out], "residual")


def bool_mask(sketch: Sketch) -> str:
    return causal(sketch)


def added_mask(sketch: Sketch) -> str:
    causal(sketch)
    return added(sketch, -10000.0)


def trilu_mask(sketch: Sketch) -> str:
    """The lower triangle of ones, as older exporters write it."""
    shape = sketch.add("Shape", ["input_ids"], "ids")
    count = sketch.add("Gather", [shape, number(sketch, "second", [1])], "count")
    square = sketch.add("Concat", [number(sketch, "b", [1]), count, count], "square", axis=0)
    ones = sketch.add("Expand", [number(sketch, "ones", np.ones((1, 1, 1), np.float32)), square],
                      "full")
    lower = sketch.add("Trilu", [ones], "lower", upper=0)
    return sketch.add("Cast", [lower], "causal", to=9)


@pytest.mark.parametrize("spelled", [True, False])
@pytest.mark.parametrize("mask", [bool_mask, added_mask, trilu_mask])
def test_causal(tmp_path: Path, agrees: Agrees, mask: Mask, spelled: bool) -> None:
    sketch = Sketch(23)
    made = mask(sketch)
    attended(sketch, made, spelled=spelled, use="add" if mask is added_mask else "keep")
    graph, _ = agrees(sketch.save(tmp_path))
    assert next(graph.of(Attention)).op.window == 0


def test_causal_dropped(tmp_path: Path, agrees: Agrees) -> None:
    sketch = Sketch(23)
    hidden = sketch.add("Not", [causal(sketch)], "hidden")
    attended(sketch, hidden, spelled=True, use="drop")
    agrees(sketch.save(tmp_path))


@pytest.mark.parametrize("size", [5, 100])
@pytest.mark.parametrize("spelled", [True, False])
def test_window(tmp_path: Path, agrees: Agrees, size: int, spelled: bool) -> None:
    sketch = Sketch(23)
    causal(sketch)
    attended(sketch, windowed(sketch, size), spelled=spelled, use="keep")
    directory = sketch.save(tmp_path, max_position_embeddings=128)
    graph, _ = agrees(directory, tokens=list(range(3, 123)))
    assert next(graph.of(Attention)).op.window == size


def alibi(sketch: Sketch) -> str:
    causal(sketch)
    slopes = number(sketch, "slope", np.float32(-0.25))
    distance = sketch.add("Mul", [sketch.add("Cast", ["behind:0"], "far", to=1), slopes], "bias")
    return sketch.add("Add", [added(sketch, -1e30), distance], "biased")


def prefix(sketch: Sketch) -> str:
    """The first five tokens see each other: a prefix language model."""
    causal(sketch)
    early = sketch.add("Less", ["position_ids", number(sketch, "five", 5)], "early")
    early = sketch.add("Unsqueeze", [early, "axis1"], "early3")
    return sketch.add("Or", ["causal:0", early], "prefix")


def everything(sketch: Sketch) -> str:
    return sketch.add("GreaterOrEqual", [behind(sketch), number(sketch, "low", -1000)], "all")


def skewed(sketch: Sketch) -> str:
    """One late token is hidden from all that follow."""
    causal(sketch)
    other = sketch.add("Equal", ["position_ids", number(sketch, "seven", 7)], "seventh")
    other = sketch.add("Unsqueeze", [sketch.add("Not", [other], "others"), "axis1"], "others3")
    return sketch.add("And", ["causal:0", other], "skewed")


@pytest.mark.parametrize("mask, message", [
    (alibi, r"an added mask must be 0, or below -10000 to hide a token, not -0.25; position "
            r"biases \(ALiBi, T5\) are not lowered"),
    (prefix, r"attention mask must be causal, perhaps with padding and a sliding window, not "
             r"another one \(seen at \d+ tokens after 0\)"),
    (everything, r"attention mask must be causal"),
    (skewed, r"attention mask must be causal"),
])
@pytest.mark.parametrize("spelled", [True, False])
def test_mask_wrong(tmp_path: Path, mask: Mask, message: str, spelled: bool) -> None:
    sketch = Sketch(23)
    made = mask(sketch)
    attended(sketch, made, spelled=spelled, use="add" if mask is alibi else "keep")
    with pytest.raises(Refused, match=rf"^attention \((Attention|MatMul), opset 23\): {message}"):
        import_model(sketch.save(tmp_path))


def test_mask_per_head_wrong(tmp_path: Path) -> None:
    sketch = Sketch(23)
    causal(sketch)
    every = sketch.tensor("every", np.array([True, True, False, True]).reshape(1, 4, 1, 1))
    one = sketch.add("Unsqueeze", ["causal:0", sketch.tensor("a", np.array([1]))], "one")
    mask = sketch.add("And", [one, every], "heads")
    x = sketch.norm(sketch.x, "pre")
    q, k, v = (sketch.heads(sketch.linear(x, name, HIDDEN, HIDDEN), HEADS, f"{name}.heads")
               for name in "qkv")
    found = sketch.add("Attention", [q, k, v, mask], "attention")
    sketch.x = sketch.flat(found, "out")
    with pytest.raises(Refused, match=r"mask must be the same for every head, not one for each"):
        import_model(sketch.save(tmp_path))


def test_mask_input_wrong(tmp_path: Path) -> None:
    """A mask that the caller makes could be anything."""
    from onnx import TensorProto, helper
    sketch = Sketch(23)
    sketch.inputs.append(helper.make_tensor_value_info("bias", TensorProto.FLOAT,
                                                       ["batch", "tokens", "total"]))
    attended(sketch, "bias", spelled=False)
    with pytest.raises(Refused, match=r"graph input 'bias' must be input_ids, a two-dimensional "
                                      r"attention_mask, position_ids or a key-value cache"):
        import_model(sketch.save(tmp_path))
