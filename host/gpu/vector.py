"""Vector instructions in Triton, and the kernel that runs a list of them for each row.

An *op* is a tuple: its kind, then operands, all known when the kernel is compiled; addresses in
memory, which change from layer to layer, are in a tensor, and an op has its place there. One
program works on one row, op by op, as the instructions follow one another.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from alula.host.gpu import exact
from alula.hw import isa, layout, numerics


class Memory(NamedTuple):
    """What a kernel sees of the device: tensors."""

    vector: Any  # (rows, vector elements) float32
    codes: Any  # (rows, activation elements) int8
    code_words: Any  # the same, int32
    code_scales: Any  # (rows, activation blocks) float32
    params: Any  # float32
    tables: Any  # float32: first guesses of reciprocal, then of rsqrt
    control: Any  # words of the control memory, int32
    cache: Any  # (lanes, bytes) int8
    cache_scales: Any  # the same, float32
    header: Any  # step header, int32
    rows: Any  # (rows, 8) step rows, int32
    chains: Any  # (rows, rows) int32: the rows that a row follows, itself last
    lengths: Any  # (rows,) int32 of the chains
    places: Any  # (kv heads, classes, 2) int32: lane and index of a page; of each shape of cache
    top_values: Any  # (rows, TOP_K) float32
    top_tokens: Any  # (rows, TOP_K) int32
    partial: Any  # float32: attention's partial results
    arrived: Any  # int32: attention's programs that are done


class Sizes(NamedTuple):
    """Elements from one row to the next, and places in memory: known when compiled."""

    vector: int
    codes: int
    rows: int
    pages: int  # first word of 32 bits of the page tables
    cache_start: int  # first byte of the cache in a lane
    cache_size: int  # bytes of a lane's cache


LOAD_PARAMS, LOAD_ROW, STORE_KV, STORE_ROW, STORE_TOP, NORM, COMBINE, ACTIVATE, ROTATE, \
    QUANTIZE, SELECT, READ_STEP, ADVANCE = (tl.constexpr(kind) for kind in range(13))

_BLOCK = tl.constexpr(isa.BLOCK)
_TOP = tl.constexpr(isa.TOP_K)
_TOP_BYTES = tl.constexpr(layout.TOP_ROW.itemsize)
_HEADER_WORDS = tl.constexpr(layout.STEP_HEADER.itemsize // 4)
_ROW_WORDS = tl.constexpr(layout.STEP_ROW.itemsize // 4)
_PAGE_STRIDE = tl.constexpr(layout.STEP_HEADER.names.index("page_stride"))
_SLOT_WORDS = tl.constexpr(layout.STEP_HEADER.names.index("slot_words"))
TOKEN, POSITION, SEQUENCE, PARENT, PLACE, FLAGS = (
    tl.constexpr(layout.STEP_ROW.names.index(name))
    for name in ("token", "position", "sequence", "parent", "place", "flags"))
_BY_POSITION = tl.constexpr(-1)  # layout.PLACE_BY_POSITION, signed
_NO_TOKEN = tl.constexpr(-1)  # layout.NO_TOKEN, signed
_PAGE = tl.constexpr(numerics.PAGE_TOKENS)
_CLASSES = tl.constexpr(numerics.PAGE_CLASSES)
_PARTIALS = tl.constexpr(numerics.PARTIALS)
_NOTHING = tl.constexpr(-(1 << 63))


@triton.jit
def vector_kernel(memory, addresses, SIZES: tl.constexpr, OPS: tl.constexpr, TILE: tl.constexpr):
    """Run ops, for the row that is the program's number."""
    run_ops(memory, addresses, tl.program_id(0), SIZES, OPS, TILE)


@triton.jit
def run_ops(memory, addresses, row, SIZES: tl.constexpr, OPS: tl.constexpr, TILE: tl.constexpr):
    for at in tl.static_range(len(OPS)):
        _run(memory, addresses, row, SIZES, OPS[at], TILE)
        tl.debug_barrier()  # the next op reads what other threads wrote


@triton.jit
def _run(memory, addresses, row, SIZES: tl.constexpr, OP: tl.constexpr, TILE: tl.constexpr):
    if OP[0] == LOAD_PARAMS:
        _load_params(memory, tl.load(addresses + OP[1]), OP, TILE)
    elif OP[0] == LOAD_ROW:
        _load_row(memory, tl.load(addresses + OP[1]), row, SIZES, OP, TILE)
    elif OP[0] == STORE_KV:
        _store_key_value(memory, tl.load(addresses + OP[1]), row, SIZES, OP)
    elif OP[0] == STORE_ROW:
        _store_row(memory, tl.load(addresses + OP[1]), row, SIZES, OP, TILE)
    elif OP[0] == STORE_TOP:
        _store_top(memory, tl.load(addresses + OP[1]), row)
    elif OP[0] == NORM:
        _rms_norm(memory, row, SIZES, OP)
    elif OP[0] == COMBINE:
        _combine(memory, row, SIZES, OP, TILE)
    elif OP[0] == ACTIVATE:
        _activate(memory, row, SIZES, OP, TILE)
    elif OP[0] == ROTATE:
        _rotate(memory, row, SIZES, OP, TILE)
    elif OP[0] == QUANTIZE:
        _quantize(memory, row, SIZES, OP, TILE)
    elif OP[0] == SELECT:
        _select_top(memory, tl.load(addresses + OP[1]), row, SIZES, OP, TILE)
    elif OP[0] == READ_STEP:
        _read_step(memory, tl.load(addresses + OP[1]), row)
    else:
        tl.static_assert(OP[0] == ADVANCE)
        _advance(memory, row)


@triton.jit
def _load_params(memory, address, OP: tl.constexpr, TILE: tl.constexpr):
    source = memory.control + address // 4
    target = memory.params + OP[2] * _BLOCK
    for first in range(0, OP[3], TILE):
        at = first + tl.arange(0, TILE)
        values = tl.load(source + at, mask=at < OP[3], other=0).to(tl.float32, bitcast=True)
        tl.store(target + at, exact.canonical(values), mask=at < OP[3])


@triton.jit
def _load_row(memory, address, row, SIZES: tl.constexpr, OP: tl.constexpr, TILE: tl.constexpr):
    """Operands: address, target, size, stride in bytes, field of the row, format, group's log2."""
    SIZE: tl.constexpr = OP[3]
    index = tl.load(memory.rows + row * _ROW_WORDS + OP[5]).to(tl.int64) & 0xFFFFFFFF
    source = memory.control + (address + index * OP[4]) // 4
    target = memory.vector + row * SIZES[0] + OP[2] * _BLOCK
    for first in range(0, SIZE, TILE):
        at = first + tl.arange(0, TILE)
        tl.store(target + at, _table_values(source, at, at < SIZE, SIZE, OP[6], OP[7]),
                 mask=at < SIZE)


@triton.jit
def _table_values(source, at, inside, SIZE: tl.constexpr, FORMAT: tl.constexpr,
                  LOG2: tl.constexpr):
    if FORMAT == 0:
        values = tl.load(source + at, mask=inside, other=0).to(tl.float32, bitcast=True)
        return exact.canonical(values)
    elif FORMAT == 1:
        words = tl.load(source + at // 2, mask=inside, other=0)
        half = (words >> (at % 2 * 16)).to(tl.int16).to(tl.float16, bitcast=True)
        return exact.canonical(half.to(tl.float32))
    else:
        GROUPS: tl.constexpr = (SIZE + (1 << LOG2) - 1) >> LOG2
        scales = tl.load(source + (at >> LOG2), mask=inside, other=0).to(tl.float32, bitcast=True)
        codes = source + (GROUPS + 3) // 4 * 4  # after whole words of 16 bytes
        if FORMAT == 2:
            words = tl.load(codes + at // 8, mask=inside, other=0)
            signed = ((words >> (at % 8 * 4)) & 15) - 8
        else:
            words = tl.load(codes + at // 4, mask=inside, other=0)
            signed = ((words >> (at % 4 * 8)) & 255) - 128
        return exact.mul(signed.to(tl.float32), exact.canonical(scales))


@triton.jit
def _store_row(memory, address, row, SIZES: tl.constexpr, OP: tl.constexpr, TILE: tl.constexpr):
    """Operands: address, source, size, stride in bytes."""
    SIZE: tl.constexpr = OP[3]
    stored = tl.where((tl.load(memory.rows + row * _ROW_WORDS + FLAGS) & 1) != 0, SIZE, 0)
    target = memory.control + (address + row.to(tl.int64) * OP[4]) // 4
    source = memory.vector + row * SIZES[0] + OP[2] * _BLOCK
    for first in range(0, SIZE, TILE):
        at = first + tl.arange(0, TILE)
        values = tl.load(source + at, mask=at < SIZE, other=0.0)
        tl.store(target + at, values.to(tl.int32, bitcast=True), mask=at < stored)


@triton.jit
def _store_top(memory, address, row):
    at = tl.arange(0, _TOP)
    target = memory.control + (address + row.to(tl.int64) * _TOP_BYTES) // 4
    values = tl.load(memory.top_values + row * _TOP + at)
    tl.store(target + at, values.to(tl.int32, bitcast=True))
    tl.store(target + _TOP + at, tl.load(memory.top_tokens + row * _TOP + at))


@triton.jit
def page_slot(memory, sequence, page, SIZES: tl.constexpr):
    """Return the cache slot of a sequence's page."""
    stride = tl.load(memory.header + _PAGE_STRIDE).to(tl.int64) * 4
    return tl.load(memory.control + SIZES[3] + sequence.to(tl.int64) * stride + page)


@triton.jit
def page_start(memory, address, slot, head, page, PLACES: tl.constexpr, PAGE_BYTES: tl.constexpr,
               SIZES: tl.constexpr):
    """Return the byte of a head's page in the caches, all lanes one after the other."""
    place = memory.places + PLACES + (head * _CLASSES + page % _CLASSES) * 2
    slot_bytes = tl.load(memory.header + _SLOT_WORDS).to(tl.int64) * 16
    lane, index = tl.load(place).to(tl.int64), tl.load(place + 1).to(tl.int64)
    return (lane * SIZES[5] + address - SIZES[4] + slot.to(tl.int64) * slot_bytes
            + index * PAGE_BYTES)


@triton.jit
def _store_key_value(memory, address, row, SIZES: tl.constexpr, OP: tl.constexpr):
    """Operands: address, key, value, heads, head's elements, those rounded up, places, bytes."""
    DIM: tl.constexpr = OP[5]
    entry = memory.rows + row * _ROW_WORDS
    position, place = tl.load(entry + POSITION), tl.load(entry + PLACE)
    by_position = place == _BY_POSITION
    sequence = tl.where(by_position, tl.load(entry + SEQUENCE), 0)
    looked_up = page_slot(memory, sequence, tl.where(by_position, position // _PAGE, 0), SIZES)
    slot = tl.where(by_position, looked_up, (place >> 6) & 0x3FFFFFF)
    offset = tl.where(by_position, position, place) % _PAGE
    at = tl.arange(0, OP[6])
    for head in range(OP[4]):
        page = page_start(memory, address, slot, head, position // _PAGE, OP[7], OP[8], SIZES)
        for side in tl.static_range(2):
            block = OP[2 + side] + head * (DIM // _BLOCK)
            codes = tl.load(memory.codes + row * SIZES[1] + block * _BLOCK + at, mask=at < DIM)
            scale = tl.load(memory.code_scales + row * (SIZES[1] // _BLOCK) + block)
            keys = page + 8 * _PAGE + (side * _PAGE + offset) * DIM
            tl.store(memory.cache + keys + at, codes, mask=at < DIM)
            tl.store(memory.cache_scales + page // 4 + 2 * offset + side, scale)


@triton.jit
def _rms_norm(memory, row, SIZES: tl.constexpr, OP: tl.constexpr):
    """Operands: target, source, gamma, size, parts, eps, 1 / size, parts at a time."""
    SIZE: tl.constexpr = OP[4]
    part = tl.arange(0, OP[8])
    column = tl.arange(0, _PARTIALS)
    gamma = memory.params + OP[3] * _BLOCK
    for first in range(0, OP[5], OP[8]):
        inside = (first + part < OP[5])[:, None]
        source = memory.vector + row * SIZES[0] + OP[2] * _BLOCK + (first + part)[:, None] * SIZE
        target = memory.vector + row * SIZES[0] + OP[1] * _BLOCK + (first + part)[:, None] * SIZE
        total = tl.zeros((OP[8], _PARTIALS), tl.float32)
        for start in range(0, SIZE, _PARTIALS):
            at = (start + column)[None, :]
            x = tl.load(source + at, mask=inside & (at < SIZE), other=0.0)
            total = exact.add(total, exact.mul(x, x))
        sums = exact.fold_64(exact.fold(total, OP[8], _PARTIALS // 2), OP[8])
        mean = exact.mul(sums, OP[7])
        factor = exact.rsqrt(exact.add(mean, OP[6]), memory.tables)[:, None]
        tl.debug_barrier()  # the target may be the source
        for start in range(0, SIZE, _PARTIALS):
            at = (start + column)[None, :]
            x = tl.load(source + at, mask=inside & (at < SIZE), other=0.0)
            weights = tl.load(gamma + at, mask=at < SIZE, other=0.0)
            tl.store(target + at, exact.mul(exact.mul(x, factor), weights),
                     mask=inside & (at < SIZE))


@triton.jit
def combined(a, b, FUNCTION: tl.constexpr):
    if FUNCTION == 0:
        return exact.add(a, b)
    elif FUNCTION == 1:
        return exact.mul(a, b)
    else:
        return a


@triton.jit
def _combine(memory, row, SIZES: tl.constexpr, OP: tl.constexpr, TILE: tl.constexpr):
    """Operands: target, source, other, whether that is shared, size, function."""
    SIZE: tl.constexpr = OP[5]
    line = memory.vector + row * SIZES[0]
    if OP[4]:
        other = memory.params + OP[3] * _BLOCK
    else:
        other = line + OP[3] * _BLOCK
    for first in range(0, SIZE, TILE):
        at = first + tl.arange(0, TILE)
        a = tl.load(line + OP[2] * _BLOCK + at, mask=at < SIZE, other=0.0)
        if OP[6] == 2:
            b = a
        else:
            b = tl.load(other + at, mask=at < SIZE, other=0.0)
        tl.store(line + OP[1] * _BLOCK + at, combined(a, b, OP[6]), mask=at < SIZE)


@triton.jit
def _function(x, tables, FUNCTION: tl.constexpr):
    if FUNCTION == 0:
        return exact.silu(x, tables)
    elif FUNCTION == 1:
        return exact.gelu(x, tables)
    elif FUNCTION == 2:
        return exact.gelu_tanh(x, tables)
    else:
        return exact.relu(x)


@triton.jit
def _activate(memory, row, SIZES: tl.constexpr, OP: tl.constexpr, TILE: tl.constexpr):
    """Operands: target, source, other, whether that counts, size, function."""
    SIZE: tl.constexpr = OP[5]
    line = memory.vector + row * SIZES[0]
    for first in range(0, SIZE, TILE):
        at = first + tl.arange(0, TILE)
        x = tl.load(line + OP[2] * _BLOCK + at, mask=at < SIZE, other=0.0)
        result = _function(x, memory.tables, OP[6])
        if OP[4]:
            gate = tl.load(line + OP[3] * _BLOCK + at, mask=at < SIZE, other=0.0)
            result = exact.mul(result, gate)
        tl.store(line + OP[1] * _BLOCK + at, result, mask=at < SIZE)


@triton.jit
def _rotate(memory, row, SIZES: tl.constexpr, OP: tl.constexpr, TILE: tl.constexpr):
    """Operands: target, source, cosines, heads, elements, those that turn, pairing, rounded up."""
    DIM: tl.constexpr = OP[5]
    HALF: tl.constexpr = OP[6] // 2
    HEADS: tl.constexpr = max(1, TILE // OP[8])
    line = memory.vector + row * SIZES[0]
    element = tl.arange(0, OP[8])
    turns = element < 2 * HALF
    if OP[7]:
        pair = element // 2
        second = element % 2 == 1
        partner = tl.where(second, element - 1, element + 1)
    else:
        pair = element % HALF
        second = element >= HALF
        partner = tl.where(second, element - HALF, element + HALF)
    cos = tl.load(line + OP[3] * _BLOCK + pair, mask=turns, other=0.0)
    sin = tl.load(line + (OP[3] + (HALF + _BLOCK - 1) // _BLOCK) * _BLOCK + pair, mask=turns,
                  other=0.0)
    for first in range(0, OP[4], HEADS):
        head = first + tl.arange(0, HEADS)[:, None]
        inside = (head < OP[4]) & (element < DIM)[None, :]
        source = line + OP[2] * _BLOCK + head * DIM
        x = tl.load(source + element[None, :], mask=inside, other=0.0)
        y = tl.load(source + partner[None, :], mask=inside & turns[None, :], other=0.0)
        own, crossed = exact.mul(x, cos[None, :]), exact.mul(y, sin[None, :])
        turned = tl.where(second[None, :], exact.add(own, crossed), exact.sub(own, crossed))
        tl.debug_barrier()  # the target may be the source
        tl.store(line + OP[1] * _BLOCK + head * DIM + element[None, :],
                 tl.where(turns[None, :], turned, x), mask=inside)


@triton.jit
def _quantize(memory, row, SIZES: tl.constexpr, OP: tl.constexpr, TILE: tl.constexpr):
    """Operands: target, source, size, group, scale, group rounded up."""
    SIZE: tl.constexpr = OP[3]
    GROUP: tl.constexpr = OP[4]
    COUNT: tl.constexpr = max(1, TILE // OP[6])
    column = tl.arange(0, OP[6])[None, :]
    source = memory.vector + row * SIZES[0] + OP[2] * _BLOCK
    codes = memory.codes + row * SIZES[1] + OP[1] * _BLOCK
    scales = memory.code_scales + row * (SIZES[1] // _BLOCK) + OP[1]
    groups = (SIZE + GROUP - 1) // GROUP
    for first in range(0, groups, COUNT):
        group = first + tl.arange(0, COUNT)
        at = group[:, None] * GROUP + column
        x = tl.load(source + at, mask=(column < GROUP) & (at < SIZE), other=0.0)
        made, scale = exact.quantize(x, OP[5])
        tl.store(codes + at, made, mask=(column < GROUP) & (group < groups)[:, None])
        tl.store(scales + group * (GROUP // _BLOCK), scale, mask=group < groups)


@triton.jit
def _key(values, tokens):
    """Return 64 bits that are the larger the better: by value, then the lower token."""
    bits = values.to(tl.int32, bitcast=True)
    bits = tl.where(values == 0.0, 0, bits)
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)
    return (ordered << 32) | (0xFFFFFFFF - (tokens.to(tl.int64) & 0xFFFFFFFF))


@triton.jit
def _select_top(memory, first_token, row, SIZES: tl.constexpr, OP: tl.constexpr,
                TILE: tl.constexpr):
    """Operands: first token's place, source, size, limit, whether to forget what was kept."""
    slot = tl.arange(0, _TOP)
    best_values, best_tokens = memory.top_values + row * _TOP, memory.top_tokens + row * _TOP
    if OP[5]:
        values = tl.full((_TOP,), float("-inf"), tl.float32)
        tokens = tl.full((_TOP,), _NO_TOKEN, tl.int32)
    else:
        values, tokens = tl.load(best_values + slot), tl.load(best_tokens + slot)
    kept = _key(values, tokens)
    source = memory.vector + row * SIZES[0] + OP[2] * _BLOCK
    count = tl.minimum(OP[3] + 0, OP[4] - first_token)
    for start in range(0, OP[3], TILE):
        at = start + tl.arange(0, TILE)
        x = tl.load(source + at, mask=at < count, other=0.0)
        token = (first_token + at).to(tl.int32)
        keys = tl.where((at < count) & (x == x), _key(x, token), _NOTHING)
        best, worst = tl.max(keys, 0), tl.min(kept, 0)
        while best > worst:
            found = keys == best
            bits = tl.sum(tl.where(found, x.to(tl.int32, bitcast=True), 0), 0)
            out = slot == tl.min(tl.where(kept == worst, slot, _TOP), 0)
            value = (tl.zeros_like(slot) + bits).to(tl.float32, bitcast=True)
            values = tl.where(out, value, values)
            tokens = tl.where(out, tl.sum(tl.where(found, token, 0), 0), tokens)
            kept = tl.where(out, best, kept)
            keys = tl.where(found, _NOTHING, keys)
            best, worst = tl.max(keys, 0), tl.min(kept, 0)
    tl.debug_barrier()
    for place in tl.static_range(_TOP):
        best = tl.max(kept, 0)
        chosen = slot == tl.min(tl.where(kept == best, slot, _TOP), 0)
        bits = tl.sum(tl.where(chosen, values.to(tl.int32, bitcast=True), 0), 0)
        tl.store(best_values + place, bits.to(tl.float32, bitcast=True))
        tl.store(best_tokens + place, tl.sum(tl.where(chosen, tokens, 0), 0))
        kept = tl.where(chosen, _NOTHING, kept)


@triton.jit
def _read_step(memory, address, row):
    word = tl.arange(0, _HEADER_WORDS)
    source = memory.control + address // 4
    tl.store(memory.header + word, tl.load(source + word))
    column = tl.arange(0, _ROW_WORDS)
    tl.store(memory.rows + row * _ROW_WORDS + column,
             tl.load(source + _HEADER_WORDS + row * _ROW_WORDS + column))


@triton.jit
def _advance(memory, row):
    entry = memory.rows + row * _ROW_WORDS
    best = tl.load(memory.top_tokens + row * _TOP)
    position = tl.load(entry + POSITION)
    tl.debug_barrier()
    tl.store(entry + TOKEN, tl.where(best == _NO_TOKEN, 0, best))
    tl.store(entry + POSITION, position + 1)
    tl.store(entry + PLACE, _BY_POSITION)
