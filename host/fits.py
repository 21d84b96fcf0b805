"""Which known models fit in a build's memories, and how fast these could be read for a token.

A count from shapes: nothing is compiled or simulated.
"""

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


def fitting(arch: ArchConfig, recipe: Recipe, context: int) -> dict[str, float]:
    """Return the known shapes whose weights and cache the lanes hold, and tables the control.

    With each, the tokens a second at which the lanes' memory, at its data sheet's peak, can deliver
    what a token needs: no machine with this memory is faster.
    """
    rate = arch.channel_bytes_per_s * (1 if arch.one_memory else arch.lanes)
    needs = {name: lane_bytes(shape, recipe, context) for name, shape in SHAPES.items()}
    return {name: rate / needs[name] for name, shape in SHAPES.items()
            if needs[name] <= arch.lanes * arch.channel_bytes
            and TABLE_BYTES * shape.vocab * shape.hidden + CONTROL_BYTES <= arch.control_bytes}
