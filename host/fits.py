"""Which known models fit in a build's memories: a count from shapes, nothing is compiled."""

from __future__ import annotations

from alula.compiler.recipe import Recipe
from alula.compiler.shapes import SHAPES, Shape
from alula.hw.arch import MIB, ArchConfig

HEADERS = 1.015  # of weight streams, and padding: 0.4 % to 1.4 % was counted
SCALE_BITS, TABLE_BYTES = 16, 2
SCALE_BYTES = 4  # of a head of keys or values in the cache
CONTROL_BYTES = 16 * MIB  # of what is small: program, norms, rotary tables, logits


def lane_bytes(shape: Shape, recipe: Recipe, context: int) -> float:
    """Return the bytes of all lanes together: weights, and the cache of one sequence."""
    kv, heads = shape.kv_heads * shape.head_dim, shape.heads * shape.head_dim
    layer = shape.hidden * (2 * heads + 2 * kv + 3 * shape.ffn)
    weights = shape.layers * layer + shape.vocab * shape.hidden
    bits = recipe.mean_bits + SCALE_BITS / recipe.group
    cache = shape.layers * context * 2 * shape.kv_heads * (shape.head_dim + SCALE_BYTES)
    return weights * bits / 8 * HEADERS + cache


def fitting(arch: ArchConfig, recipe: Recipe, context: int) -> list[str]:
    """Return the known shapes whose weights and cache the lanes hold, and tables the control."""
    return [name for name, shape in SHAPES.items()
            if lane_bytes(shape, recipe, context) <= arch.lanes * arch.channel_bytes
            and TABLE_BYTES * shape.vocab * shape.hidden + CONTROL_BYTES <= arch.control_bytes]
