"""Zynq boards by PYNQ: an overlay, its registers, and contiguous memory.

Host and accelerator share the memory, but the accelerator's ports do not see the processor's
caches: what the host writes is flushed, and what it reads is invalidated first.
"""

from __future__ import annotations

import importlib
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from alula.boards.register import Entry, arguments, entries
from alula.compiler.program import Program
from alula.host.cards.link import (
    PAGE_BYTES,
    Answering,
    CardError,
    Found,
    Health,
    Limit,
    Value,
    first_line,
)
from alula.host.cards.lock import Lock, in_use
from alula.host.cards.place import PYNQ, Place
from alula.host.device import Report
from alula.hw.csr import Ctrl, Register

if TYPE_CHECKING:
    from alula.host.cards.bundles import Bundle
    from alula.host.cards.card import Card

MEMINFO = Path("/proc/meminfo")
THERMAL = Path("/sys/class/thermal")
_SPIN_SECONDS, _SLEEP_SECONDS = 0.0005, 0.0001  # looked at without a pause, and with


def missing() -> str:
    """Return why PYNQ cannot be loaded; an empty text if it can."""
    try:
        importlib.import_module("pynq")
    except Exception as error:  # what PYNQ needs of a board is missing in many ways
        return (f"pynq must be importable, not fail: {first_line(error)}; run Alula in the board's "
                "PYNQ environment")
    return ""


def probe(program: Program) -> str:
    """Return why no board can run a program here; an empty text if one may."""
    why = missing()
    if why:
        return why
    return "" if _present() else "a Zynq board must be there that PYNQ sees, not none"


def _present() -> bool:
    with suppress(Exception), _unwarned():  # how it says that there is none differs by version
        return bool(_pynq().Device.devices)
    return False


def open_device(program: Program, place: Place = Place(), *, limit: Limit = Limit(),
                report: Report | None = None) -> Card:
    """Return the board with a program on it; see :func:`alula.host.cards.alveo.open_device`."""
    why = probe(program)
    if why:
        raise CardError(why)
    if place.index:
        raise CardError(f"a board has one device, {PYNQ}:0, not {PYNQ}:{place.index}")
    from alula.host.cards.bundles import choose  # these load Amaranth
    from alula.host.cards.card import Card

    return Card(program, ZynqLink(choose(PYNQ, program, place.bundle)), limit=limit, report=report)


def found() -> list[Found]:
    """Return this board, if PYNQ runs here."""
    if missing() or not _present():
        return []
    device = _pynq().Device.active_device
    return [Found(PYNQ, str(getattr(device, "name", "")), "-", in_use(PYNQ), read_health())]


def _pynq() -> Any:
    return importlib.import_module("pynq")


@contextmanager
def _unwarned() -> Iterator[None]:
    """Let PYNQ not warn of what was only asked."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read_health() -> Health:
    """Return the logic's clock, the hottest sensor, and the power of the board's supply.

    PYNQ lists rails by name, which differ by board; the one with the most power is what feeds the
    others, or nearest to it.
    """
    clock = power = temperature = None
    with suppress(Exception):  # a board without such a clock, or without sensors
        clock = float(_pynq().Clocks.fclk0_mhz)
    with suppress(Exception), _unwarned():
        power = max(float(rail.power.value) for rail in _pynq().get_rails().values()
                    if rail.power is not None)
    with suppress(OSError, ValueError):
        temperature = max(int(path.read_text()) / 1000
                          for path in THERMAL.glob("thermal_zone*/temp"))
    return Health(clock, temperature, power)


class Buffer:
    """Contiguous memory. A slice of a PYNQ buffer is one, too, and is flushed by itself.

    The ``size`` bytes begin at the first multiple of ``aligned``.
    """

    def __init__(self, array: Any, size: int, aligned: int) -> None:
        self.array, self.size = array, size
        self._skip = -int(array.device_address) % aligned

    @property
    def address(self) -> int:
        return int(self.array.device_address) + self._skip

    def write(self, start: int, data: NDArray[np.uint8]) -> None:
        with Answering(PYNQ):
            part = self._part(start, data.size)
            part[:] = data
            part.flush()

    def read(self, start: int, size: int) -> NDArray[np.uint8]:
        with Answering(PYNQ):
            part = self._part(start, size)
            part.invalidate()
            return np.array(part, np.uint8, copy=True, subok=False)

    def _part(self, start: int, size: int) -> Any:
        return self.array[self._skip + start:self._skip + start + size]


class ZynqLink:
    """A board, its logic programmed with a bundle's overlay.

    Raises
    ------
    CardError
        If the board is another process's, or its logic is not what the bundle says.
    """

    name = PYNQ

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        arch = bundle.manifest.arch
        self.arguments, self._entries = arguments(arch), entries(arch)
        self._given: dict[str, Value] = {}
        self._buffers: list[Any] = []
        described = bundle.bitstream.with_suffix(".hwh")
        if not described.is_file():
            raise CardError(f"{described} must be beside {bundle.bitstream.name}; copy the bundle "
                            "again")
        self._lock = Lock(self.name, PYNQ)
        try:
            self._program()
        except BaseException:
            self.close()
            raise

    def _program(self) -> None:
        from alula.boards.kernel_xml import VLNV

        pynq = _pynq()
        kind = VLNV.rpartition(":")[0]
        with Answering(PYNQ):
            self.overlay = pynq.Overlay(str(self.bundle.bitstream.resolve()))
            blocks = [block for block in self.overlay.ip_dict.values()
                      if str(block.get("type", "")).startswith(kind)]
            if not blocks:
                raise CardError(f"{self.bundle.bitstream.name} must have a block of type {kind}, "
                                "not none; build the bundle again")
            self.registers_at = pynq.MMIO(blocks[0]["phys_addr"], blocks[0]["addr_range"])
            self._check_hardware()

    def _check_hardware(self) -> None:
        """Compare what the logic says of itself with the manifest."""
        arch = self.bundle.manifest.arch
        found = f"{self._read(Register.HASH, 64):016x}"
        if found != arch.hash:
            raise CardError(f"the logic's architecture must be {arch.hash}, as the bundle's "
                            f"({arch.name}, {arch.lanes} lanes), not {found}; load the bundle that "
                            "belongs to the bitstream")

    def check_room(self, wanted: Mapping[str, int]) -> None:
        """Compare the sum with Linux's free contiguous memory: all ports lead there."""
        room = contiguous_bytes()
        if room is not None and sum(wanted.values()) > room:
            raise CardError(f"contiguous memory must have {sum(wanted.values()):,} bytes free for "
                            f"this program, not {room:,}; compile with a smaller --context, or "
                            "give the kernel a larger cma=")

    def allocate(self, bus: str, size: int, aligned: int = PAGE_BYTES) -> Buffer:
        try:
            array = _pynq().allocate((size + aligned - PAGE_BYTES,), np.uint8)
        except Exception as error:
            raise CardError(f"contiguous memory must have {size:,} bytes in one piece for {bus}, "
                            f"not fewer: {first_line(error)}; give the kernel a larger cma=") \
                from error
        self._buffers.append(array)
        return Buffer(array, size, aligned)

    def start(self, arguments: Mapping[str, Value]) -> None:
        for entry in self.arguments:
            value = arguments[entry.name]
            if self._given.get(entry.name) != value:
                self.write_register(entry, value)
                self._given[entry.name] = value
        self._write(Register.CTRL, 32, 1 << Ctrl.START)

    def wait(self, seconds: float) -> bool:
        """Look until the run is done; an interrupt would cost more than a run of a small model."""
        begun = time.monotonic()
        while not self._read(Register.CTRL, 32) >> Ctrl.DONE & 1:
            waited = time.monotonic() - begun
            if waited > seconds:
                return False
            if waited > _SPIN_SECONDS:
                time.sleep(_SLEEP_SECONDS)
        self._write(Register.CTRL, 32, 1 << Ctrl.CONTINUE)
        return True

    def write_register(self, entry: Entry, value: Value) -> None:
        """Write an argument; the next run has the one that :meth:`start` is given again."""
        self._given.pop(entry.name, None)
        number = value if isinstance(value, int) else cast(Buffer, value).address
        if not 0 <= number < 1 << entry.bits:
            raise CardError(f"argument {entry.name} must be below 2**{entry.bits}, not {number}")
        self._write(entry.offset, entry.bits, number)

    def read_register(self, entry: Entry) -> int:
        return self._read(entry.offset, entry.bits)

    def _write(self, offset: int, bits: int, number: int) -> None:
        """Write a register by words; PYNQ takes Python's own integers only."""
        with Answering(PYNQ):
            for at in range(bits // 32):
                self.registers_at.write(int(offset) + 4 * at, number >> 32 * at & 0xFFFF_FFFF)

    def _read(self, offset: int, bits: int) -> int:
        """Read a register by words: a bus of 32 bits has no longer ones."""
        with Answering(PYNQ):
            return sum(self.registers_at.read(int(offset) + 4 * at) << 32 * at
                       for at in range(bits // 32))

    def registers(self) -> dict[str, int]:
        return {entry.name: self.read_register(entry)
                for entry in self._entries if entry.readable_only}

    def health(self) -> Health:
        return read_health()

    def reset(self) -> None:
        """Program the logic again; its bus may still owe answers, which only a reboot forgets."""
        self._given = {}
        with Answering(PYNQ):
            self.overlay.download()

    def close(self) -> None:
        self._given = {}
        for array in self._buffers:
            with suppress(Exception):
                array.freebuffer()
        self._buffers = []
        self._lock.close()


def contiguous_bytes() -> int | None:
    """Return how much contiguous memory Linux has free; None if it does not say."""
    with suppress(OSError, ValueError):
        for line in MEMINFO.read_text().splitlines():
            if line.startswith("CmaFree:"):
                return 1024 * int(line.split()[1])
    return None
