"""The two entry points: import a model, or only report on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from alula.compiler.graph import Graph, Linear, Node, RmsNorm, Rope, verify
from alula.compiler.importer import (  # noqa: F401  (imported for the handlers they register)
    arithmetic,
    attention,
    dequantize,
    functions,
    gqa,
    layout,
    linear,
    nbits,
    norms,
)
from alula.compiler.importer.coverage import Coverage
from alula.compiler.importer.lowering import Lowering
from alula.compiler.importer.model import Model, open_model
from alula.compiler.importer.values import Past

REPORT_POSITIONS = 64  # enough to see what rotary angles depend on


def import_model(directory: Path, *, max_positions: int | None = None) -> tuple[Graph, Coverage]:
    """Return the canonical graph of the ONNX model in a directory, and what became of its nodes.

    Weights are not read: the graph's matrices read rows of the mapped files when asked.

    Parameters
    ----------
    max_positions
        Longest context wanted; by default what the model's configuration says.

    Raises
    ------
    Refused
        If a node has no lowering.
    ValueError
        If the files are not a well-formed language model.
    """
    if max_positions is not None and max_positions < 1:
        raise ValueError(f"max_positions must be positive, not {max_positions}")
    model = open_model(directory)
    lowering = Lowering(model, max_positions or model.config.context)
    output = _walk(lowering)
    if lowering.error is not None:
        raise lowering.error
    _check_tokens(model)
    return _graph(lowering, output, max_positions), lowering.coverage()


def read_coverage(directory: Path) -> Coverage:
    """Report on every node of the ONNX model in a directory, whether it can run or not.

    Raises
    ------
    ValueError
        If the files are not a well-formed language model; never for a node it cannot lower.
    """
    lowering = Lowering(open_model(directory), REPORT_POSITIONS)
    _walk(lowering)
    return lowering.coverage()


def _check_tokens(model: Model) -> None:
    """Refuse a graph for one length of text."""
    given = model.inputs["input_ids"]
    if len(given) != 2 or given[0] not in (None, 1) or given[1] is not None:
        raise ValueError(f"input_ids must have shape [any or 1, any], not {list(given)}; export "
                         "with dynamic axes")


def _walk(lowering: Lowering) -> str:
    model = lowering.model
    if "input_ids" not in model.inputs:
        raise ValueError(f"the model must have an input called input_ids, not only "
                         f"{sorted(model.inputs)}; export with exclude_embeds=false")
    output = logits(model)
    lowering.walk(output)
    return output


def logits(model: Model) -> str:
    """Return the output that holds the logits: by name, or the one that is no cache."""
    if model.config.logits in model.outputs:
        return model.config.logits
    found = [name for name in model.outputs if not name.startswith("present")]
    if not found:
        raise ValueError(f"the model must have an output called {model.config.logits}, not only "
                         f"{sorted(model.outputs)[:4]}; export with exclude_lm_head=false")
    return found[0]


def _graph(lowering: Lowering, output: str, max_positions: int | None) -> Graph:
    """Return the canonical graph, after checking that it is the whole of a language model."""
    config = lowering.model.config
    if output not in lowering.values:
        raise ValueError(f"the output {output!r} must depend on the tokens, not on constants only")
    rows = lowering.settled(lowering.model.makers[output], lowering.values[output])
    _check_head(lowering, rows.node)
    _check_layers(lowering)
    positions = _positions(lowering, max_positions)
    graph = Graph(nodes=tuple(_cut(node, positions) for node in _reached(lowering, rows.node)),
                  output=rows.node, vocab=rows.width, positions=positions,
                  eos_tokens=config.eos_tokens, bos_token=config.bos_token,
                  architecture=config.architecture)
    return verify(graph)


def _check_head(lowering: Lowering, output: str) -> None:
    """Refuse logits that are not the linear layer of a norm's output."""
    head = lowering.nodes[output]
    before = lowering.nodes[head.inputs[0]] if head.inputs else head
    if not isinstance(head.op, Linear) or not isinstance(before.op, RmsNorm):
        raise ValueError(f"the logits must be a linear layer of the final norm's output, not "
                         f"{type(head.op).__name__} {output!r} of {type(before.op).__name__} "
                         f"{before.name!r}")


def _check_layers(lowering: Lowering) -> None:
    """Refuse logits that skip layers: an exporter may mistake another layer for the head."""
    model, found = lowering.model, len(lowering.layers)
    caches = sum(isinstance(lowering.values.get(name), Past) for name in model.inputs)
    presents = sum(name.startswith("present") for name in model.outputs)
    for what, wanted in (("past key and value inputs", caches / 2),
                         ("present outputs", presents / 2),
                         ("num_hidden_layers of the configuration", model.config.layers)):
        if wanted and wanted != found:
            raise ValueError(f"the logits must depend on all {wanted:g} layers that the {what} "
                             f"tell of, not {found}; an exporter takes a layer as wide as the "
                             "vocabulary for the head, so keep those sizes different")


def _positions(lowering: Lowering, max_positions: int | None) -> int:
    """Return the largest context: what was asked for, or the configuration, or the tables allow."""
    rows = min((node.op.cos.shape[0] for node in lowering.nodes.values()
                if isinstance(node.op, Rope)), default=lowering.positions or 0)
    if max_positions is not None and max_positions > rows:
        raise ValueError(f"max_positions must be at most {rows}, the rows of the rotary tables, "
                         f"not {max_positions}")
    if not rows:
        raise ValueError("max_positions must be given: there is no rotary table and no "
                         "max_position_embeddings in config.json")
    return max_positions or min(rows, lowering.positions or rows)


def _reached(lowering: Lowering, output: str) -> list[Node]:
    """Return the canonical nodes that the output depends on, in order."""
    wanted = {output}
    for node in reversed(lowering.nodes.values()):
        if node.name in wanted:
            wanted.update(node.inputs)
    return [node for node in lowering.nodes.values() if node.name in wanted]


def _cut(node: Node, positions: int) -> Node:
    """Return ``node`` with rotary tables of ``positions`` rows."""
    if not isinstance(node.op, Rope) or len(node.op.cos) == positions:
        return node
    return replace(node, op=replace(node.op, cos=node.op.cos[:positions],
                                    sin=node.op.sin[:positions]))
