"""A small numpy evaluator for plumbing: constants, shapes, positions, masks, rotary angles."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alula.compiler.importer.coverage import Refused
from alula.compiler.importer.evaluate_ops import FUNCTIONS
from alula.compiler.importer.model import Model, Op
from alula.compiler.importer.values import Setting, Value, shape

Array = NDArray[Any]

# What numpy raises for wrong operands; a malformed graph must end in a refusal instead.
NUMPY_ERRORS = (ValueError, TypeError, IndexError, KeyError, ArithmeticError, AttributeError,
                MemoryError)


# Most bytes that values computed at one setting may hold: the rotary angles, cosines and sines of
# 2**19 positions by 128. A mask or shape needs far less.
LARGEST_BYTES = 1 << 30


class Known(dict[str, Array]):
    """Values found at one setting, and the bytes of those that are not views of others."""

    held = 0

    def keep(self, op: Op, name: str, array: Array) -> None:
        self[name] = array
        self.held += array.nbytes if array.base is None else 0
        if self.held > LARGEST_BYTES:
            raise op.refuse("values that decide shapes, positions and masks",
                            f"at most {LARGEST_BYTES} bytes", self.held, "set max_positions")


class Evaluator:
    """Evaluates values that depend on sizes and positions only.

    Parameters
    ----------
    values
        The values that depend on the tokens' content. Only their shapes are asked for.
    """

    def __init__(self, model: Model, values: Mapping[str, Value]) -> None:
        self.model = model
        self.values = values
        self._place = {op: at for at, op in enumerate(model.ops)}

    def __call__(self, name: str, setting: Setting, known: Known) -> Array:
        """Return the value ``name``; ``known`` holds what was found before and is added to."""
        for op in self.needed(name, known):
            for output, array in zip(op.outputs, self._run(op, setting, known), strict=False):
                known.keep(op, output, array)
        return self._leaf(name, setting, known)

    def needed(self, name: str, known: Known) -> list[Op]:
        """Return the operators that ``name`` depends on and are not known yet, in file order."""
        pending: list[str] = [name]
        wanted: set[Op] = set()
        while pending:
            value = pending.pop()
            op = self.model.makers.get(value)
            if op is None or op in wanted or value in known or value in self.model.constants:
                continue
            wanted.add(op)
            pending.extend(given for given in op.inputs if given and given not in self.values)
        return sorted(wanted, key=self._place.__getitem__)

    def _leaf(self, name: str, setting: Setting, known: Known) -> Array:
        if name in known:
            return known[name]
        if name in self.model.constants:
            known[name] = self.model.stored(name).array()
        else:
            known[name] = self._input(name, setting)
        return known[name]

    def _input(self, name: str, setting: Setting) -> Array:
        """Return what the host would give a graph input."""
        total = setting.past + setting.tokens
        rank = len(self.model.inputs.get(name, ()))
        if name == "input_ids":
            return np.ones((1, setting.tokens), np.int64)
        if name == "attention_mask" and rank == 2:
            return (np.arange(total) >= setting.padded).astype(np.int64)[None]
        if name in ("position_ids", "cache_position") and rank in (1, 2):
            return np.arange(setting.past, total).reshape((1, -1)[2 - rank:])
        raise Refused(f"graph input {name!r} must be input_ids, a two-dimensional "
                      f"attention_mask, position_ids or a key-value cache, not {rank}-dimensional "
                      "under this name")

    def _run(self, op: Op, setting: Setting, known: Known) -> tuple[Array, ...]:
        if op.kind in ("Shape", "Size"):
            return (self._shape(op, setting, known),)
        return apply(op, [self._leaf(name, setting, known) if name else None
                          for name in op.inputs])

    def _shape(self, op: Op, setting: Setting, known: Known) -> Array:
        of = op.input(0)
        if of in self.values:
            dims = shape(self.values[of].axes, setting)
        else:
            dims = self._leaf(of, setting, known).shape
        if op.kind == "Size":
            return np.array(math.prod(dims), np.int64)
        return np.array(dims[op.get("start", 0):op.get("end", len(dims))], np.int64)


def apply(op: Op, given: list[Array | None]) -> tuple[Array, ...]:
    """Return the outputs of a plumbing operator; refuse one that has no evaluation or misfits."""
    function = FUNCTIONS.get(op.kind) if op.domain == "" else None
    if function is None:
        raise op.refuse("an operator that decides shapes, positions or masks",
                        "one the importer can evaluate", op.kind)
    try:
        with np.errstate(all="ignore"):
            found = function(op, *given)
    except Refused:
        raise
    except NUMPY_ERRORS as error:
        raise op.refuse("operands", "of fitting shapes and types",
                        f"such that numpy says: {error}") from None
    return tuple(map(np.asarray, found if isinstance(found, tuple) else (found,)))
