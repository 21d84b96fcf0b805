"""The GPU as a device: Triton kernels that give the golden model's bits.

What needs torch and triton is loaded when a device is opened. Where ``TRITON_INTERPRET=1`` was in
the environment before, the kernels are interpreted on the processor: slow, and the same bits.
"""

from __future__ import annotations

import ctypes
import os
from importlib.util import find_spec
from typing import Any

from alula.compiler.program import Program

_REMEDY = "install them with `pip install alula[gpu]`"


class NoGpu(OSError):
    """No GPU can run a program here."""


def probe(program: Program) -> str:
    """Return why no GPU can run a program here; an empty text if one can."""
    why = _missing()
    if why:
        return why
    try:
        ctypes.CDLL("libcuda.so.1")  # before torch, which takes seconds to load
    except OSError:
        return "a CUDA GPU must be there, not a machine without NVIDIA's driver"
    import torch

    if torch.cuda.is_available():
        return ""
    return "a CUDA GPU must be there that torch can use, not none"


def _missing() -> str:
    missing = [name for name in ("torch", "triton") if find_spec(name) is None]
    if not missing:
        return ""
    return f"torch and triton must be installed, not without {' and '.join(missing)}; {_REMEDY}"


def interpreted() -> bool:
    """Return whether Triton's kernels are interpreted on the processor."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on")


def open_device(program: Program) -> Any:
    """Return the GPU, the program loaded; raise :class:`NoGpu` if there is none."""
    why = _missing() if interpreted() else probe(program)
    if why:
        raise NoGpu(why)
    from alula.host.gpu.device import GpuDevice

    return GpuDevice(program)
