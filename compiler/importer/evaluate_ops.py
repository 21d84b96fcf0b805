"""What each plumbing operator computes, in numpy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import numpy_helper

from alula.compiler.importer.model import Op
from alula.compiler.importer.tensors import DTYPES, dtype_name

Array = NDArray[Any]
Function = Callable[..., Any]

# Most elements a value may have: rotary angles of 2**19 positions by 128.
LARGEST = 1 << 26


def bounded(op: Op, shape: Sequence[int]) -> tuple[int, ...]:
    """Return ``shape`` if a value of it may be made; refuse hostile sizes before allocating."""
    dims = tuple(int(size) for size in shape)
    if any(size < 0 for size in dims) or math.prod(dims) > LARGEST:
        raise op.refuse("output shape", f"of at most {LARGEST} elements", list(dims))
    return dims


def elementwise(function: Function) -> Function:
    """Return an operator that applies a numpy function to operands of bounded broadcast size."""

    def run(op: Op, *given: Array) -> Any:
        bounded(op, np.broadcast_shapes(*(array.shape for array in given)))
        return function(*given)
    return run


def reduction(function: Function) -> Function:
    """Return a Reduce operator; its axes are an input or, in older opsets, an attribute."""

    def run(op: Op, x: Array, axes: Array | None = None) -> Any:
        wanted = op.get("axes", [int(axis) for axis in axes] if axes is not None else [])
        if not wanted and op.get("noop_with_empty_axes", 0):
            return x
        return function(x, axis=tuple(wanted) or None, keepdims=bool(op.get("keepdims", 1)))
    return run


def _cast(op: Op, x: Array) -> Array:
    to = op.get("to", 1)
    if to not in DTYPES:
        raise op.refuse("to", "a float, integer or bool type", dtype_name(to))
    return x.astype(DTYPES[to])


def _div(x: Array, y: Array) -> Array:
    if x.dtype.kind in "iu":  # ONNX truncates towards zero
        return (np.sign(x) * np.sign(y) * (np.abs(x) // np.abs(y))).astype(x.dtype)
    return np.asarray(x / y)


def _mod(op: Op, x: Array, y: Array) -> Any:
    return np.fmod(x, y) if op.get("fmod", 0) else np.mod(x, y)


def axes_of(op: Op, axes: Array | None) -> tuple[int, ...]:
    """Return axes given as an input (opset 13 on) or as an attribute."""
    return tuple(op.get("axes", [int(axis) for axis in axes] if axes is not None else []))


def _unsqueeze(op: Op, x: Array, axes: Array | None = None) -> Array:
    return np.expand_dims(x, axes_of(op, axes))


def _squeeze(op: Op, x: Array, axes: Array | None = None) -> Array:
    return np.squeeze(x, axes_of(op, axes) or None)


def reshape_target(op: Op, have: Sequence[int], wanted: Array) -> tuple[int, ...]:
    """Return a Reshape's shape with 0 (keep) and -1 (the rest) worked out."""
    target = [int(size) for size in wanted.reshape(-1)]
    if not op.get("allowzero", 0):
        target = [have[at] if size == 0 and at < len(have) else size
                  for at, size in enumerate(target)]
    if target.count(-1) == 1:
        known = math.prod(size for size in target if size != -1)
        target[target.index(-1)] = math.prod(have) // known if known > 0 else 0
    if math.prod(target) != math.prod(have):
        raise op.refuse("target shape", f"as many elements as {list(have)}", target)
    return bounded(op, target)


def _reshape(op: Op, x: Array, wanted: Array) -> Array:
    return x.reshape(reshape_target(op, x.shape, wanted))


def _flatten(op: Op, x: Array) -> Array:
    return x.reshape(math.prod(x.shape[:op.get("axis", 1)]), -1)


def _transpose(op: Op, x: Array) -> Array:
    return x.transpose(op.get("perm", list(range(x.ndim))[::-1]))


def _range(op: Op, start: Array, stop: Array, step: Array) -> Array:
    count = math.ceil((stop.item() - start.item()) / step.item())
    bounded(op, (max(count, 0),))
    return np.arange(max(count, 0)).astype(start.dtype) * step + start


def _expand(op: Op, x: Array, wanted: Array) -> Array:
    target = np.broadcast_shapes(x.shape, tuple(int(size) for size in wanted))
    return np.broadcast_to(x, bounded(op, target))


def _tile(op: Op, x: Array, repeats: Array) -> Array:
    bounded(op, [size * int(times) for size, times in zip(x.shape, repeats, strict=True)])
    return np.tile(x, tuple(int(times) for times in repeats))


def _fill(op: Op, wanted: Array) -> Array:
    fill = np.zeros(1, np.float32)
    if "value" in op.attributes:
        tensor = op.attributes["value"].t
        if math.prod(tensor.dims) != 1:
            raise op.refuse("value", "one element", list(tensor.dims))
        fill = numpy_helper.to_array(tensor)
    return np.full(bounded(op, wanted.reshape(-1).tolist()), fill.reshape(-1)[0])


def slice_at(op: Op, rank: int, given: Sequence[Array | None]) -> tuple[slice, ...]:
    """Return the slices of a Slice node, one an axis of its input of ``rank`` axes."""
    lists = [[int(item) for item in array.reshape(-1)] if array is not None else None
             for array in given]
    starts, stops, axes, steps = [*lists, None, None, None, None][:4]
    starts = op.get("starts", []) if starts is None else starts
    stops = op.get("ends", []) if stops is None else stops
    axes = op.get("axes", list(range(len(starts)))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    found = [slice(None)] * rank
    for start, stop, axis, step in zip(starts, stops, axes, steps, strict=True):
        end: int | None = stop
        if step < 0 and stop < -(1 << 30):
            end = None  # past the front
        found[axis] = slice(start, end, step)
    return tuple(found)


def _slice(op: Op, x: Array, *given: Array | None) -> Array:
    return x[slice_at(op, x.ndim, given)]


def split_sizes(op: Op, width: int, given: Array | None) -> list[int]:
    """Return the widths of a Split's outputs."""
    sizes = op.get("split", [int(size) for size in given] if given is not None else [])
    if not sizes:
        each = -(-width // len(op.outputs))
        sizes = [min(each, width - each * at) for at in range(len(op.outputs))]
    if sum(sizes) != width or len(sizes) != len(op.outputs) or min(sizes) < 0:
        raise op.refuse("split", f"{len(op.outputs)} sizes that add to {width}", sizes)
    return sizes


def _split(op: Op, x: Array, given: Array | None = None) -> tuple[Array, ...]:
    axis = op.get("axis", 0)
    edges = np.cumsum(split_sizes(op, x.shape[axis], given))[:-1]
    return tuple(np.split(x, edges, axis))


def _gather(op: Op, x: Array, index: Array) -> Array:
    axis = op.get("axis", 0)
    bounded(op, (*x.shape[:axis], *index.shape, *x.shape[axis:][1:]))
    return np.take(x, index, axis)


def _gather_nd(op: Op, x: Array, index: Array) -> Array:
    op.expect("batch_dims", 0, op.get("batch_dims", 0))
    bounded(op, (*index.shape[:-1], *x.shape[index.shape[-1]:]))
    return np.asarray(x[tuple(np.moveaxis(index, -1, 0))])


def _scatter_nd(op: Op, x: Array, index: Array, updates: Array) -> Array:
    op.expect("reduction", "none", op.get("reduction", "none"))
    found = x.copy()
    found[tuple(np.moveaxis(index, -1, 0))] = updates
    return found


def _concat(op: Op, *given: Array) -> Array:
    axis = op.get("axis", 0)
    bounded(op, (sum(array.size for array in given),))
    return np.concatenate(given, axis)


def _trilu(op: Op, x: Array, k: Array | None = None) -> Array:
    offset = int(k.item()) if k is not None else 0
    return np.triu(x, offset) if op.get("upper", 1) else np.tril(x, offset)


def _cumsum(op: Op, x: Array, axis: Array) -> Array:
    op.expect("exclusive and reverse", (0, 0), (op.get("exclusive", 0), op.get("reverse", 0)))
    return np.cumsum(x, int(axis.item()), dtype=x.dtype)


def _matmul(op: Op, x: Array, y: Array) -> Any:
    rows, cols = (x.shape[:-1], y.shape[-1:]) if y.ndim > 1 else (x.shape, ())
    bounded(op, (*np.broadcast_shapes(rows[:-1], y.shape[:-2]), *rows[-1:], *cols))
    return x @ y


def _clip(op: Op, x: Array, low: Array | None = None, high: Array | None = None) -> Array:
    return np.clip(x, low, high)


def _same(op: Op, x: Array, *_: Array | None) -> Array:
    return x


FUNCTIONS: dict[str, Function] = {
    "Identity": _same, "Dropout": _same, "Cast": _cast,
    "CastLike": lambda op, x, like: x.astype(like.dtype),
    "Add": elementwise(np.add), "Sub": elementwise(np.subtract), "Mul": elementwise(np.multiply),
    "Div": elementwise(_div), "Pow": elementwise(np.power), "Mod": _mod,
    "Neg": elementwise(np.negative), "Abs": elementwise(np.abs), "Sqrt": elementwise(np.sqrt),
    "Reciprocal": elementwise(np.reciprocal), "Exp": elementwise(np.exp),
    "Log": elementwise(np.log), "Floor": elementwise(np.floor), "Ceil": elementwise(np.ceil),
    "Round": elementwise(np.rint), "Sign": elementwise(np.sign),
    "Cos": elementwise(np.cos), "Sin": elementwise(np.sin),
    "Min": elementwise(lambda *given: np.minimum.reduce(np.broadcast_arrays(*given))),
    "Max": elementwise(lambda *given: np.maximum.reduce(np.broadcast_arrays(*given))),
    "Equal": elementwise(np.equal), "Less": elementwise(np.less),
    "LessOrEqual": elementwise(np.less_equal), "Greater": elementwise(np.greater),
    "GreaterOrEqual": elementwise(np.greater_equal), "And": elementwise(np.logical_and),
    "Or": elementwise(np.logical_or), "Xor": elementwise(np.logical_xor),
    "Not": elementwise(np.logical_not), "Where": elementwise(np.where),
    "IsNaN": elementwise(np.isnan), "IsInf": elementwise(np.isinf), "Clip": _clip,
    "ReduceSum": reduction(np.sum), "ReduceProd": reduction(np.prod),
    "ReduceMax": reduction(np.max), "ReduceMin": reduction(np.min),
    "Unsqueeze": _unsqueeze, "Squeeze": _squeeze, "Reshape": _reshape, "Flatten": _flatten,
    "Transpose": _transpose, "Range": _range, "Expand": _expand, "Tile": _tile,
    "ConstantOfShape": _fill, "Slice": _slice, "Split": _split, "Gather": _gather,
    "GatherND": _gather_nd, "ScatterND": _scatter_nd, "Concat": _concat, "Trilu": _trilu,
    "CumSum": _cumsum, "MatMul": _matmul,
}
