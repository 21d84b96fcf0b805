"""Write a quantized, pruned ONNX model that other tools can read, in ``MatMulNBits`` nodes."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from alula.compiler.graph import Codes, Graph, Linear, QuantMatrix
from alula.compiler.importer.model import model_path

Report = Callable[[int], None]
_ALIGN = 4096  # of external tensors, so that readers can map them
_DOMAIN = "com.microsoft"
_BITS = (2, 4, 8)  # that MatMulNBits has


class CompressError(ValueError):
    """A model whose layers cannot be rewritten."""


def compress(source: Path, graph: Graph, target: Path,
             report: Report = lambda made: None) -> None:
    """Write ``source``'s model to a new directory with its linear layers as in ``graph``.

    Parameters
    ----------
    graph
        The imported and quantized graph; its linear layers are named after the ONNX nodes.
    target
        A directory that does not exist yet, or is empty. It appears only when it is complete.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CompressError(f"{target} must not exist yet, or be an empty directory")
    path = model_path(source)
    model = onnx.load(str(path), load_external_data=False)
    matrices = {node.name: node.op.weight for node in graph.nodes if isinstance(node.op, Linear)}
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".alula-", dir=target.resolve().parent))
    try:
        with (work / "model.onnx.data").open("wb") as data:
            writer = _Writer(model, path.parent, data, report)
            for name, matrix in matrices.items():
                assert isinstance(matrix, QuantMatrix)
                writer.replace(name, matrix)
            writer.finish()
        onnx.save(model, str(work / "model.onnx"))
        for other in source.iterdir():
            if other.is_file() and ".onnx" not in other.name:
                shutil.copy2(other, work / other.name)
        work.chmod(0o755)
        if target.exists():
            target.rmdir()
        work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


class _Writer:
    """Edits a model in place and writes every tensor it keeps to a new data file."""

    def __init__(self, model: onnx.ModelProto, folder: Path, data: BinaryIO,
                 report: Report) -> None:
        self.graph, self.model, self.folder = model.graph, model, folder
        self.data, self.report = data, report
        self.nodes = {node.name: node for node in self.graph.node}
        self.new: set[str] = set()

    def replace(self, name: str, matrix: QuantMatrix) -> None:
        """Make the node of that name a ``MatMulNBits`` with the matrix's codes."""
        node = self.nodes.get(name)
        if node is None or node.op_type not in ("MatMul", "Gemm", "MatMulNBits"):
            kind = "none" if node is None else node.op_type
            raise CompressError(f"layer {name!r} must be one MatMul, Gemm or MatMulNBits node of "
                                f"the model, not {kind}")
        if matrix.bits not in _BITS:
            raise CompressError(f"a recipe for ONNX must have {_BITS} bits, which MatMulNBits "
                                f"has, not {matrix.bits}; `alula compile --quantize` takes it")
        floats = self._float_type(node)
        tensors = self._write_codes(name, matrix, floats)
        bias = self._bias(node)
        output = node.output[0]
        made = helper.make_node(
            "MatMulNBits", [node.input[0], *tensors, *([""] * (3 - len(tensors)) + ["", bias]
                                                      if bias else [])],
            [output], name=name, domain=_DOMAIN, K=matrix.cols, N=matrix.rows, bits=matrix.bits,
            block_size=matrix.group, accuracy_level=4)
        node.CopyFrom(made)

    def _float_type(self, node: onnx.NodeProto) -> int:
        names = {value for value in node.input[1:] if value}
        types = {tensor.data_type for tensor in self.graph.initializer if tensor.name in names}
        half = onnx.TensorProto.FLOAT16
        return half if half in types else onnx.TensorProto.FLOAT

    def _bias(self, node: onnx.NodeProto) -> str:
        at = {"Gemm": 2, "MatMulNBits": 5}.get(node.op_type)
        return node.input[at] if at is not None and len(node.input) > at else ""

    def _write_codes(self, name: str, matrix: QuantMatrix, floats: int) -> list[str]:
        """Write a matrix's tensors; return their names."""
        groups, size = matrix.groups, matrix.group * matrix.bits // 8
        parts = [_packed(matrix.read(at, min(at + 1024, matrix.rows)), matrix)
                 for at in range(0, matrix.rows, 1024)]
        codes, scales, zeros = (np.concatenate(part) for part in zip(*parts, strict=True))
        dtype = np.float16 if floats == onnx.TensorProto.FLOAT16 else np.float32
        named = [("weight", codes.reshape(matrix.rows, groups, size)),
                 ("scales", scales.astype(dtype))]
        if (zeros != 1 << (matrix.bits - 1)).any():
            named.append(("zero_points", _bits(zeros, matrix.bits, 1 << (matrix.bits - 1))))
        names = []
        for kind, array in named:
            names.append(f"{name}.{kind}_Q{matrix.bits}")
            self._add(names[-1], array)
        return names

    def _add(self, name: str, array: NDArray[Any]) -> None:
        tensor = self.graph.initializer.add()
        tensor.name, tensor.data_type = name, helper.np_dtype_to_tensor_dtype(array.dtype)
        tensor.dims.extend(array.shape)
        self.new.add(name)
        self._external(tensor, array.tobytes())

    def _external(self, tensor: onnx.TensorProto, raw: bytes) -> None:
        self.data.write(bytes(-self.data.tell() % _ALIGN))
        offset = self.data.tell()
        self.data.write(raw)
        tensor.ClearField("raw_data")
        del tensor.external_data[:]
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", "model.onnx.data"), ("offset", str(offset)),
                           ("length", str(len(raw)))):
            tensor.external_data.add(key=key, value=value)
        self.report(len(raw))

    def finish(self) -> None:
        """Drop what nothing uses any more; copy the tensors that stay."""
        self._drop_dead_nodes()
        used = {value for node in self.graph.node for value in node.input}
        used |= {value.name for value in self.graph.output}
        kept = [tensor for tensor in self.graph.initializer if tensor.name in used]
        for tensor in kept:
            if tensor.data_location == onnx.TensorProto.EXTERNAL and tensor.name not in self.new:
                self._external(tensor, self._read(tensor))
        fresh = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
        del self.graph.initializer[:]
        self.graph.initializer.extend(fresh)
        if all(opset.domain != _DOMAIN for opset in self.model.opset_import):
            self.model.opset_import.add(domain=_DOMAIN, version=1)

    def _read(self, tensor: onnx.TensorProto) -> bytes:
        where = {entry.key: entry.value for entry in tensor.external_data}
        with (self.folder / where["location"]).open("rb") as file:
            file.seek(int(where.get("offset", 0)))
            return file.read(int(where["length"]) if "length" in where else -1)

    def _drop_dead_nodes(self) -> None:
        wanted = {value.name for value in self.graph.output}
        alive: list[onnx.NodeProto] = []
        for node in reversed(self.graph.node):
            if any(value in wanted for value in node.output):
                wanted |= set(_inputs(node))
                alive.append(onnx.NodeProto.FromString(node.SerializeToString()))
        del self.graph.node[:]
        self.graph.node.extend(reversed(alive))


def _inputs(node: onnx.NodeProto) -> Iterable[str]:
    """Return the values a node reads, those its subgraphs take from outside included."""
    yield from node.input
    for attribute in node.attribute:
        for inner in [attribute.g, *attribute.graphs]:
            for child in inner.node:
                yield from _inputs(child)


def _packed(rows: Codes, matrix: QuantMatrix) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return rows as MatMulNBits stores them: packed codes, scales, zero points."""
    count = matrix.groups * matrix.group
    padded = np.pad(rows.codes, ((0, 0), (0, count - matrix.cols)))
    return _bits(padded, matrix.bits, 0), rows.scales, rows.zero_points


def _bits(values: NDArray[np.uint8], bits: int, fill: int) -> NDArray[np.uint8]:
    """Pack the last axis low bits first, filled up to whole bytes."""
    share = 8 // bits
    short = -values.shape[1] % share
    padded = np.pad(values, ((0, 0), (0, short)), constant_values=fill)
    split = padded.reshape(len(values), -1, share) << (np.arange(share, dtype=np.uint8) * bits)
    return np.bitwise_or.reduce(split.astype(np.uint8), axis=-1)
