"""A program on a card: its images in the card's memories, and a run for each step."""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from alula.boards.buses import memories
from alula.compiler.program import Program
from alula.host.cards import status
from alula.host.cards.link import CardError, CardHung, Limit, Link, Memory, Value
from alula.host.device import Counters, Report
from alula.hw import csr, isa, layout, striping
from alula.hw.isa import WORD_BYTES

LOG = logging.getLogger("alula")
PIECE_BYTES = 16 << 20  # copied at a time, so that progress is seen
_ALIGNED = 64


class Card:
    """A device for :class:`alula.host.device.Device`: a program on an accelerator behind a link.

    It owns the link: :meth:`close` gives the card back, and so does the end of the object.

    Raises
    ------
    CardError
        If the memories have no room for the program; and by every method, if the card fails.
    """

    def __init__(self, program: Program, link: Link, *, limit: Limit = Limit(),
                 report: Report | None = None) -> None:
        self.program, self.link, self.limit, self.name = program, link, limit, link.name
        self.counters = Counters()
        self._finalizer = weakref.finalize(self, link.close)
        self._hung, self._repeats = False, 1  # of the step table that was written last
        try:
            self._load(report)
        except BaseException:
            self.close()
            raise

    def _load(self, report: Report | None) -> None:
        control, lanes = sizes(self.program)
        arch = self.program.arch
        wanted = dict(zip(memories(arch), (control + csr.STATUS.itemsize, *lanes), strict=True))
        self.link.check_room(wanted)
        self.control, *self.lanes = (
            self.link.allocate(bus, size, striping.block_bytes(arch.lane_ports))
            for bus, size in zip(wanted, (control, *lanes), strict=True))
        self.status = self.link.allocate(memories(arch)[0], csr.STATUS.itemsize)
        self._record = np.zeros(1, csr.STATUS)
        self.status.write(0, self._record.view(np.uint8))
        advance = report("copy the program to the card", sum(wanted.values())) if report else None
        for memory, images in self._images():
            at = 0
            for start, image in images:
                _clear(memory, at, start, advance)
                at = _copy(memory, start, image, advance,
                           self._lay_out if memory in self.lanes else None)
            _clear(memory, at, memory.size, advance)
        self._arguments = self._argument_values()

    def _images(self) -> list[tuple[Memory, list[tuple[int, NDArray[np.uint8]]]]]:
        """Return what each memory is to hold, by address in ascending order; zeros elsewhere."""
        program = self.program
        code = np.frombuffer(isa.assemble(program.instructions), np.uint8)
        image, start = program.control, program.memory.program.start
        stop = start + code.size
        control = [(0, image[:start]), (start, code), (stop, image[stop:])]
        return [(self.control, [part for part in control if part[1].size]),
                *((memory, [(0, image)]) for memory, image in
                  zip(self.lanes, program.lanes, strict=True))]

    def _lay_out(self, piece: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return bytes of a lane as its ports find them."""
        arch = self.program.arch
        return striping.arrange(piece, arch.lane_ports, arch.beat_bytes)

    def _argument_values(self) -> dict[str, Value]:
        program = self.program
        values: dict[str, Value] = {
            "control": self.control, "status": self.status,
            "program": program.memory.program.start // WORD_BYTES,
            "instructions": len(program.instructions),
        }
        return values | {f"lane_{at}": lane for at, lane in enumerate(self.lanes)}

    def write(self, start: int, data: bytes) -> None:
        self._check(start, len(data))
        if start == self.program.memory.step.start and len(data) >= layout.STEP_HEADER.itemsize:
            self._repeats = int(np.frombuffer(data, layout.STEP_HEADER, 1)["repeats"][0])
        self.control.write(start, np.frombuffer(data, np.uint8))

    def read(self, start: int, size: int) -> NDArray[np.uint8]:
        self._check(start, size)
        return self.control.read(start, size)

    def _check(self, start: int, size: int) -> None:
        if not 0 <= start <= start + size <= self.control.size:
            raise ValueError(f"a control address must be below {self.control.size}, not "
                             f"{start + size}")
        if self._hung or not self._finalizer.alive:
            state = "hung" if self._hung else "closed"
            raise CardError(f"{self.name} must be open, not {state}; open it again")

    def step(self) -> None:
        self._check(0, 0)
        begun, runs = time.perf_counter(), int(self._record["runs"][0])
        patience = self.limit.patience(self._repeats)
        self.link.start(self._arguments | {
            "watchdog": self.limit.clocks(self.program.arch.clock_hz, self._repeats)})
        if not self.link.wait(patience):
            self._hung = True
            raise CardHung(f"{self.name} must end a run within {patience:g} s, not later: "
                           f"{self._stall()}; the driver resets the card")
        before, self._record = self._record, self._read_record()
        record = self._record[0]
        if record["magic"] != csr.STATUS_MAGIC or record["runs"] == runs:
            raise CardError(f"{self.name} must write a record of each run, not none; is the "
                            "bitstream the bundle's?")
        if record["error"]:
            raise CardError(f"{self.name} must end a run without an error, not with "
                            f"{status.error(record, self.program)}")
        self.counters = _sum(self.counters, before[0], record, time.perf_counter() - begun)

    def _read_record(self) -> NDArray[np.void]:
        return self.status.read(0, csr.STATUS.itemsize).view(csr.STATUS)

    def _stall(self) -> str:
        """Return what is known of a run that does not end."""
        with suppress(CardError):
            registers = self.link.registers()
            if registers is not None:
                return status.live(registers, self.program)
            return status.last(self._read_record()[0], self.program)
        return "nothing can be read of it"

    def close(self) -> None:
        """Give the card back; a hung one is reset first. May be called twice."""
        if self._hung and self._finalizer.alive:
            try:
                self.link.reset()
            except CardError as error:
                LOG.warning("%s", error)
        self._finalizer()


def _sum(counters: Counters, before: np.void, record: np.void, seconds: float) -> Counters:
    """Add a run. Beats are counted since reset: those of the first run, if it was not, are lost."""
    counted = int(before["beats"]) if before["runs"] else 0
    beats = 0 if not before["runs"] and record["runs"] > 1 else int(record["beats"]) - counted
    return Counters(counters.cycles + int(record["cycles"]), counters.lane_beats + beats,
                    counters.seconds + seconds)


def sizes(program: Program) -> tuple[int, list[int]]:
    """Return the bytes of the control memory and of each lane's that a program works in."""
    where, ports = program.memory, program.arch.lane_ports
    unit = striping.block_bytes(ports) if ports > 1 else _ALIGNED
    lanes = [max(image.size, where.cache.stop, 1) for image in program.lanes]
    return _whole(where.top.stop, _ALIGNED), [_whole(lane, unit) for lane in lanes]


def _whole(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def _copy(memory: Memory, start: int, data: NDArray[np.uint8], advance: object,
          lay_out: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None = None) -> int:
    """Write data by pieces, each as ``lay_out`` has it; return where it ends."""
    for at in range(0, data.size, PIECE_BYTES):
        piece = data[at:at + PIECE_BYTES]
        if lay_out is not None:
            piece = lay_out(piece)
        memory.write(start + at, piece)
        end = start + at + piece.size
        if callable(advance):
            advance(piece.size)
    return end if data.size else start


def _clear(memory: Memory, start: int, stop: int, advance: object) -> None:
    zeros = np.zeros(min(max(stop - start, 0), PIECE_BYTES), np.uint8)
    for at in range(start, stop, PIECE_BYTES):
        _copy(memory, at, zeros[:stop - at], advance)
