"""The two entry points: import a model, or only report on it."""

from __future__ import annotations

from pathlib import Path

from alula.compiler.graph import Graph, Linear, RmsNorm, Rope, verify
from alula.compiler.importer import (  # noqa: F401  (imported for the handlers they register)
    arithmetic,
    attention,
    dequantize,
    functions,
    layout,
    linear,
    nbits,
    norms,
)
from alula.compiler.importer.coverage import Coverage
from alula.compiler.importer.lowering import Lowering
from alula.compiler.importer.model import Model, open_model

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
    config = lowering.model.config
    value = lowering.values.get(output)
    if value is None:
        raise ValueError(f"the output {output!r} must depend on the tokens, not on constants only")
    rows = lowering.settled(lowering.model.makers[output], value)
    nodes = tuple(lowering.nodes.values())
    tables = [node.op.cos.shape[0] for node in nodes if isinstance(node.op, Rope)]
    positions = max_positions or min(tables, default=config.context or 0)
    graph = Graph(nodes=nodes, output=rows.node, vocab=rows.width,
                  positions=positions, eos_tokens=config.eos_tokens,
                  bos_token=config.bos_token, architecture=config.architecture)
    return verify(graph)
