"""Small ONNX language models put together by hand, to test one operator at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

VOCAB, HIDDEN, HEADS, HEAD_DIM = 160, 64, 4, 16


class Sketch:
    """A model that grows node by node; ``x`` is the value the next layer reads.

    It begins with an embedding; :meth:`save` ends it with a norm and a head.
    """

    def __init__(self, opset: int = 23, *, cache: bool = True, width: int = HIDDEN) -> None:
        self.random = np.random.default_rng(7)
        self.opset, self.cache, self.width = opset, cache, width
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.sparse: list[onnx.SparseTensorProto] = []
        ids = ["batch", "tokens"]
        self.inputs = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ids),
                       helper.make_tensor_value_info("attention_mask", TensorProto.INT64,
                                                     ["batch", "total"]),
                       helper.make_tensor_value_info("position_ids", TensorProto.INT64, ids)]
        self.outputs: list[onnx.ValueInfoProto] = []
        self.x = self.add("Gather", [self.weight("table", VOCAB, width), "input_ids"], "embed")

    def add(self, kind: str, inputs: list[str], name: str, *, domain: str = "",
            outputs: list[str] | None = None, **attributes: Any) -> str:
        """Add a node and return its first output."""
        outputs = outputs or [f"{name}:0"]
        self.nodes.append(helper.make_node(kind, inputs, outputs, name, domain=domain,
                                           **attributes))
        return outputs[0]

    def tensor(self, name: str, array: NDArray[Any]) -> str:
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def packed(self, name: str, dtype: int, array: NDArray[Any]) -> str:
        """Add a tensor of a 2 or 4 bit type from its values."""
        self.initializers.append(helper.make_tensor(name, dtype, array.shape, array.reshape(-1)))
        return name

    def weight(self, name: str, *shape: int) -> str:
        return self.tensor(name, self.random.standard_normal(shape).astype(np.float32))

    def norm(self, x: str, name: str) -> str:
        gamma = self.tensor(f"{name}.gamma",
                            self.random.uniform(0.5, 1.5, self.width).astype(np.float32))
        # ONNX Runtime gives its own norm no domain, so it fits every opset.
        kind = "RMSNormalization" if self.opset >= 23 else "SimplifiedLayerNormalization"
        return self.add(kind, [x, gamma], name, axis=-1, epsilon=1e-6)

    def linear(self, x: str, name: str, cols: int, rows: int) -> str:
        scaled = (self.random.standard_normal((cols, rows)) / cols**0.5).astype(np.float32)
        return self.add("MatMul", [x, self.tensor(f"{name}.weight", scaled)], name)

    def past(self, layer: int, kv_heads: int) -> tuple[str, str]:
        """Add the cache inputs of a layer; its present outputs must be made too."""
        names = (f"past_key_values.{layer}.key", f"past_key_values.{layer}.value")
        for name in names:
            self.outputs.append(helper.make_tensor_value_info(
                name.replace("past_key_values", "present"), TensorProto.FLOAT, None))
            self.inputs.append(helper.make_tensor_value_info(
                name, TensorProto.FLOAT, ["batch", kv_heads, "past", HEAD_DIM]))
        return names

    def tables(self, positions: int = 64) -> tuple[str, str]:
        """Add cosine and sine tables ``(positions, HEAD_DIM / 2)``."""
        angles = np.arange(positions)[:, None] / 100 ** (np.arange(8) / 8)
        return (self.tensor("cos", np.cos(angles).astype(np.float32)),
                self.tensor("sin", np.sin(angles).astype(np.float32)))

    def heads(self, x: str, count: int, name: str) -> str:
        """Return ``x`` as (batch, heads, tokens, HEAD_DIM)."""
        shape = self.tensor(f"{name}.shape", np.array([0, 0, count, HEAD_DIM]))
        split = self.add("Reshape", [x, shape], f"{name}.split")
        return self.add("Transpose", [split], f"{name}.transpose", perm=[0, 2, 1, 3])

    def flat(self, x: str, name: str) -> str:
        """Return (batch, heads, tokens, HEAD_DIM) as (batch, tokens, all)."""
        back = self.add("Transpose", [x], f"{name}.back", perm=[0, 2, 1, 3])
        shape = self.tensor(f"{name}.flat", np.array([0, 0, -1]))
        return self.add("Reshape", [back, shape], f"{name}.joined")

    def save(self, directory: Path, *, head: bool = True, **config: Any) -> Path:
        """Write model.onnx and config.json; ``head`` adds the final norm and the logits."""
        if head:
            self.x = self.linear(self.norm(self.x, "final"), "head", self.width, VOCAB)
        self.nodes.append(helper.make_node("Identity", [self.x], ["logits"], "logits"))
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT,
                                               ["batch", "tokens", VOCAB])
        used = {name for node in self.nodes for name in node.input}
        inputs = [value for value in self.inputs if value.name in used]
        graph = helper.make_graph(self.nodes, "sketch", inputs, [logits, *self.outputs],
                                  self.initializers, sparse_initializer=self.sparse)
        model = helper.make_model(graph, ir_version=10, opset_imports=[
            helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)])
        directory.mkdir(parents=True, exist_ok=True)
        onnx.save(model, directory / "model.onnx")
        (directory / "config.json").write_text(json.dumps(
            {"model_type": "llama", "max_position_embeddings": 64, **config}))
        return directory
