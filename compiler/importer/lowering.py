"""The walk over an ONNX graph that gives every value a meaning and every node a disposition."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alula.compiler import graph
from alula.compiler.importer.coverage import Coverage, Disposition, Entry
from alula.compiler.importer.evaluate import NUMPY_ERRORS, Evaluator, Known
from alula.compiler.importer.model import Model, Op
from alula.compiler.importer.remedies import OTHERWISE, REMEDIES
from alula.compiler.importer.values import (
    TOKENS,
    Atom,
    Axes,
    Past,
    Rows,
    Setting,
    Symbol,
    Unknown,
    Value,
)

Array = NDArray[Any]
Handler = Callable[["Lowering", Op], tuple[Value, ...]]
Settler = Callable[["Lowering", Op, Any], Rows]

HANDLERS: dict[tuple[str, str], Handler] = {}
SETTLERS: dict[type[Value], Settler] = {}

BUILT_IN = "positions, shapes and causal masks are built into the accelerator"


def lowers(*kinds: str, domains: tuple[str, ...] = ("",)) -> Callable[[Handler], Handler]:
    """Register the function that lowers nodes of some kinds.

    It takes the lowering and the node, and returns a value for each output.
    """
    def register(handler: Handler) -> Handler:
        for domain in domains:
            for kind in kinds:
                HANDLERS[domain, kind] = handler
        return handler
    return register


def settles(kind: type[Value]) -> Callable[[Settler], Settler]:
    """Register the function that makes canonical nodes of a half-read pattern.

    It takes the lowering, the ONNX node that made the value, and the value.
    """
    def register(settler: Settler) -> Settler:
        SETTLERS[kind] = settler
        return settler
    return register


class Lowering:
    """The state of one walk: what each value means and the canonical nodes made so far.

    Parameters
    ----------
    positions
        Rows of the rotary tables that the graph computes rather than stores.

    Members
    -------
    values
        Meaning of every value that depends on the tokens' content.
    nodes
        Canonical nodes by name, in order.
    error
        The first refusal, if any.
    tables
        What families computed from plumbing, to be found again: rotary tables, windows.
    twins
        The first of several values computed alike, by operator and input.
    layers
        The cache input, or else the node, of each attention layer.
    cached
        Whether the model has cache inputs.
    cropped
        How many cached tokens the graph keeps, or None if all.
    layout, long
        Settings to evaluate shapes at: an ordinary one, and one longer than any text.
    """

    def __init__(self, model: Model, positions: int | None) -> None:
        self.model = model
        self.positions = positions
        self.values: dict[str, Value] = {}
        self.nodes: dict[str, graph.Node] = {}
        self.error: ValueError | None = None
        self.uses = Counter(name for op in model.ops for name in op.inputs)
        self.uses.update(model.outputs)
        self.tables: dict[Any, Array] = {}
        self.twins: dict[tuple[str, str], str] = {}
        self.layers: list[str] = []
        self._made: defaultdict[Op, list[str]] = defaultdict(list)
        self._entries: dict[Op, tuple[Disposition, str]] = {}
        self._varying: set[str] = set(model.inputs)
        self._known: dict[Setting, Known] = defaultdict(Known)
        self._constants = Known()
        self._evaluator = Evaluator(model, self.values)
        self.cached = self._cache_inputs()
        self.cropped: int | None = None
        self.long = Setting(1 << 18, 1 << 18 if self.cached else 0)
        # Primes, so that no size of a model is one by chance.
        self.layout = Setting(23, 11 if self.cached else 0)
        self._other = Setting(31, 13 if self.cached else 0)

    def _cache_inputs(self) -> bool:
        """Give a meaning to the inputs that hold cached keys and values; say if there are any."""
        for name, dims in self.model.inputs.items():
            if len(dims) == 4 and name.startswith(("past", "cache", "key", "value")):
                heads, width = dims[1] or 0, dims[3] or 0
                axes: Axes = ((), (Atom(heads, width),), (Atom(Symbol.PAST),), (Atom(width, 1),))
                self.values[name] = Past(axes=axes, name=name)
        return bool(self.values)

    # Walking

    def walk(self, output: str) -> None:
        """Lower every node that ``output`` depends on; note refusals and go on."""
        wanted = self._ancestors(output)
        for op in self.model.ops:
            if op not in wanted:
                self._entries[op] = Disposition.FOLDED, "the logits do not depend on it"
            elif self._is_plumbing(op):
                self._fold(op)
            else:
                self._lower(op)

    def _ancestors(self, output: str) -> set[Op]:
        pending: list[str] = [output]
        found: set[Op] = set()
        while pending:
            op = self.model.makers.get(pending.pop())
            if op is not None and op not in found:
                found.add(op)
                pending.extend(filter(None, op.inputs))
        return found

    def _is_plumbing(self, op: Op) -> bool:
        if op.kind in ("Shape", "Size"):
            return True
        if op.kind in REMEDIES:
            return False
        reads_tokens = any(name in self.values for name in op.inputs)
        return not reads_tokens and not self.is_embedding(op)

    def is_embedding(self, op: Op) -> bool:
        """Whether the node looks up rows of a table by the tokens themselves."""
        return op.kind in ("Gather", "GatherBlockQuantized") and self._is_tokens(op.input(1))

    def expect_tokens(self, op: Op) -> None:
        """Refuse a node that looks up anything but the tokens, laid out (batch, tokens)."""
        if not self.is_embedding(op):
            raise op.refuse("indices", "the tokens (input_ids)", f"{op.input(1)!r}")
        found = self.evaluate(op.input(1), self.layout).shape
        op.expect("shape of indices", (1, self.layout.tokens), found)

    def _is_tokens(self, name: str) -> bool:
        while name in self.model.makers and self.model.makers[name].kind in (
                "Identity", "Cast", "Reshape", "Unsqueeze", "Squeeze"):
            name = self.model.makers[name].input(0)
        return name == "input_ids"

    def _fold(self, op: Op) -> None:
        varies = any(name in self._varying or name in self.values for name in op.inputs)
        if varies:
            self._varying.update(op.outputs)
        self._entries[op] = Disposition.FOLDED, BUILT_IN if varies else "a constant"

    def _lower(self, op: Op) -> None:
        blocked = [value for value in map(self.values.get, op.inputs)
                   if isinstance(value, Unknown)]
        handler = HANDLERS.get((op.domain, op.kind))
        try:
            if handler is None:
                raise op.refuse("the operator", "one Alula lowers", op.kind,
                                REMEDIES.get(op.kind, OTHERWISE))
            if blocked:
                self._follow(op, blocked[0])
                return
            found = self._handle(handler, op)
        except ValueError as error:
            self.error = self.error or error
            self._entries[op] = Disposition.REFUSED, str(error)
            self._follow_outputs(op, blocked[0].cause if blocked else op.name)
            return
        for name, value in zip(op.outputs, found, strict=False):
            if name:
                self.values[name] = value

    def _handle(self, handler: Handler, op: Op) -> tuple[Value, ...]:
        try:
            return handler(self, op)
        except ValueError:
            raise
        except NUMPY_ERRORS as error:
            raise op.refuse("inputs and attributes", "those the operator's definition asks for",
                            f"such that {type(error).__name__} says: {error}") from None

    def _follow(self, op: Op, blocked: Unknown) -> None:
        why = f"not checked: it follows {blocked.cause}, which is refused"
        self._entries[op] = Disposition.ACCELERATOR, why
        self._follow_outputs(op, blocked.cause)

    def _follow_outputs(self, op: Op, cause: str) -> None:
        for name in filter(None, op.outputs):
            self.values[name] = Unknown(cause=cause)

    # Values

    def settle(self, op: Op, at: int) -> Rows:
        """Return input ``at`` of ``op`` as rows of a canonical node, making nodes if needed."""
        name = op.input(at)
        value = self.values.get(name)
        if value is None:
            raise op.refuse(f"input {at}", "computed from the tokens", f"{name or 'absent'!r}, "
                            "which does not depend on them")
        self.values[name] = rows = self.settled(self.model.makers.get(name, op), value)
        return rows

    def settled(self, maker: Op, value: Value) -> Rows:
        """Return a value that ``maker`` made as rows of a canonical node."""
        if isinstance(value, Rows):
            return value
        settler = SETTLERS.get(type(value))
        if settler is None:
            raise maker.refuse("the result", "part of an operation Alula knows, used as in it",
                               f"{type(value).__name__} used alone")
        return settler(self, maker, value)

    def flat(self, op: Op, at: int = 0) -> Rows:
        """Return input ``at`` as whole rows: the last axis is all of a token's elements."""
        rows = self.settle(op, at)
        if not rows.flat:
            raise op.refuse(f"input {at}", f"rows of {rows.width} elements",
                            "another arrangement of them")
        return rows

    def emit(self, op: Op, operation: graph.Op, inputs: tuple[str, ...], axes: Axes, width: int,
             suffix: str = "") -> Rows:
        """Add a canonical node named after ``op`` and return its rows."""
        base = op.name + suffix
        name, count = base, 1
        while name in self.nodes:
            count += 1
            name = f"{base}#{count}"
        self.nodes[name] = graph.Node(name, operation, inputs)
        self._made[op].append(type(operation).__name__)
        return Rows(axes=axes, node=name, width=width)

    def emit_flat(self, op: Op, operation: graph.Op, inputs: tuple[str, ...], width: int,
                  suffix: str = "") -> Rows:
        """Add a canonical node whose value is laid out (batch, tokens, elements)."""
        axes: Axes = ((), TOKENS, (Atom(width, 1),))
        return self.emit(op, operation, inputs, axes, width, suffix)

    # Plumbing

    def evaluate(self, name: str, setting: Setting, *, keep: bool = True) -> Array:
        """Return a plumbing value at a setting; the way there is kept for the next call."""
        if name not in self._varying:
            return self._evaluator(name, Setting(0, 0), self._constants)
        known = self._known[setting] if keep else Known(self._constants)
        return self._evaluator(name, setting, known)

    def constants_behind(self, name: str) -> list[Array]:
        """Return the single numbers that a plumbing value is computed with."""
        found = []
        for op in self._evaluator.needed(name, Known()):
            for given in {*op.inputs} & self.model.constants.keys():
                tensor = self.model.stored(given)
                if tensor.size == 1:
                    found.append(tensor.array())
        return found

    def fixed(self, name: str) -> Array | None:
        """Return a plumbing value that is the same at every setting, or None."""
        if name in self.values:
            return None
        first = self.evaluate(name, self.layout)
        if name not in self._varying:
            return first
        second = self.evaluate(name, self._other)
        return first if np.array_equal(first, second) else None

    def numbers(self, op: Op, at: int) -> Array:
        """Return input ``at`` of ``op``, refusing one that is not fixed."""
        found = self.fixed(op.input(at))
        if found is None:
            raise op.refuse(f"input {at}", "a constant", f"computed ({op.input(at)!r})")
        return found

    def vector(self, op: Op, at: int, size: int) -> NDArray[np.float32]:
        """Return input ``at`` of ``op``, constant along the last axis, as ``(size)`` fp32."""
        found = self.numbers(op, at)
        op.expect(f"elements of input {at}", size, found.size)
        op.expect(f"last axis of input {at}", size, found.shape[-1] if found.ndim else 1)
        return np.ascontiguousarray(found.reshape(-1), np.float32)

    # Results

    def coverage(self) -> Coverage:
        return Coverage(tuple(self._entry(op) for op in self.model.ops))

    def _entry(self, op: Op) -> Entry:
        kind, why = self._entries.get(op, (Disposition.ACCELERATOR, "part of a larger operation"))
        if op not in self._entries and self._made[op]:
            why = "as " + " + ".join(dict.fromkeys(self._made[op]))
        return Entry(op.name, op.kind, op.domain, op.opset, kind, why)

    def note(self, op: Op, kind: Disposition, why: str) -> None:
        """Set what the coverage says of ``op`` instead of the canonical nodes it made."""
        self._entries[op] = kind, why

