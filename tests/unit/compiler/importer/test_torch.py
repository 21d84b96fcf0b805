"""Graphs of torch.onnx: the dynamo exporter, and the TorchScript one that Optimum uses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import exporters
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from alula.compiler.graph import Activation, Attention, FloatMatrix, Linear, RmsNorm, Rope
from alula.compiler.importer import import_model

Agrees = Callable[..., Any]


@pytest.mark.parametrize("cache", [False, True], ids=["no-cache", "cache"])
@pytest.mark.parametrize("opset", [23, None], ids=["opset23", "default"])
def test_dynamo_llama(tmp_path: Path, agrees: Agrees, opset: int | None, cache: bool) -> None:
    model = exporters.causal_lm("Llama")
    graph, _ = agrees(exporters.torch_export(model, tmp_path, opset=opset, cache=cache))
    assert [len(list(graph.of(kind))) for kind in (RmsNorm, Rope, Attention, Activation, Linear)
            ] == [5, 4, 2, 2, 15]
    assert {(node.op.heads, node.op.kv_heads) for node in graph.of(Attention)} == {(4, 2)}
    assert next(graph.of(RmsNorm)).op.eps == pytest.approx(1e-6, rel=1e-6)
    assert graph.positions == exporters.POSITIONS
    assert len({id(node.op.cos) for node in graph.of(Rope)}) == 1  # one table, shared
    assert graph.architecture == "llama"


def test_dynamo_opset24_llama3(tmp_path: Path, agrees: Agrees) -> None:
    """At opset 24 only attention is fused. The rope scaling is in inv_freq."""
    model = exporters.causal_lm("Llama", rope_parameters=exporters.LLAMA3_ROPE,
                                tie_word_embeddings=True)
    agrees(exporters.torch_export(model, tmp_path, opset=24, cache=True))


@pytest.mark.parametrize("cache", [False, pytest.param(True, marks=pytest.mark.slow)],
                         ids=["no-cache", "cache"])
def test_dynamo_mistral_window(tmp_path: Path, agrees: Agrees, cache: bool) -> None:
    """The window is read off the mask; with a cache the graph also crops the cache to it."""
    model = exporters.causal_lm("Mistral", sliding_window=16)
    graph, _ = agrees(exporters.torch_export(model, tmp_path, opset=None, cache=cache))
    assert {node.op.window for node in graph.of(Attention)} == {16}


def test_dynamo_qwen3(tmp_path: Path, agrees: Agrees) -> None:
    model = exporters.causal_lm("Qwen3", head_dim=32)
    graph, _ = agrees(exporters.torch_export(model, tmp_path, opset=None, cache=True))
    assert sorted({node.op.heads for node in graph.of(RmsNorm)}) == [1, 2, 4]


def deduplicate(path: Path) -> None:
    """Share equal initialisers through Identity nodes, as Optimum's post-processing leaves them."""
    model = onnx.load(path)
    seen: dict[bytes, str] = {}
    for tensor in list(model.graph.initializer):
        key = numpy_helper.to_array(tensor).tobytes()
        if key in seen and len(key) > 16:
            model.graph.initializer.remove(tensor)
            model.graph.node.insert(0, onnx.helper.make_node("Identity", [seen[key]],
                                                             [tensor.name]))
        seen.setdefault(key, tensor.name)
    onnx.save(model, path)


@pytest.mark.parametrize("kind, attention", [("Llama", "sdpa"), ("Llama", "eager"),
                                             ("Qwen2", "sdpa"), ("Qwen3", "sdpa")])
def test_optimum(tmp_path: Path, agrees: Agrees, kind: str, attention: str) -> None:
    """Emulates ``optimum-cli export onnx --task text-generation-with-past``.

    Optimum itself does not install beside transformers 5. It runs the TorchScript exporter at
    opset 18 on a model with flat past key-value inputs, then shares equal initialisers.
    """
    model = exporters.causal_lm(kind, attn_implementation=attention)
    model.model.norm.weight.data.copy_(model.model.layers[0].input_layernorm.weight.data)
    directory = exporters.torch_export(model, tmp_path, opset=18, cache=True, dynamo=False)
    deduplicate(directory / "model.onnx")
    agrees(directory)


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_optimum_head_ratios(tmp_path: Path, agrees: Agrees, kv_heads: int) -> None:
    model = exporters.causal_lm("Llama", num_key_value_heads=kv_heads)
    graph, _ = agrees(exporters.torch_export(model, tmp_path, opset=18, cache=True, dynamo=False))
    assert next(graph.of(Attention)).op.kv_heads == kv_heads


def test_fp16_weights(tmp_path: Path) -> None:
    """Float matrices of other widths are read as fp32, columns of the file as rows."""
    model = exporters.causal_lm("Llama").half()
    directory = exporters.torch_export(model, tmp_path, opset=18, cache=True, dynamo=False)
    graph, _ = import_model(directory)
    first = next(graph.of(Linear)).op.weight
    assert isinstance(first, FloatMatrix)
    wanted = model.model.layers[0].self_attn.q_proj.weight.detach().numpy()
    np.testing.assert_array_equal(first.read(3, 9), wanted[3:9].astype(np.float32))


def test_positions_unknown_wrong(tmp_path: Path) -> None:
    model = exporters.causal_lm("Llama")
    directory = exporters.torch_export(model, tmp_path, opset=18, cache=True, dynamo=False)
    (directory / "config.json").unlink()
    with pytest.raises(ValueError, match=r"max_positions must be given, or in config.json "
                                         r"\(max_position_embeddings\), not unknown"):
        import_model(directory)
    graph, _ = import_model(directory, max_positions=77)
    assert graph.positions == 77


def test_dynamic_rope_wrong(tmp_path: Path) -> None:
    """Rotary angles that change with the length of the text are no table."""
    model = exporters.causal_lm("Llama")
    directory = exporters.torch_export(model, tmp_path, opset=18, cache=True, dynamo=False)
    proto = onnx.load(directory / "model.onnx")
    node = next(node for node in proto.graph.node if node.op_type == "Cos")
    at = list(proto.graph.node).index(node)
    extra = [onnx.helper.make_node("ReduceMax", [node.input[0]], ["longest"], keepdims=0),
             onnx.helper.make_node("Mul", [node.input[0], "longest"], ["stretched"])]
    node.input[0] = "stretched"
    for new in reversed(extra):
        proto.graph.node.insert(at, new)
    onnx.save(proto, directory / "model.onnx")
    with pytest.raises(ValueError, match=r"rotary angles must be a function of the position alone"):
        import_model(directory)
