"""What a board is: its build, its part, the ports of its memory, and the tools that make its bits.

Nothing here has been run with a vendor's tool or on a card: ``verified`` of each board says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from alula.boards.area import Part
from alula.hw.arch import GIB, ArchConfig

NAME = "alula"  # of the kernel, of its instance's stem, and of the files that come out


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A vendor's tool: what its commands are called, and which versions can build the board.

    ``first`` is the oldest that the scripts were written for; ``last`` the newest that knows the
    board, or is what its runtime was made with; empty if we know of no end.
    """

    name: str
    commands: tuple[str, ...]
    first: str
    last: str = ""

    @property
    def versions(self) -> str:
        """The versions in words, such as ``2022.1 to 2025.1``."""
        if self.first == self.last:
            return self.first
        return f"{self.first} to {self.last}" if self.last else f"{self.first} or newer"

    def knows(self, version: str) -> bool:
        """Whether a version such as ``2024.1`` is one of them."""
        number = _number(version)
        return _number(self.first) <= number and (not self.last or number <= _number(self.last))


def _number(version: str) -> tuple[int, ...]:
    """Return a version's year and release; patches do not count."""
    return tuple(int(part) for part in version.split(".")[:2])


@dataclass(frozen=True, kw_only=True)
class Board:
    """A board.

    Parameters
    ----------
    device
        Full name of its part, as the vendor's tool wants it.
    verified
        Versions of the tool that its files were built with, and what came of it.
    limits
        What is known not to work or not to be reached, a sentence each.
    """

    name: str
    title: str
    arch: ArchConfig
    part: Part
    device: str
    tool: Tool
    runtime: str
    limits: tuple[str, ...]
    verified: str = "none yet"

    @property
    def clock_mhz(self) -> int:
        return self.arch.clock_hz // 1_000_000

    def ports(self, arch: ArchConfig) -> dict[str, str]:
        """Return the memory behind each AXI master."""
        raise NotImplementedError

    def shortage(self, arch: ArchConfig) -> str:
        """Say what memory the build counts on and the board has not; empty if nothing."""
        return ""


@dataclass(frozen=True, kw_only=True)
class Alveo(Board):
    """A card that XRT runs.

    Parameters
    ----------
    platform
        The vendor's platform that kernels are linked with.
    channels
        Pseudo-channels of its HBM, each of ``arch.channel_bytes``.
    control
        Memory behind the control port; empty for the channels that carry no lane.
    slrs
        Dies of the part, which logic is spread over.
    """

    platform: str
    channels: int
    slrs: int
    control: str = ""

    def _spare(self, arch: ArchConfig) -> int:
        """Return how many channels the control memory has to itself."""
        return min(math.ceil(arch.control_bytes / arch.channel_bytes), self.channels - arch.lanes)

    def ports(self, arch: ArchConfig) -> dict[str, str]:
        """One channel for each lane; for the control port, the next ones, or all of them."""
        spare = self._spare(arch)
        first, count = (arch.lanes, spare) if spare else (0, self.channels)
        control = self.control or f"HBM[{first}:{first + count - 1}]"
        return {"m_axi_control": control} | {
            f"m_axi_lane_{lane}": f"HBM[{lane}]" for lane in range(arch.lanes)}

    def shortage(self, arch: ArchConfig) -> str:
        spare = self._spare(arch)
        if self.control or spare * arch.channel_bytes >= arch.control_bytes:
            return ""
        where = (f"has {spare * arch.channel_bytes / GIB:g} GiB" if spare
                 else "shares the lanes' channels")
        return (f"{arch.lanes} lanes leave {spare} of {self.channels} HBM channels: the control "
                f"memory, of {arch.control_bytes / GIB:g} GiB, {where}; fewer --lanes leave more")

    def slr(self, arch: ArchConfig, lane: int) -> int:
        """Return the die that a lane is asked to be in: equal shares, in order."""
        return lane * self.slrs // arch.lanes


@dataclass(frozen=True, kw_only=True)
class Processor:
    """A processing system's block: its names of what is connected.

    ``settings`` are its properties but for the clock; ``memory`` its ports into memory, each with
    its clock pin, of ``port_bits``: one for each port of the lane, then the control memory's.
    """

    block: str
    rule: str
    automation: str
    settings: dict[str, str]
    clock_setting: str
    clock: str
    reset: str
    control: tuple[str, str]
    memory: tuple[tuple[str, str], ...]
    port_bits: int
    interrupt: str


# In its settings, HP ports are called GP2 to GP5, and HPC0 is GP0.
# Ref: AMD PG201, Zynq UltraScale+ MPSoC Processing System.
ULTRASCALE = Processor(
    block="zynq_ultra_ps_e", rule="zynq_ultra_ps_e", automation="apply_board_preset 1",
    settings={
        "PSU__FPGA_PL0_ENABLE": "1", "PSU__USE__M_AXI_GP0": "1", "PSU__USE__M_AXI_GP1": "0",
        "PSU__USE__M_AXI_GP2": "0", "PSU__USE__S_AXI_GP2": "1", "PSU__SAXIGP2__DATA_WIDTH": "128",
        "PSU__USE__S_AXI_GP3": "1", "PSU__SAXIGP3__DATA_WIDTH": "128",
        "PSU__USE__S_AXI_GP4": "1", "PSU__SAXIGP4__DATA_WIDTH": "128",
        "PSU__USE__S_AXI_GP5": "1", "PSU__SAXIGP5__DATA_WIDTH": "128",
        "PSU__USE__S_AXI_GP0": "1", "PSU__SAXIGP0__DATA_WIDTH": "128", "PSU__USE__IRQ0": "1"},
    clock_setting="PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ", clock="pl_clk0", reset="pl_resetn0",
    control=("M_AXI_HPM0_FPD", "maxihpm0_fpd_aclk"),
    memory=(*((f"S_AXI_HP{at}_FPD", f"saxihp{at}_fpd_aclk") for at in range(4)),
            ("S_AXI_HPC0_FPD", "saxihpc0_fpd_aclk")),
    port_bits=128, interrupt="pl_ps_irq0",
)
# Ref: AMD PG082, Processing System 7.
SERIES_7 = Processor(
    block="processing_system7", rule="processing_system7",
    automation='make_external "FIXED_IO, DDR" apply_board_preset 1',
    settings={
        "PCW_EN_CLK0_PORT": "1", "PCW_USE_M_AXI_GP0": "1", "PCW_USE_S_AXI_HP0": "1",
        "PCW_S_AXI_HP0_DATA_WIDTH": "64", "PCW_USE_S_AXI_HP1": "1",
        "PCW_S_AXI_HP1_DATA_WIDTH": "64", "PCW_USE_S_AXI_HP2": "1",
        "PCW_S_AXI_HP2_DATA_WIDTH": "64", "PCW_USE_FABRIC_INTERRUPT": "1",
        "PCW_IRQ_F2P_INTR": "1"},
    clock_setting="PCW_FPGA0_PERIPHERAL_FREQMHZ", clock="FCLK_CLK0", reset="FCLK_RESET0_N",
    control=("M_AXI_GP0", "M_AXI_GP0_ACLK"),
    memory=tuple((f"S_AXI_HP{at}", f"S_AXI_HP{at}_ACLK") for at in range(3)),
    port_bits=64, interrupt="IRQ_F2P",
)


@dataclass(frozen=True, kw_only=True)
class Zynq(Board):
    """A board whose processor runs PYNQ.

    Parameters
    ----------
    board_part
        What the board's files are found by; they set up its memory controller and clocks.
    connections
        Property ``board_connections`` of a module on a carrier; empty for one board.
    """

    board_part: str
    processor: Processor
    connections: str = ""

    def ports(self, arch: ArchConfig) -> dict[str, str]:
        """The lane's ports have the first of the processor's, the control memory the last."""
        *lane, control = (port for port, _ in self.processor.memory)
        return {"m_axi_control": control} | {
            f"m_axi_lane_{at}": port for at, port in enumerate(lane)}
