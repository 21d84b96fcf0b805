"""Rotary embeddings in pieces: slices, negations and products with cosines, read as one turn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from alula.compiler.graph import Slice
from alula.compiler.importer.coverage import Refused
from alula.compiler.importer.lowering import Array, Lowering, settles
from alula.compiler.importer.model import Op
from alula.compiler.importer.rotary import rope, shared, source, table
from alula.compiler.importer.values import TOKENS, Atom, Mixed, Rows, Term, merged


def as_mixed(lowering: Lowering, op: Op, at: int) -> Mixed:
    """Return input ``at`` as a sum of elements of a row's last axis."""
    value = lowering.values[op.input(at)]
    if isinstance(value, Mixed):
        return value
    rows = lowering.settle(op, at)
    last = merged(rows.axes[-1])
    if len(last) != 1 or last[0].stride != 1 or not isinstance(last[0].size, int):
        raise op.refuse("last axis", "consecutive elements of a row", "an arrangement of them")
    index = np.arange(last[0].size)
    return Mixed(axes=rows.axes, of=rows, terms=(_term(index),))


def _term(index: Array, sign: float = 1.0) -> Term:
    return Term(index, np.full(len(index), sign), ("",) * len(index), np.zeros(len(index), int))


def selected(lowering: Lowering, op: Op, chosen: Array) -> Mixed:
    """Return some elements of the last axis of input 0."""
    value = as_mixed(lowering, op, 0)
    terms = tuple(Term(term.source[chosen], term.sign[chosen],
                       tuple(term.tables[at] for at in chosen), term.columns[chosen])
                  for term in value.terms)
    return _sized(value, terms)


def _sized(value: Mixed, terms: tuple[Term, ...]) -> Mixed:
    """Return ``value`` with other terms; its last axis is no run of the row any more."""
    return replace(value, terms=terms, axes=(*value.axes[:-1], (Atom(len(terms[0].source), 1),)))


def negated(value: Mixed) -> Mixed:
    return replace(value, terms=tuple(term._replace(sign=-term.sign) for term in value.terms))


def joined(op: Op, pieces: list[Mixed]) -> Mixed:
    """Return pieces of one row's last axis side by side; those with fewer terms add nothing."""
    first = pieces[0]
    if any(piece.of.node != first.of.node for piece in pieces):
        raise op.refuse("inputs", f"parts of {first.of.node!r}", "parts of other values too")
    count = max(len(piece.terms) for piece in pieces)
    padded = [piece.terms + (_term(piece.terms[0].source, 0.0),) * (count - len(piece.terms))
              for piece in pieces]
    terms = tuple(Term(np.concatenate([term.source for term in row]),
                       np.concatenate([term.sign for term in row]),
                       sum((term.tables for term in row), ()),
                       np.concatenate([term.columns for term in row]))
                  for row in zip(*padded, strict=True))
    return _sized(first, terms)


def turned(lowering: Lowering, op: Op, at: int) -> Mixed:
    """Return the operand of a Mul that is not ``at``, multiplied by the table of positions there.

    The table has one row a token and a column for each element of the last axis.
    """
    name = op.input(at)
    value = as_mixed(lowering, op, 1 - at)
    width = len(value.terms[0].source)
    found = lowering.evaluate(name, lowering.layout).shape
    sizes = [lowering.layout.tokens if axis == TOKENS else 1 for axis in value.axes[:-1]]
    padded = (1,) * (len(value.axes) - len(found)) + found
    if op.kind != "Mul" or padded != (*sizes, width) or any(any(t.tables) for t in value.terms):
        raise op.refuse("operands", "rows and cosines or sines of their positions",
                        f"{op.kind} of a value and a computed one of shape {list(found)}")
    tables, columns = (source(lowering, name),) * width, np.arange(width)
    terms = tuple(term._replace(tables=tables, columns=columns) for term in value.terms)
    return replace(value, terms=terms)


def summed(op: Op, left: Mixed, right: Mixed) -> Mixed:
    """Return the sum (difference, for Sub) of two values mixed from the same rows."""
    if left.of.node != right.of.node or len(left.terms[0].source) != len(right.terms[0].source):
        raise op.refuse("operands", "parts of one row, of one size", "parts of two")
    other = negated(right) if op.kind == "Sub" else right
    return replace(left, terms=left.terms + other.terms)


@settles(Mixed)
def settle_mixed(lowering: Lowering, op: Op, value: Mixed) -> Rows:
    """Make a slice of a row, or the rotary embedding that the terms add up to."""
    index, sign = (np.array([term[at] for term in value.terms]) for at in (0, 1))
    if not any(any(term.tables) for term in value.terms):
        return _slice(lowering, op, value, index, sign)
    spot = np.arange(index.shape[1])
    own = (sign != 0) & (index == spot)
    other = (sign != 0) & ~own
    size = int(other.any(0).sum())  # the turned elements, which come first
    tables = np.array([term.tables for term in value.terms])
    wanted = (own.sum(0) == 1) & (other.sum(0) == (spot < size)) & ((sign == 1) | ~own).all(0)
    wanted &= ((tables != "") == ((sign != 0) & (spot < size))).all(0)
    last = merged(value.of.axes[-1])[0].size
    if not wanted.all() or index.shape[1] != last:
        raise _not_a_turn(op)
    partner = index[other.argmax(0), spot][:size]
    signs = sign[other.argmax(0), spot][:size]
    first, second = _pairs(op, partner, signs)
    cos = _columns(lowering, op, value, own.argmax(0)[:size], first, second)
    sin = _columns(lowering, op, value, other.argmax(0)[:size], first, second)
    rows = replace(value.of, axes=value.axes[:-1] + value.of.axes[-1:])
    return rope(lowering, op, rows, cos, sin, value.of.width // index.shape[1],
                interleaved=bool(size > 2 and second[0] == 1))


def _not_a_turn(op: Op) -> Refused:
    return op.refuse("a mix of parts of a row", "a rotary embedding (x cos + rotate_half(x) sin) "
                     "or consecutive elements", "another one")


def _slice(lowering: Lowering, op: Op, value: Mixed, index: Array, sign: Array) -> Rows:
    start, count, of = int(index[0, 0]), index.shape[1], value.of
    straight = len(index) == 1 and np.array_equal(index[0], start + np.arange(count))
    if not straight or (sign != 1).any():
        raise _not_a_turn(op)
    last = merged(of.axes[-1])[0].size
    if count == last:
        return replace(of, axes=value.axes)
    if last != of.width:
        raise op.refuse("a slice of each head", "part of a rotary embedding", "used alone")
    return lowering.emit(op, Slice(start=start, size=count), (of.node,), value.axes, count)


def _pairs(op: Op, partner: Array, signs: Array) -> tuple[Array, Array]:
    """Return the first and second element of each pair that turns together."""
    spot = np.arange(len(partner))
    half = len(partner) // 2
    for first, second in ((spot[:half], spot[half:]), (spot[::2], spot[1::2])):
        if len(first) == len(second) and np.array_equal(partner[first], second) \
                and np.array_equal(partner[second], first) \
                and (signs[first] == -1).all() and (signs[second] == 1).all():
            return first, second
    raise _not_a_turn(op)


def _columns(lowering: Lowering, op: Op, value: Mixed, terms: Array, first: Array,
             second: Array) -> Array:
    """Return the table that multiplies the pairs, one column a pair."""
    names = [value.terms[term].tables[at] for at, term in enumerate(terms)]
    columns = np.array([value.terms[term].columns[at] for at, term in enumerate(terms)])
    key = (tuple(names), columns.tobytes(), first.tobytes())
    if key not in lowering.tables:
        parts = {name: table(lowering, op, name) for name in set(names)}
        halves = [np.stack([parts[names[at]][:, columns[at]] for at in side], 1)
                  for side in (first, second)]
        if not np.array_equal(halves[0], halves[1]):
            raise op.refuse("cosines and sines", "equal for both elements of a pair", "different")
        lowering.tables[key] = shared(lowering, halves[0])
    return lowering.tables[key]
