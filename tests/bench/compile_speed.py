"""How fast, and in how much memory, a directory of int4 weights compiles.

Run ``python tests/bench/compile_speed.py``. The model is random and as large as asked, in the form
of the ONNX Runtime GenAI builder; it is removed at the end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, BinaryIO

import numpy as np
import onnx
import typer
from numpy.typing import NDArray
from onnx import TensorProto, helper

from alula.compiler.graph import Linear
from alula.compiler.importer import import_model
from alula.compiler.pack import PackStats, pack_strips
from alula.hw.arch import build
from alula.hw.layout import WINDOW

BLOCK = 32
SPARSITIES = ("none", "8:16", "drop50")
CHUNK = 1 << 24  # codes made together


@dataclass(frozen=True, kw_only=True)
class Shape:
    layers: int
    hidden: int
    ffn: int
    vocab: int
    heads: int
    kv_heads: int
    sparsity: str = "none"
    context: int = 2048
    block: int = BLOCK
    accuracy_level: int = 0  # of MatMulNBits; 4 is ONNX Runtime's int8 activations

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


@dataclass
class Writer:
    """Nodes and tensors of a model as they are made; tensors go straight to the data file."""

    data: BinaryIO
    shape: Shape
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: list[TensorProto] = field(default_factory=list)
    int4_bytes: int = 0

    def node(self, kind: str, inputs: list[str], name: str, *rest: str, domain: str = "",
             **attributes: Any) -> str:
        """Add a node with the outputs ``name`` and ``rest``; return the first."""
        self.nodes.append(helper.make_node(kind, inputs, [name, *rest], name, domain=domain,
                                           **attributes))
        return name

    def tensor(self, name: str, dims: list[int], dtype: int, parts: Any) -> str:
        """Add a tensor from the arrays that follow each other in it; a tiny one to the graph."""
        if int(np.prod(dims)) <= 1:  # shapes, which readers want to know early
            self.tensors.append(helper.make_tensor(name, dtype, dims, parts[0].reshape(-1)))
            return name
        start = self.data.tell()
        for part in parts:
            self.data.write(np.ascontiguousarray(part).data)
        tensor = TensorProto(name=name, dims=dims, data_type=dtype,
                             data_location=TensorProto.EXTERNAL)
        for key, value in (("location", "model.onnx.data"), ("offset", start),
                           ("length", self.data.tell() - start)):
            tensor.external_data.add(key=key, value=str(value))
        self.tensors.append(tensor)
        return name

    def floats(self, name: str, *shape: int) -> str:
        values = (self.random.standard_normal(shape[-1], np.float32) for _ in range(
            int(np.prod(shape[:-1]))))
        return self.tensor(name, list(shape), TensorProto.FLOAT, values)

    def linear(self, x: str, name: str, cols: int, rows: int, sparsity: str) -> str:
        """Add a MatMulNBits with random codes and scales."""
        block = self.shape.block
        blocks = cols // block
        self.int4_bytes += rows * cols // 2
        step = max(1, CHUNK // cols)
        codes = self.tensor(
            f"{name}.qweight", [rows, blocks, block // 2], TensorProto.UINT8,
            (_codes(self.random, min(step, rows - at), cols, sparsity, block)
             for at in range(0, rows, step)))
        scales = self.tensor(f"{name}.scales", [rows, blocks], TensorProto.FLOAT,
                             [self.random.uniform(0.001, 0.01, rows * blocks).astype(np.float16)
                              .astype(np.float32)])
        return self.node("MatMulNBits", [x, codes, scales], name, domain="com.microsoft", K=cols,
                         N=rows, bits=4, block_size=block,
                         accuracy_level=self.shape.accuracy_level)


def _codes(random: np.random.Generator, rows: int, cols: int, sparsity: str,
           block: int) -> NDArray[np.uint8]:
    """Return random codes, two in a byte; what is pruned has the zero point's code, 8."""
    packed = random.integers(0, 256, (rows, cols // 2), np.uint8)
    if sparsity == "none":
        return packed
    if sparsity == "drop50":
        packed.reshape(-1, block // 2)[random.random(rows * cols // block) < 0.5] = 0x88
        return packed
    codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(-1, WINDOW)
    order = np.argsort(random.random((1 << 12, WINDOW)), axis=1) < WINDOW // 2
    codes[order[random.integers(0, len(order), len(codes))]] = 8
    return (codes[:, 0::2] | codes[:, 1::2] << 4).astype(np.uint8)


def write_model(directory: Path, shape: Shape) -> int:
    """Write a model; return its bytes of int4 weights."""
    with (directory / "model.onnx.data").open("wb") as data:
        writer = Writer(data, shape)
        inputs, outputs = _graph(writer, shape)
    graph = helper.make_graph(writer.nodes, "bench", inputs, outputs, writer.tensors)
    model = helper.make_model(graph, ir_version=10, opset_imports=[
        helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)])
    (directory / "model.onnx").write_bytes(model.SerializeToString())
    (directory / "genai_config.json").write_text(json.dumps({"model": {
        "type": "llama", "context_length": shape.context, "vocab_size": shape.vocab,
        "eos_token_id": 2, "bos_token_id": 1,
        "decoder": {"filename": "model.onnx", "num_hidden_layers": shape.layers}}}))
    return writer.int4_bytes


def _graph(w: Writer, shape: Shape) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    ids = ["batch", "tokens"]
    value = helper.make_tensor_value_info
    inputs = [value("input_ids", TensorProto.INT64, ids),
              value("attention_mask", TensorProto.INT64, ["batch", "total"])]
    outputs = [value("logits", TensorProto.FLOAT, [*ids, shape.vocab])]
    _lengths(w)
    x = w.node("Gather", [w.floats("embed.weight", shape.vocab, shape.hidden), "input_ids"],
               "embed")
    normed = w.node("SimplifiedLayerNormalization", [x, w.floats("first.gamma", shape.hidden)],
                    "first", axis=-1, epsilon=1e-5, stash_type=1)
    angles = np.arange(shape.context)[:, None] / 1e4 ** np.linspace(0, 1, shape.head_dim // 2)
    for name, table in (("cos", np.cos(angles)), ("sin", np.sin(angles))):
        w.tensor(name, list(table.shape), TensorProto.FLOAT, [table.astype(np.float32)])
    for layer in range(shape.layers):
        cache = [f"past_key_values.{layer}.{kind}" for kind in ("key", "value")]
        for name in cache:
            dims = ["batch", shape.kv_heads, "past", shape.head_dim]
            inputs.append(value(name, TensorProto.FLOAT, dims))
            outputs.append(value(name.replace("past_key_values", "present"), TensorProto.FLOAT,
                                 dims))
        x, normed = _layer(w, shape, f"layer{layer}", x, normed, cache)
    w.node("MatMulNBits", _head(w, shape, normed), "logits", domain="com.microsoft",
           K=shape.hidden, N=shape.vocab, bits=4, block_size=shape.block,
           accuracy_level=shape.accuracy_level)
    return inputs, outputs


def _lengths(w: Writer) -> None:
    """Add the lengths that GroupQueryAttention wants, from the attention mask."""
    one = w.tensor("one", [1], TensorProto.INT64, [np.array([1])])
    total = w.node("ReduceSum", ["attention_mask", one], "mask.sum", keepdims=0)
    less = w.node("Sub", [total, one], "mask.less")
    w.node("Cast", [less], "seqlens_k", to=TensorProto.INT32)
    dims = w.node("Shape", ["attention_mask"], "mask.shape")
    at = w.tensor("at", [], TensorProto.INT64, [np.array(1)])
    w.node("Cast", [w.node("Gather", [dims, at], "mask.total")], "total", to=TensorProto.INT32)


def _head(w: Writer, shape: Shape, x: str) -> list[str]:
    w.linear(x, "head", shape.hidden, shape.vocab, shape.sparsity)
    return list(w.nodes.pop().input)


def _layer(w: Writer, shape: Shape, name: str, x: str, normed: str,
           cache: list[str]) -> tuple[str, str]:
    """Add a layer; return its sum and the norm of it."""
    def linear(x: str, part: str, cols: int, rows: int) -> str:
        return w.linear(x, f"{name}.{part}", cols, rows, shape.sparsity)

    def skip_norm(x: str, more: str, part: str) -> tuple[str, str]:
        gamma = w.floats(f"{name}.{part}.gamma", shape.hidden)
        out = w.node("SkipSimplifiedLayerNormalization", [x, more, gamma], f"{name}.{part}", "",
                     "", f"{name}.{part}.sum", domain="com.microsoft", epsilon=1e-5)
        return f"{name}.{part}.sum", out

    wide = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    qkv = linear(normed, "qkv", shape.hidden, wide)
    attended = w.node(
        "GroupQueryAttention", [qkv, "", "", *cache, "seqlens_k", "total", "cos", "sin"],
        f"{name}.attention", *(key.replace("past_key_values", "present") for key in cache),
        domain="com.microsoft", num_heads=shape.heads, kv_num_heads=shape.kv_heads,
        do_rotary=1, rotary_interleaved=0, scale=shape.head_dim**-0.5)
    x, normed = skip_norm(x, linear(attended, "o", shape.hidden, shape.hidden), "post")
    gate = linear(normed, "gate", shape.hidden, shape.ffn)
    up = linear(normed, "up", shape.hidden, shape.ffn)
    silu = w.node("Mul", [gate, w.node("Sigmoid", [gate], f"{name}.sigmoid")], f"{name}.silu")
    product = w.node("Mul", [silu, up], f"{name}.product")
    return skip_norm(x, linear(product, "down", shape.ffn, shape.hidden), "next")


def compile_once(directory: Path, output: Path, arch: str) -> dict[str, Any]:
    """Compile in a process of its own; return its seconds and its peaks of memory."""
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "alula.host.cli", "compile", str(directory), "-o", str(output),
         "--arch", arch, "--quiet", "--json"], stdout=subprocess.PIPE, text=True)
    anonymous: list[int] = []
    watcher = threading.Thread(target=_watch, args=(process.pid, anonymous))
    watcher.start()
    assert process.stdout is not None
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    watcher.join()
    if process.returncode:
        raise SystemExit(f"alula compile exited with {process.returncode}")
    return {"seconds": seconds, "peak_rss_mb": usage.ru_maxrss * 1024 / 1e6,
            "peak_anonymous_mb": max(anonymous) / 1e6,
            "weight_mb": json.loads(text)["weight_bytes"] / 1e6,
            "output_mb": output.stat().st_size / 1e6}


def _watch(pid: int, found: list[int]) -> None:
    """Append the anonymous memory of a process until it ends."""
    path = Path(f"/proc/{pid}/smaps_rollup")
    while True:
        try:
            lines = path.read_text().splitlines()
        except OSError:
            return
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:")]
        time.sleep(0.1)


def pack_rate(directory: Path, arch: str) -> float:
    """Return the MB of int4 weights a second that packing alone does, of rows already read."""
    graph, _ = import_model(directory)
    seconds, size = 0.0, 0
    for node in list(graph.of(Linear))[:4]:
        matrix = node.op.weight
        stop = min(matrix.rows, (1 << 22) // matrix.cols // 16 * 16)
        rows = matrix.read(0, stop)
        for _ in range(3):
            begun = time.perf_counter()
            pack_strips(rows, matrix.bits, matrix.group, 0, build(arch), PackStats())
            seconds += time.perf_counter() - begun
            size += rows.codes.size // 2
    return size / seconds / 1e6


def main(layers: int = 22, hidden: int = 2048, ffn: int = 5632, vocab: int = 32000,
         heads: int = 32, kv_heads: int = 4,
         sparsity: Annotated[str, typer.Option(help=", ".join(SPARSITIES))] = "none",
         arch: str = "u55c",
         folder: Annotated[Path | None, typer.Option(help="Where the files go.")] = None,
         as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Measure compiling a random model; the default is of TinyLlama's size, 1.1 billion weights."""
    if sparsity not in SPARSITIES:
        raise typer.BadParameter(f"sparsity must be one of {', '.join(SPARSITIES)}")
    shape = Shape(layers=layers, hidden=hidden, ffn=ffn, vocab=vocab, heads=heads,
                  kv_heads=kv_heads, sparsity=sparsity)
    with TemporaryDirectory(dir=folder) as name:
        directory = Path(name) / "model"
        directory.mkdir()
        int4_bytes = write_model(directory, shape)
        packing = pack_rate(directory, arch)
        facts = compile_once(directory, Path(name) / "model.alula", arch)
    result = {"sparsity": sparsity, "int4_mb": int4_bytes / 1e6,
              "mb_per_s": int4_bytes / 1e6 / facts["seconds"], "packing_mb_per_s": packing,
              "largest_tensor_mb": vocab * hidden * 4 / 1e6, **facts,
              "load": os.getloadavg()[0]}
    if as_json:
        print(json.dumps(result, indent=2))
        return
    for key, found in result.items():
        print(f"{key:20} {found:,.1f}" if isinstance(found, float) else f"{key:20} {found}")


if __name__ == "__main__":
    typer.run(main)
