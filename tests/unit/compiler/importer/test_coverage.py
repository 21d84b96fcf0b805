"""The report: every node has a disposition, and refusals say what to do."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from rich.console import Console
from sketch import HIDDEN, Sketch

from alula.compiler.importer import Disposition, Refused, import_model, read_coverage
from alula.compiler.importer.remedies import REMEDIES

Make = Callable[..., Path]


def test_coverage_of_every_node(genai: Make) -> None:
    directory = genai()
    coverage = read_coverage(directory)
    nodes = onnx.load(directory / "model.onnx", load_external_data=False).graph.node
    assert [entry.name for entry in coverage.entries] == [node.name for node in nodes]
    assert coverage.summary() == "33 nodes: 25 on the accelerator, 8 folded away"
    why = {entry.op: (str(entry.disposition), entry.why) for entry in coverage.entries}
    assert why["GroupQueryAttention"] == ("accelerator", "as Slice + Rope + Attention")
    assert why["Sigmoid"] == ("accelerator", "part of a larger operation")
    assert why["ReduceSum"] == (
        "folded", "positions, shapes and causal masks are built into the accelerator")
    assert why["Constant"] == ("folded", "a constant")
    assert import_model(directory)[1] == coverage


def test_coverage_json(genai: Make) -> None:
    found = json.loads(read_coverage(genai()).to_json())
    assert len(found) == 33
    assert found[8] == {"name": "/model/embed_tokens/Gather", "op": "Gather", "domain": "",
                        "opset": 22, "disposition": "accelerator", "why": "as Embed"}


def test_coverage_table(genai: Make) -> None:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(read_coverage(genai()).table())
    text = console.export_text()
    assert "33 nodes: 25 on the accelerator, 8 folded away" in text
    assert "com.microsoft.MatMulNBits" in text


def test_coverage_goes_on_after_refusals(tmp_path: Path) -> None:
    sketch = Sketch(23)
    sketch.x = sketch.add("LayerNormalization", [sketch.x, sketch.weight("g", HIDDEN)], "norm")
    sketch.x = sketch.add("QMoE", [sketch.x], "experts", domain="com.microsoft")
    sketch.add("Identity", [sketch.x], "unused")
    directory = sketch.save(tmp_path)
    coverage = read_coverage(directory)
    found = {entry.name: entry for entry in coverage.entries}
    assert [entry.name for entry in coverage.refusals] == ["norm", "experts"]
    assert found["final"].why == "not checked: it follows norm, which is refused"
    assert found["unused"].why == "the logits do not depend on it"
    assert found["unused"].disposition is Disposition.FOLDED
    with pytest.raises(Refused, match=r"^norm \(LayerNormalization, opset 23\): "):
        import_model(directory)


def test_last_logits_are_the_hosts(genai: Make) -> None:
    """prune_lm_head makes the graph give the last token's logits only."""
    graph, coverage = import_model(genai("prune_lm_head=true"))
    assert [entry.op for entry in coverage.entries
            if entry.disposition is Disposition.HOST] == ["Gather"]
    whole, _ = import_model(genai())
    assert [node.name for node in graph.nodes] == [node.name for node in whole.nodes]


@pytest.mark.parametrize("kind, domain, remedy", [
    ("PagedAttention", "com.microsoft", r"re-export with use_paged_attention=false"),
    ("QMoE", "com.microsoft", r"mixtures of experts are not lowered: choose a dense model"),
    ("MoE", "com.microsoft", r"mixtures of experts are not lowered"),
    ("SkipLayerNormalization", "com.microsoft", r"only RMS norms are lowered for now: choose a"),
    ("MatMulIntegerToFloat", "com.microsoft", r"quantize weights only \(MatMulNBits or Dequantize"),
    ("MatMulNBitsQkv", "com.microsoft", r"export with fuse_mlp_gate_up=false and fuse_qkv=false"),
    ("TensorScatter", "", r"export with growing past_key_values inputs"),
    ("If", "", r"export with torch.onnx.export\(dynamo=True\), which traces one path"),
    ("Whatever", "some.domain", r"export with the ONNX Runtime GenAI builder .* write model-local "
                                r"functions out with onnx.inliner"),
])
def test_operator_wrong(tmp_path: Path, kind: str, domain: str, remedy: str) -> None:
    sketch = Sketch(24)
    sketch.x = sketch.add(kind, [sketch.x], "node", domain=domain)
    label = rf"{domain}\.{kind}" if domain else kind
    with pytest.raises(Refused, match=rf"^node \({label}, opset \d+\): the operator must be one "
                                      rf"Alula lowers, not {kind}; {remedy}"):
        import_model(sketch.save(tmp_path))


def test_remedies_are_not_lowered() -> None:
    from alula.compiler.importer.lowering import HANDLERS
    lowered = {kind for _, kind in HANDLERS}
    assert not lowered & REMEDIES.keys()


def test_attribute_wrong(tmp_path: Path) -> None:
    sketch = Sketch(23)
    made: Any = sketch.norm(sketch.x, "norm")
    sketch.nodes[-1].attribute[0].CopyFrom(onnx.helper.make_attribute("axis", "last"))
    sketch.x = made
    with pytest.raises(Refused, match=r"^norm \(RMSNormalization, opset 23\): axis must be of type "
                                      r"int, not 'last'$"):
        import_model(sketch.save(tmp_path))
