"""Functions of one element, composed step by step and recognised by their numbers.

Exporters write SiLU as ``x * sigmoid(x)`` or ``x / (1 + exp(-x))``, GELU in half a dozen ways and
the reciprocal root of a norm in four. None of these spellings is looked for: a chain of elementwise
steps on one value is kept as a numpy function, and its values at sample points say what it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alula.compiler.graph import Activation, ActivationKind, Add, Mul
from alula.compiler.importer.evaluate_ops import axes_of
from alula.compiler.importer.lowering import Lowering, lowers, settles
from alula.compiler.importer.model import Op
from alula.compiler.importer.turns import negated
from alula.compiler.importer.values import (
    Axes,
    Function,
    MeanSquare,
    Mixed,
    Normed,
    Numeric,
    Rows,
    Value,
)

Array = NDArray[Any]

LONGEST = 64
SAMPLES = np.concatenate([np.linspace(-12, 12, 97), [-1e-3, 1e-3, 0.7, 2.3]])
MEANS = np.geomspace(1e-4, 1e4, 33)


def _erf(x: Array) -> Array:
    return np.vectorize(math.erf, otypes=[float])(x)


def _sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


ACTIVATIONS: dict[ActivationKind, Numeric] = {
    ActivationKind.SILU: lambda x: x * _sigmoid(x),
    ActivationKind.GELU: lambda x: x * (1 + _erf(x / math.sqrt(2))) / 2,
    ActivationKind.GELU_TANH:
        lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    ActivationKind.RELU: lambda x: np.maximum(x, 0),
}

UNARY: dict[str, Numeric] = {
    "Sigmoid": _sigmoid, "Tanh": np.tanh, "Erf": _erf, "Exp": np.exp, "Sqrt": np.sqrt,
    "Reciprocal": np.reciprocal, "Neg": np.negative, "Abs": np.abs,
    "Relu": ACTIVATIONS[ActivationKind.RELU],
}
BINARY: dict[str, Callable[[Array, Array], Array]] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide, "Pow": np.power,
}


def as_function(value: Value) -> Function | None:
    """Return a value as a function of one base value, or None if it is not elementwise."""
    if isinstance(value, Function):
        return value
    if isinstance(value, Rows | MeanSquare):
        return Function(axes=value.axes, of=value, apply=lambda x: x, steps=0)
    return None


def compose(op: Op, inner: Function, step: Numeric, axes: Axes,
            parts: tuple[str, Value, Value] | None = None, more: int = 0) -> Function:
    """Return ``step``, which takes ``more`` steps besides, of ``inner``."""
    steps = inner.steps + more + 1
    if steps > LONGEST:
        raise op.refuse("steps of one elementwise function", f"at most {LONGEST}", steps)
    return Function(axes=axes, of=inner.of, steps=steps, parts=parts,
                    apply=lambda x: step(inner.apply(x)))


def both(op: Op, left: Function, right: Function, axes: Axes,
         parts: tuple[str, Value, Value]) -> Function:
    """Return a binary step of two functions of the same base."""
    step, first, second = BINARY[op.kind], left.apply, right.apply
    found = compose(op, left, lambda x: x, axes, parts, right.steps)
    return Function(axes=axes, of=found.of, steps=found.steps, parts=parts,
                    apply=lambda x: step(first(x), second(x)))


def samples(function: Function, points: Array) -> Array:
    with np.errstate(all="ignore"):
        return np.asarray(function.apply(points.astype(np.float64)), np.float64)


def factor(value: Value) -> tuple[Rows, float] | None:
    """Return rows and a constant that multiplies them, or None if the value is not that."""
    if isinstance(value, Rows):
        return value, 1.0
    if not isinstance(value, Function) or not isinstance(value.of, Rows):
        return None
    scale = float(samples(value, np.ones(1))[0])
    if not np.allclose(samples(value, SAMPLES), scale * SAMPLES, rtol=1e-6, atol=1e-6):
        return None
    return replace(value.of, axes=value.axes), scale


def inverse_root(function: Function) -> float | None:
    """Return eps if a function of a mean square m is ``1 / sqrt(m + eps)``, else None."""
    found = samples(function, MEANS)
    with np.errstate(all="ignore"):
        eps = float(found[0]) ** -2 - MEANS[0] if found[0] > 0 else math.nan
        if not eps > -1e-9 or not np.allclose(found, (MEANS + eps) ** -0.5, rtol=1e-6):
            return None
        at_zero = float(samples(function, np.zeros(1))[0])
    # From the value at zero eps comes out exactly; from the others it is a difference.
    return at_zero ** -2 if math.isfinite(at_zero) else 0.0


@lowers(*UNARY)
def unary(lowering: Lowering, op: Op) -> tuple[Value, ...]:
    value = lowering.values[op.input(0)]
    if isinstance(value, Mixed) and op.kind == "Neg":
        return (negated(value),)
    inner = as_function(value) or as_function(lowering.settle(op, 0))
    assert inner is not None
    return (compose(op, inner, UNARY[op.kind], value.axes),)


def normed(value: Value, by: Value, invert: bool) -> Normed | None:
    """Return ``value`` times ``by`` as a norm, if ``by`` is the reciprocal root of its mean square.

    ``invert``: divided by ``by`` instead.
    """
    if not isinstance(value, Rows) or not isinstance(by, Function):
        return None
    if not isinstance(by.of, MeanSquare) or by.of.of != value:
        return None
    root = by if not invert else Function(axes=by.axes, of=by.of, steps=by.steps,
                                          apply=lambda x: 1 / by.apply(x))
    eps = inverse_root(root)
    return None if eps is None else Normed(axes=value.axes, of=value, eps=eps)


@lowers("ReduceMean")
def mean(lowering: Lowering, op: Op) -> tuple[Value, ...]:
    """Read the mean of squares along the last axis, the start of a norm."""
    value = lowering.values[op.input(0)]
    axes = axes_of(op, lowering.numbers(op, 1) if op.input(1) else None)
    square = isinstance(value, Function) and isinstance(value.of, Rows) and np.allclose(
        samples(value, SAMPLES), SAMPLES**2)
    if not square or axes not in ((-1,), (len(value.axes) - 1,)) or not op.get("keepdims", 1):
        raise op.refuse("the mean", "of squares along the last axis, kept as an axis (RMS norm)",
                        f"over axes {list(axes)} of another value",
                        "norms that subtract the mean (LayerNorm) are not lowered")
    assert isinstance(value, Function) and isinstance(value.of, Rows)
    return (MeanSquare(axes=(*value.axes[:-1], ()), of=replace(value.of, axes=value.axes)),)


@settles(Function)
def settle_function(lowering: Lowering, op: Op, value: Function) -> Rows:
    """Make the activation that a function's numbers show, else its last step on its own."""
    if isinstance(value.of, Rows):
        scaled = factor(value)
        if scaled is not None:
            op.expect("a constant factor", 1.0, scaled[1], "fold it into the weights around it")
            return scaled[0]
        found = samples(value, SAMPLES)
        for kind, known in ACTIVATIONS.items():
            # The tanh form of GELU is within 5e-4 of the erf form; spellings agree far closer.
            if np.allclose(found, known(SAMPLES), rtol=1e-5, atol=1e-6):
                return lowering.emit(op, Activation(kind=kind), (value.of.node,), value.axes,
                                     value.of.width)
    if value.parts is None:
        raise op.refuse("an elementwise function", ", ".join(ActivationKind) + " of one value",
                        "another function")
    kind_name, left, right = value.parts
    first = lowering.settled(op, left)
    second = first if right is left else lowering.settled(op, right)
    operation = Add() if kind_name == "Add" else Mul()
    return lowering.emit(op, operation, (first.node, second.node), value.axes, first.width)


@lowers("Gelu", domains=("", "com.microsoft"))
def gelu(lowering: Lowering, op: Op) -> tuple[Value, ...]:
    """Lower ai.onnx Gelu (erf unless approximate="tanh") and com.microsoft Gelu (erf)."""
    form = op.get("approximate", "none")
    if form not in ("none", "tanh"):
        raise op.refuse("approximate", "none or tanh", form)
    return _activation(lowering, op,
                       ActivationKind.GELU_TANH if form == "tanh" else ActivationKind.GELU)


@lowers("FastGelu", domains=("com.microsoft",))
def fast_gelu(lowering: Lowering, op: Op) -> tuple[Value, ...]:
    if op.input(1):
        raise op.refuse("bias", "absent", f"{op.input(1)!r}")
    return _activation(lowering, op, ActivationKind.GELU_TANH)


@lowers("Swish")
@lowers("QuickGelu", domains=("com.microsoft",))
def swish(lowering: Lowering, op: Op) -> tuple[Value, ...]:
    """Lower ``x * sigmoid(alpha * x)``, which is SiLU at alpha = 1."""
    alpha = op.get("alpha", 1.0 if op.kind == "Swish" else 1.702)
    op.expect("alpha", 1.0, alpha, "other slopes of the sigmoid are not in the vector unit")
    return _activation(lowering, op, ActivationKind.SILU)


def _activation(lowering: Lowering, op: Op, kind: ActivationKind) -> tuple[Value, ...]:
    rows = lowering.settle(op, 0)
    return (lowering.emit(op, Activation(kind=kind), (rows.node,), rows.axes, rows.width),)
