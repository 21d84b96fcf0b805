"""Layouts: a description of axes must follow reshapes as numpy moves the elements."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, strategies as st
from numpy.typing import NDArray

from alula.compiler.importer.values import (
    TOKENS,
    Atom,
    Axes,
    Setting,
    atom_size,
    merged,
    regroup,
    shape,
)

SETTING = Setting(tokens=7, past=5)


def elements(axes: Axes) -> NDArray[np.int64]:
    """Return which element of which token's row lies where: ``token * 10000 + offset``."""
    found = np.zeros((), np.int64)
    for axis in axes:
        offsets = np.zeros((), np.int64)
        for atom in axis:
            size = atom_size(atom, SETTING)
            stride = atom.stride if isinstance(atom.size, int) else 10000
            offsets = offsets[..., None] + np.arange(size) * stride
            offsets = offsets.reshape(-1) if offsets.ndim > 1 else offsets
        found = found[..., None] + offsets.reshape(-1)
    return found


HEADS: Axes = ((), (Atom(4, 6),), TOKENS, (Atom(6, 1),))
SHARED: Axes = ((), (Atom(2, 6),), (Atom(3, 0),), TOKENS, (Atom(6, 1),))
FLAT: Axes = ((), TOKENS, (Atom(24, 1),))


@given(st.sampled_from([HEADS, SHARED, FLAT]), st.permutations(range(5)), st.data())
def test_regroup_follows_numpy(axes: Axes, order: list[int], data: st.DataObject) -> None:
    axes = tuple(axes[at] for at in order if at < len(axes))
    size = math.prod(shape(axes, SETTING))
    target = []
    while size > 1:
        target.append(data.draw(st.sampled_from([n for n in range(2, size + 1) if size % n == 0])))
        size //= target[-1]
    found = regroup(axes, tuple(target), SETTING)
    if found is not None:
        np.testing.assert_array_equal(elements(found), elements(axes).reshape(target))


def test_regroup_splits_and_joins() -> None:
    split = regroup(FLAT, (1, 7, 4, 6), SETTING)
    assert split == ((), TOKENS, (Atom(4, 6),), (Atom(6, 1),))
    assert split is not None
    assert regroup(split, (1, 7, 24), SETTING) == FLAT
    assert regroup(HEADS, (1, 4, 42), SETTING) == ((), (Atom(4, 6),), (*TOKENS, Atom(6, 1)))


def test_regroup_across_tokens() -> None:
    assert regroup(FLAT, (1, 3, 56), SETTING) is None
    assert regroup(FLAT, (1, 7, 23), SETTING) is None


def test_merged() -> None:
    assert merged((Atom(4, 6), Atom(1, 99), Atom(6, 1))) == (Atom(24, 1),)
    assert merged((Atom(4, 6), Atom(3, 0))) == (Atom(4, 6), Atom(3, 0))
