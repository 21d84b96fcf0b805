"""What the machine has: versions, compilers, devices, and what each is needed for."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

from alula.host.cards import alveo
from alula.host.cards.found import cards_here, describe
from alula.sim.rtl.build import compiler


def examine() -> list[dict[str, str]]:
    """Return one finding each: its name, what was found, and what it is needed for."""
    found = [
        ("Python", platform.python_version(), "3.11 or newer runs Alula"),
        ("machine", f"{platform.machine()}, {os.cpu_count()} cores", "packing, golden model"),
    ]
    for package, purpose in (
            ("numpy", "everything"), ("onnx", "reading models"), ("tokenizers", "text"),
            ("jinja2", "chat templates"),
            ("onnxruntime", "alula eval --reference; extra [dev]"),
            ("starlette", "alula serve; extra [serve]"),
            ("numba", "CPU device"), ("tbb", "its threads"),
            ("torch", "GPU device; extra [gpu]"), ("triton", "GPU device; extra [gpu]"),
            ("pynq", "Zynq boards; extra [pynq]")):
        found.append((package, _version(package), purpose))
    found.append(("pyxrt", alveo.missing() or "found",
                  "Alveo boards; comes with XRT, for one Python version"))
    found += [(card.name, describe(card), "runs programs") for card in cards_here()]
    command = compiler()
    found.append(("C++ compiler", " ".join(command) if command else "not found; install g++, or "
                  "`pip install ziglang`", "RTL simulation"))
    return [{"name": name, "found": what, "purpose": purpose} for name, what, purpose in found]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"

