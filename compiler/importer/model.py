"""An ONNX file as operators and tensors: opened, checked, nothing of it interpreted yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from alula.compiler.importer.config import Config, read_config
from alula.compiler.importer.coverage import Refused
from alula.compiler.importer.tensors import Stored, densify, inside, stored

LARGEST_PROTOBUF = 1 << 31  # the format's own limit

T = TypeVar("T", int, float, str, list[int])


@dataclass(frozen=True, eq=False)
class Op:
    """One ONNX node. Absent optional inputs are ``""``."""

    name: str
    kind: str
    domain: str
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, AttributeProto] = field(repr=False)

    def __str__(self) -> str:
        kind = f"{self.domain}.{self.kind}" if self.domain else self.kind
        return f"{self.name} ({kind}, opset {self.opset})"

    def input(self, at: int) -> str:
        """Return the name of input ``at``, ``""`` if it is absent."""
        return self.inputs[at] if at < len(self.inputs) else ""

    def output(self, at: int) -> str:
        """Return the name of output ``at``, ``""`` if it is absent."""
        return self.outputs[at] if at < len(self.outputs) else ""

    def get(self, name: str, default: T) -> T:
        """Return an attribute of the default's type."""
        if name not in self.attributes:
            return default
        value = onnx.helper.get_attribute_value(self.attributes[name])
        if isinstance(value, bytes):
            value = value.decode(errors="replace")
        if isinstance(default, list):
            value = list(value) if isinstance(value, Iterable) else value
        numbers = isinstance(value, list) and all(type(item) is int for item in value)
        if type(value) is not type(default) or (isinstance(value, list) and not numbers):
            raise self.refuse(name, f"of type {type(default).__name__}", f"{value!r:.60}")
        return value

    def refuse(self, what: str, wanted: object, found: object, remedy: str = "") -> Refused:
        """Return the refusal ``what must be wanted, not found``, with this node's identity."""
        ending = f"; {remedy}" if remedy else ""
        return Refused(f"{self}: {what} must be {wanted}, not {found}{ending}")

    def expect(self, what: str, wanted: object, found: object, remedy: str = "") -> None:
        """Raise a refusal unless ``found`` equals ``wanted``."""
        if found != wanted:
            raise self.refuse(what, wanted, found, remedy)


@dataclass(frozen=True, kw_only=True)
class Model:
    """The operators of an ONNX file in file order, and where its tensors lie.

    Parameters
    ----------
    inputs
        Declared shape of every graph input; ``None`` for a dimension that may vary.
    constants
        The file's tensors by value name: initialisers and Constant nodes.
    makers
        The operator that makes each value.
    """

    directory: Path
    config: Config
    ops: tuple[Op, ...]
    inputs: dict[str, tuple[int | None, ...]]
    outputs: tuple[str, ...]
    constants: dict[str, TensorProto | Stored]
    makers: dict[str, Op]
    maps: dict[Path, NDArray[np.uint8]] = field(default_factory=dict)

    def stored(self, name: str) -> Stored:
        """Return where a constant lies, checked against the file on first use."""
        found = self.constants[name]
        if not isinstance(found, Stored):
            found = stored(found, self.directory, self.maps)
            self.constants[name] = found
        return found


def open_model(directory: Path) -> Model:
    """Open the model of a directory and check that its graph is well formed.

    Raises
    ------
    ValueError
        If there is no single model, the protobuf cannot be parsed, a value is made twice or used
        before it is made, or an opset is missing.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ValueError(f"a model must be a directory with an .onnx file, not {directory}")
    config = read_config(directory)
    proto = _parse(_find(directory, config.filename))
    maps: dict[Path, NDArray[np.uint8]] = {}
    constants = _constants(proto.graph, directory, maps)
    ops = _ops(proto)
    outputs = tuple(value.name for value in proto.graph.output)
    inputs = {value.name: _shape(value) for value in proto.graph.input
              if value.name not in constants}
    makers = _check_order(ops, {*inputs, *constants}, outputs)
    for op in ops:
        if op.kind == "Constant" and op.domain == "" and len(op.outputs) == 1:
            constants[op.outputs[0]] = _constant(op)
    return Model(directory=directory, config=config, ops=ops, inputs=inputs, outputs=outputs,
                 constants=constants, makers=makers, maps=maps)


def model_path(directory: Path) -> Path:
    """Return the ONNX file of a model directory; raise ValueError if there is no single one."""
    return _find(directory, read_config(directory).filename)


def _find(directory: Path, filename: str | None) -> Path:
    """Return the model file: the one the configuration names, model.onnx, or the only one."""
    if filename is not None:
        path = directory / inside(filename, "genai_config.json: filename")
        if not path.is_file():
            raise ValueError(f"genai_config.json: filename must be a file of {directory}, "
                             f"not {filename!r}")
        return path
    if (directory / "model.onnx").is_file():
        return directory / "model.onnx"
    found = sorted(directory.glob("*.onnx"))
    if len(found) != 1:
        raise ValueError(f"{directory} must have a model.onnx or a single .onnx file, not "
                         f"{', '.join(path.name for path in found) or 'none'}")
    return found[0]


def _parse(path: Path) -> ModelProto:
    size = path.stat().st_size
    if size >= LARGEST_PROTOBUF:
        raise ValueError(f"{path.name} must be smaller than 2 GiB, not {size} bytes; export its "
                         "weights as external data")
    proto = ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise ValueError(f"{path.name} must be an ONNX protobuf, not {size} bytes that do not "
                         f"parse ({error})") from None
    if not proto.graph.node:
        raise ValueError(f"{path.name} must be an ONNX model with nodes, not an empty graph")
    return proto


def _shape(value: ValueInfoProto) -> tuple[int | None, ...]:
    dims = value.type.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims)


def _constants(graph: GraphProto, directory: Path,
               maps: dict[Path, NDArray[np.uint8]]) -> dict[str, TensorProto | Stored]:
    found: dict[str, TensorProto | Stored] = {}
    for tensor in graph.initializer:
        if tensor.name in found:
            raise ValueError(f"initialiser names must be unique, not two called {tensor.name!r}")
        found[tensor.name] = tensor
    for sparse in graph.sparse_initializer:
        found[sparse.values.name] = densify(sparse, directory, maps)
    return found


def _ops(proto: ModelProto) -> tuple[Op, ...]:
    opsets = {_domain(entry.domain): entry.version for entry in proto.opset_import}
    if "" not in opsets:
        raise ValueError("the model must import an opset of the default domain, not only "
                         f"{sorted(opsets) or 'nothing'}")
    taken: Counter[str] = Counter()
    return tuple(_op(node, opsets, taken) for node in proto.graph.node)


def _op(node: NodeProto, opsets: dict[str, int], taken: Counter[str]) -> Op:
    """Return ``node`` under its own name, or its first output's; numbered if that is taken."""
    base = node.name or next((name for name in node.output if name), node.op_type)
    taken[base] += 1
    name = base if taken[base] == 1 else f"{base}#{taken[base]}"
    domain = _domain(node.domain)
    return Op(name, node.op_type, domain, opsets.get(domain, 1), tuple(node.input),
              tuple(node.output), {entry.name: entry for entry in node.attribute})


def _domain(text: str) -> str:
    return "" if text == "ai.onnx" else text


def _check_order(ops: tuple[Op, ...], given: set[str], outputs: tuple[str, ...]) -> dict[str, Op]:
    """Return the maker of each value, if all are made once and before their use."""
    makers: dict[str, Op] = {}
    for op in ops:
        for name in op.inputs:
            if name and name not in given and name not in makers:
                raise ValueError(f"{op}: input {name!r} must be made by an earlier node, not by a "
                                 "later one or none")
        for name in filter(None, op.outputs):
            if name in given or name in makers:
                raise ValueError(f"{op}: output {name!r} must be made once, not again")
            makers[name] = op
    missing = [name for name in outputs if name not in makers and name not in given]
    if missing:
        raise ValueError(f"graph output {missing[0]!r} must be made by a node, not by none")
    return makers


def _constant(op: Op) -> TensorProto | Stored:
    """Return the tensor of a Constant node, whichever attribute holds it."""
    if len(op.attributes) != 1:
        raise op.refuse("attributes", "one value", sorted(op.attributes))
    attribute = next(iter(op.attributes.values()))
    value: Any = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, TensorProto):
        return value
    if attribute.name in ("value_float", "value_floats"):
        array: NDArray[Any] = np.array(value, np.float32)
    elif attribute.name in ("value_int", "value_ints"):
        array = np.array(value, np.int64)
    else:
        raise op.refuse("attribute", "a tensor, float or int", attribute.name)
    dtype = TensorProto.FLOAT if array.dtype == np.float32 else TensorProto.INT64
    return Stored(op.outputs[0], dtype, array.shape, array.reshape(-1).view(np.uint8))
