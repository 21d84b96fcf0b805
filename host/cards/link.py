"""What the driver asks of a platform: memory behind ports, a start, a wait, what it can tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

SCALAR_LIMIT = 1 << 31  # XRT's scalars are signed
PAGE_BYTES = 4096  # what every platform's memory is aligned to


class CardError(OSError):
    """A card cannot be used, or failed at work; one line says how, and what to do."""


class CardHung(CardError):
    """A step did not end, and the accelerator did not stop it: the card has to be reset."""


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its type's name."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@dataclass(frozen=True)
class Answering:
    """Lets what a vendor's package raises come as a line of ours that says whose card failed."""

    name: str

    def __enter__(self) -> None:
        """Nothing is given."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, CardError):
            raise CardError(f"{self.name} must answer, not fail: {first_line(error)}") from error


class Memory(Protocol):
    """Bytes that a host and an accelerator share; what either writes, the other reads."""

    @property
    def size(self) -> int: ...

    def write(self, start: int, data: NDArray[np.uint8]) -> None: ...

    def read(self, start: int, size: int) -> NDArray[np.uint8]:
        """Return a copy."""


Value = Memory | int


@dataclass(frozen=True)
class Limit:
    """How long a run may take: ``seconds`` for each of its greedy steps.

    Then the accelerator's watchdog stops it. A host that has waited twice as long, for clocks may
    be slower than planned, and ``grace`` more takes the card for hung.
    """

    seconds: float = 5.0
    grace: float = 2.0

    def __post_init__(self) -> None:
        for name in ("seconds", "grace"):
            if not 0 < getattr(self, name) <= 3600:
                raise ValueError(f"{name} must be above 0 and at most 3600, not "
                                 f"{getattr(self, name)}")

    def clocks(self, clock_hz: int, repeats: int = 1) -> int:
        """Return the watchdog's clocks; 0, which is none, if they are more than XRT can pass."""
        clocks = max(1, round(self.seconds * repeats * clock_hz))
        return clocks if clocks < SCALAR_LIMIT else 0

    def patience(self, repeats: int = 1) -> float:
        """Return how many seconds a host waits."""
        return 2 * self.seconds * repeats + self.grace


@dataclass(frozen=True)
class Health:
    """What a platform measures of a card; None of what it does not."""

    clock_mhz: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None


@dataclass(frozen=True)
class Found:
    """A card that a platform sees.

    ``name`` is what ``--device`` calls it, ``address`` where it is on this machine's bus.
    """

    name: str
    platform: str
    address: str
    in_use: bool
    health: Health


class Link(Protocol):
    """An accelerator that is programmed, and this process's alone until it is closed.

    Its errors are :class:`CardError`.
    """

    name: str

    def check_room(self, wanted: Mapping[str, int]) -> None:
        """Raise, with the sizes, if the memories behind some masters have not as many bytes."""

    def allocate(self, bus: str, size: int, aligned: int = PAGE_BYTES) -> Memory:
        """Return memory behind an AXI master; what it holds is not defined.

        Its address is a multiple of ``aligned``, a power of two.
        """

    def start(self, arguments: Mapping[str, Value]) -> None:
        """Give the registers of :func:`alula.boards.register.arguments` values, and start a run."""

    def wait(self, seconds: float) -> bool:
        """Wait until the run has ended; return False if it has not after some seconds."""

    def registers(self) -> dict[str, int] | None:
        """Return what the readable registers say, by name; None where a host cannot read them."""

    def health(self) -> Health: ...

    def reset(self) -> None:
        """End what hangs; nothing allocated is of use afterwards."""

    def close(self) -> None:
        """Free all that is held. May be called twice."""
