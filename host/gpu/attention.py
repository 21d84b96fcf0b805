"""Attention over int8 pages in Triton.

A program has one row, one head of keys and one class of pages, whose pages it merges in ascending
order; what a class leaves goes to memory. The last program of a row and head to arrive merges the
classes, in the contract's order, whichever program that is.
"""

from __future__ import annotations

import triton
import triton.language as tl

from alula.host.gpu import exact
from alula.host.gpu.vector import POSITION, SEQUENCE, page_slot, page_start, run_ops
from alula.hw import isa, layout, numerics

_BLOCK = tl.constexpr(isa.BLOCK)
_PAGE = tl.constexpr(numerics.PAGE_TOKENS)
_CLASSES = tl.constexpr(numerics.PAGE_CLASSES)
_EMPTY = tl.constexpr(float(numerics.EMPTY_PAGE))
_SOFTMAX_MAX = tl.constexpr(float(numerics.SOFTMAX_MAX))
_BACK = tl.constexpr(float(numerics.np.float32(1 / numerics.SOFTMAX_MAX)))
_INT_MAX = tl.constexpr(numerics.SOFTMAX_MAX)
_ROW_WORDS = tl.constexpr(layout.STEP_ROW.itemsize // 4)
_MIDDLE = tl.constexpr(128)


@triton.jit
def _largest(x, AXIS: tl.constexpr):
    """Return the maximum, NaN if there is any."""
    nan = tl.max((x != x).to(tl.int32), axis=AXIS) != 0
    bits = (tl.zeros_like(nan.to(tl.int32)) + 0x7FC00000).to(tl.float32, bitcast=True)
    return tl.where(nan, bits, tl.max(tl.where(x != x, float("-inf"), x), axis=AXIS))


@triton.jit
def _power(peak, top):
    """Return the power of two that takes a part from its peak to the top; NaN: far below."""
    change = peak - top
    return tl.where(change != change, -100000000.0, change).to(tl.int32)


@triton.jit
def _rescale(x, power):
    return exact.scale_by_power(x, power) + 0.0  # the sum only makes -0 into +0


@triton.jit
def _top(a, b):
    """Return the larger of two peaks, NaN if one is."""
    return tl.where(a != a, a, tl.where(b != b, b, tl.where(a > b, a, b)))


@triton.jit
def _merge(peak, total, values, other_peak, other_total, other_values):
    """Merge two parts: peaks and totals are ``(heads,)``, values ``(heads, elements)``."""
    top = _top(peak, other_peak)
    mine, theirs = _power(peak, top), _power(other_peak, top)
    return (top, exact.add(_rescale(total, mine), _rescale(other_total, theirs)),
            exact.add(_rescale(values, mine[:, None]), _rescale(other_values, theirs[:, None])))


@triton.jit
def attend_kernel(memory, addresses, SIZES: tl.constexpr, OP: tl.constexpr, BEFORE: tl.constexpr,
                  HEADS: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
                  TILE: tl.constexpr):
    """Attend: programs are (row, head of keys, class of pages).

    Parameters
    ----------
    OP
        Target, query, key, value, query heads, heads of keys, elements of a head, window, places,
        bytes of a page, and the address's place.
    BEFORE
        Ops that every program runs before, for its row and those it follows: what they write is
        the same in all.
    HEADS, WIDE
        Query heads to a head of keys, and elements, rounded up to what tensor cores take.
    ROWS
        Of the table of chains.
    """
    row, kv_head, page_class = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    RATIO: tl.constexpr = OP[4] // OP[5]
    DIM: tl.constexpr = OP[6]
    length = tl.load(memory.lengths + row)
    if len(BEFORE) > 0:
        for link in range(length):
            ancestor = tl.load(memory.chains + row * ROWS + link)
            run_ops(memory, addresses, ancestor, SIZES, BEFORE, TILE)
    address = tl.load(addresses + OP[10])
    root = tl.load(memory.chains + row * ROWS)
    position = tl.load(memory.rows + row * _ROW_WORDS + POSITION)
    base = position - length + 1
    sequence = tl.load(memory.rows + root * _ROW_WORDS + SEQUENCE)
    head, element, token = tl.arange(0, HEADS), tl.arange(0, WIDE), tl.arange(0, _PAGE)
    block = OP[1] + (kv_head * RATIO + head) * (DIM // _BLOCK)
    query = tl.load(memory.codes + row * SIZES[1] + block[:, None] * _BLOCK + element[None, :],
                    mask=(head < RATIO)[:, None] & (element < DIM)[None, :], other=0)
    query_scales = tl.load(memory.code_scales + row * (SIZES[1] // _BLOCK) + block,
                           mask=head < RATIO, other=0.0)
    peak = tl.full((HEADS,), _EMPTY, tl.float32)
    total = tl.zeros((HEADS,), tl.float32)
    values = tl.zeros((HEADS, WIDE), tl.float32)
    page = page_class
    if OP[7] > 0:  # pages that are all before the window change nothing
        earliest = tl.maximum(position - OP[7] + 1, 0) // _PAGE
        page = page_class + (earliest - page_class + _CLASSES - 1) // _CLASSES * _CLASSES
        page = tl.maximum(page, page_class)
    while page * _PAGE <= position:
        at = page * _PAGE + token
        kept = at <= position
        if OP[7] > 0:
            kept = kept & (at > position - OP[7])
        keys, key_scales, codes, value_scales = _read_page(
            memory, address, row, kv_head, page, at, base, length, sequence, element, token, SIZES,
            OP, ROWS)
        dots = tl.dot(query, tl.trans(keys), out_dtype=tl.int32).to(tl.float32)
        scores = exact.mul(exact.mul(dots, query_scales[:, None]), key_scales[None, :])
        page_peak, page_total, page_values = _attend_page(
            scores, codes, value_scales, tl.broadcast_to(kept[None, :], (HEADS, _PAGE)),
            memory.tables, HEADS)
        peak, total, values = _merge(peak, total, values, page_peak, page_total, page_values)
        page += _CLASSES
    _finish(memory, row, kv_head, page_class, peak, total, values, SIZES, OP, HEADS, WIDE)


@triton.jit
def _read_page(memory, address, row, kv_head, page, at, base, length, sequence, element, token,
               SIZES: tl.constexpr, OP: tl.constexpr, ROWS: tl.constexpr):
    """Return keys ``(tokens, elements)``, their scales ``(tokens,)``, and likewise values."""
    DIM: tl.constexpr = OP[6]
    some = page * _PAGE < base  # of the page is in the cache
    slot = page_slot(memory, sequence, tl.where(some, page, 0), SIZES)
    start = page_start(memory, address, tl.where(some, slot, 0), kv_head, page, OP[8], OP[9], SIZES)
    cached, own = at < base, (at >= base) & (at < base + length)
    ancestor = tl.load(memory.chains + row * ROWS + at - base, mask=own, other=0)
    wide = (element < DIM)[None, :]
    place = start + 8 * _PAGE + token[:, None] * DIM + element[None, :]
    scale = memory.cache_scales + start // 4 + 2 * token
    line = ancestor * SIZES[1]
    key, value = OP[2] + kv_head * (DIM // _BLOCK), OP[3] + kv_head * (DIM // _BLOCK)
    scales = memory.code_scales + ancestor * (SIZES[1] // _BLOCK)
    codes = memory.codes + line[:, None] + element[None, :]
    keys = (tl.load(memory.cache + place, mask=cached[:, None] & wide, other=0)
            + tl.load(codes + key * _BLOCK, mask=own[:, None] & wide, other=0))
    values = (tl.load(memory.cache + place + _PAGE * DIM, mask=cached[:, None] & wide, other=0)
              + tl.load(codes + value * _BLOCK, mask=own[:, None] & wide, other=0))
    key_scales = tl.where(own, tl.load(scales + key, mask=own, other=0.0),
                          exact.canonical(tl.load(scale, mask=cached, other=0.0)))
    value_scales = tl.where(own, tl.load(scales + value, mask=own, other=0.0),
                            exact.canonical(tl.load(scale + 1, mask=cached, other=0.0)))
    return keys, key_scales, values, value_scales


@triton.jit
def _attend_page(scores, values, value_scales, kept, tables, HEADS: tl.constexpr):
    """Attend over one page: scores are ``(heads, tokens)``, values ``(tokens, elements)``."""
    peak = tl.ceil(_largest(tl.where(kept, scores, _EMPTY), 1))
    peak = tl.where(peak < _EMPTY, _EMPTY, tl.where(peak > -_EMPTY, -_EMPTY, peak))
    weights = tl.where(kept, exact.exp2(exact.sub(scores, peak[:, None])), 0.0)
    total = exact.fold_64(weights, HEADS)
    scaled = tl.where(kept, exact.mul(weights, value_scales[None, :]), 0.0)
    largest = _largest(scaled, 1)
    inverse = tl.where(largest == 0.0, 0.0,
                       exact.mul(exact.reciprocal(largest, tables), _SOFTMAX_MAX))
    codes = exact.round_to_int(exact.mul(scaled, inverse[:, None]), 0, _INT_MAX)
    # Codes of eight bits without a sign do not fit int8: less 128, and that many values back.
    sums = tl.dot((codes - _MIDDLE).to(tl.int8), values, out_dtype=tl.int32)
    sums += _MIDDLE * tl.sum(values.to(tl.int32), axis=0)[None, :]
    back = exact.mul(largest, _BACK)
    return peak, total, exact.mul(sums.to(tl.float32), back[:, None])


@triton.jit
def _part(memory, row, kv_head, OP: tl.constexpr, HEADS: tl.constexpr, WIDE: tl.constexpr):
    """Return where a row's and head's parts are: of each class peaks, totals, then values."""
    return memory.partial + (row * OP[5] + kv_head) * (_CLASSES * HEADS * (WIDE + 2))


@triton.jit
def _read_part(start, page_class, head, element, HEADS: tl.constexpr, WIDE: tl.constexpr):
    part = start + page_class * (HEADS * (WIDE + 2))
    return (tl.load(part + head, cache_modifier=".cg"),
            tl.load(part + HEADS + head, cache_modifier=".cg"),
            tl.load(part + 2 * HEADS + head[:, None] * WIDE + element[None, :],
                    cache_modifier=".cg"))


@triton.jit
def _read_pair(start, page_class, head, element, HEADS: tl.constexpr, WIDE: tl.constexpr):
    """Return a class merged with the one that is four further."""
    peak, total, values = _read_part(start, page_class, head, element, HEADS, WIDE)
    more_peak, more_total, more_values = _read_part(start, page_class + 4, head, element, HEADS,
                                                    WIDE)
    return _merge(peak, total, values, more_peak, more_total, more_values)


@triton.jit
def _finish(memory, row, kv_head, page_class, peak, total, values, SIZES: tl.constexpr,
            OP: tl.constexpr, HEADS: tl.constexpr, WIDE: tl.constexpr):
    """Leave a class's part; the last to arrive merges all."""
    tl.static_assert(_CLASSES == 8)
    head, element = tl.arange(0, HEADS), tl.arange(0, WIDE)
    start = _part(memory, row, kv_head, OP, HEADS, WIDE)
    part = start + page_class * (HEADS * (WIDE + 2))
    tl.store(part + head, peak)
    tl.store(part + HEADS + head, total)
    tl.store(part + 2 * HEADS + head[:, None] * WIDE + element[None, :], values)
    tl.debug_barrier()  # all threads have stored before one says so
    counter = memory.arrived + row * OP[5] + kv_head
    before = tl.atomic_add(counter, 1, sem="acq_rel")
    if before == _CLASSES - 1:
        tl.store(counter, 0)  # for the next attention
        a, at, av = _read_pair(start, 0, head, element, HEADS, WIDE)
        b, bt, bv = _read_pair(start, 2, head, element, HEADS, WIDE)
        a, at, av = _merge(a, at, av, b, bt, bv)
        b, bt, bv = _read_pair(start, 1, head, element, HEADS, WIDE)
        c, ct, cv = _read_pair(start, 3, head, element, HEADS, WIDE)
        b, bt, bv = _merge(b, bt, bv, c, ct, cv)
        a, at, av = _merge(a, at, av, b, bt, bv)
        result = exact.mul(av, exact.reciprocal(at, memory.tables)[:, None])
        RATIO: tl.constexpr = OP[4] // OP[5]
        DIM: tl.constexpr = OP[6]
        target = memory.vector + row * SIZES[0] + OP[0] * _BLOCK
        place = (kv_head * RATIO + head)[:, None] * DIM + element[None, :]
        tl.store(target + place, result,
                 mask=(head < RATIO)[:, None] & (element < DIM)[None, :])
