"""How memories answer: one definition for every simulation, computed by ``rtl/model.cpp``."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Dram:
    """A channel of dynamic memory; times in nanoseconds.

    Accesses of ``access_bytes`` go to open rows in the order they are asked for, each ``burst`` of
    the data bus. Neighbouring accesses go to ``interleave`` bank groups in turn, then come columns,
    then the other banks, then rows. A row is opened as soon as its access is queued.

    Parameters
    ----------
    row_bytes, banks, interleave
        Of a bank's row (a page, of all chips together); banks in all, and bank groups.
    activate, precharge, column, row_open
        tRCD, tRP, CL, tRAS.
    read_to_precharge, write_recovery, between_activates, four_activates
        tRTP, tWR, tRRD, tFAW.
    write_to_read, read_to_write
        Pauses of the data bus between a write and a read.
    refresh_every, refresh_takes
        tREFI, tRFC.
    controller
        What an access takes besides: the controller, its clock crossings, the physical layer.
    source
        Where the values are from.
    picojoules_per_bit
        Energy of moving a bit, the interface's included, where there is a figure to cite.
    """

    access_bytes: int
    burst: float
    row_bytes: int
    banks: int
    interleave: int
    activate: float
    precharge: float
    column: float
    row_open: float
    read_to_precharge: float
    write_recovery: float
    between_activates: float
    four_activates: float
    write_to_read: float
    read_to_write: float
    refresh_every: float
    refresh_takes: float
    controller: float
    source: str
    picojoules_per_bit: float | None = None

    @property
    def peak(self) -> float:
        """Bytes a second of the data bus."""
        return self.access_bytes / self.burst * 1e9

    def values(self, clock_hz: int) -> NDArray[np.uint64]:
        """Return what the simulation takes, times in picoseconds; for a clock of the accelerator.
        """
        kinds = type(self).__dataclass_fields__
        values = [1e12 / clock_hz]
        for field, value in zip(kinds, astuple(self), strict=True):
            if kinds[field].type in ("int", "float"):
                values.append(value if kinds[field].type == "int" else 1000 * value)
        return np.array([round(value) for value in values], np.uint64)


# Latencies of an idle memory measured on a U280 (Wang et al., "Shuhai: Benchmarking High Bandwidth
# Memory on FPGAs", FCCM 2020, table IV): HBM 106.7 ns on an open row, 122.2 ns on a closed bank,
# 137.8 ns on another row; DDR4 73.3, 89.9 and 106.6 ns. Their differences are tRCD and tRP; what is
# left of the first, less CL and the burst, is the controller's.
DRAMS = {
    "hbm2": Dram(
        access_bytes=32, burst=32 / 14.4, row_bytes=1024, banks=16, interleave=4,
        activate=15.5, precharge=15.6, column=14.0, row_open=33.0, read_to_precharge=3.5,
        write_recovery=8.0, between_activates=1.7, four_activates=12.5, write_to_read=3.0 + 14.0,
        read_to_write=1.7, refresh_every=3900.0, refresh_takes=260.0,
        controller=106.7 - 14.0 - 32 / 14.4,
        source="pseudo-channel at 900 MHz: rate, tREFI and tRFC of a stack of four from AMD PG276, "
               "Raw Throughput Evaluation; tRCD, tRP from Shuhai; others as gem5's HBM2 interface "
               "has them",
        picojoules_per_bit=3.92),  # O'Connor et al., Fine-Grained DRAM, MICRO 2017
    "ddr4-2400": Dram(
        access_bytes=64, burst=64 / 19.2, row_bytes=8192, banks=16, interleave=4,
        activate=14.16, precharge=14.16, column=14.16, row_open=32.0, read_to_precharge=7.5,
        write_recovery=15.0, between_activates=5.3, four_activates=30.0, write_to_read=7.5 + 14.16,
        read_to_write=1.7, refresh_every=7800.0, refresh_takes=350.0,
        controller=73.3 - 14.16 - 64 / 19.2,
        source="64 bits of 8 Gbit chips, speed bin 2400R: JEDEC JESD79-4; controller from Shuhai's "
               "DDR4, which is not the Zynq's"),
    "ddr3-1050": Dram(
        access_bytes=16, burst=16 / 2.1, row_bytes=4096, banks=8, interleave=1,
        activate=13.1, precharge=13.1, column=13.3, row_open=36.0, read_to_precharge=7.5,
        write_recovery=15.0, between_activates=7.5, four_activates=45.0, write_to_read=7.5 + 13.3,
        read_to_write=3.8, refresh_every=7800.0, refresh_takes=260.0,
        controller=73.3 - 14.16 - 64 / 19.2,
        source="16 bits of a 4 Gbit chip at 525 MHz, as on PYNQ-Z2: JEDEC JESD79-3; controller as "
               "that of ddr4-2400, for want of a measurement"),
}


@dataclass(frozen=True)
class MemoryModel:
    """How the memory behind a port answers.

    Parameters
    ----------
    latency
        Clocks from an address to its first beat.
    bandwidth
        Share of clocks that may carry a beat.
    stall
        Chance that a channel waits in a clock.
    seed
        Of the stalls.
    dram
        A channel of dynamic memory behind the port, which then says the latency.
    """

    latency: int = 1
    bandwidth: float = 1.0
    stall: float = 0.0
    seed: int = 0
    dram: Dram | None = None

    def __post_init__(self) -> None:
        for name, legal, wanted in (
                ("latency", 0 <= self.latency <= 1_000_000, "from 0 to 1000000 clocks"),
                ("bandwidth", 0.001 <= self.bandwidth <= 1, "from 0.001 to 1"),
                ("stall", 0 <= self.stall <= 0.99, "from 0 to 0.99"),
                ("seed", 0 <= self.seed < 1 << 32, "from 0 to 4294967295")):
            if not legal:
                raise ValueError(f"a memory's {name} must be {wanted}, not {getattr(self, name)}")

    @classmethod
    def parse(cls, text: str) -> MemoryModel:
        """Return the model that a text such as ``latency=80,bandwidth=0.9`` or ``hbm2`` describes.
        """
        kinds: dict[str, Any] = {"latency": int, "bandwidth": float, "stall": float, "seed": int}
        found: dict[str, Any] = {}
        for part in text.split(","):
            name, _, value = part.partition("=")
            try:
                if part in DRAMS:
                    found["dram"] = DRAMS[part]
                elif part != "ideal":
                    found[name] = kinds[name](value)
            except (KeyError, ValueError):
                raise ValueError(
                    f"a memory model must be ideal, {', '.join(DRAMS)}, or some of "
                    f"{','.join(f'{n}=NUMBER' for n in kinds)}, not {text!r}") from None
        return cls(**found)
