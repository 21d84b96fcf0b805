"""The vector unit's instructions as compiled loops over a step's rows.

Buffers are whole, ``(rows, elements)``; places are in blocks of sixteen elements, as instructions
have them. ``count`` is the rows of the step.
"""

from __future__ import annotations

import numpy as np

from alula.host.cpu.compiled import compiled
from alula.host.cpu.functions import (
    add,
    bits_of,
    canonical,
    div,
    gelu,
    gelu_tanh,
    mul,
    number_of,
    reciprocal,
    relu,
    round_to_int,
    rsqrt,
    silu,
    sub,
)
from alula.hw import numerics
from alula.hw.isa import BLOCK, Elementwise, Format, Function

_ADD, _MUL = int(Elementwise.ADD), int(Elementwise.MUL)
_SILU, _GELU, _GELU_TANH = int(Function.SILU), int(Function.GELU), int(Function.GELU_TANH)
_F32, _F16, _Q4 = int(Format.F32), int(Format.F16), int(Format.Q4)
_MAGNITUDE = np.uint32(0x7FFF_FFFF)
_CODE_MAX, _CODE_MIN = np.float32(numerics.CODE_MAX), np.float32(-numerics.CODE_MAX)
_ZERO = np.float32(0)
_PARTIALS = numerics.PARTIALS


@compiled
def load_params(data, target, out):
    """Copy fp32 numbers, flushed, to the parameter buffer from a block on."""
    for at in range(data.size):
        out[BLOCK * target + at] = canonical(data[at])


@compiled
def reduce_sum(x):
    """Sum numbers in the contract's order."""
    partials = np.zeros(_PARTIALS, np.float32)
    whole = x.size // _PARTIALS * _PARTIALS
    for first in range(0, whole, _PARTIALS):
        for at in range(_PARTIALS):
            partials[at] = add(partials[at], x[first + at])
    for at in range(x.size - whole):
        partials[at] = add(partials[at], x[whole + at])
    half = _PARTIALS // 2
    while half:
        for at in range(half):
            partials[at] = add(partials[at], partials[half + at])
        half //= 2
    return partials[0]


@compiled
def rms_norm(vectors, params, count, target, source, gamma, size, parts, eps):
    inverse_count = reciprocal(np.float32(size))
    squares = np.empty(size, np.float32)
    weights = params[BLOCK * gamma:BLOCK * gamma + size]
    for row in range(count):
        for part in range(parts):
            x = vectors[row, BLOCK * source + part * size:BLOCK * source + (part + 1) * size]
            out = vectors[row, BLOCK * target + part * size:BLOCK * target + (part + 1) * size]
            for at in range(size):
                squares[at] = mul(x[at], x[at])
            factor = rsqrt(add(mul(reduce_sum(squares), inverse_count), eps))
            for at in range(size):
                out[at] = mul(mul(x[at], factor), weights[at])


@compiled
def combine(vectors, params, count, target, source, other, shared, size, function):
    for row in range(count):
        a = vectors[row, BLOCK * source:BLOCK * source + size]
        b = (params[BLOCK * other:BLOCK * other + size] if shared
             else vectors[row, BLOCK * other:BLOCK * other + size])
        out = vectors[row, BLOCK * target:BLOCK * target + size]
        if function == _ADD:
            for at in range(size):
                out[at] = add(a[at], b[at])
        elif function == _MUL:
            for at in range(size):
                out[at] = mul(a[at], b[at])
        else:
            for at in range(size):
                out[at] = a[at]


@compiled
def activate(vectors, count, target, source, other, gated, size, function):
    for row in range(count):
        x = vectors[row, BLOCK * source:BLOCK * source + size]
        gate = vectors[row, BLOCK * other:BLOCK * other + size]
        out = vectors[row, BLOCK * target:BLOCK * target + size]
        made = np.empty(size, np.float32)
        if function == _SILU:
            for at in range(size):
                made[at] = silu(x[at])
        elif function == _GELU:
            for at in range(size):
                made[at] = gelu(x[at])
        elif function == _GELU_TANH:
            for at in range(size):
                made[at] = gelu_tanh(x[at])
        else:
            for at in range(size):
                made[at] = relu(x[at])
        if gated:
            for at in range(size):
                out[at] = mul(made[at], gate[at])
        else:
            out[:] = made


@compiled
def rotate(vectors, count, target, source, cos, heads, head_dim, rotary_dim, interleaved):
    half = rotary_dim // 2
    sin = BLOCK * (cos + (half + BLOCK - 1) // BLOCK)
    step, apart = (2, 1) if interleaved else (1, half)
    for row in range(count):
        c, s = vectors[row, BLOCK * cos:BLOCK * cos + half], vectors[row, sin:sin + half]
        for head in range(heads):
            x = vectors[row, BLOCK * source + head * head_dim:]
            out = vectors[row, BLOCK * target + head * head_dim:]
            for at in range(half):
                a, b = x[step * at], x[step * at + apart]
                out[step * at] = sub(mul(a, c[at]), mul(b, s[at]))
                out[step * at + apart] = add(mul(b, c[at]), mul(a, s[at]))
            for at in range(2 * half, head_dim):
                out[at] = x[at]


@compiled
def quantize(vectors, codes, scales, count, target, source, size, group, scale):
    """Quantize groups; codes past ``size``, up to a whole group, are 0."""
    for row in range(count):
        for first in range(0, size, group):
            length = min(group, size - first)
            x = vectors[row, BLOCK * source + first:BLOCK * source + first + length]
            out = codes[row, BLOCK * target + first:BLOCK * target + first + group]
            most = np.uint32(0)
            for at in range(length):
                most = max(most, bits_of(x[at]) & _MAGNITUDE)
            peak = canonical(number_of(most))
            inverse = _ZERO if peak == _ZERO else div(_CODE_MAX, peak)
            for at in range(length):
                out[at] = np.int8(round_to_int(mul(x[at], inverse), _CODE_MIN, _CODE_MAX))
            for at in range(length, group):
                out[at] = 0
            scales[row, target + first // BLOCK] = mul(div(peak, _CODE_MAX), scale)


@compiled
def select_top(vectors, count, source, size, first, values, tokens):
    """Merge logits of tokens from ``first`` on into each row's best, the best first."""
    kept = values.shape[1]
    for row in range(count):
        x = vectors[row, BLOCK * source:BLOCK * source + size]
        best, names = values[row], tokens[row]
        for at in range(size):
            value = x[at]
            if value < best[kept - 1] or value != value:
                continue
            token = np.uint32(first + at)
            place = kept
            while place and (value > best[place - 1]
                             or value == best[place - 1] and token < names[place - 1]):
                place -= 1
            for later in range(kept - 1, place, -1):
                best[later], names[later] = best[later - 1], names[later - 1]
            if place < kept:
                best[place], names[place] = value, token
