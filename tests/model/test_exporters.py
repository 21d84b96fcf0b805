"""Whole path of real exporters' files: ONNX in, program out, logits near ONNX Runtime's."""

import exporters
import numpy as np
import pytest

from alula.compiler.compile import Options, compile
from alula.compiler.importer import import_model
from alula.compiler.quantize import quantize
from alula.compiler.recipe import parse
from alula.host.device import GoldenDevice
from alula.host.reference import onnx_logits
from alula.host.session import Session
from alula.hw.arch import SIM

TOKENS = np.random.default_rng(0).integers(3, exporters.VOCAB, 40).tolist()


def _correlation(directory, recipe=None):
    graph, _ = import_model(directory, max_positions=exporters.POSITIONS)
    if recipe:
        graph = quantize(graph, parse(recipe))
    program = compile(graph, SIM, Options(context=64, sequences=1))
    session = Session(GoldenDevice(program))
    got = session.feed(session.open(), TOKENS, all_logits=True)
    wanted = onnx_logits(directory, program.model.head_dim)(TOKENS)
    return np.corrcoef(got.ravel(), wanted.ravel())[0, 1]


@pytest.mark.parametrize("kind, precision, options, sizes", [
    ("Llama", "int4", (), {}),
    ("Llama", "int4", ("int4_is_symmetric=false", "int4_block_size=16"), {}),
    ("Llama", "int4", ("use_qdq=true",), {}),
    ("Llama", "int4", ("fuse_qkv=false", "int4_block_size=64"), {"tie_word_embeddings": True}),
    ("Llama", "int8", (), {"num_key_value_heads": 1}),
    ("Llama", "int4", (), {"num_key_value_heads": 4, "rope_scaling": exporters.LLAMA3_ROPE}),
    ("Qwen2", "int4", (), {}),
    ("Qwen3", "int4", (), {"head_dim": 32}),
    ("Mistral", "int4", (), {"sliding_window": 16}),
], ids=str)
def test_genai(tmp_path, kind, precision, options, sizes):
    checkpoint = exporters.save(exporters.causal_lm(kind, **sizes), tmp_path / "checkpoint")
    directory = exporters.genai(checkpoint, tmp_path / "model", precision, *options)
    correlation = _correlation(directory)
    print(f"{kind} {precision} {options}: correlation {correlation:.5f}")
    assert correlation > 0.99


@pytest.mark.parametrize("opset, cache", [(23, True), (23, False), (None, True)])
def test_torch(tmp_path, opset, cache):
    exporters.torch_export(exporters.causal_lm("Llama"), tmp_path / "model", opset=opset,
                           cache=cache)
    correlation = _correlation(tmp_path / "model", "w8g32")
    print(f"opset {opset}, cache {cache}: correlation {correlation:.5f}")
    assert correlation > 0.995


def test_optimum_form(tmp_path):
    exporters.torch_export(exporters.causal_lm("Llama"), tmp_path / "model", opset=18, cache=True,
                           dynamo=False)
    assert _correlation(tmp_path / "model", "w8g32") > 0.995
