"""The Verilated accelerator with its memories, as Python sees it; nothing here runs every clock."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alula.hw import csr
from alula.hw.arch import ArchConfig
from alula.hw.csr import Ctrl, Error, Register
from alula.hw.isa import WORD_BYTES
from alula.sim.memory import MemoryModel

BASE = 0x10_0000_0000  # of the memories, apart from each other: as far as a card's may be
APART = 0x10_0000_0000
# What a lane's port does in a clock: carries a beat, waits for the memory, or for what the queue
# named works on; ``control`` is what no queue runs for.
REASONS = ("beat", "memory", "control", "load", "store", "products", "attention", "vector")
EVENT = np.dtype([("clock", "<u8"), ("queue", "<u4"), ("index", "<u4"), ("begins", "<u4"),
                  ("", "<u4")])
_SLICE = 200_000  # clocks between two looks at whether someone wants to stop


class RunError(RuntimeError):
    """A run ended with an error; its cause and instruction are in the message."""

    def __init__(self, error: Error, index: int) -> None:
        self.error, self.index = error, index
        super().__init__(f"the accelerator must end its run without an error, not with "
                         f"{error.name} at instruction {index}")


class Accelerator:
    """An accelerator out of reset, as its pins show it: registers, and memories behind ports.

    Port 0 is the control memory's; lane ``i`` is port ``i + 1``. Time passes in :meth:`wait`, and
    while a register is read or written.
    """

    def __init__(self, library: Path, arch: ArchConfig) -> None:
        self.arch = arch
        self._library = ctypes.CDLL(str(library))
        self._functions: dict[str, Any] = {}
        for name, result, arguments in (
                ("new", ctypes.c_void_p, ()), ("delete", None, ()),
                ("region", None, (ctypes.c_uint32, ctypes.c_uint64, ctypes.c_uint64,
                                  ctypes.c_void_p, ctypes.c_int)),
                ("deny", None, (ctypes.c_uint32, ctypes.c_uint64, ctypes.c_uint64)),
                ("timing", None, (ctypes.c_uint32,) * 5),
                ("stripe", None, (ctypes.c_uint32,) * 2),
                ("write_register", None, (ctypes.c_uint32, ctypes.c_uint32)),
                ("read_register", ctypes.c_uint32, (ctypes.c_uint32,)),
                ("wait", ctypes.c_int, (ctypes.c_uint64,)),
                ("clocks", ctypes.c_uint64, ()),
                ("dram", None, (ctypes.c_uint32,) * 3 + (ctypes.c_void_p,)),
                ("watch", None, (ctypes.c_int,)),
                ("events", ctypes.c_uint64, (ctypes.c_void_p,)),
                ("reasons", ctypes.c_void_p, ()),
                ("read_beats", ctypes.c_uint64, (ctypes.c_uint32,)),
                ("written_beats", ctypes.c_uint64, (ctypes.c_uint32,)),
                ("trace", ctypes.c_int, (ctypes.c_char_p, ctypes.c_uint64, ctypes.c_uint64))):
            function = getattr(self._library, f"alula_{name}")
            function.restype = result
            function.argtypes = (*(() if name == "new" else (ctypes.c_void_p,)), *arguments)
            self._functions[name] = function
        self._machine = ctypes.c_void_p(self._functions["new"]())
        self._kept: list[NDArray[np.uint8]] = []  # memories must outlive the machine

    def __del__(self) -> None:
        if getattr(self, "_machine", None):
            self._call("delete")

    def _call(self, name: str, *arguments: object) -> Any:
        return self._functions[name](self._machine, *arguments)

    def attach(self, port: int, start: int, data: NDArray[np.uint8], *, writable: bool) -> None:
        """Put bytes at an address of a port's memory; what is nowhere answers with an error."""
        assert data.dtype == np.uint8 and data.flags.c_contiguous
        self._kept.append(data)
        self._call("region", port, start, data.size, data.ctypes.data, int(writable))

    def deny(self, port: int, start: int, size: int) -> None:
        """Let some addresses of a port answer with errors; a size of 0 ends it."""
        self._call("deny", port, start, size)

    def stripe(self, port: int, ports: int) -> None:
        """Let a port find its beats as so many narrower ones do. Ref: :mod:`alula.hw.stripe`."""
        self._call("stripe", port, ports)

    def timing(self, port: int, latency: int, bandwidth: float, stall: float = 0.0,
               seed: int = 0) -> None:
        """Set how a port's memory answers; with a bandwidth of 0, not at all."""
        self._call("timing", port, latency, round(1024 * bandwidth), round(65536 * stall), seed)

    def write_register(self, offset: int, value: int) -> None:
        self._call("write_register", offset, value)

    def read_register(self, offset: int) -> int:
        return int(self._call("read_register", offset))

    def wait(self, clocks: int) -> bool:
        """Run until the interrupt, for at most some clocks; return whether it came."""
        return bool(self._call("wait", clocks))

    @property
    def clocks(self) -> int:
        return int(self._call("clocks"))

    def beats_read(self, port: int) -> int:
        return int(self._call("read_beats", port))


class Simulation(Accelerator):
    """An accelerator with a host of its own, which runs programs one after another.

    ``patience`` is the most clocks that a run may take, watchdog or not; there is no limit if it
    is None.
    """

    patience: int | None = None

    def __init__(self, library: Path, arch: ArchConfig) -> None:
        super().__init__(library, arch)
        self.status = np.zeros(1, csr.STATUS)
        self.attach(0, BASE - APART, self.status.view(np.uint8), writable=True)
        self._write64(Register.STATUS, BASE - APART)
        self.write_register(Register.GIE, 1)
        self.write_register(Register.IER, 1)

    def set_memory(self, model: MemoryModel) -> None:
        for port in range(1 + self.arch.lanes):
            self.timing(port, model.latency, model.bandwidth, model.stall, model.seed)
            if model.dram is not None:
                values = model.dram.values(self.arch.clock_hz)
                self._call("dram", port, 0 if self.arch.one_memory else port,
                           self.arch.lane_ports if port else 1, values.ctypes.data)

    def _write64(self, offset: int, value: int) -> None:
        self.write_register(offset, value & 0xFFFF_FFFF)
        self.write_register(offset + 4, value >> 32)

    def load(self, control: int, lanes: list[int], program: int, instructions: int) -> None:
        """Tell the accelerator where its memories and its program are; all byte addresses."""
        self._write64(Register.CONTROL, control)
        for at, start in enumerate(lanes):
            self._write64(Register.LANE + 8 * at, start)
        self.write_register(Register.PROGRAM, program // WORD_BYTES)
        self.write_register(Register.INSTRUCTIONS, instructions)

    def run(self, watchdog: int = 0) -> int:
        """Run the program once, and return its clocks; raise :class:`RunError`."""
        self.write_register(Register.WATCHDOG, watchdog)
        self.write_register(Register.CTRL, 1 << Ctrl.START)
        begun = self.clocks
        while not self.wait(_SLICE):
            if self.patience is not None and self.clocks - begun > self.patience:
                raise TimeoutError(f"a run must end within {self.patience} clocks")
        self.write_register(Register.ISR, 1)
        self.write_register(Register.CTRL, 1 << Ctrl.CONTINUE)
        status = self.status[0]
        if status["magic"] != csr.STATUS_MAGIC:
            raise RuntimeError("the accelerator wrote no status record")
        if status["error"]:
            raise RunError(Error(int(status["error"])), int(status["index"]))
        return int(status["cycles"])

    def watch(self, on: bool) -> None:
        """Begin to note what units and lanes do, forgetting what was noted before; or stop."""
        self._call("watch", int(on))

    def events(self) -> NDArray[np.void]:
        """Return when units' instructions began and ended, as :data:`EVENT`, in order."""
        start = ctypes.c_void_p()
        count = self._call("events", ctypes.byref(start))
        return self._copied(start.value, count * EVENT.itemsize).view(EVENT)

    def reasons(self) -> NDArray[np.uint64]:
        """Return the clocks of each lane by :data:`REASONS`, ``(lanes, reasons)``."""
        size = 8 * self.arch.lanes * len(REASONS)
        raw = self._copied(self._call("reasons"), size)
        return raw.view(np.uint64).reshape(self.arch.lanes, len(REASONS))

    @staticmethod
    def _copied(start: int | None, size: int) -> NDArray[np.uint8]:
        return np.frombuffer(ctypes.string_at(start or 0, size) if size else b"", np.uint8)

    def trace(self, path: Path, start: int, clocks: int) -> None:
        """Write what happens from a clock on to an FST file; needs a build with tracing."""
        if not self._call("trace", str(path).encode(), start, clocks):
            raise OSError(f"{path} must be a file that can be written, in a build with tracing")
