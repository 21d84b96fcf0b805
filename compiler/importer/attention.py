"""Attention of the standard, MultiHeadAttention of ONNX Runtime, and what every form ends in.

Ref: ONNX operators, Attention (23, 24, 25); ONNX Runtime, docs/ContribOperators.md,
com.microsoft.MultiHeadAttention.
"""

from __future__ import annotations

import math
from dataclasses import replace

from alula.compiler.graph import Attention
from alula.compiler.importer.heads import head_width, operand, query_heads, shared_heads
from alula.compiler.importer.lowering import Lowering, lowers
from alula.compiler.importer.masks import Masks, window
from alula.compiler.importer.model import Op
from alula.compiler.importer.values import Past, Rows, Value

CAPPED = "capped scores are not in the accelerator's softmax"


def attend(lowering: Lowering, op: Op, inputs: tuple[Rows, Rows, Rows], heads: int, kv_heads: int,
           scale: float, window: int, past: str) -> Rows:
    """Emit attention on the next layer's cache; a ``scale`` of 0 means 1 / sqrt(head_dim)."""
    query, key, value = inputs
    if query.width % heads or not key.width == value.width == kv_heads * (query.width // heads):
        raise op.refuse("widths of query, key and value",
                        f"{heads}, {kv_heads} and {kv_heads} heads of one size",
                        f"{query.width}, {key.width} and {value.width} elements")
    if past:
        if not isinstance(lowering.values.get(past), Past):
            raise op.refuse("past key", "an input of the model", f"{past!r}")
        if past in lowering.layers:
            raise op.refuse("past key", "used by one layer", f"{past!r}, used before")
    head_dim = query.width // heads
    scale = scale or 1 / math.sqrt(head_dim)
    if not math.isfinite(scale):
        raise op.refuse("scale", "finite", scale)
    operation = Attention(layer=len(lowering.layers), heads=heads, kv_heads=kv_heads,
                          head_dim=head_dim, scale=scale, window=window)
    lowering.layers.append(past or op.name)
    return lowering.emit_flat(op, operation, tuple(rows.node for rows in inputs), query.width)


@lowers("Attention")
def attention(lowering: Lowering, op: Op) -> tuple[Value, ...]:
    """Lower ai.onnx Attention: Q, K, V, mask, cached keys and values."""
    op.expect("softcap", 0.0, op.get("softcap", 0.0), CAPPED)
    if op.get("right_window_size", -1) > 0:
        raise op.refuse("right_window_size", "0 or -1", op.get("right_window_size", -1))
    if op.input(6):
        raise op.refuse("nonpad_kv_seqlen", "absent", f"{op.input(6)!r}",
                        "export with past_key and past_value inputs")
    masks: Masks = ((op.input(3), "add"),) if op.input(3) else ()
    return _attended(lowering, op, op.get("q_num_heads", 0), masks, bool(op.get("is_causal", 0)),
                     op.input(4), op.get("left_window_size", -1) + 1)


@lowers("MultiHeadAttention", domains=("com.microsoft",))
def multi_head_attention(lowering: Lowering, op: Op) -> tuple[Value, ...]:
    """Lower MultiHeadAttention with separate query, key and value and an added mask."""
    for at, what in ((3, "bias"), (4, "key_padding_mask"), (8, "past_sequence_length"),
                     (9, "cache_indirection")):
        if op.input(at):
            raise op.refuse(what, "absent", f"{op.input(at)!r}")
    masks: Masks = ((op.input(5), "add"),) if op.input(5) else ()
    return _attended(lowering, op, op.get("num_heads", 0), masks,
                     bool(op.get("unidirectional", 0)), op.input(6), 0)


def _attended(lowering: Lowering, op: Op, heads: int, masks: Masks, causal: bool, past: str,
              limit: int) -> tuple[Rows, Rows, Rows]:
    """Emit attention of inputs 0 to 2, laid out by heads, or flat with ``heads`` of queries."""
    (query, query_scale), (key, key_scale) = operand(lowering, op, 0), operand(lowering, op, 1)
    value = lowering.settle(op, 2)
    flat = len(query.axes) == 3
    if flat and (heads < 1 or query.width % heads):
        raise op.refuse("number of query heads", f"a divisor of {query.width}", heads)
    head_dim = query.width // heads if flat else head_width(query.axes[-1])
    layout = "thd+" if flat else "htd"
    heads = query_heads(op, query, head_dim, layout)
    kv_heads = shared_heads(op, key, heads, head_dim, layout)
    op.expect("heads of values", kv_heads, shared_heads(op, value, heads, head_dim, layout))
    if causal and key.past:
        raise op.refuse("is_causal", "0, with a mask, where the cache is joined outside",
                        1, "give the cache to past_key and past_value")
    size = window(lowering, op, masks, causal=causal)
    size = min(filter(None, (size, limit)), default=0)
    scale = op.get("scale", 0.0) or 1 / math.sqrt(head_dim)
    found = attend(lowering, op, (query, key, value), heads, kv_heads,
                   scale * query_scale * key_scale, size, past or key.past)
    return replace(found, axes=query.axes), key, value
