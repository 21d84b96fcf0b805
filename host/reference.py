"""ONNX Runtime as an independent reference: the same model, run by other code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alula.compiler.importer.model import model_path


class ReferenceError(ValueError):
    """ONNX Runtime is missing, or cannot run the model."""


def onnx_logits(directory: Path,
                head_dim: int) -> Callable[[list[int]], NDArray[np.float32]]:
    """Return what gives ``(tokens, vocab)`` logits of a window of tokens by ONNX Runtime.

    ``head_dim`` is for exporters that leave it out of the shape of the cache inputs.
    """
    try:
        import onnxruntime
    except ImportError:
        raise ReferenceError("onnxruntime must be installed for a reference: "
                             "pip install onnxruntime") from None
    try:
        session = onnxruntime.InferenceSession(str(model_path(directory)))
    except Exception as error:  # the library raises its own kinds
        raise ReferenceError(f"ONNX Runtime cannot load {directory}: {error}") from None
    inputs = {value.name: value for value in session.get_inputs()}
    logits = session.get_outputs()[0].name

    def logits_of(tokens: list[int]) -> NDArray[np.float32]:
        count = len(tokens)
        feed: dict[str, NDArray[np.generic]] = {}
        for name, value in inputs.items():
            if name == "input_ids":
                feed[name] = np.array([tokens], np.int64)
            elif name == "attention_mask":
                feed[name] = np.ones((1, count), np.int64)
            elif name == "position_ids":
                feed[name] = np.arange(count, dtype=np.int64)[None]
            else:  # an empty cache: (batch, heads, positions, head_dim)
                heads = value.shape[1]
                dtype = np.float16 if "float16" in value.type else np.float32
                feed[name] = np.zeros((1, heads, 0, head_dim), dtype)
        result: NDArray[np.float32] = session.run([logits], feed)[0][0]
        return result
    return logits_of
