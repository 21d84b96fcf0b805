"""GroupQueryAttention of ONNX Runtime, with the norms and rotary embedding it fuses.

Ref: ONNX Runtime, docs/ContribOperators.md, com.microsoft.GroupQueryAttention.
"""

from __future__ import annotations

import numpy as np

from alula.compiler.graph import Slice
from alula.compiler.importer.attention import CAPPED, attend
from alula.compiler.importer.lowering import Lowering, lowers
from alula.compiler.importer.model import Op
from alula.compiler.importer.norms import emit_norm
from alula.compiler.importer.rotary import check_positions, rope, table
from alula.compiler.importer.values import Rows, Setting, Value

KV_CACHE_REMEDY = ("Alula quantizes the key-value cache itself; re-export with "
                   "kv_cache_quant_scheme=none")


@lowers("GroupQueryAttention", domains=("com.microsoft",))
def group_query_attention(lowering: Lowering, op: Op) -> tuple[Value, ...]:
    """Lower attention with its packed input, query and key norms, and rotary embedding."""
    _check_attributes(op)
    _check_lengths(lowering, op)
    if op.input(9):
        check_positions(lowering, op, 9)
    heads, kv_heads = op.get("num_heads", 0), op.get("kv_num_heads", 0)
    if kv_heads < 1 or heads < 1 or heads % kv_heads:
        raise op.refuse("num_heads", "a positive multiple of kv_num_heads",
                        f"{heads} over {kv_heads}")
    query, key, value = _inputs(lowering, op, heads, kv_heads)
    query, key = _normalized(lowering, op, query, key)
    if op.get("do_rotary", 0):
        cos, sin = (table(lowering, op, op.input(at)) for at in (7, 8))
        turned = bool(op.get("rotary_interleaved", 0))
        query = rope(lowering, op, query, cos, sin, heads, interleaved=turned, suffix="/q_rope")
        key = rope(lowering, op, key, cos, sin, kv_heads, interleaved=turned, suffix="/k_rope")
    window = op.get("local_window_size", -1)
    found = attend(lowering, op, (query, key, value), heads, kv_heads, op.get("scale", 0.0),
                   max(window, 0), op.input(3))
    return found, key, value


def _check_attributes(op: Op) -> None:
    op.expect("softcap", 0.0, op.get("softcap", 0.0), CAPPED)
    op.expect("smooth_softmax", 0, max(op.get("smooth_softmax", 0), 0))
    for name in ("k_quant_type", "v_quant_type"):
        op.expect(name, "NONE", op.get(name, "NONE"), KV_CACHE_REMEDY)
    op.expect("qk_output", 0, op.get("qk_output", 0))
    op.expect("causal", 1, op.get("causal", 1))
    for at, what in ((10, "attention_bias"), (11, "head_sink")):
        if op.input(at):
            raise op.refuse(what, "absent: attention is causal and nothing else",
                            f"{op.input(at)!r}")
    for at, what in ((12, "k_scale"), (13, "v_scale")):
        if op.input(at):
            raise op.refuse(what, "absent", f"{op.input(at)!r}", KV_CACHE_REMEDY)


def _check_lengths(lowering: Lowering, op: Op) -> None:
    """Check by their numbers that the lengths given are those of an unpadded sequence."""
    for setting in (lowering.layout, Setting(1, lowering.layout.past)):
        total = setting.tokens + setting.past
        for at, what, wanted in ((5, "seqlens_k", total - 1),
                                 (6, "total_sequence_length", total)):
            found = lowering.evaluate(op.input(at), setting)
            if found.size != 1 or int(found.reshape(-1)[0]) != wanted:
                raise op.refuse(what, f"{wanted} for {total} unpadded tokens",
                                found.reshape(-1)[:4].tolist())


def _inputs(lowering: Lowering, op: Op, heads: int, kv_heads: int) -> tuple[Rows, Rows, Rows]:
    """Return query, key and value; a packed input is sliced into them."""
    first = lowering.flat(op)
    if op.input(1):
        return first, lowering.flat(op, 1), lowering.flat(op, 2)
    total = heads + 2 * kv_heads
    if first.width % total:
        raise op.refuse("packed input", f"{total} heads wide", f"{first.width} elements")
    size = first.width // total
    q, k = heads * size, kv_heads * size
    found = [lowering.emit_flat(op, Slice(start=start, size=width), (first.node,), width, suffix)
             for start, width, suffix in ((0, q, "/q"), (q, k, "/k"), (q + k, k, "/v"))]
    return found[0], found[1], found[2]


def _normalized(lowering: Lowering, op: Op, query: Rows, key: Rows) -> tuple[Rows, Rows]:
    """Apply the query and key norms of inputs 14 and 15, each head on its own."""
    found = []
    for at, rows, suffix in ((14, query, "/q_norm"), (15, key, "/k_norm")):
        if op.input(at):
            gamma = lowering.numbers(op, at)
            heads, rest = divmod(rows.width, max(gamma.size, 1))
            op.expect(f"remainder of a row by the {gamma.size} elements of input {at}", 0, rest)
            eps = op.get("qk_norm_epsilon", 1e-6)
            rows = emit_norm(lowering, op, rows, gamma.reshape(-1).astype(np.float32), eps, heads,
                             suffix)
        found.append(rows)
    return found[0], found[1]
