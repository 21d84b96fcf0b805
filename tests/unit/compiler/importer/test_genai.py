"""Directories of the ONNX Runtime GenAI builder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import exporters
import numpy as np
import pytest

from alula.compiler.graph import Attention, Embed, Linear, QuantMatrix, RmsNorm, Rope, Slice
from alula.compiler.importer import Disposition, import_model

Make = Callable[..., Path]
Agrees = Callable[..., Any]


def weights(graph: Any) -> list[Any]:
    return [node.op.weight for node in graph.of(Linear)]


@pytest.mark.parametrize("options", [
    (), ("is_symmetric=false",), ("use_qdq=true",), ("use_qdq=true", "is_symmetric=false"),
    ("block_size=16",), ("block_size=64",), ("block_size=128", "is_symmetric=false"),
    ("block_size=256",), ("fuse_qkv=false",),
], ids=" ".join)
def test_llama_int4(genai: Make, agrees: Agrees, options: tuple[str, ...]) -> None:
    graph, coverage = agrees(genai(*options))
    assert all(isinstance(matrix, QuantMatrix) and matrix.bits == 4 for matrix in weights(graph))
    block = next((int(text[11:]) for text in options if text.startswith("block_size")), 32)
    assert {matrix.group for matrix in weights(graph)} == {block}
    packed = "fuse_qkv=false" not in options
    assert len(list(graph.of(Slice))) == (6 if packed else 0)
    assert len(list(graph.of(Rope))) == 4
    assert [node.op.layer for node in graph.of(Attention)] == [0, 1]
    assert (graph.vocab, graph.positions) == (exporters.VOCAB, exporters.POSITIONS)
    assert (graph.eos_tokens, graph.bos_token, graph.architecture) == ((2,), 1, "llama")
    assert {entry.disposition for entry in coverage.entries} == {
        Disposition.ACCELERATOR, Disposition.FOLDED}


def test_llama_keeps_node_names(genai: Make) -> None:
    graph, _ = import_model(genai())
    names = [node.name for node in graph.nodes]
    assert "/model/layers.1/mlp/down_proj/MatMul_Q4" in names
    assert graph.output == "/lm_head/MatMul_Q4"


def test_llama_int8(genai: Make, agrees: Agrees) -> None:
    graph, _ = agrees(genai(precision="int8"))
    assert {matrix.bits for matrix in weights(graph)} == {8}


@pytest.mark.parametrize("option", ["algo_config=rtn_last", "algo_config=k_quant_mixed",
                                    "algo_config=k_quant_last", "algo_config=rtn"])
def test_llama_mixed_bits(genai: Make, agrees: Agrees, option: str) -> None:
    # k-quant only takes inputs that are a multiple of the block.
    graph, _ = agrees(genai(option, hidden_size=64, intermediate_size=128))
    wanted = 4 if option.endswith("rtn") else 8
    assert weights(graph)[-1].bits == wanted
    assert weights(graph)[1].bits == 4


def test_llama_float(genai: Make, agrees: Agrees) -> None:
    agrees(genai(precision="fp32"))


@pytest.mark.parametrize("provider", ["cuda", "dml"])
def test_llama_fp16(genai: Make, agrees: Agrees, provider: str) -> None:
    graph, _ = agrees(genai(provider=provider), tolerance=5e-3)
    assert weights(graph)[0].read(0, 3).scales.dtype == np.float32


def test_llama3_rope_scaling(genai: Make, agrees: Agrees) -> None:
    scaled, _ = agrees(genai(rope_parameters=exporters.LLAMA3_ROPE))
    plain, _ = import_model(genai())
    tables = [next(graph.of(Rope)).op.cos for graph in (scaled, plain)]
    assert not np.allclose(tables[0], tables[1])


def test_mistral(genai: Make, agrees: Agrees) -> None:
    agrees(genai(kind="Mistral", sliding_window=16))


@pytest.mark.parametrize("tied", [True, False])
def test_qwen2_biases(genai: Make, agrees: Agrees, tied: bool) -> None:
    graph, _ = agrees(genai(kind="Qwen2", tie_word_embeddings=tied))
    biased = [node.name for node in graph.of(Linear) if node.op.bias is not None]
    assert len(biased) == 2
    assert isinstance(next(graph.of(Embed)).op.table, QuantMatrix) == tied


def test_qwen2_biases_unpacked(genai: Make, agrees: Agrees) -> None:
    graph, _ = agrees(genai("fuse_qkv=false", kind="Qwen2"))
    assert sum(node.op.bias is not None for node in graph.of(Linear)) == 6


@pytest.mark.parametrize("options", [(), ("fuse_qkv=false",), ("is_symmetric=false",)], ids=str)
def test_qwen3_head_norms(genai: Make, agrees: Agrees, options: tuple[str, ...]) -> None:
    graph, _ = agrees(genai(*options, kind="Qwen3", head_dim=16))
    assert sorted({node.op.heads for node in graph.of(RmsNorm)}) == [1, 2, 4]


def test_qwen3_fused_head_norms(genai: Make) -> None:
    """The CUDA form gives the norms to GroupQueryAttention; ONNX Runtime runs it only there."""
    fused, _ = import_model(genai(kind="Qwen3", head_dim=16, provider="cuda"))
    plain, _ = import_model(genai(kind="Qwen3", head_dim=16))
    for one, other in zip(fused.of(RmsNorm), plain.of(RmsNorm), strict=True):
        assert one.op.heads == other.op.heads
        assert one.op.eps == pytest.approx(other.op.eps)
        np.testing.assert_allclose(one.op.gamma, other.op.gamma, rtol=1e-3)


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_llama_head_ratios(genai: Make, agrees: Agrees, kv_heads: int) -> None:
    graph, _ = agrees(genai(num_key_value_heads=kv_heads))
    assert next(graph.of(Attention)).op.kv_heads == kv_heads


def test_qwen2_window(genai: Make, agrees: Agrees) -> None:
    """Some layers see a window; by default the exporter also keeps their cache that short."""
    sizes = {"kind": "Qwen2", "use_sliding_window": True, "sliding_window": 16,
             "max_window_layers": 1}
    graph, _ = agrees(genai("windowed_kv_cache=false", **sizes))
    short, _ = import_model(genai(**sizes))
    for found in (graph, short):
        assert [node.op.window for node in found.of(Attention)] == [0, 16]


@pytest.mark.parametrize("kind, sizes", [
    ("Phi3", {"pad_token_id": 0, "original_max_position_embeddings": exporters.POSITIONS}),
    ("SmolLM3", {"pad_token_id": 0}), ("Granite", {}),
    ("Llama", {"head_dim": 32, "attention_bias": True, "mlp_bias": True}),
])
def test_other_models(genai: Make, agrees: Agrees, kind: str, sizes: dict[str, Any]) -> None:
    agrees(genai(kind=kind, **sizes))


@pytest.mark.parametrize("kind, options, message", [
    ("Gemma", (), r"^/model/embed_tokens/Mul \(Mul, opset 22\): a constant factor must be 1.0, not "
                  r"8.0; fold it into the weights around it$"),
    ("Nemotron", (), r"the operator must be one Alula lowers, not LayerNormalization; only RMS"),
    ("Llama", ("use_paged_attention=true",), r"not PagedAttention; re-export with "
                                             r"use_paged_attention=false$"),
    ("Llama", ("matmulnbits_weights_prepacked=1",), r"weight_prepacked must be 0, not 1; re-export "
                                                    r"with matmulnbits_weights_prepacked=0$"),
    ("Llama", ("exclude_embeds=true",), r"^the model must have an input called input_ids, not only "
                                        r"\['attention.*; export with exclude_embeds=false$"),
    ("Llama", ("exclude_lm_head=true",), r"^the logits must be a linear layer of the final norm's "
                                         r"output, not RmsNorm"),
])
def test_exports_wrong(genai: Make, kind: str, options: tuple[str, ...], message: str) -> None:
    provider = "cuda" if "paged" in str(options) or "prepacked" in str(options) else "cpu"
    sizes = {"head_dim": 16} if kind == "Gemma" else {}
    with pytest.raises(ValueError, match=message):
        import_model(genai(*options, kind=kind, provider=provider, **sizes))


def test_head_mistaken_wrong(genai: Make) -> None:
    """The builder takes a layer as wide as the vocabulary for the head."""
    with pytest.raises(ValueError, match=r"^the logits must depend on all 2 layers that the past "
                                         r"key and value inputs tell of, not 1; an exporter takes"):
        import_model(genai(intermediate_size=exporters.VOCAB))


def test_max_positions(genai: Make) -> None:
    graph, _ = import_model(genai(), max_positions=50)
    assert graph.positions == 50
    assert next(graph.of(Rope)).op.cos.shape == (50, 8)


def test_max_positions_wrong(genai: Make) -> None:
    with pytest.raises(ValueError, match=r"^max_positions must be at most 128, the rows of the "
                                         r"rotary tables, not 129$"):
        import_model(genai(), max_positions=129)
    with pytest.raises(ValueError, match=r"^max_positions must be positive, not 0$"):
        import_model(genai(), max_positions=0)
