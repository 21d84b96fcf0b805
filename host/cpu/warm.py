"""Compile, or read from the cache, every kernel that a program can need, before it is needed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from alula.host.cpu import attention, linear, vector, weights
from alula.host.cpu.machine import CpuMachine, kernel
from alula.hw import numerics

_ONE = np.float32(1)


def kernels(machine: CpuMachine, widths: set[int]) -> list[Callable[[], object]]:
    """Return calls that do nothing: each of a kernel, with the machine's buffers but no rows.

    ``widths`` are those of the program's codes, in bits.
    """
    m, floats = machine, np.zeros(0, np.float32)
    floats.flags.writeable = False
    none, places = np.zeros(0, np.int64), np.zeros((0, numerics.PAGE_CLASSES, 2), np.int64)
    calls: list[Callable[[], object]] = [
        weights.load_kernels,
        lambda: vector.load_params(floats, 0, m.params),
        lambda: vector.rms_norm(m.vector, m.params, 0, 0, 0, 0, 16, 1, _ONE),
        lambda: vector.combine(m.vector, m.params, 0, 0, 0, 0, 0, 16, 0),
        lambda: vector.activate(m.vector, 0, 0, 0, 0, 0, 16, 0),
        lambda: vector.rotate(m.vector, 0, 0, 0, 0, 1, 32, 32, 0),
        lambda: vector.quantize(m.vector, m.codes, m.code_scales, 0, 0, 0, 16, 16, _ONE),
        lambda: vector.select_top(m.vector, 0, 0, 0, 0, m.top_values, m.top_tokens),
        lambda: attention.store_key_value(m.cache_array, none, none, none, places, 0, m.codes,
                                          m.code_scales, 0, 0, 16),
        lambda: attention.attend(m.cache_array, none, 0, 0, places, 0, m.vector, m.codes,
                                 m.code_scales, 0, np.zeros((0, 0), np.int32), none,
                                 np.zeros((0, 0), np.int64), 0, 0, 0, 0, 1, 1, 16, 0)]
    for bits in sorted(widths):
        for rows in linear.ROWS:
            if rows == 1 or rows < 2 * m.arch.rows:
                calls.append(lambda bits=bits, rows=rows: _product(m, bits, rows))  # type: ignore[misc]
    return calls


def _product(m: CpuMachine, bits: int, rows: int) -> None:
    codes, none = np.zeros(0, np.uint8), np.zeros((0, 0), np.int32)
    kernel(bool(m.fast), bits, rows)(
        np.zeros((0, 1), np.uint32), np.zeros((0, 2), np.int64), codes, codes, 0, 1, m.codes,
        m.code_words, m.code_scales, 0, none, np.zeros((0, 0), np.float32), none, m.vector[:0], 0)
