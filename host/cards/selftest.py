"""Whether a card does what its bundle says: registers, memories, the golden model's bits, speed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alula.boards.buses import memories
from alula.boards.manifest import ManifestError
from alula.boards.register import Entry
from alula.host import vectors
from alula.host.cards import place
from alula.host.cards.bundles import Bundle, folder, load
from alula.host.cards.card import Card
from alula.host.cards.link import CardError, Link
from alula.host.cards.zynq import ZynqLink
from alula.host.device import CARDS, Report

PATTERN_BYTES = 4 << 20  # of each port's memory
_WRITTEN = (0x5555_5555, 0xAAAA_AAAA, 0)  # to a register of the host's, the last to stay


@dataclass(frozen=True)
class Check:
    """What came of one check. ``ok`` is None if the platform does not allow it."""

    name: str
    ok: bool | None
    found: str

    @property
    def outcome(self) -> str:
        return "not possible" if self.ok is None else "good" if self.ok else "WRONG"


def bundle_of(name: str) -> Bundle:
    """Return the bundle that a card's name has, or the first of this user's for that kind.

    Raises
    ------
    ValueError, CardError
        If the name is no card's, or there is no bundle for it.
    """
    kind, where = place.parse(name)
    if kind not in CARDS:
        raise ValueError(f"a self-test is of a card, one of {', '.join(CARDS)}, not {kind!r}")
    if where.bundle is not None:
        return load(where.bundle)
    for path in sorted(folder().glob("*/manifest.json")):
        bundle = load(path.parent)
        if bundle.kind == kind:
            return bundle
    raise CardError(f"a bundle for {kind} must be in {folder()}, not none; name one: {kind}@DIR")


def vectors_folder(bundle: Bundle) -> Path:
    """Return the folder of a bundle's vectors; raise ManifestError if it has none."""
    if bundle.manifest.selftest is None:
        raise ManifestError(f"{bundle.folder} must have vectors for a self-test, not none; build "
                            "the bundle again")
    return bundle.folder / bundle.manifest.selftest


def run(name: str, report: Report) -> Iterator[Check]:
    """Test a card; yield each check as it is done.

    Raises
    ------
    CardError, ValueError
        If the card cannot be opened with its bundle; then nothing was tested.
    """
    bundle = bundle_of(name)
    program, wanted = vectors.read(vectors_folder(bundle))
    module = import_module(CARDS[bundle.kind])
    where = place.Place(place.parse(name)[1].index, bundle.folder)
    report("open the card", 0)
    card: Card = module.open_device(program, where, report=report)
    try:
        yield Check("bundle", True, f"{bundle.manifest.board}, {program.arch.name}, "
                    f"{program.arch.lanes} lanes, architecture {program.arch.hash}")
        report("read the registers", 0)
        yield from _told("registers", _registers(card.link))
        report("write patterns to the memories", 0)
        yield from _told("memories", _memories(card, program.arch.lanes))
        report("run the golden vectors", 0)
        yield from _told("vectors", _vectors(card, wanted))
        yield _health(card.link)
    finally:
        card.close()


def _told(name: str, checks: Iterator[Check]) -> Iterator[Check]:
    """Yield checks; a card that fails in the middle of them is one that is wrong."""
    try:
        yield from checks
    except CardError as error:
        yield Check(name, False, str(error))


def _registers(link: Link) -> Iterator[Check]:
    if not isinstance(link, ZynqLink):
        yield Check("registers", None, "XRT lets nobody read them; the vectors' runs use them")
        return
    wrong = [f"{entry.name} {found:#x} for {wanted:#x}" for entry in link.arguments
             for wanted in _WRITTEN for found in [_written(link, entry, wanted)] if found != wanted]
    known = link.registers()
    yield Check("registers", not wrong, "; ".join(wrong) or
                f"{len(link.arguments)} written and read, hash {known['hash']:016x}")


def _written(link: ZynqLink, entry: Entry, value: int) -> int:
    """Return what a register says after a word was written to it."""
    link.write_register(entry, value)
    return link.read_register(entry)


def _memories(card: Card, lanes: int) -> Iterator[Check]:
    """Write to each memory what no other address has, read it back, and time both."""
    written = taken = size = 0.0
    random, wrong = np.random.default_rng(0), []
    arch = card.program.arch
    for bus in memories(arch):
        memory = card.link.allocate(bus, PATTERN_BYTES)
        data = random.integers(0, 256, PATTERN_BYTES, np.uint8)
        begun = time.perf_counter()
        memory.write(0, data)
        middle = time.perf_counter()
        found = memory.read(0, PATTERN_BYTES)
        written, taken = written + middle - begun, taken + time.perf_counter() - middle
        size += PATTERN_BYTES
        if not np.array_equal(found, data):
            wrong.append(f"{bus}: {_first(found, data)}")
    yield Check("memories", not wrong, "; ".join(wrong) or
                f"{PATTERN_BYTES >> 20} MiB behind each of {1 + lanes} ports")
    yield Check("copies", True, f"{size / written / 1e9:.2f} GB/s to the card, "
                f"{size / taken / 1e9:.2f} GB/s from it")


def _first(found: NDArray[np.uint8], wanted: NDArray[np.uint8]) -> str:
    bad = np.flatnonzero(found != wanted)
    return (f"{bad.size:,} bytes are wrong, the first at {bad[0]:#x}: must be "
            f"{wanted[bad[0]]:#04x}, not {found[bad[0]]:#04x}")


def _vectors(card: Card, wanted: vectors.Vectors) -> Iterator[Check]:
    wrong = vectors.differences(card, wanted)
    yield Check("vectors", not wrong, str(wrong[0]) if wrong else
                f"{len(wanted.steps)} steps, each logit the golden model's, to the bit")
    arch, spent = card.program.arch, card.counters
    share = spent.lane_beats / max(spent.cycles * arch.lanes, 1)
    yield Check("lanes", True, f"read {share:.1%} of their peak over {spent.cycles:,} clocks: "
                f"{share * arch.lanes * arch.beat_bytes * arch.clock_hz / 1e9:.2f} GB/s at "
                f"{arch.clock_hz // 10**6} MHz; the program is small")


def _health(link: Link) -> Check:
    health = link.health()
    known = [f"{value:g} {unit}" for value, unit in (
        (health.clock_mhz, "MHz"), (health.temperature_c, "°C"), (health.power_w, "W"))
        if value is not None]
    return Check("sensors", True if known else None, ", ".join(known) or "the platform has none")
