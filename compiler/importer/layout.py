"""Operators that only move elements: reshapes, transposes, slices, casts, cache concatenation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from alula.compiler.graph import Slice
from alula.compiler.importer.coverage import Disposition
from alula.compiler.importer.evaluate_ops import (
    axes_of,
    reshape_target,
    slice_at,
    split_sizes,
)
from alula.compiler.importer.lowering import Lowering, lowers
from alula.compiler.importer.model import Op
from alula.compiler.importer.tensors import FLOATS, dtype_name
from alula.compiler.importer.turns import joined, selected
from alula.compiler.importer.values import (
    TOKENS,
    Atom,
    Axes,
    Mixed,
    Past,
    Rows,
    Setting,
    Symbol,
    Value,
    atom_size,
    merged,
    regroup,
    shape,
)

MOVED = "a change of layout: the accelerator keeps one row for each token"


def moved(lowering: Lowering, op: Op, axes: Axes) -> tuple[Value, ...]:
    """Return input 0 laid out along ``axes``."""
    lowering.note(op, Disposition.FOLDED, MOVED)
    return (replace(lowering.values[op.input(0)], axes=axes),)


@lowers("Identity", "Cast", "CastLike", "Dropout")
def same(lowering: Lowering, op: Op) -> tuple[Value, ...]:
    """Pass a value on: the accelerator computes in fp32 whatever float types were chosen."""
    to = op.get("to", 1)
    if to not in FLOATS:
        raise op.refuse("to", "a float type", dtype_name(to))
    return moved(lowering, op, lowering.values[op.input(0)].axes)


def _whole(lowering: Lowering, op: Op) -> Axes:
    """Return the axes of input 0 after settling a value whose last axis must stay as it is."""
    if isinstance(lowering.values[op.input(0)], Mixed):
        lowering.settle(op, 0)
    return lowering.values[op.input(0)].axes


def _regrouped(lowering: Lowering, op: Op, target: tuple[int, ...]) -> tuple[Value, ...]:
    found = regroup(_whole(lowering, op), target, lowering.layout)
    if found is None:
        raise op.refuse("shape", "one that keeps tokens apart", list(target))
    return moved(lowering, op, found)


@lowers("Reshape")
def reshape(lowering: Lowering, op: Op) -> tuple[Value, ...]:
    have = shape(lowering.values[op.input(0)].axes, lowering.layout)
    wanted = lowering.evaluate(op.input(1), lowering.layout)
    return _regrouped(lowering, op, reshape_target(op, have, wanted))


@lowers("Flatten")
def flatten(lowering: Lowering, op: Op) -> tuple[Value, ...]:
    have = shape(lowering.values[op.input(0)].axes, lowering.layout)
    cut = op.get("axis", 1)
    front = int(np.prod(have[:cut], dtype=np.int64))
    return _regrouped(lowering, op, (front, int(np.prod(have[cut:], dtype=np.int64))))


@lowers("Transpose")
def transpose(lowering: Lowering, op: Op) -> tuple[Value, ...]:
    axes = lowering.values[op.input(0)].axes
    order = op.get("perm", list(range(len(axes)))[::-1])
    if sorted(order) != list(range(len(axes))):
        raise op.refuse("perm", f"an order of {len(axes)} axes", order)
    if order[-1] != len(axes) - 1:
        axes = _whole(lowering, op)
    return moved(lowering, op, tuple(axes[at] for at in order))


def _given_axes(lowering: Lowering, op: Op) -> tuple[int, ...]:
    return axes_of(op, lowering.numbers(op, 1) if op.input(1) else None)


@lowers("Unsqueeze")
def unsqueeze(lowering: Lowering, op: Op) -> tuple[Value, ...]:
    axes = list(lowering.values[op.input(0)].axes)
    wanted = _given_axes(lowering, op)
    rank = len(axes) + len(wanted)
    for at in sorted(axis % rank for axis in wanted):
        axes.insert(at, ())
    return moved(lowering, op, tuple(axes))


@lowers("Squeeze")
def squeeze(lowering: Lowering, op: Op) -> tuple[Value, ...]:
    axes = lowering.values[op.input(0)].axes
    given = _given_axes(lowering, op) or [at for at, axis in enumerate(axes) if not merged(axis)]
    wanted = {axis % len(axes) for axis in given}
    if any(merged(axes[at]) for at in wanted):
        raise op.refuse("axes", "axes of one element", sorted(wanted))
    return moved(lowering, op, tuple(axis for at, axis in enumerate(axes) if at not in wanted))


@lowers("Expand")
def expand(lowering: Lowering, op: Op) -> tuple[Value, ...]:
    """Repeat elements along axes of one: keys and values for the query heads that share them."""
    axes = _whole(lowering, op)
    target = lowering.evaluate(op.input(1), lowering.layout).reshape(-1)
    padded: Axes = ((),) * (len(target) - len(axes)) + axes
    have = shape(padded, lowering.layout)[len(padded) - len(target):]
    kept = padded[:len(padded) - len(target)]
    for axis, size, wanted in zip(padded[len(kept):], have, target.tolist(), strict=True):
        if size != wanted and size != 1 and wanted != 1:
            raise op.refuse("shape", f"to fit {list(have)}", target.tolist())
        kept += ((Atom(wanted, 0),) if size == 1 and wanted != 1 else axis,)
    return moved(lowering, op, kept)


@lowers("Slice")
def slice_(lowering: Lowering, op: Op) -> tuple[Value, ...]:
    value = lowering.values[op.input(0)]
    changed = _changed(lowering, op, value, lowering.layout)
    if len(changed) > 1:
        raise op.refuse("axes", "one that is cut", sorted(changed))
    for at, chosen in changed.items():
        return (_cut(lowering, op, at, chosen),)
    for chosen in _changed(lowering, op, value, lowering.long).values():
        _crop(lowering, op, value, chosen)
    return moved(lowering, op, value.axes)


def _changed(lowering: Lowering, op: Op, value: Value, setting: Setting) -> dict[int, range]:
    """Return what a Slice leaves of each axis that it cuts at a setting."""
    given = [lowering.evaluate(name, setting, keep=False) if name else None
             for name in op.inputs[1:]]
    whole = [range(size) for size in shape(value.axes, setting)]
    cuts = slice_at(op, len(value.axes), given)
    return {at: full[cut] for at, (full, cut) in enumerate(zip(whole, cuts, strict=True))
            if full[cut] != full}


def _crop(lowering: Lowering, op: Op, value: Value, chosen: range) -> None:
    """Note that the cache is cut to its latest tokens when it is long; nothing else may be."""
    if not isinstance(value, Past) or chosen[-1:] != range(lowering.long.past)[-1:]:
        raise op.refuse("a slice of tokens", "all of them, or the latest of the cache",
                        f"{chosen} when there are many")
    lowering.cropped = min(len(chosen), lowering.cropped or len(chosen))


@lowers("Split")
def split(lowering: Lowering, op: Op) -> tuple[Value, ...]:
    value = lowering.values[op.input(0)]
    at = op.get("axis", 0) % len(value.axes)
    width = shape(value.axes, lowering.layout)[at]
    sizes = split_sizes(op, width, lowering.numbers(op, 1) if op.input(1) else None)
    edges = np.cumsum([0, *sizes]).tolist()
    return tuple(_cut(lowering, op, at, range(start, start + size))
                 for start, size in zip(edges, sizes, strict=False))


def _cut(lowering: Lowering, op: Op, at: int, chosen: range) -> Value:
    """Return the ``chosen`` elements of axis ``at`` of input 0."""
    axes = lowering.values[op.input(0)].axes
    if at == len(axes) - 1:
        return selected(lowering, op, np.array(chosen, np.int64))
    rows = lowering.settle(op, 0)
    if axes[at] == TOKENS and chosen == range(lowering.layout.tokens)[-1:]:
        return last_token(lowering, op, rows, at)
    atoms = merged(axes[at])
    outermost = len(atoms) == 1 and atom_size(atoms[0], lowering.layout) * atoms[0].stride
    if outermost != rows.width or chosen.step != 1 or not chosen:
        raise op.refuse("axis", "the last one, or the outermost of a row", at)
    stride, count = atoms[0].stride, len(chosen)
    cut = tuple((Atom(count, stride),) if i == at else axis for i, axis in enumerate(axes))
    return lowering.emit(op, Slice(start=chosen[0] * stride, size=count * stride), (rows.node,),
                         cut, count * stride)


def last_token(lowering: Lowering, op: Op, rows: Rows, at: int, *, keep: bool = True) -> Rows:
    """Return the rows of the last token only, ``at`` being the token axis: the host's choice."""
    lowering.note(op, Disposition.HOST, "the host asks for the logits of the tokens it needs")
    one: Axes = ((),) if keep else ()
    return replace(rows, axes=rows.axes[:at] + one + rows.axes[at + 1:])


@lowers("Concat")
def concat(lowering: Lowering, op: Op) -> tuple[Value, ...]:
    """Join pieces of a rotary embedding, or a cache and the new tokens' keys or values."""
    if len(op.inputs) == 1:
        return moved(lowering, op, lowering.values[op.inputs[0]].axes)
    values = [lowering.values.get(name) for name in op.inputs]
    if isinstance(values[0], Past) and len(values) == 2:
        return (_appended(lowering, op, values[0]),)
    pieces = [value for value in values if isinstance(value, Mixed)]
    if len(pieces) != len(values) or op.get("axis", 0) not in (-1, len(pieces[0].axes) - 1):
        raise op.refuse("inputs", "a cache and its new rows, or parts of one row's last axis",
                        "other values")
    return (joined(op, pieces),)


def _appended(lowering: Lowering, op: Op, past: Past) -> Rows:
    rows = lowering.settle(op, 1)
    at = op.get("axis", 0) % len(rows.axes)
    if rows.axes[at] != TOKENS or rows.past:
        raise op.refuse("axis", "that of the tokens", at)
    lowering.note(op, Disposition.FOLDED, "the accelerator keeps the key-value cache")
    axes = tuple((Atom(Symbol.TOTAL),) if i == at else axis for i, axis in enumerate(rows.axes))
    return replace(rows, axes=axes, past=past.name)
