"""Files that are missing, cut short, contradictory or hostile: one clear ValueError each."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from sketch import HIDDEN, VOCAB, Sketch

from alula.compiler.graph import Linear
from alula.compiler.importer import import_model, read_coverage


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return a directory whose weights lie in model.onnx.data."""
    directory = Sketch(23).save(tmp_path / "model")
    proto = onnx.load(directory / "model.onnx")
    (directory / "model.onnx").unlink()
    onnx.save(proto, directory / "model.onnx", save_as_external_data=True,
              location="model.onnx.data", size_threshold=1024)
    return directory


def edit(directory: Path, change: Callable[[onnx.ModelProto], Any]) -> None:
    proto = onnx.load(directory / "model.onnx", load_external_data=False)
    change(proto)
    (directory / "model.onnx").write_bytes(proto.SerializeToString())


def head(proto: onnx.ModelProto) -> TensorProto:
    return next(tensor for tensor in proto.graph.initializer if tensor.name == "head.weight")


def external(key: str, value: str) -> Callable[[onnx.ModelProto], Any]:
    def change(proto: onnx.ModelProto) -> None:
        entries = head(proto).external_data
        found = next((entry for entry in entries if entry.key == key), None) or entries.add(key=key)
        found.value = value
    return change


def test_external_data(model: Path) -> None:
    graph, _ = import_model(model)
    wanted = onnx.load(model / "model.onnx")
    matrix = next(graph.of(Linear)).op.weight
    np.testing.assert_array_equal(matrix.read(0, 7),
                                  onnx.numpy_helper.to_array(head(wanted))[:, :7].T)


def test_external_link(model: Path) -> None:
    """Download caches keep files as links into a store."""
    (model / "model.onnx.data").rename(model.parent / "blob")
    (model / "model.onnx.data").symlink_to(model.parent / "blob")
    import_model(model)


EXTERNAL = [
    ("location", "../model.onnx.data", r"tensor 'head.weight': location must be a file name inside "
                                       r"the model's directory, not '../model.onnx.data'$"),
    ("location", "/etc/passwd", r"tensor 'head.weight': location must be a file name inside"),
    ("location", "a/../../b", r"tensor 'head.weight': location must be a file name inside"),
    ("location", "C:\\data", r"tensor 'head.weight': location must be a file name inside"),
    ("location", "", r"tensor 'head.weight': location must be a file name inside"),
    ("location", "other", r"tensor 'head.weight': external data must be in the file other, which "
                          r"is missing"),
    ("offset", "999999999", r"tensor 'head.weight': external data must end within the \d+ bytes"),
    ("offset", "-5", r"tensor 'head.weight': external data offset must be a number of bytes"),
    ("length", "99999999999999999999999", r"tensor 'head.weight': external data length must be"),
    ("length", "12", r"tensor 'head.weight' must hold 40960 bytes for shape \[64, 160\], not 12$"),
]


@pytest.mark.parametrize("key, value, message", EXTERNAL)
def test_external_wrong(model: Path, key: str, value: str, message: str) -> None:
    edit(model, external(key, value))
    with pytest.raises(ValueError, match="^" + message):
        import_model(model)


def test_external_cut_wrong(model: Path) -> None:
    data = model / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-9000])
    with pytest.raises(ValueError, match=r"external data must end within the \d+ bytes of "
                                         r"model.onnx.data, not at \d+$"):
        import_model(model)


def hostile(*dims: int) -> Callable[[onnx.ModelProto], Any]:
    def change(proto: onnx.ModelProto) -> None:
        head(proto).dims[:] = dims
    return change


def cyclic(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].input[1] = "logits"


def unsorted(proto: onnx.ModelProto) -> None:
    nodes = list(proto.graph.node)
    proto.graph.ClearField("node")
    proto.graph.node.extend(reversed(nodes))


def twice(proto: onnx.ModelProto) -> None:
    proto.graph.node[1].output[0] = proto.graph.node[0].output[0]


def no_opset(proto: onnx.ModelProto) -> None:
    proto.ClearField("opset_import")


def no_nodes(proto: onnx.ModelProto) -> None:
    proto.graph.ClearField("node")


def no_tokens(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].name = "inputs_embeds"
    proto.graph.node[0].input[1] = "inputs_embeds"


def static(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 7


def no_output(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].name = "nothing"


def no_logits(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].name = "present.0.key"
    proto.graph.node[-1].output[0] = "present.0.key"


def constant_logits(proto: onnx.ModelProto) -> None:
    proto.graph.node[-1].input[0] = "head.weight"


def same_name(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[1].name = proto.graph.initializer[0].name


def strange_type(proto: onnx.ModelProto) -> None:
    head(proto).data_type = TensorProto.STRING


def huge_range(proto: onnx.ModelProto) -> None:
    """A Reshape whose target takes 2**60 elements to compute."""
    big = onnx.numpy_helper.from_array(np.array([2**60]), "big")
    proto.graph.initializer.append(big)
    fill = helper.make_node("ConstantOfShape", ["big"], ["filled"], "fill")
    move = helper.make_node("Reshape", [proto.graph.node[0].output[0], "filled"], ["moved"], "move")
    proto.graph.node[1].input[0] = "moved"
    proto.graph.node.insert(1, fill)
    proto.graph.node.insert(2, move)


GRAPHS = [
    (hostile(2**40, 2**20), r"tensor 'head.weight' must hold \d+ bytes for shape "
                            r"\[1099511627776, 1048576\], not 40960$"),
    (hostile(-1, 160), r"tensor 'head.weight': dimensions must be zero or more, not \[-1, 160\]$"),
    (hostile(160, 64), r"head \(MatMul, opset 23\): inputs of the weight must be 64, not 160$"),
    (hostile(64 * 160), r"head \(MatMul, opset 23\): input 1 must be a matrix of FLOAT, FLOAT16 or "
                        r"BFLOAT16, not FLOAT of shape \[10240\]$"),
    (cyclic, r"embed \(Gather, opset 23\): input 'logits' must be made by an earlier node"),
    (unsorted, r"logits \(Identity, opset 23\): input 'head:0' must be made by an earlier node"),
    (twice, r"final \(RMSNormalization, opset 23\): output 'embed:0' must be made once, not again"),
    (no_opset, r"the model must import an opset of the default domain, not only nothing$"),
    (no_nodes, r"model.onnx must be an ONNX model with nodes, not an empty graph$"),
    (no_tokens, r"the model must have an input called input_ids, not only \['inputs_embeds'\]; "
                r"export with exclude_embeds=false$"),
    (static, r"input_ids must have shape \[any or 1, any\], not \[None, 7\]; export with dynamic "
             r"axes$"),
    (no_output, r"graph output 'nothing' must be made by a node, not by none$"),
    (no_logits, r"the model must have an output called logits, not only \['present.0.key'\]; "
                r"export with exclude_lm_head=false$"),
    (constant_logits, r"the output 'logits' must depend on the tokens, not on constants only$"),
    (same_name, r"initialiser names must be unique, not two called 'table'$"),
    (strange_type, r"tensor 'head.weight': element type must be a float, an integer or bool, not "
                   r"STRING$"),
    (huge_range, r"fill \(ConstantOfShape, opset 23\): output shape must be of at most \d+ "
                 r"elements, not \[1152921504606846976\]$"),
]


@pytest.mark.parametrize("change, message", GRAPHS, ids=[message[:30] for _, message in GRAPHS])
def test_graph_wrong(model: Path, change: Callable[[onnx.ModelProto], Any], message: str) -> None:
    edit(model, change)
    tracemalloc.start()
    with pytest.raises(ValueError, match="^" + message):
        import_model(model)
    assert tracemalloc.get_traced_memory()[1] < 32 << 20
    tracemalloc.stop()


def test_plumbing_bytes_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many values of a legal size must not add up to an illegal one."""
    monkeypatch.setattr("alula.compiler.importer.evaluate.LARGEST_BYTES", 1 << 20)
    sketch = Sketch(23)
    sketch.tensor("size", np.array([2**13]))
    total = sketch.add("ConstantOfShape", ["size"], "fill")
    for at in range(40):
        total = sketch.add("Neg", [total], f"neg{at}")
    sketch.x = sketch.add("Reshape", [sketch.x, total], "move")
    with pytest.raises(ValueError, match=r"^neg31 \(Neg, opset 23\): values that decide shapes, "
                                         r"positions and masks must be at most 1048576 bytes, "
                                         r"not 1081344; set max_positions$"):
        import_model(sketch.save(tmp_path))


def test_directory_wrong(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^a model must be a directory with an .onnx file, not "):
        import_model(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"must have a model.onnx or a single .onnx file, not "
                                         r"none$"):
        import_model(tmp_path)
    for name in ("a.onnx", "b.onnx"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"single .onnx file, not a.onnx, b.onnx$"):
        import_model(tmp_path)


def test_single_other_name(model: Path) -> None:
    (model / "model.onnx").rename(model / "decoder_q4.onnx")
    import_model(model)


@pytest.mark.parametrize("content", [b"", b"not a protobuf", b"\xff" * 100])
def test_protobuf_wrong(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(ValueError, match=r"^model.onnx must be an ONNX (protobuf|model with)"):
        import_model(tmp_path)


def test_protobuf_cut_wrong(model: Path) -> None:
    whole = (model / "model.onnx").read_bytes()
    (model / "model.onnx").write_bytes(whole[:-50])
    with pytest.raises(ValueError, match=r"^model.onnx must be an ONNX protobuf, not \d+ bytes "
                                         r"that do not parse"):
        import_model(model)


CONFIGS: list[tuple[str, Any, str]] = [
    ("genai_config.json", {"model": {"decoder": {"filename": "../x.onnx"}}},
     r"genai_config.json: filename must be a file name inside the model's directory"),
    ("genai_config.json", {"model": {"decoder": {"filename": "x.onnx"}}},
     r"genai_config.json: filename must be a file of"),
    ("genai_config.json", {"model": []}, r"genai_config.json: model must be dict, not \[\]$"),
    ("genai_config.json", [], r"genai_config.json must be a JSON object, not list$"),
    ("config.json", {"max_position_embeddings": 2**40},
     r"config.json: max_position_embeddings must be a number from 0 to 1048576, not 10995116277"),
    ("config.json", {"max_position_embeddings": "8"},
     r"config.json: max_position_embeddings must be a number from 0 to 1048576, not '8'$"),
    ("config.json", {"eos_token_id": [1, "x"]},
     r"config.json: eos_token_id must be a token or a list of tokens"),
    ("config.json", {"num_hidden_layers": 3, "max_position_embeddings": 64},
     r"the logits must depend on all 3 layers that the num_hidden_layers of the configuration "
     r"tell of, not 0; an exporter takes"),
]


@pytest.mark.parametrize("name, content, message", CONFIGS)
def test_config_wrong(model: Path, name: str, content: Any, message: str) -> None:
    (model / name).write_text(json.dumps(content))
    with pytest.raises(ValueError, match="^" + message):
        import_model(model)


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "\x00"])
def test_config_text_wrong(model: Path, text: str) -> None:
    (model / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"^config.json must be JSON, not text that stops with"):
        read_coverage(model)


def test_generation_config(model: Path) -> None:
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 6]}))
    graph, _ = import_model(model)
    assert graph.eos_tokens == (5, 6)


def sparse(values: int, index: Any, shape: tuple[int, ...]) -> onnx.SparseTensorProto:
    return helper.make_sparse_tensor(
        onnx.numpy_helper.from_array(np.ones(values, np.float32), "w"),
        onnx.numpy_helper.from_array(np.array(index), "w_index"), shape)


@pytest.mark.parametrize("tensor, message", [
    (sparse(1, [0], (2**20, 2**20)), r"sparse tensor 'w' must hold at least one value in 64, not 1 "
                                     r"in \[1048576, 1048576\]$"),
    (sparse(200, [*range(199), HIDDEN * VOCAB], (HIDDEN, VOCAB)),
     r"sparse tensor 'w': indices must lie inside"),
    (sparse(200, [0], (HIDDEN, VOCAB)), r"sparse tensor 'w': indices must have shape \[200\] or "
                                         r"\[200, 2\], not \[1\]$"),
])
def test_sparse_wrong(tmp_path: Path, tensor: onnx.SparseTensorProto, message: str) -> None:
    sketch = Sketch(23)
    sketch.x = sketch.add("MatMul", [sketch.norm(sketch.x, "final"), "w"], "head")
    directory = sketch.save(tmp_path, head=False)
    edit(directory, lambda proto: proto.graph.sparse_initializer.append(tensor))
    with pytest.raises(ValueError, match="^" + message):
        import_model(directory)


def test_nothing_is_read(tmp_path: Path) -> None:
    """Importing and reading a block of rows takes memory for the block, not for the matrix."""
    sketch = Sketch(23)
    rows = 200_000
    sketch.initializers.append(TensorProto(
        name="big", data_type=TensorProto.FLOAT, dims=[HIDDEN, rows],
        data_location=TensorProto.EXTERNAL,
        external_data=[onnx.StringStringEntryProto(key="location", value="big.data")]))
    sketch.x = sketch.add("MatMul", [sketch.norm(sketch.x, "final"), "big"], "head")
    directory = sketch.save(tmp_path, head=False)
    with (directory / "big.data").open("wb") as file:
        file.truncate(HIDDEN * rows * 4)
    tracemalloc.start()
    graph, _ = import_model(directory)
    next(graph.of(Linear)).op.weight.read(1000, 2000)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()
