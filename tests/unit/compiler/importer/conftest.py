"""Models exported once a session, and the comparison every form must pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import exporters
import numpy as np
import pytest
import reference

from alula.compiler.graph import Graph, Linear
from alula.compiler.importer import Coverage, import_model

TOKENS = np.random.default_rng(1).integers(3, exporters.VOCAB, 40).tolist()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return ``checkpoint(kind, **sizes)``: the directory of a saved random model."""
    made: dict[Any, Path] = {}

    def make(kind: str = "Llama", **sizes: Any) -> Path:
        key = kind, repr(sizes)
        if key not in made:
            directory = tmp_path_factory.mktemp(kind)
            made[key] = exporters.save(exporters.causal_lm(kind, **sizes), directory)
        return made[key]
    return make


@pytest.fixture(scope="session")
def genai(checkpoint: Callable[..., Path],
          tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return ``genai(*options, kind=, precision=, provider=, **sizes)``: an exported directory."""
    made: dict[Any, Path] = {}

    def make(*options: str, kind: str = "Llama", precision: str = "int4", provider: str = "cpu",
             **sizes: Any) -> Path:
        key = options, kind, precision, provider, repr(sizes)
        if key not in made:
            made[key] = exporters.genai(checkpoint(kind, **sizes), tmp_path_factory.mktemp("genai"),
                                        precision, *options, provider=provider)
        return made[key]
    return make


@pytest.fixture(scope="session")
def agrees() -> Callable[..., tuple[Graph, Coverage]]:
    """Return a check that a directory's import computes what ONNX Runtime does."""
    def check(directory: Path, *, tolerance: float = 2e-5, positions: int | None = None,
              tokens: list[int] = TOKENS) -> tuple[Graph, Coverage]:
        graph, coverage = import_model(directory, max_positions=positions)
        found = reference.run(graph, tokens)
        wanted = exporters.ort_logits(next(directory.glob("*.onnx")), tokens)
        assert np.abs(wanted).max() > 0.1
        assert np.abs(found - wanted).max() < tolerance * np.abs(wanted).max()
        assert not coverage.refusals
        assert len({node.name for node in graph.of(Linear)}) == len(list(graph.of(Linear)))
        return graph, coverage
    return check
