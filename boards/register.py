"""The control registers as the vendor's tools want them told, derived from ``hw/csr.py``."""

from __future__ import annotations

from dataclasses import dataclass

from alula.boards.buses import memories
from alula.hw.arch import ArchConfig
from alula.hw.csr import Ctrl, Register

# Runtimes look for the protocol's registers and bits by these names. Ref: AMD UG1393, "RTL Kernel
# Requirements"; PYNQ's register maps.
_NAMES = {Register.GIE: "GIER", Register.IER: "IP_IER", Register.ISR: "IP_ISR"}
PROTOCOL = (Register.CTRL, Register.GIE, Register.IER, Register.ISR)
_WIDE = {Register.CONTROL, Register.STATUS, Register.CYCLES, Register.HASH}
_BUSES = {Register.CONTROL: "m_axi_control", Register.STATUS: "m_axi_control"}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A register: ``bits`` is 32 or 64, ``bus`` the master that its pointer is for."""

    name: str
    offset: int
    bits: int
    bus: str = ""
    readable_only: bool = False
    fields: tuple[tuple[str, int], ...] = ()

    @property
    def is_argument(self) -> bool:
        """Whether a runtime gives it a value with each run."""
        return not self.readable_only and self.offset > max(PROTOCOL)


def entries(arch: ArchConfig) -> list[Entry]:
    """Return every register of a build in the order of offsets."""
    found = [_entry(register) for register in Register if register != Register.LANE]
    found += [Entry(name=f"lane_{lane}", offset=Register.LANE + 8 * lane, bits=64, bus=bus)
              for lane, bus in enumerate(memories(arch)[1:])]
    return sorted(found, key=lambda entry: entry.offset)


def _entry(register: Register) -> Entry:
    if register in PROTOCOL:
        fields = (tuple((f"AP_{bit.name}", int(bit)) for bit in Ctrl)
                  if register == Register.CTRL else ())
        return Entry(name=_NAMES.get(register, register.name), offset=register, bits=32,
                     fields=fields)
    return Entry(name=register.name.lower(), offset=register, bits=64 if register in _WIDE else 32,
                 bus=_BUSES.get(register, ""), readable_only=register >= Register.STATE)


def arguments(arch: ArchConfig) -> list[Entry]:
    """Return what a runtime passes to a run, in the order of its arguments."""
    return [entry for entry in entries(arch) if entry.is_argument]
