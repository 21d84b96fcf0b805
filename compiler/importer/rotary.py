"""Rotary embeddings: tables of the file, tables computed from positions, and decomposed turns."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from alula.compiler.graph import Rope
from alula.compiler.importer.lowering import Array, Lowering, lowers
from alula.compiler.importer.model import Op
from alula.compiler.importer.values import Rows, Setting, Value, merged


def table(lowering: Lowering, op: Op, name: str) -> Array:
    """Return a plumbing value of positions as ``(positions, columns)`` fp32.

    A table of the file is taken as it is; one computed from positions is computed for all of them.
    Equal tables are one array.
    """
    name = source(lowering, name)
    if ("table", name) not in lowering.tables:
        found = lowering.fixed(name)
        if found is None:
            found = _computed(lowering, op, name)
        if found.ndim != 2:
            raise op.refuse(f"table {name!r}", "of shape [positions, columns]", list(found.shape))
        lowering.tables["table", name] = shared(lowering, np.ascontiguousarray(found, np.float32))
    return lowering.tables["table", name]


def source(lowering: Lowering, name: str) -> str:
    """Return the value whose rows ``name`` has too: exporters reshape a table once a layer.

    Cosines (or sines) of one value are one table, whatever node makes them.
    """
    makers = lowering.model.makers
    while name in makers and (makers[name].kind in ("Identity", "Unsqueeze", "Squeeze")
                              or _is_cast(makers[name])):
        name = makers[name].input(0)
    if name in makers and makers[name].kind in ("Cos", "Sin"):
        return lowering.twins.setdefault((makers[name].kind, makers[name].input(0)), name)
    return name


def _is_cast(op: Op) -> bool:
    return op.kind == "Cast" and op.get("to", 0) == TensorProto.FLOAT


def _computed(lowering: Lowering, op: Op, name: str) -> Array:
    """Evaluate rotary angles at every position, and check that they depend on nothing else."""
    if lowering.positions is None:
        raise op.refuse("max_positions", "given, or in config.json (max_position_embeddings)",
                        "unknown", "the rotary angles are computed from positions")
    count = lowering.positions
    found = _rows(lowering, op, name, Setting(count, 0))
    few = min(count, 8)
    same = np.allclose(found[:few], _rows(lowering, op, name, Setting(few, 0)), atol=1e-5)
    later = found[lowering.layout.past:][:lowering.layout.tokens]
    same &= np.allclose(later, _rows(lowering, op, name, lowering.layout)[:len(later)], atol=1e-5)
    if not same:
        raise op.refuse("rotary angles", "a function of the position alone",
                        "different for another length (dynamic scaling)",
                        "export with a fixed rope_type")
    return found


def _rows(lowering: Lowering, op: Op, name: str, setting: Setting) -> Array:
    found = lowering.evaluate(name, setting)
    width = found.shape[-1] if found.ndim else 0
    if found.size != setting.tokens * width:
        raise op.refuse(f"table {name!r}", "one row for each token", list(found.shape))
    return found.reshape(setting.tokens, width)


def shared(lowering: Lowering, found: Array) -> Array:
    """Return the array made before with these contents, or this one."""
    key = (found.shape, hash(found.tobytes()))
    known = lowering.tables.setdefault(key, found)
    return known if np.array_equal(known, found) else found


def rope(lowering: Lowering, op: Op, rows: Rows, cos: Array, sin: Array, heads: int, *,
         interleaved: bool = False, suffix: str = "") -> Rows:
    """Emit a rotary embedding of ``heads`` equal parts of a row."""
    if heads < 1 or rows.width % heads:
        raise op.refuse("heads", f"a divisor of the {rows.width} elements of a row", heads)
    head_dim = rows.width // heads
    if cos.shape != sin.shape or 2 * cos.shape[1] > head_dim or not cos.size:
        raise op.refuse("shapes of cos and sin", f"equal, at most {head_dim // 2} columns",
                        f"{list(cos.shape)} and {list(sin.shape)}")
    operation = Rope(cos=cos, sin=sin, heads=heads, head_dim=head_dim, interleaved=interleaved)
    return lowering.emit(op, operation, (rows.node,), rows.axes, rows.width, suffix)


@lowers("RotaryEmbedding")
def rotary_embedding(lowering: Lowering, op: Op) -> tuple[Value, ...]:
    """Lower ai.onnx RotaryEmbedding: X, cos, sin, optional positions; tables gathered without."""
    if op.input(3):
        check_positions(lowering, op, 3)
    return (_embedded(lowering, op, 1, 2),)


@lowers("RotaryEmbedding", domains=("com.microsoft",))
def microsoft_rotary_embedding(lowering: Lowering, op: Op) -> tuple[Value, ...]:
    """Lower com.microsoft RotaryEmbedding: input, positions, cos, sin."""
    op.expect("scale", 1.0, op.get("scale", 1.0))
    op.expect("is_packed_batching", 0, op.get("is_packed_batching", 0))
    check_positions(lowering, op, 1)
    return (_embedded(lowering, op, 2, 3),)


def _embedded(lowering: Lowering, op: Op, cos_at: int, sin_at: int) -> Rows:
    """Return the embedding of input 0; heads are an axis of it, an attribute, or the tables'."""
    rows = lowering.settle(op, 0)
    cos, sin = (table(lowering, op, op.input(at)) for at in (cos_at, sin_at))
    given, width = op.get("num_heads", 0), op.get("rotary_embedding_dim", 0)
    if width:
        op.expect("columns of cos", width // 2, cos.shape[1])
    last = merged(rows.axes[-1])
    size = last[0].size if len(last) == 1 and isinstance(last[0].size, int) else 0
    if size == rows.width:
        size = rows.width // given if given > 0 else size if width else 2 * cos.shape[1]
    return rope(lowering, op, rows, cos, sin, rows.width // max(size, 1),
                interleaved=bool(op.get("interleaved", 0)))


def check_positions(lowering: Lowering, op: Op, at: int) -> None:
    """Check by their numbers that positions count on from the cache: all of them, or the first."""
    past, tokens = lowering.layout.past, lowering.layout.tokens
    found = lowering.evaluate(op.input(at), lowering.layout).reshape(-1)
    if not np.array_equal(found, np.arange(past, past + (tokens if found.size != 1 else 1))):
        raise op.refuse("position_ids", f"{past}, {past + 1}, ... after {past} cached tokens",
                        found[:4].tolist())
