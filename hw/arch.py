"""The size of one accelerator build: every other size in the project is derived from these."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ArchConfig:
    """Size of one build. The instruction set and the bits it computes do not depend on it.

    Parameters
    ----------
    lanes
        Memory channels, each with its own port, unpacker and DSP chain.
    beat_bytes
        Bytes a lane's port delivers in a clock: 16, 32 or 64.
    lane_ports
        Narrower AXI ports that a lane's beats are striped over. Ref: :mod:`alula.hw.stripe`.
    rows
        Most rows (tokens of any sequences) in one step.
    lane_dsps
        DSP slices in a lane's chain; each makes two multiplies a clock. A power of two.
    vector_width
        fp32 elements the vector unit takes a clock: 4, 8 or 16.
    vector_elements, activation_elements
        On-chip elements for each row: fp32 values, and int8 codes.
    param_elements
        On-chip fp32 elements that all rows share: norm weights and biases.
    attention_elements
        fp32 sums a lane keeps for one head of keys: rows * query heads to it * head_dim.
    attention_queries
        Query heads, times rows, that share a head of keys.
    merge_elements
        fp32 sums of one attention that are merged from several lanes: rows * heads * head_dim.
    prefetch_beats
        Beats a lane can hold ahead of execution; a power of two.
    page_entries
        Cache pages, of all sequences of a step together, whose places a lane can hold.
    program_instructions
        Instructions the sequencer can hold.
    queue_depth
        Instructions each unit's queue can hold.
    channel_bytes, control_bytes
        Memory behind each lane's port, and behind the control port.
    channel_bytes_per_s
        Peak of one lane's memory channel, from its data sheet.
    one_memory
        Whether one memory is behind all ports, which then share its rate.
    """

    name: str
    lanes: int
    beat_bytes: int
    rows: int
    lane_dsps: int
    vector_width: int
    vector_elements: int
    activation_elements: int
    param_elements: int
    attention_elements: int
    attention_queries: int
    merge_elements: int
    prefetch_beats: int
    page_entries: int
    program_instructions: int
    queue_depth: int
    clock_hz: int
    channel_bytes: int
    control_bytes: int
    channel_bytes_per_s: int
    lane_ports: int = 1
    one_memory: bool = False

    def __post_init__(self) -> None:
        self._expect("beat_bytes", self.beat_bytes in (16, 32, 64), "16, 32 or 64")
        self._expect("lane_ports", self.lane_ports in (1, 2, 4)
                     and self.port_bytes >= 8,
                     "1, 2 or 4, for ports of 8 bytes or more")
        self._expect("vector_width", self.vector_width in (4, 8, 16), "4, 8 or 16")
        self._expect("lanes", 1 <= self.lanes <= 64, "from 1 to 64")
        self._expect("rows", 1 <= self.rows <= 64, "from 1 to 64")
        for field in ("vector_elements", "activation_elements", "param_elements",
                      "attention_elements", "merge_elements"):
            value = getattr(self, field)
            self._expect(field, value % 16 == 0 and 16 <= value <= 1 << 20,
                         "a multiple of 16 from 16 to 1048576")
        for field in ("lane_dsps", "prefetch_beats"):
            value = getattr(self, field)
            legal = value & (value - 1) == 0 and 2 * self.beat_bytes <= value <= 1 << 16
            self._expect(field, legal, f"a power of two from {2 * self.beat_bytes} to 65536")
        for field in ("attention_queries", "page_entries", "program_instructions", "queue_depth",
                      "clock_hz",
                      "channel_bytes", "control_bytes", "channel_bytes_per_s"):
            self._expect(field, 0 < getattr(self, field) <= 1 << 44, "from 1 to 2**44")

    def _expect(self, field: str, legal: bool, wanted: str) -> None:
        if not legal:
            raise ValueError(f"{field} must be {wanted}, not {getattr(self, field)}")

    @property
    def port_bytes(self) -> int:
        """Bytes a clock of one of a lane's memory ports."""
        return self.beat_bytes // self.lane_ports

    @property
    def core_memory(self) -> str:
        """Where the core's memories that are not the vector buffer are: UltraRAM is the lanes'."""
        return "block" if self.lanes > 1 else "auto"

    def with_lanes(self, lanes: int) -> ArchConfig:
        """Return the build with some of its lanes. Its hash is another one."""
        if not 1 <= lanes <= self.lanes:
            raise ValueError(f"lanes must be from 1 to {self.lanes} on {self.name}, not {lanes}")
        return replace(self, lanes=lanes)

    @property
    def hash(self) -> str:
        """Sixteen hexadecimal digits that change when any size changes."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


MIB = 1 << 20
GIB = 1 << 30

SIM = ArchConfig(
    name="sim", lanes=2, beat_bytes=32, rows=16, lane_dsps=64, vector_width=8,
    vector_elements=8192, activation_elements=4096, param_elements=4096,
    attention_elements=8192, attention_queries=128, merge_elements=16_384, prefetch_beats=1024,
    page_entries=1024, program_instructions=1024, queue_depth=16, clock_hz=200_000_000,
    channel_bytes=256 * MIB, control_bytes=256 * MIB, channel_bytes_per_s=6_400_000_000,
)

_HBM: dict[str, Any] = dict(
    beat_bytes=64, rows=8, lane_dsps=128, vector_width=16,
    vector_elements=65_536, activation_elements=32_768, param_elements=65_536,
    attention_elements=8192, attention_queries=64, merge_elements=32_768, prefetch_beats=1024,
    page_entries=2048, program_instructions=4096,
    queue_depth=32, clock_hz=225_000_000,
)

# One AXI port for each HBM2 pseudo-channel: U55C has 32 of 512 MiB, U280 32 of 256 MiB, and of
# U50's 32 (316 GB/s by its power limit, AMD DS965) 20 carry lanes: more do not fit its part.
U55C = ArchConfig(name="u55c", lanes=32, channel_bytes=512 * MIB, control_bytes=4 * GIB,
                  channel_bytes_per_s=14_375_000_000, **_HBM)
U280 = ArchConfig(name="u280", lanes=32, channel_bytes=256 * MIB, control_bytes=4 * GIB,
                  channel_bytes_per_s=14_375_000_000, **_HBM)
U50 = ArchConfig(name="u50", lanes=20, channel_bytes=256 * MIB, control_bytes=2 * GIB,
                 channel_bytes_per_s=13_166_000_000, **_HBM)

# One lane; its four ports, of 16 bytes each, and the control port lead to the processing system's
# DDR4-2400 of 64 bits. The control memory holds the embedding of 128,256 tokens by 2,048; Linux
# needs some of a board's 2 or 4 GiB, and those of 4 are two halves apart (AMD UG1085).
_ZYNQ: dict[str, Any] = dict(
    lanes=1, beat_bytes=64, lane_ports=4, one_memory=True, lane_dsps=256,
    vector_width=8, queue_depth=32, prefetch_beats=1024,
    attention_elements=8192, attention_queries=64, merge_elements=8192, page_entries=2048,
    program_instructions=4096,
    channel_bytes_per_s=19_200_000_000,
)

ZCU104 = ArchConfig(name="zcu104", rows=4, clock_hz=300_000_000,
                    vector_elements=65_536, activation_elements=32_768, param_elements=65_536,
                    channel_bytes=GIB, control_bytes=640 * MIB, **_ZYNQ)
KV260 = ArchConfig(name="kv260", rows=2, clock_hz=300_000_000,
                   vector_elements=65_536, activation_elements=32_768, param_elements=65_536,
                   channel_bytes=2 * GIB, control_bytes=640 * MIB, **_ZYNQ)

# The part has 4 % of a U55C's LUTs: as few DSP slices as a lane of 16-byte beats may have.
# DDR3-1050 x 16 bits.
PYNQ_Z2 = ArchConfig(
    name="pynq-z2", lanes=1, beat_bytes=16, rows=1, lane_dsps=32, vector_width=4,
    vector_elements=8192, activation_elements=4096, param_elements=4096,
    attention_elements=2048, attention_queries=32, merge_elements=2048, prefetch_beats=512,
    page_entries=512, program_instructions=1024, queue_depth=16, clock_hz=100_000_000,
    channel_bytes=256 * MIB, control_bytes=64 * MIB, channel_bytes_per_s=2_100_000_000,
    lane_ports=2, one_memory=True,
)

BUILDS = {arch.name: arch for arch in (SIM, PYNQ_Z2, ZCU104, KV260, U50, U55C, U280)}


def build(name: str) -> ArchConfig:
    """Return the named build, of ``u55c:30`` 30 lanes of it; raise ValueError if there is none."""
    known, _, lanes = name.partition(":")
    if known not in BUILDS:
        raise ValueError(f"arch must be one of {', '.join(BUILDS)}, not {name!r}")
    if not lanes:
        return BUILDS[known]
    if not lanes.isdecimal():
        raise ValueError(f"arch must be NAME or NAME:LANES, such as u55c:30, not {name!r}")
    return BUILDS[known].with_lanes(int(lanes))
