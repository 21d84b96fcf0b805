"""Attention and the cache as compiled loops: a row and a head are worked on by themselves."""

from __future__ import annotations

import numpy as np
from numba import prange

from alula.host.cpu.compiled import compiled, inlined
from alula.host.cpu.functions import (
    add,
    bits_of,
    canonical,
    exp2,
    mul,
    multiply_add,
    number_of,
    reciprocal,
    round_to_int,
    scale_by_power,
    sub,
)
from alula.hw import numerics
from alula.hw.isa import BLOCK

_TOKENS, _CLASSES = numerics.PAGE_TOKENS, numerics.PAGE_CLASSES
_EMPTY, _FULL = numerics.EMPTY_PAGE, -numerics.EMPTY_PAGE
_ZERO = np.float32(0)
_SOFTMAX_MAX = np.float32(numerics.SOFTMAX_MAX)
_SOFTMAX_STEP = np.float32(1 / numerics.SOFTMAX_MAX)
_VANISHING = np.int32(-(1 << 28))  # power of two that leaves nothing of a number
_PAGE_SCALES = 2 * 4 * _TOKENS  # bytes of a page before its keys


@compiled
def store_key_value(caches, slots, offsets, classes, places, page_bytes, codes, scales, key, value,
                    head_dim):
    """Write each row's keys and values.

    Of each row ``slots`` has the first byte of its slot in the layer, ``offsets`` the token's place
    in its page, ``classes`` the page's class; ``places`` is ``(kv_heads, classes, 2)``.
    """
    for row in range(slots.size):
        for head in range(places.shape[0]):
            lane, index = places[head, classes[row]]
            start = slots[row] + index * page_bytes
            page = caches[lane, start:start + page_bytes]
            numbers = page[:_PAGE_SCALES].view(np.float32)
            keys = page[_PAGE_SCALES:].view(np.int8)
            block, token = head * head_dim // BLOCK, offsets[row]
            numbers[2 * token] = scales[row, key + block]
            numbers[2 * token + 1] = scales[row, value + block]
            for at in range(head_dim):
                element = head * head_dim + at
                keys[token * head_dim + at] = codes[row, BLOCK * key + element]
                keys[(_TOKENS + token) * head_dim + at] = codes[row, BLOCK * value + element]


@inlined
def _moved(x, power):
    return scale_by_power(x, power) + _ZERO  # the sum only makes -0 into +0


@inlined
def _power(peak, common):
    apart = peak - common
    return np.int32(apart) if apart > np.float32(_VANISHING) else _VANISHING


@inlined
def _larger(a, b):
    """Return the larger number, NaN if either is."""
    return a if (a > b) | (a != a) else b


@inlined
def _merge(peaks, totals, values, into, peak, total, more):
    """Merge a partial into the partial ``into`` of some."""
    common = _larger(peaks[into], peak)
    mine, theirs = _power(peaks[into], common), _power(peak, common)
    peaks[into] = common
    totals[into] = add(_moved(totals[into], mine), _moved(total, theirs))
    for at in range(more.size):
        values[into, at] = add(_moved(values[into, at], mine), _moved(more[at], theirs))


@inlined
def _key(x):
    """Return an integer that orders numbers as they are ordered, NaN as the largest."""
    bits = np.int32(bits_of(x))
    return np.int32(bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFF_FFFF)))


@inlined
def _of_key(key):
    return number_of(np.uint32(key ^ ((key >> np.int32(31)) & np.int32(0x7FFF_FFFF))))


@inlined
def _dot(a, b):
    total = np.int32(0)
    for at in range(a.size):
        total = multiply_add(total, a[at], b[at])
    return total


@inlined
def _softmax(scores, seen, value_scales, weights):
    """Turn scores of a page into 8-bit weights; return ``peak, total, what a weight stands for``.

    ``seen`` is 1 for the tokens that count; scores of others are not looked at.
    """
    most = _key(_EMPTY)
    for at in range(_TOKENS):
        most = max(most, _key(scores[at] if seen[at] else _EMPTY))
    peak = np.ceil(_of_key(most))
    peak = _FULL if peak > _FULL else peak
    tree = np.empty(_TOKENS, np.float32)
    for at in range(_TOKENS):
        weight = exp2(sub(scores[at], peak)) if seen[at] else _ZERO
        tree[at] = weight
        scores[at] = mul(weight, value_scales[at]) if seen[at] else _ZERO
    most = _key(scores[0])
    for at in range(_TOKENS):
        most = max(most, _key(scores[at]))
    largest = _of_key(most)
    half = _TOKENS // 2
    while half:
        for at in range(half):
            tree[at] = add(tree[at], tree[half + at])
        half //= 2
    inverse = _ZERO if largest == _ZERO else mul(reciprocal(largest), _SOFTMAX_MAX)
    for at in range(_TOKENS):
        weights[at] = round_to_int(mul(scores[at], inverse), _ZERO, _SOFTMAX_MAX)
    return peak, tree[0], mul(largest, _SOFTMAX_STEP)


@inlined
def _whole_page(q, q_scale, keys, numbers, scores, seen, value_scales):
    """Score a page whose tokens are all cached, and all count."""
    for token in range(_TOKENS):
        scores[token] = np.float32(_dot(q, keys[token * q.size:(token + 1) * q.size]))
    for token in range(_TOKENS):
        scores[token] = mul(mul(scores[token], q_scale), canonical(numbers[2 * token]))
        value_scales[token] = canonical(numbers[2 * token + 1])
        seen[token] = 1


def _attend(caches, pages, layer, slot_bytes, places, page_bytes, vectors, codes, scales, rows,
            chains, lengths, slots, target, query, key, value, heads, kv_heads, head_dim, window):
    ratio = heads // kv_heads
    for work in prange(rows * heads):
        row, head = work // heads, work % heads
        kv_head = head // ratio
        own = lengths[row]  # rows of the step that this one sees, itself the last
        base = pages[row]  # position from which on tokens are the step's
        position = base + own - 1
        first = max(0, position - window + 1) if window else 0
        q = codes[row, BLOCK * query + head * head_dim:BLOCK * query + (head + 1) * head_dim]
        q_scale = scales[row, query + head * head_dim // BLOCK]
        at_key = BLOCK * key + kv_head * head_dim
        at_value = BLOCK * value + kv_head * head_dim
        peaks = np.full(_CLASSES, _EMPTY, np.float32)
        totals = np.zeros(_CLASSES, np.float32)
        values = np.zeros((_CLASSES, head_dim), np.float32)
        scores, value_scales = np.zeros(_TOKENS, np.float32), np.zeros(_TOKENS, np.float32)
        seen, weights = np.zeros(_TOKENS, np.uint8), np.zeros(_TOKENS, np.int32)
        sums, more = np.zeros(head_dim, np.int32), np.zeros(head_dim, np.float32)
        for number in range(first // _TOKENS, position // _TOKENS + 1):
            lane, index = places[kv_head, number % _CLASSES]
            start = number * _TOKENS
            cached = start < base
            at = layer + slots[row, number] * slot_bytes + index * page_bytes if cached else 0
            page = caches[lane, at:at + page_bytes]
            numbers = page[:_PAGE_SCALES].view(np.float32)
            held = page[_PAGE_SCALES:].view(np.int8)
            whole = first <= start and start + _TOKENS <= base
            if whole:
                _whole_page(q, q_scale, held, numbers, scores, seen, value_scales)
            for token in range(0 if whole else _TOKENS):
                seen[token] = first <= start + token <= position
                value_scales[token] = _ZERO
                if not seen[token]:
                    continue
                if start + token < base:
                    k = held[token * head_dim:(token + 1) * head_dim]
                    k_scale = canonical(numbers[2 * token])
                    value_scales[token] = canonical(numbers[2 * token + 1])
                else:
                    member = chains[row, start + token - base]
                    k = codes[member, at_key:at_key + head_dim]
                    k_scale = scales[member, at_key // BLOCK]
                    value_scales[token] = scales[member, at_value // BLOCK]
                scores[token] = mul(mul(np.float32(_dot(q, k)), q_scale), k_scale)
            peak, total, step = _softmax(scores, seen, value_scales, weights)
            sums[:] = 0
            for token in range(_TOKENS):
                if weights[token] == 0:
                    continue
                if start + token < base:
                    v = held[(_TOKENS + token) * head_dim:(_TOKENS + token + 1) * head_dim]
                else:
                    member = chains[row, start + token - base]
                    v = codes[member, at_value:at_value + head_dim]
                weight = weights[token]
                for at in range(head_dim):
                    sums[at] = multiply_add(sums[at], weight, v[at])
            for at in range(head_dim):
                more[at] = mul(np.float32(sums[at]), step)
            _merge(peaks, totals, values, number % _CLASSES, peak, total, more)
        half = _CLASSES // 2
        while half:
            for into in range(half):
                _merge(peaks, totals, values, into, peaks[half + into], totals[half + into],
                       values[half + into])
            half //= 2
        inverse = reciprocal(totals[0])
        out = vectors[row, BLOCK * target + head * head_dim:
                      BLOCK * target + (head + 1) * head_dim]
        for at in range(head_dim):
            out[at] = mul(values[0, at], inverse)


attend = compiled(_attend, parallel=True)
