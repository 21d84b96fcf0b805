"""Compilation of kernels: by numba, once for a machine, kept in the user's cache folder."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import numba
import platformdirs

_TBB = ("libtbb.so.12", "tbb12.dll")


def _choose_threads() -> None:
    """Have numba use TBB, whose calls end when the work is done.

    OpenMP's wait for every thread to have been there, which takes a time slice of 8 ms wherever
    other processes keep a core busy; numba's own take 50 us a call.
    """
    with contextlib.suppress(PackageNotFoundError, OSError):
        for file in files("tbb") or ():
            if file.name in _TBB:  # numba looks for it by name: then it is there
                ctypes.CDLL(str(file.locate()), mode=ctypes.RTLD_GLOBAL)
                break
    if numba.config.THREADING_LAYER == "default":
        numba.config.THREADING_LAYER_PRIORITY = ["tbb", "workqueue", "omp"]


_choose_threads()


@cache
def cache_folder() -> Path:
    """Return where compiled kernels are kept: another folder when any source of them changes."""
    digest = hashlib.sha256(numba.__version__.encode())
    folder = Path(__file__).parent
    for source in [*sorted(folder.glob("*.py")), folder.parents[1] / "hw" / "numerics.py"]:
        digest.update(source.read_bytes() if source.exists() else b"")
    root = platformdirs.user_cache_path("alula", appauthor=False) / "cpu"
    return root / digest.hexdigest()[:16]


def compiled(function: Callable[..., Any], **options: Any) -> Any:
    """Compile a function: no fused or reordered arithmetic, division as IEEE has it."""
    dispatcher = numba.njit(function, fastmath=False, error_model="numpy", nogil=True, **options)
    before = numba.config.CACHE_DIR
    try:
        numba.config.CACHE_DIR = str(cache_folder())
        dispatcher.enable_caching()
    finally:
        numba.config.CACHE_DIR = before
    return dispatcher


def inlined(function: Callable[..., Any]) -> Any:
    """Compile a function that only compiled functions call; it is kept with them."""
    return numba.njit(function, fastmath=False, error_model="numpy", nogil=True, forceinline=True)
