"""Tensors of an ONNX file: where their bytes lie, checked against the file, read when asked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from onnx import SparseTensorProto, TensorProto

DTYPES: dict[int, Any] = {
    TensorProto.FLOAT: np.dtype("<f4"), TensorProto.DOUBLE: np.dtype("<f8"),
    TensorProto.FLOAT16: np.dtype("<f2"), TensorProto.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
    TensorProto.BOOL: np.dtype(np.bool_),
    TensorProto.INT8: np.dtype("<i1"), TensorProto.INT16: np.dtype("<i2"),
    TensorProto.INT32: np.dtype("<i4"), TensorProto.INT64: np.dtype("<i8"),
    TensorProto.UINT8: np.dtype("<u1"), TensorProto.UINT16: np.dtype("<u2"),
    TensorProto.UINT32: np.dtype("<u4"), TensorProto.UINT64: np.dtype("<u8"),
}
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
PACKED_BITS: dict[int, int] = {TensorProto.INT4: 4, TensorProto.UINT4: 4,
               TensorProto.INT2: 2, TensorProto.UINT2: 2}
SIGNED = (TensorProto.INT2, TensorProto.INT4, TensorProto.INT8)

# A sparse initialiser is made dense; more zeros than this for each value is not a weight matrix.
SPARSE_SPREAD = 64


def dtype_name(dtype: int) -> str:
    known = TensorProto.DataType.values()
    return TensorProto.DataType.Name(dtype) if dtype in known else f"type {dtype}"


@dataclass(frozen=True)
class Stored:
    """A tensor as it lies in the file.

    Parameters
    ----------
    dtype
        ONNX element type.
    data
        Its bytes, ``(nbytes)`` uint8: a view of the mapped file, so nothing is read yet.
    """

    name: str
    dtype: int
    shape: tuple[int, ...]
    data: NDArray[np.uint8]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def array(self) -> NDArray[Any]:
        """Return the elements, a view of the mapped file for types of whole bytes."""
        bits = PACKED_BITS.get(self.dtype)
        if bits is None:
            return self.data.view(DTYPES[self.dtype]).reshape(self.shape)
        codes = unpack(self.data, bits)[:self.size].reshape(self.shape)
        if self.dtype not in SIGNED:
            return codes
        sign = np.uint8(1 << (bits - 1))
        return (codes ^ sign).astype(np.int8) - np.int8(sign)


def unpack(data: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Split bytes into codes of 2, 4 or 8 bits, low bits first, along the last axis.

    The codes of a byte are spread over a wider word by shifts in place, which runs at memory
    speed; a table look-up or strided stores are two to six times slower.
    """
    if bits == 8:
        return data
    word = data.astype("<u2" if bits == 4 else "<u4")
    shift, mask = 8 - 4, 0x0F0F
    if bits == 2:
        word |= word << np.uint32(12)
        word &= np.uint32(0x000F000F)
        shift, mask = 6, 0x03030303
    word |= word << word.dtype.type(shift)
    word &= word.dtype.type(mask)
    return word.view(np.uint8)


def stored(tensor: TensorProto, directory: Path, maps: dict[Path, NDArray[np.uint8]]) -> Stored:
    """Return where ``tensor`` lies, after checking that its claimed size is really there.

    Raises
    ------
    ValueError
        If the type has no numpy form, a dimension is negative, or the bytes present are not
        exactly those the shape needs.
    """
    shape = _shape(tensor.name, tensor.dims)
    wanted = _nbytes(tensor.name, tensor.data_type, shape)
    if tensor.data_location == TensorProto.EXTERNAL:
        data = _external(tensor, directory, maps, wanted)
    elif tensor.HasField("raw_data"):
        data = np.frombuffer(tensor.raw_data, np.uint8)
    else:
        data = _typed(tensor)
    if data.size != wanted:
        raise ValueError(f"tensor {tensor.name!r} must hold {wanted} bytes for shape "
                         f"{list(shape)}, not {data.size}")
    return Stored(tensor.name, tensor.data_type, shape, data)


def _shape(name: str, dims: Any) -> tuple[int, ...]:
    shape = tuple(int(size) for size in dims)
    if any(size < 0 for size in shape):
        raise ValueError(f"tensor {name!r}: dimensions must be zero or more, not {list(shape)}")
    return shape


def _nbytes(name: str, dtype: int, shape: tuple[int, ...]) -> int:
    if dtype in PACKED_BITS:
        return -(-math.prod(shape) * PACKED_BITS[dtype] // 8)
    if dtype not in DTYPES:
        raise ValueError(f"tensor {name!r}: element type must be a float, an integer or bool, "
                         f"not {dtype_name(dtype)}")
    return math.prod(shape) * int(DTYPES[dtype].itemsize)


_FIELDS: dict[int, str] = {TensorProto.FLOAT: "float_data", TensorProto.DOUBLE: "double_data",
           TensorProto.INT64: "int64_data", TensorProto.UINT64: "uint64_data",
           TensorProto.UINT32: "uint64_data"}


def _typed(tensor: TensorProto) -> NDArray[np.uint8]:
    """Return the bytes of a tensor kept in one of the typed fields."""
    values = np.asarray(getattr(tensor, _FIELDS.get(tensor.data_type, "int32_data")))
    if tensor.data_type in PACKED_BITS:
        return values.astype(np.uint8)
    dtype = DTYPES[tensor.data_type]
    if tensor.data_type in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
        dtype = np.dtype(np.uint16)  # the field holds bit patterns
    return values.astype(dtype).view(np.uint8)


def _external(tensor: TensorProto, directory: Path, maps: dict[Path, NDArray[np.uint8]],
              wanted: int) -> NDArray[np.uint8]:
    """Return the bytes of a tensor that lies in a file beside the model."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    path = directory / inside(entries.get("location", ""), f"tensor {tensor.name!r}: location")
    if path not in maps:
        maps[path] = _map(path, tensor.name)
    start = _count(tensor.name, "offset", entries.get("offset", "0"))
    length = _count(tensor.name, "length", entries.get("length", str(wanted)))
    if start + length > maps[path].size:
        raise ValueError(f"tensor {tensor.name!r}: external data must end within the "
                         f"{maps[path].size} bytes of {path.name}, not at {start + length}")
    return maps[path][start:start + length]


def _map(path: Path, name: str) -> NDArray[np.uint8]:
    if not path.is_file():
        raise ValueError(f"tensor {name!r}: external data must be in the file {path.name}, "
                         f"which is missing from {path.parent}")
    if path.stat().st_size == 0:
        return np.empty(0, np.uint8)
    return np.memmap(path, np.uint8, mode="r")


def _count(name: str, what: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ValueError(f"tensor {name!r}: external data {what} must be a number of bytes, "
                         f"not {text!r}")
    return int(text)


def inside(location: str, what: str) -> PurePosixPath:
    """Return ``location`` as a path that stays below its directory; raise ValueError if it leaves.

    Links are followed (download caches keep models as links), so only the text is judged.
    """
    path = PurePosixPath(location)
    outside = path.is_absolute() or ".." in path.parts or PureWindowsPath(location).drive
    if not path.parts or outside or "\0" in location or "\\" in location:
        raise ValueError(f"{what} must be a file name inside the model's directory, "
                         f"not {location!r}")
    return path


def densify(sparse: SparseTensorProto, directory: Path,
            maps: dict[Path, NDArray[np.uint8]]) -> Stored:
    """Return a sparse float initialiser as a dense one.

    Indices are either flat, ``(values)``, or one row of coordinates a value, ``(values, rank)``.
    """
    values = stored(sparse.values, directory, maps)
    index = stored(sparse.indices, directory, maps)
    name, shape = values.name, _shape(values.name, sparse.dims)
    if values.dtype not in FLOATS or index.dtype != TensorProto.INT64:
        raise ValueError(f"sparse tensor {name!r} must have float values and INT64 indices, not "
                         f"{dtype_name(values.dtype)} and {dtype_name(index.dtype)}")
    if math.prod(shape) > SPARSE_SPREAD * (values.size + 64):
        raise ValueError(f"sparse tensor {name!r} must hold at least one value in "
                         f"{SPARSE_SPREAD}, not {values.size} in {list(shape)}")
    if index.shape not in ((values.size,), (values.size, len(shape))):
        raise ValueError(f"sparse tensor {name!r}: indices must have shape [{values.size}] or "
                         f"[{values.size}, {len(shape)}], not {list(index.shape)}")
    at = index.array()
    limits = np.array(shape if at.ndim == 2 else [math.prod(shape)], np.int64)
    if at.size and (at.min() < 0 or (at.reshape(values.size, -1) >= limits).any()):
        raise ValueError(f"sparse tensor {name!r}: indices must lie inside {list(shape)}")
    flat = np.ravel_multi_index(tuple(at.T), shape) if at.ndim == 2 else at
    dense = np.zeros(math.prod(shape), DTYPES[values.dtype])
    dense[flat] = values.array().reshape(-1)
    return Stored(name, values.dtype, shape, dense.view(np.uint8))
