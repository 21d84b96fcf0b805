"""How fast this machine's memory can be read."""

from __future__ import annotations

import time

import numpy as np
from numba import prange

from alula.host.cpu.compiled import compiled

_BYTES = 512 << 20  # past every cache
_PIECE = 1 << 17


def _read(words):  # type: ignore[no-untyped-def]
    totals = np.zeros(words.shape[0], np.int64)
    for piece in prange(words.shape[0]):
        part = 0
        for at in range(words.shape[1]):
            part += words[piece, at]
        totals[piece] = part
    return totals


_read_all = compiled(_read, parallel=True)


def read_bandwidth(repeats: int = 10) -> float:
    """Return the bytes a second that all threads together read of memory; the best of some runs."""
    words = np.ones((_BYTES // _PIECE, _PIECE // 8), np.int64)
    _read_all(words[:0])
    best = 0.0
    for _ in range(repeats):
        begun = time.perf_counter()
        _read_all(words)
        best = max(best, _BYTES / (time.perf_counter() - begun))
    return best
