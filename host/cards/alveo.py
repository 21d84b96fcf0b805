"""Alveo cards by XRT's Python binding, as of XRT 2.14 to 2.23: what is there is asked for.

XRT writes the registers itself, from the kernel's arguments, and a host cannot read them: all that
is known of a run is its status record. Ref: XRT, ``src/python/pybind11/src/pyxrt.cpp``.
"""

from __future__ import annotations

import importlib
import json
import logging
import math
import operator
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from alula.boards.register import arguments
from alula.compiler.program import Program
from alula.host.cards.link import (
    PAGE_BYTES,
    SCALAR_LIMIT,
    Answering,
    CardError,
    Found,
    Health,
    Limit,
    Value,
    first_line,
)
from alula.host.cards.lock import Lock, in_use
from alula.host.cards.place import ALVEO, Place
from alula.host.device import Report

if TYPE_CHECKING:
    from alula.host.cards.bundles import Bundle
    from alula.host.cards.card import Card

LOG = logging.getLogger("alula")
RESET_COMMANDS = ("xrt-smi", "xbutil")  # the second is what XRT before 2.18 calls it
RESET_SECONDS = 120
WAIT_MS = 2
_INSTALLED = Path("/opt/xilinx/xrt/python")  # where XRT puts the binding


def missing() -> str:
    """Return why XRT's binding cannot be loaded; an empty text if it can."""
    try:
        importlib.import_module("pyxrt")
    except Exception as error:  # a binding for another system fails in many ways
        mine = f"{sys.version_info.major}.{sys.version_info.minor}"
        built = _built_for()
        if built and mine not in built:
            return (f"pyxrt must be built for Python {mine}, which runs Alula, not for "
                    f"{' and '.join(built)}; run Alula with Python {built[0]}, or build XRT for "
                    "this one")
        if built:
            return f"pyxrt must load, not fail: {first_line(error)}"
        return "pyxrt must be importable, not absent; install XRT and source its setup.sh"
    return ""


def _built_for() -> list[str]:
    """Return the Python versions that the bindings on this machine were built for."""
    folders = [*map(Path, sys.path), _INSTALLED]
    names = [path.name for folder in folders if folder.is_dir()
             for path in folder.glob("pyxrt*.so")]
    found = [re.search(r"cpython-(\d)(\d+)", name) for name in names]
    return sorted({f"{match[1]}.{match[2]}" for match in found if match})


def probe(program: Program) -> str:
    """Return why no card can run a program here; an empty text if one may."""
    why = missing()
    if why:
        return why
    return "" if _count() else "an Alveo card must be there that XRT sees, not none"


def open_device(program: Program, place: Place = Place(), *, limit: Limit = Limit(),
                report: Report | None = None) -> Card:
    """Return a card with a program on it.

    Parameters
    ----------
    place
        Which card and bundle; any that is free and fits, where it does not say.

    Raises
    ------
    CardError, ManifestError
        If there is none, or it does not take the bundle.
    """
    why = probe(program)
    if why:
        raise CardError(why)
    from alula.host.cards.bundles import choose  # these load Amaranth
    from alula.host.cards.card import Card

    bundle = choose(ALVEO, program, place.bundle)
    return Card(program, _open(bundle, place.index), limit=limit, report=report)


def _open(bundle: Bundle, index: int | None) -> AlveoLink:
    if index is not None:
        return AlveoLink(bundle, index)
    problems = []
    for candidate in range(_count()):
        try:
            return AlveoLink(bundle, candidate)
        except CardError as error:
            problems.append(str(error))
    raise CardError("; ".join(problems))


def found() -> list[Found]:
    """Return the cards of this machine that answer; none where XRT is not there."""
    if missing():
        return []
    pyxrt, cards, count = _pyxrt(), [], 0
    with suppress(CardError):
        count = _count()
    for index in range(count):
        with suppress(CardError), Answering(_named(index)):
            card = pyxrt.device(index)
            address = _info(card, "bdf")
            cards.append(Found(_named(index), _info(card, "name"), address, in_use(address),
                               read_health(card)))
    return cards


def _named(index: int) -> str:
    return f"{ALVEO}:{index}"


def _pyxrt() -> Any:
    return importlib.import_module("pyxrt")


def _count() -> int:
    with Answering("XRT"):
        return int(_pyxrt().enumerate_devices())


def _info(card: Any, key: str) -> str:
    return str(card.get_info(getattr(_pyxrt().xrt_info_device, key)))


def read_health(card: Any) -> Health:
    """Return what a card's sensors say; XRT gives JSON, whose fields differ by platform."""
    return Health(clock_mhz=_first(_json(card, "platform"), "freq_mhz"),
                  temperature_c=_first(_json(card, "thermal"), "temp_C"),
                  power_w=_first(_json(card, "electrical"), "power_consumption_watts"))


def _json(card: Any, key: str) -> Any:
    try:
        return json.loads(_info(card, key))
    except Exception:  # a platform that does not measure it says so in many ways
        return None


def _first(tree: Any, key: str) -> float | None:
    """Return the first number of a name, anywhere in a JSON tree."""
    if isinstance(tree, dict) and key in tree:
        with suppress(TypeError, ValueError):
            return float(tree[key])
    children = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return next((value for child in children if (value := _first(child, key)) is not None), None)


class Buffer:
    """A buffer object: memory on the card, and its like on the host."""

    def __init__(self, name: str, bo: Any, size: int) -> None:
        self.name, self.bo, self.size = name, bo, size
        way = _pyxrt().xclBOSyncDirection
        self._to, self._from = way.XCL_BO_SYNC_BO_TO_DEVICE, way.XCL_BO_SYNC_BO_FROM_DEVICE

    def write(self, start: int, data: NDArray[np.uint8]) -> None:
        with Answering(self.name):
            self.bo.write(np.ascontiguousarray(data), start)
            self.bo.sync(self._to, data.size, start)

    def read(self, start: int, size: int) -> NDArray[np.uint8]:
        with Answering(self.name):
            self.bo.sync(self._from, size, start)
            return np.asarray(self.bo.read(size, start)).view(np.uint8)


class AlveoLink:
    """A card, programmed with a bundle's ``.xclbin``.

    Raises
    ------
    CardError
        If the card is another process's, another board, or does not take the file.
    """

    def __init__(self, bundle: Bundle, index: int) -> None:
        self.name, self.bundle = _named(index), bundle
        self._lock: Lock | None = None
        self._buffers: list[Buffer] = []
        count = _count()
        if not 0 <= index < count:
            raise CardError(f"{self.name} must be one of {count} cards, counted from 0")
        pyxrt = _pyxrt()
        with Answering(self.name):
            self.card = pyxrt.device(index)
            self.address, platform = _info(self.card, "bdf"), _info(self.card, "name")
        board = bundle.manifest.board
        if f"_{board}_" not in platform:
            raise CardError(f"{self.name} must be a {board}, as the bundle's, not {platform}")
        self._lock = Lock(self.name, self.address)
        try:
            self._program()
        except BaseException:
            self.close()
            raise

    def _program(self) -> None:
        """Load the bitstream, in the form that this XRT has."""
        from alula.boards.board import NAME

        pyxrt = _pyxrt()
        with Answering(self.name):
            self.xclbin = pyxrt.xclbin(str(self.bundle.bitstream))
            if hasattr(pyxrt, "hw_context"):
                uuid = self.card.register_xclbin(self.xclbin)
                self._context = pyxrt.hw_context(self.card, uuid)
                self.kernel = pyxrt.kernel(self._context, NAME)
            else:
                uuid = self.card.load_xclbin(self.xclbin)
                self.kernel = pyxrt.kernel(self.card, uuid, NAME, pyxrt.kernel.exclusive)
            self.run = pyxrt.run(self.kernel)
        self._given: dict[int, Value] = {}
        self._entries = arguments(self.bundle.manifest.arch)

    def check_room(self, wanted: Mapping[str, int]) -> None:
        banks = {}
        with Answering(self.name):
            for bank in self.xclbin.get_mems():
                banks[bank.get_tag()] = bank.get_size_kb() * 1024
        for bus, size in wanted.items():
            tags = bank_tags(self.bundle.manifest.memory[bus])
            room = sum(banks.get(tag, 0) for tag in tags)
            if size > room:
                raise CardError(f"the memory behind {bus} of {self.name} must have {size:,} bytes "
                                f"for this program, not {room:,} ({tags[0]}"
                                f"{f' to {tags[-1]}' if len(tags) > 1 else ''}); compile with a "
                                "smaller --context, or for a larger board")

    def allocate(self, bus: str, size: int, aligned: int = PAGE_BYTES) -> Buffer:
        assert aligned <= PAGE_BYTES  # lanes of cards have a port each
        at = next(at for at, entry in enumerate(self._entries) if entry.bus == bus)
        pyxrt = _pyxrt()
        try:
            bo = pyxrt.bo(self.card, size, pyxrt.bo.normal, self.kernel.group_id(at))
        except Exception as error:
            raise CardError(f"the memory behind {bus} of {self.name} must have {size:,} bytes "
                            f"free, not fewer: {first_line(error)}; end what else uses the card") \
                from error
        self._buffers.append(Buffer(self.name, bo, size))
        return self._buffers[-1]

    def start(self, arguments: Mapping[str, Value]) -> None:
        """Start a run. Only arguments that changed are passed on: XRT keeps the others."""
        with Answering(self.name):
            for at, entry in enumerate(self._entries):
                value = arguments[entry.name]
                if self._given.get(at) != value:
                    self.run.set_arg(at, value.bo if isinstance(value, Buffer)
                                     else scalar(entry.name, value))
                    self._given[at] = value
            self.run.start()

    def wait(self, seconds: float) -> bool:
        """Wait in slices: XRT's binding keeps Python's lock, and so all other threads, meanwhile.
        """
        states = _pyxrt().ert_cmd_state
        state, left = states.ERT_CMD_STATE_TIMEOUT, math.ceil(1000 * seconds / WAIT_MS)
        with Answering(self.name):
            while state == states.ERT_CMD_STATE_TIMEOUT and left > 0:
                state, left = self.run.wait(WAIT_MS), left - 1
        if state == states.ERT_CMD_STATE_COMPLETED:
            return True
        if state == states.ERT_CMD_STATE_TIMEOUT:
            return False
        raise CardError(f"{self.name} must complete a run, not end it in state {state!s}; see the "
                        "log of XRT, and dmesg")

    def registers(self) -> None:
        """XRT lets nobody read them."""

    def health(self) -> Health:
        return read_health(self.card)

    def reset(self) -> None:
        """Reset the card by XRT's command, since the binding has none."""
        self._release()
        command = next((name for name in RESET_COMMANDS if shutil.which(name)), None)
        if command is None:
            raise CardError(f"{self.name} must be reset; run `xrt-smi reset --device "
                            f"{self.address}`, which is not on PATH here")
        try:
            done = subprocess.run([command, "--force", "reset", "--device", self.address],
                                  capture_output=True, text=True, timeout=RESET_SECONDS,
                                  stdin=subprocess.DEVNULL, check=False)
            ended = f"ended with {done.returncode}"
        except subprocess.TimeoutExpired:
            ended = f"took longer than {RESET_SECONDS} s"
        if ended != "ended with 0":
            raise CardError(f"{self.name} must be reset, but {command} {ended}; run it by hand, or "
                            "restart the machine")
        LOG.info("%s was reset", self.name)

    def _release(self) -> None:
        for buffer in self._buffers:
            buffer.bo = None
        self._buffers = []
        for name in ("run", "kernel", "_context", "xclbin"):  # in this order: each holds the next
            self.__dict__.pop(name, None)
        self._given = {}

    def close(self) -> None:
        self._release()
        if self._lock is not None:
            self._lock.close()


def scalar(name: str, value: object) -> int:
    """Return a scalar argument as XRT takes it; it drops others silently, or cuts them.

    Raises
    ------
    CardError
        If it is no whole number of 31 bits.
    """
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise CardError(f"argument {name} must be a whole number, not {value!r}") from None
    if not 0 <= number < SCALAR_LIMIT:
        raise CardError(f"argument {name} must be from 0 to {SCALAR_LIMIT - 1}, not {number}")
    return number


def bank_tags(memory: str) -> list[str]:
    """Return the banks that a port's memory is made of: ``HBM[2:3]`` is two of them."""
    found = re.fullmatch(r"(\w+)\[(\d+)(?::(\d+))?\]", memory)
    if not found:
        raise CardError(f"a port's memory must be such as HBM[0] or HBM[0:3], not {memory!r}; "
                        "build the bundle again")
    first, last = int(found[2]), int(found[3] or found[2])
    return [f"{found[1]}[{at}]" for at in range(first, last + 1)]

