"""Damaged models end in a ValueError or a graph: nothing else, soon, and in little memory."""

from __future__ import annotations

import shutil
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import exporters
import onnx
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from alula.compiler.graph import Embed, Linear
from alula.compiler.importer import import_model, read_coverage

Draw = Callable[[st.SearchStrategy[Any]], Any]

SECONDS = 20
BYTES = 256 << 20
NUMBERS = st.one_of(st.integers(-3, 40), st.sampled_from(
    [2**15, 2**31 - 1, 2**31, -2**31, 2**40, 2**62, -2**63, 2**63 - 1]))


@pytest.fixture(scope="module", params=["genai", "qdq", "torchscript", "fused"])
def victim(request: pytest.FixtureRequest, genai: Callable[..., Path],
           tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give a copy of an exported directory that may be damaged."""
    directory = tmp_path_factory.mktemp("victim") / "model"
    if request.param == "torchscript":
        exporters.torch_export(exporters.causal_lm("Llama", num_hidden_layers=1), directory,
                               opset=18, cache=True, dynamo=False)
    else:
        options = {"genai": (), "qdq": ("use_qdq=true", "is_symmetric=false"), "fused": ()}
        kind = "Qwen2" if request.param == "fused" else "Llama"
        shutil.copytree(genai(*options[request.param], kind=kind, num_hidden_layers=1,
                              tie_word_embeddings=kind == "Qwen2"), directory)
    yield directory


def survives(directory: Path) -> None:
    """Import, report and read rows, allowing no exception but ValueError."""
    tracemalloc.start()
    began = time.monotonic()
    try:
        for attempt in (read, read_coverage):
            try:
                attempt(directory)
            except ValueError as error:
                assert str(error)
        assert time.monotonic() - began < SECONDS
        assert tracemalloc.get_traced_memory()[1] < BYTES
    finally:
        tracemalloc.stop()


def read(directory: Path) -> None:
    graph, _ = import_model(directory)
    for node in graph.nodes:
        if isinstance(node.op, Linear):
            node.op.weight.read(0, 1)
        elif isinstance(node.op, Embed):
            node.op.table.read(0, 1)


FUZZ = settings(max_examples=100, deadline=None,
                suppress_health_check=[HealthCheck.function_scoped_fixture,
                                       HealthCheck.too_slow])


@FUZZ
@given(st.data())
def test_damaged_bytes(victim: Path, data: st.DataObject) -> None:
    path = victim / "model.onnx"
    whole = path.read_bytes()
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        match data.draw(st.sampled_from(["set", "drop", "insert", "cut"])):
            case "set":
                damaged[at] = data.draw(st.integers(0, 255))
            case "drop":
                del damaged[at:at + data.draw(st.integers(1, 8))]
            case "insert":
                damaged[at:at] = data.draw(st.binary(min_size=1, max_size=8))
            case "cut":
                del damaged[max(at, 1):]
        damaged = damaged or bytearray(1)
    try:
        path.write_bytes(bytes(damaged))
        survives(victim)
    finally:
        path.write_bytes(whole)


@FUZZ
@given(st.data())
def test_damaged_fields(victim: Path, data: st.DataObject) -> None:
    path = victim / "model.onnx"
    whole = path.read_bytes()
    proto = onnx.ModelProto.FromString(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        data.draw(st.sampled_from(DAMAGES))(proto.graph, data.draw)
    try:
        path.write_bytes(proto.SerializeToString())
        survives(victim)
    finally:
        path.write_bytes(whole)


def names(graph: onnx.GraphProto) -> list[str]:
    made = [name for node in graph.node for name in node.output]
    return made + [tensor.name for tensor in graph.initializer] + ["", "input_ids"]


def rewire(graph: onnx.GraphProto, draw: Draw) -> None:
    node = draw(st.sampled_from(list(graph.node)))
    if node.input:
        node.input[draw(st.integers(0, len(node.input) - 1))] = draw(st.sampled_from(names(graph)))


def drop_input(graph: onnx.GraphProto, draw: Draw) -> None:
    node = draw(st.sampled_from(list(graph.node)))
    if node.input:
        del node.input[draw(st.integers(0, len(node.input) - 1))]


def drop_output(graph: onnx.GraphProto, draw: Draw) -> None:
    node = draw(st.sampled_from([node for node in graph.node if node.output]))
    del node.output[draw(st.integers(0, len(node.output) - 1)):]


def rename(graph: onnx.GraphProto, draw: Draw) -> None:
    kinds = sorted({node.op_type for node in graph.node} | {
        "Transpose", "Softmax", "Split", "Where", "Expand", "Range", "Attention", "Unsqueeze",
        "RotaryEmbedding", "Gemm", "Identity", "ReduceMean", "Max", "IsNaN", "Swish"})
    draw(st.sampled_from(list(graph.node))).op_type = draw(st.sampled_from(kinds))


def redomain(graph: onnx.GraphProto, draw: Draw) -> None:
    draw(st.sampled_from(list(graph.node))).domain = draw(st.sampled_from(
        ["", "ai.onnx", "com.microsoft", "elsewhere"]))


def attribute(graph: onnx.GraphProto, draw: Draw) -> None:
    node = draw(st.sampled_from([node for node in graph.node if node.attribute]))
    chosen = draw(st.sampled_from(list(node.attribute)))
    value = draw(st.one_of(NUMBERS, st.floats(width=32), st.just("text"),
                           st.lists(NUMBERS, min_size=1, max_size=4)))
    chosen.CopyFrom(onnx.helper.make_attribute(chosen.name, value))


def dims(graph: onnx.GraphProto, draw: Draw) -> None:
    tensor = draw(st.sampled_from(list(graph.initializer)))
    tensor.dims[:] = draw(st.one_of(st.permutations(list(tensor.dims)),
                                    st.lists(NUMBERS, max_size=4)))


def retype(graph: onnx.GraphProto, draw: Draw) -> None:
    draw(st.sampled_from(list(graph.initializer))).data_type = draw(st.integers(-1, 30))


def numbers(graph: onnx.GraphProto, draw: Draw) -> None:
    """Change the content of a small integer tensor: an axis, a shape, a split."""
    tensors = [tensor for tensor in graph.initializer if tensor.data_type == 7] + [
        node.attribute[0].t for node in graph.node
        if node.op_type == "Constant" and node.attribute and node.attribute[0].t.data_type == 7]
    if tensors:
        values = draw(st.lists(NUMBERS, max_size=5))
        tensor = draw(st.sampled_from(tensors))
        tensor.CopyFrom(onnx.helper.make_tensor(tensor.name, 7, [len(values)], values))


def external(graph: onnx.GraphProto, draw: Draw) -> None:
    tensors = [tensor for tensor in graph.initializer if tensor.external_data]
    if tensors:
        entry = draw(st.sampled_from(list(draw(st.sampled_from(tensors)).external_data)))
        entry.value = draw(st.one_of(st.text(max_size=9), NUMBERS.map(str)))


def declared(graph: onnx.GraphProto, draw: Draw) -> None:
    value = draw(st.sampled_from(list(graph.input)))
    shape = value.type.tensor_type.shape.dim
    if shape:
        draw(st.sampled_from(list(shape))).dim_value = draw(NUMBERS)


def move(graph: onnx.GraphProto, draw: Draw) -> None:
    at = draw(st.integers(0, len(graph.node) - 1))
    node = onnx.NodeProto()
    node.CopyFrom(graph.node[at])
    del graph.node[at]
    graph.node.insert(draw(st.integers(0, len(graph.node))), node)


DAMAGES = [rewire, drop_input, drop_output, rename, redomain, attribute, dims, retype, numbers,
           external, declared, move]
