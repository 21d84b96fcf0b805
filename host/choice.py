"""Which device runs a program, and which takes over when one fails.

A kind of device is a module of :mod:`alula.host` that is loaded when its turn comes. It may have a
function ``probe(program)``, which returns why the device cannot run the program here, or an empty
text if it can; and ``open_device(program)``, which returns the device. Without the latter,
:func:`alula.host.device.open_device` opens it by its name. A card may be named with its number and
its bundle: ``alveo:1@DIR`` (:mod:`alula.host.cards.place`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from alula.compiler.program import Program
from alula.host.cards import place
from alula.host.compared import Mismatch
from alula.host.device import CARDS, DEVICES, Counters, Device, open_device

LOG = logging.getLogger("alula")


@dataclass(frozen=True)
class Kind:
    """A kind of device that ``auto`` may take, and the module that knows it."""

    name: str
    module: str
    is_card: bool = False


KINDS = (  # in the order that ``auto`` asks them; the golden model needs nothing and is the slowest
    *(Kind(name, module, is_card=True) for name, module in CARDS.items()),
    Kind("cuda", "alula.host.gpu"),
    Kind("cpu", "alula.host.cpu"),
    Kind("golden", "alula.host.device"),
)

Opener = Callable[[Program], Device]
Wanted = str | Device | Opener


class NoDevice(RuntimeError):
    """No device is left to run a program."""


class DeviceFailed(RuntimeError):
    """A device raised ``error`` where it should have run a program."""

    def __init__(self, name: str, error: Exception) -> None:
        self.name, self.error = name, error
        super().__init__(f"{name} failed: {type(error).__name__}: {error}")


class Guarded:
    """A device whose errors come as :class:`DeviceFailed`; a mismatch stays what it is."""

    def __init__(self, device: Device) -> None:
        self.device, self.name, self.program = device, device.name, device.program

    @property
    def counters(self) -> Counters | None:
        return self.device.counters

    def write(self, start: int, data: bytes) -> None:
        self._try(lambda: self.device.write(start, data))

    def read(self, start: int, size: int) -> NDArray[np.uint8]:
        found: list[NDArray[np.uint8]] = []
        self._try(lambda: found.append(self.device.read(start, size)))
        return found[0]

    def step(self) -> None:
        self._try(self.device.step)

    def close(self) -> None:
        """Give up what the device holds, if it holds anything; that it fails there is no matter."""
        close = getattr(self.device, "close", None)
        if close is not None:
            try:
                close()
            except Exception as error:
                LOG.warning("%s: %s", self.name, error)

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Mismatch:
            raise
        except Exception as error:
            raise DeviceFailed(self.name, error) from error


class Devices:
    """The devices that may run a program, best first.

    Parameters
    ----------
    wanted
        ``auto``: each of :data:`KINDS` that answers. A name, a device, a function that opens one,
        or several of them: those, in this order.

    ``report`` says of each that was asked what came of it.
    """

    def __init__(self, program: Program, wanted: Wanted | Sequence[Wanted] = "auto") -> None:
        self.program = program
        self.report: list[str] = []
        self._auto = wanted == "auto"
        if isinstance(wanted, str):
            several: Sequence[Wanted] = [kind.name for kind in KINDS] if self._auto else [wanted]
        elif isinstance(wanted, Sequence):
            several = wanted
        else:
            several = [wanted]
        if not several:
            raise ValueError("device must be at least one, not none")
        self._left = list(several)

    def open(self) -> Device:
        """Return the next device that can run the program, loaded with it.

        Raises
        ------
        NoDevice
            If none is left. The only one that was asked for raises its own error.
        """
        alone = len(self._left) == 1 and not self.report
        while self._left:
            wanted = self._left.pop(0)
            try:
                device = self._open(wanted)
            except Exception as error:
                if alone:
                    raise
                self._say(f"{_name(wanted)}: {error}")
                continue
            self._say(f"{device.name}: runs {self.program.model.name}")
            return device
        raise NoDevice("a device must be left to run the program; " + "; ".join(self.report))

    def _say(self, text: str) -> None:
        self.report.append(text)
        LOG.info("device %s", text)

    def _open(self, wanted: Wanted) -> Device:
        if isinstance(wanted, str):
            return _open_named(wanted, self.program)
        if callable(wanted):
            return wanted(self.program)
        device = wanted
        if device.program is not self.program:
            raise ValueError(f"the device {device.name} must hold the program that is to run")
        return device


def _name(wanted: Wanted) -> str:
    return wanted if isinstance(wanted, str) else getattr(wanted, "name", "device")


def _open_named(name: str, program: Program) -> Device:
    kind = next((kind for kind in KINDS if kind.name == name
                 or (kind.is_card and kind.name == place.kind_of(name))), None)
    if kind is not None:
        return _open_kind(kind, name, program)
    if name not in DEVICES[1:]:
        names = dict.fromkeys(["auto", *(kind.name for kind in KINDS), *DEVICES[1:]])
        raise ValueError(f"device must be one of {', '.join(names)}, not {name!r}")
    return open_device(name, program)


def _open_kind(kind: Kind, name: str, program: Program) -> Device:
    if find_spec(kind.module) is None:
        raise NoDevice(f"this version of Alula has no {kind.name} device")
    module = import_module(kind.module)
    where = place.parse(name)[1]
    why = getattr(module, "probe", lambda program: "")(program)
    if why:
        raise NoDevice(why)
    own = getattr(module, "open_device", None)
    if own is None or own is open_device:
        return open_device(kind.name, program)
    device: Device = own(program, where) if kind.is_card else own(program)
    return device
