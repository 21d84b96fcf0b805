"""Stand-in for PYNQ: its calls, and its traps, over a board that is the simulated RTL.

Ref: PYNQ 4.0.0, ``overlay.py``, ``mmio.py``, ``buffer.py``. What it shares with the real one:

- An overlay is a ``.bit`` with a ``.hwh`` of its stem; to load it resets all that it holds.
- ``MMIO`` takes whole words, and Python's own integers only.
- A buffer begins as rubbish, and cache and memory differ until it is flushed or invalidated.
- A slice of a buffer is a buffer, with an address of its own.

``Device.devices`` are the boards.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from standins.zynq import Board, rail

BOARD = Board()  # the machine's; tests put faults into it


class Device:
    name = "embedded_xrt0"
    devices: list = []
    active_device = None


Device.active_device = Device()
Device.devices = [Device.active_device]


class Clocks:
    fclk0_mhz = 299.997


def get_rails():
    return {"INT": rail(2.25), "12V": rail(9.5)}


class Overlay:
    def __init__(self, bitfile_name, download=True):
        path = Path(bitfile_name)
        if not path.is_absolute() or not path.exists():
            raise OSError(f"Bitstream file {path} does not exist.")
        described = path.with_suffix(".hwh")
        if not described.exists():
            raise RuntimeError(f"Unable to find metadata for bitstream {path}")
        self.bitfile_name = str(path)
        tree = ElementTree.parse(described)
        kinds = {module.get("INSTANCE"): module.get("VLNV") for module in tree.iter("MODULE")}
        self.ip_dict = {"ps": {"type": kinds["ps"]}}  # which has no address
        for place in tree.iter("MEMRANGE"):
            first, last = (int(place.get(name), 16) for name in ("BASEVALUE", "HIGHVALUE"))
            self.ip_dict[place.get("INSTANCE")] = {
                "type": kinds[place.get("INSTANCE")], "phys_addr": first,
                "addr_range": last - first + 1}
        if download:
            self.download()

    def download(self):
        BOARD.program(self.bitfile_name)


class MMIO:
    def __init__(self, base_addr, length=4):
        self.base_addr, self.length = base_addr, length

    def _place(self, offset):
        if offset % 4:
            raise MemoryError("Unaligned access: offset must be multiple of 4.")
        assert 0 <= offset < self.length, "outside the mapped range: a fault of the process"
        return self.base_addr + offset

    def read(self, offset=0, length=4):
        return sum(BOARD.read_register(self._place(offset + at)) << 8 * at
                   for at in range(0, length, 4))

    def write(self, offset, data):
        if type(data) is not int:
            raise ValueError("Data type must be int or bytes.")
        BOARD.write_register(self._place(offset), int(np.uint32(data)))


class PynqBuffer(np.ndarray):
    def __array_finalize__(self, whole):
        self.block = getattr(whole, "block", None)

    @property
    def _start(self):
        return (self.__array_interface__["data"][0]
                - self.block.host.__array_interface__["data"][0])

    @property
    def device_address(self):
        return self.block.address + self._start

    physical_address = device_address

    def flush(self):
        self.block.flush(self._start, self.nbytes)

    def invalidate(self):
        self.block.invalidate(self._start, self.nbytes)

    def freebuffer(self):
        BOARD.free(self.block)


def allocate(shape, dtype="u4", target=None):
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    block = BOARD.allocate(size)
    made = block.host[:size].view(dtype).reshape(shape).view(PynqBuffer)
    made.block = block
    return made
