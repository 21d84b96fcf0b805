"""How queries, keys and values are laid out: which axes are heads, tokens and elements."""

from __future__ import annotations

from alula.compiler.importer.functions import factor
from alula.compiler.importer.lowering import Lowering
from alula.compiler.importer.model import Op
from alula.compiler.importer.values import TOKENS, Atom, Axes, Axis, Rows, Symbol, compact, merged

Layout = str  # axes from the left: h heads, t tokens, d elements of a head, one letter each


def operand(lowering: Lowering, op: Op, at: int) -> tuple[Rows, float]:
    """Return input ``at`` as rows, and the constant that multiplies them."""
    found = factor(lowering.values[op.input(at)]) if op.input(at) in lowering.values else None
    return found if found is not None else (lowering.settle(op, at), 1.0)


def head_width(axis: Axis) -> int:
    """Return the size of an axis of consecutive elements, 0 for any other axis."""
    atoms = merged(axis)
    one = len(atoms) == 1 and atoms[0].stride == 1 and isinstance(atoms[0].size, int)
    return int(atoms[0].size) if one else 0  # type: ignore[arg-type]


def token_axis(rows: Rows) -> Axis:
    """Return the token axis of keys or values: with the cache, if they were appended to one."""
    return (Atom(Symbol.TOTAL),) if rows.past else TOKENS


def query_heads(op: Op, rows: Rows, head_dim: int, layout: Layout) -> int:
    """Return how many query heads there are, refusing another layout."""
    heads = rows.width // head_dim if head_dim else 0
    if not heads or compact(rows.axes) != compact(_axes(heads, 1, head_dim, TOKENS, layout)):
        raise op.refuse("query", f"laid out {_spelled(layout)}", "another arrangement")
    return heads


def shared_heads(op: Op, rows: Rows, heads: int, head_dim: int, layout: Layout) -> int:
    """Return how many heads keys or values have, before any repetition for the query heads."""
    count, rest = divmod(rows.width, head_dim)
    fits = not rest and count and heads % count == 0 and any(
        compact(rows.axes) == compact(_axes(count, repeat, head_dim, token_axis(rows), layout))
        for repeat in (1, heads // count))
    if not fits:
        raise op.refuse("keys and values", f"laid out {_spelled(layout)}, for {heads} heads of "
                        f"{head_dim}, each shared by consecutive query heads",
                        "another arrangement")
    return count


def _axes(heads: int, repeat: int, head_dim: int, tokens: Axis, layout: Layout) -> Axes:
    parts: dict[str, Axis] = {"h": (Atom(heads, head_dim), Atom(repeat, 0)), "t": tokens,
                              "d": (Atom(head_dim, 1),)}
    axes = [parts[letter] for letter in layout.replace("+", "")]
    if layout.endswith("+"):  # heads and their elements share the last axis
        axes[-2:] = [axes[-2] + axes[-1]]
    return tuple(axes)


def _spelled(layout: Layout) -> str:
    names = {"h": "heads", "t": "tokens", "d": "head_dim"}
    text = ", ".join(names[letter] for letter in layout.replace("+", ""))
    return f"[batch, {text.replace('heads, head_dim', 'heads * head_dim')}]"
