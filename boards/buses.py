"""The AXI masters of a build by name, and which of them lead to a memory of their own."""

from __future__ import annotations

from alula.hw.arch import ArchConfig


def buses(arch: ArchConfig) -> list[str]:
    """Return the AXI masters' names, the control memory's first."""
    return ["m_axi_control",
            *(f"m_axi_lane_{port}" for port in range(arch.lanes * arch.lane_ports))]


def memories(arch: ArchConfig) -> list[str]:
    """Return the master that names each memory: the control's, then the first of each lane's."""
    return ["m_axi_control",
            *(f"m_axi_lane_{lane * arch.lane_ports}" for lane in range(arch.lanes))]
