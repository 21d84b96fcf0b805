"""Rounding weights to codes, a group of inputs at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from alula.compiler.graph import Codes
from alula.compiler.recipe import Recipe

F32 = NDArray[np.float32]


def padded(values: F32, unit: int) -> F32:
    """Return rows filled up with zeros to a multiple of ``unit``."""
    return np.pad(values, ((0, 0), (0, -values.shape[1] % unit)))


def group_scales(groups: F32, recipe: Recipe) -> tuple[F32, NDArray[np.uint8]]:
    """Return the scales, exact in fp16, and zero points of groups ``(..., group)``.

    Symmetric: the element farthest from zero becomes the lowest code, so a scale may be negative
    (ONNX Runtime's rule, which uses all ``2**bits`` codes). Asymmetric: the range, widened to hold
    zero, is spread over the codes.
    """
    levels, middle = (1 << recipe.bits) - 1, 1 << (recipe.bits - 1)
    if recipe.asymmetric:
        low, high = np.minimum(groups.min(-1), 0), np.maximum(groups.max(-1), 0)
        scales = _half((high - low) / np.float32(levels))
        with np.errstate(divide="ignore", invalid="ignore"):
            zero = np.where(scales == 0, middle, np.rint(-low / scales))
        return scales, np.clip(zero, 0, levels).astype(np.uint8)
    at = np.abs(groups).argmax(axis=-1)
    extreme = np.take_along_axis(groups, at[..., None], axis=-1)[..., 0]
    return _half(extreme / np.float32(-middle)), np.full(extreme.shape, middle, np.uint8)


def _half(scales: F32) -> F32:
    """Round to fp16, never to zero or infinity."""
    limited = np.clip(np.abs(scales), 2.0**-24, 65504) * (scales != 0)
    return np.copysign(limited, scales).astype(np.float16).astype(np.float32)


def encode(values: F32, scales: F32, zero_points: NDArray[np.uint8],
           bits: int) -> NDArray[np.uint8]:
    """Return the nearest codes of values under scales and zero points of the same shape."""
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.where(scales == 0, 0, np.rint(values / scales))
    return np.clip(steps + zero_points, 0, (1 << bits) - 1).astype(np.uint8)


def round_to_nearest(values: F32, recipe: Recipe) -> Codes:
    """Quantize rows: scales by :func:`group_scales`, each weight to the nearest code."""
    rows, cols = values.shape
    groups = padded(values, recipe.group).reshape(rows, -1, recipe.group).astype(np.float32)
    scales, zeros = group_scales(groups, recipe)
    codes = encode(groups, scales[..., None], zeros[..., None], recipe.bits)
    return Codes(codes.reshape(rows, -1)[:, :cols], scales, zeros)
