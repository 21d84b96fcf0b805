"""What a value of an ONNX graph means, as far as the importer has read.

Values that do not depend on the tokens' content (constants, shapes, positions, masks) are not
described here: they are *plumbing*, evaluated with numpy when something needs their numbers. The
others are descriptions of one token's row, most of them half of a pattern that a later node
completes: a mean square waits for its reciprocal root, a score matrix for its softmax.

Batch is one throughout, so a batch axis is an axis of nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Symbol(Enum):
    """A dimension whose size is known only when the model runs."""

    TOKENS = "tokens"
    PAST = "past"
    TOTAL = "total"  # past and tokens


class Setting(NamedTuple):
    """Sizes for which plumbing is evaluated; the first ``padded`` tokens are padding."""

    tokens: int
    past: int
    padded: int = 0

    def size(self, symbol: Symbol) -> int:
        return {Symbol.TOKENS: self.tokens, Symbol.PAST: self.past,
                Symbol.TOTAL: self.past + self.tokens}[symbol]


class Atom(NamedTuple):
    """A run of elements in an axis: ``size`` of them, ``stride`` apart in the token's row.

    A stride of 0 repeats one element. A symbol runs over tokens, not over the row.
    """

    size: int | Symbol
    stride: int = 0


Axis = tuple[Atom, ...]
Axes = tuple[Axis, ...]
TOKENS: Axis = (Atom(Symbol.TOKENS),)


def atom_size(atom: Atom, setting: Setting) -> int:
    return setting.size(atom.size) if isinstance(atom.size, Symbol) else atom.size


def shape(axes: Axes, setting: Setting) -> tuple[int, ...]:
    return tuple(math.prod(atom_size(atom, setting) for atom in axis) for axis in axes)


def merged(atoms: Axis) -> Axis:
    """Return the same run of elements in as few atoms as possible."""
    found: list[Atom] = []
    for atom in atoms:
        if atom.size == 1:
            continue
        if found and _continues(found[-1], atom):
            found[-1] = Atom(found[-1].size * atom.size, atom.stride)  # type: ignore[operator]
        else:
            found.append(atom)
    return tuple(found)


def _continues(outer: Atom, inner: Atom) -> bool:
    if isinstance(outer.size, Symbol) or isinstance(inner.size, Symbol):
        return False
    return outer.stride == inner.size * inner.stride


def regroup(axes: Axes, target: tuple[int, ...], setting: Setting) -> Axes | None:
    """Return the axes after a reshape to ``target``; None if it cuts across tokens."""
    left = [atom for axis in axes for atom in axis if atom_size(atom, setting) != 1]
    found: list[Axis] = []
    for size in target:
        taken: list[Atom] = []
        while size > 1:
            if not left:
                return None
            atom = left.pop(0)
            have = atom_size(atom, setting)
            if have > size:
                if isinstance(atom.size, Symbol) or have % size:
                    return None
                left.insert(0, Atom(have // size, atom.stride))
                atom, have = Atom(size, atom.stride * (have // size)), size
            if size % have:
                return None
            taken.append(atom)
            size //= have
        found.append(merged(tuple(taken)))
    return tuple(found) if not left else None


def compact(axes: Axes) -> Axes:
    """Return the axes without those of size one."""
    return tuple(merged(axis) for axis in axes if merged(axis))


@dataclass(frozen=True, kw_only=True)
class Value:
    """Something that depends on the tokens' content, laid out along ``axes``."""

    axes: Axes


@dataclass(frozen=True, kw_only=True)
class Unknown(Value):
    """The output of a refused node, named by ``cause``."""

    axes: Axes = ()
    cause: str


@dataclass(frozen=True, kw_only=True)
class Rows(Value):
    """One row for each token, ``width`` elements made by the canonical node ``node``.

    ``past`` names the cache input that this key or value was appended to.
    """

    node: str
    width: int
    past: str = ""

    @property
    def flat(self) -> bool:
        """Whether the last axis is the whole row, in order, and the only other, if any, tokens.

        There is no token axis after the graph has chosen the last token.
        """
        whole = merged((Atom(self.width, 1),))
        return compact(self.axes) in (compact((TOKENS, whole)), compact((whole,)))


@dataclass(frozen=True, kw_only=True)
class Past(Value):
    """A graph input that holds the cached keys or values of earlier tokens."""

    name: str


@dataclass(frozen=True, kw_only=True)
class MeanSquare(Value):
    """The mean of the squares of ``of`` along its last axis."""

    of: Rows


Numeric = Callable[[NDArray[Any]], NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Function(Value):
    """A function of each element of ``of``, recognised later by its numbers.

    ``parts`` is the last step, an operator and two values, if it can stand alone; ``steps`` is
    how many ``apply`` takes.
    """

    of: Rows | MeanSquare
    apply: Numeric
    steps: int
    parts: tuple[str, Value, Value] | None = None


@dataclass(frozen=True, kw_only=True)
class Normed(Value):
    """``of`` divided by its root mean square along the last axis, not yet scaled."""

    of: Rows
    eps: float


class Term(NamedTuple):
    """A summand of :class:`Mixed`, one entry for each element of the last axis.

    ``source`` is the element of the last axis taken and ``sign`` its factor; ``tables`` and
    ``columns`` name the plumbing value and column that multiplies it, ``""`` if none does.
    """

    source: NDArray[np.int64]
    sign: NDArray[np.float64]
    tables: tuple[str, ...]
    columns: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Mixed(Value):
    """Sums of elements of the last axis of ``of``, some multiplied by a table of positions.

    A slice is a single term without a table; a rotary embedding is two terms with tables.
    """

    of: Rows
    terms: tuple[Term, ...]


@dataclass(frozen=True, kw_only=True)
class Scores(Value):
    """``query . key * scale`` for every pair of tokens, with the masks applied to them.

    ``masks`` are plumbing names and how each is used: "add", "keep" or "drop" where true.
    """

    query: Rows
    key: Rows
    kv_heads: int
    scale: float
    masks: tuple[tuple[str, str], ...] = ()
    softmax: bool = False
    isnan: bool = False
