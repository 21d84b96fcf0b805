"""Programmable logic and its memories, for the stand-ins: registers and bytes are the RTL's."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

import numpy as np

from alula.boards.buses import memories
from alula.boards.kernel_xml import kernel_xml
from alula.hw.arch import ArchConfig
from alula.sim.rtl.build import library
from alula.sim.rtl.simulation import Accelerator

MAGIC = b"standin\0"
SLICE = 50_000  # clocks simulated at a time


def bitstream(board, arch):
    """Return the bytes of a bitstream that a stand-in takes; a change anywhere is noticed."""
    body = json.dumps({"arch": asdict(arch), "kernel": kernel_xml(arch),
                       "memory": board.ports(arch)}).encode()
    return MAGIC + hashlib.sha256(body).digest() + body


def parse(data):
    """Return what a bitstream has; raise ValueError if it is none, or not whole."""
    head, digest, body = data[:8], data[8:40], data[40:]
    if head != MAGIC or hashlib.sha256(body).digest() != digest:
        raise ValueError("not a bitstream")
    found = json.loads(body)
    return found | {"arch": ArchConfig(**found["arch"])}


class Fabric:
    """The logic after programming: reset, with memories that hold what they held."""

    def __init__(self, arch):
        self.arch, self.buses = arch, memories(arch)
        self.rtl = Accelerator(library(arch, lambda name, total: lambda made: None), arch)
        for lane in range(arch.lanes):
            self.rtl.stripe(1 + lane, arch.lane_ports)

    def attach(self, bus, address, memory):
        self.rtl.attach(self.buses.index(bus), address, memory, writable=True)

    def run(self, clocks):
        """Run until the interrupt, for at most some clocks; return whether it came."""
        while clocks > 0:
            if self.rtl.wait(min(SLICE, clocks)):
                return True
            clocks -= SLICE
        return False

    # Faults.

    def silence(self):
        """No memory answers any more."""
        for port in range(len(self.buses)):
            self.rtl.timing(port, 1, 0.0)

    def slow(self, latency):
        for port in range(len(self.buses)):
            self.rtl.timing(port, latency, 1.0)

    def deny(self, bus):
        """A port's memory answers with errors."""
        self.rtl.deny(self.buses.index(bus), 0, (1 << 64) - 1)


def rubbish(size, seed):
    """Return what memory holds before anybody wrote to it."""
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)
