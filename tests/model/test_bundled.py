"""Check the bundled models as they lie in the repository, with onnx alone."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from alula.host import bundled

FOLDER = Path(bundled.__file__).parent
MODELS = ("dense", "sparse")
LARGEST_BYTES = 4_000_000


class Layer:
    """One MatMulNBits read from a file: scales (rows, blocks), codes (rows, inputs) in -8..7."""

    def __init__(self, node: onnx.NodeProto, arrays: dict[str, np.ndarray]) -> None:
        self.name = node.name
        self.attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        packed, self.scales = arrays[node.input[1]], arrays[node.input[2]]
        nibbles = np.stack((packed & 15, packed >> 4), axis=-1)
        self.codes = nibbles.reshape(self.attributes["N"], -1).astype(np.int8) - 8
        self.blocks = self.codes.reshape(*self.scales.shape, -1)


@pytest.fixture(scope="module", params=MODELS)
def folder(request: pytest.FixtureRequest) -> Path:
    return FOLDER / request.param


@pytest.fixture(scope="module")
def model(folder: Path) -> onnx.ModelProto:
    return onnx.load(folder / "model.onnx")


def layers_of(model: onnx.ModelProto) -> list[Layer]:
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    return [Layer(node, arrays) for node in model.graph.node if node.op_type == "MatMulNBits"]


def test_folder_is_complete_and_small(folder):
    files = {file.name: file.stat().st_size for file in folder.iterdir()}
    assert files.keys() == {"model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json",
                            "tokenizer_config.json"}
    assert sum(files.values()) <= LARGEST_BYTES


def test_file_tells_nothing_of_the_machine(folder, model):
    text = (folder / "model.onnx").read_bytes()
    assert b"/work" not in text and b"/tmp" not in text and b"/home" not in text
    assert not model.metadata_props and not any(n.metadata_props for n in model.graph.node)


def test_layers_are_int4_in_blocks_of_32(model):
    layers = layers_of(model)
    assert len(layers) == 4 * 5 + 1
    for layer in layers:
        assert (layer.attributes["bits"], layer.attributes["block_size"]) == (4, 32), layer.name


def test_scales_are_exact_in_fp16(model):
    for layer in layers_of(model):
        assert np.array_equal(layer.scales.astype(np.float16).astype(np.float32), layer.scales)


def test_every_block_in_use_has_an_extreme_code(model):
    for layer in layers_of(model):
        used = layer.blocks.any(-1)
        assert (layer.blocks.min(-1)[used] == -8).all(), layer.name


def test_embedding_table_is_exact_in_fp16(model):
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    table = arrays["model.embed_tokens.weight"]
    assert np.array_equal(table.astype(np.float16).astype(np.float32), table)


def test_vocabulary_is_no_layers_width(folder, model):
    vocab = json.loads((folder / "genai_config.json").read_text())["model"]["vocab_size"]
    heads = [layer.name for layer in layers_of(model) if layer.attributes["N"] == vocab]
    assert heads == ["/lm_head/MatMul_Q4"]


def test_sparse_model_keeps_at_most_8_of_16():
    for layer in layers_of(onnx.load(FOLDER / "sparse" / "model.onnx")):
        if "lm_head" not in layer.name:
            kept = (layer.codes.reshape(-1, 16) != 0).sum(-1)
            assert kept.max() == 8, layer.name


def test_dense_model_is_not_sparse():
    for layer in layers_of(onnx.load(FOLDER / "dense" / "model.onnx")):
        assert (layer.codes != 0).mean() > 0.7, layer.name


def test_metrics_stay_within_the_promise():
    metrics = json.loads((FOLDER / "metrics.json").read_text(encoding="utf-8"))
    reference = metrics["dense_fp32"]["loss"]
    assert metrics["sparse_int4"]["loss"] <= 1.04 * reference
    assert metrics["dense_int4"]["loss"] <= 1.04 * reference


def test_validation_text_has_its_length():
    metrics = json.loads((FOLDER / "metrics.json").read_text(encoding="utf-8"))
    text = (FOLDER / "validation.txt").read_text(encoding="utf-8").replace("<|endoftext|>", "")
    assert len(text.encode()) == metrics["corpus"]["validation"]["bytes"]
