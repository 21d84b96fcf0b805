"""The driver over PYNQ itself: its overlays, registers and buffers; only the device is ours.

What a device does, PYNQ leaves to a class; here it is the simulated board. All else is the package:
the parser of ``.hwh``, ``Overlay``, ``MMIO``, and buffers with their slices.
"""

import importlib
import inspect
import struct
import tempfile
from contextlib import closing

import pytest
from standins import bundles
from standins.bundles import tokens
from standins.zynq import BASE, Board, described

from alula.boards.kernel_xml import VLNV
from alula.host.cards import zynq
from alula.host.cards.place import Place
from alula.hw.arch import SIM
from alula.hw.csr import CONTROL_BYTES

pynq = pytest.importorskip("pynq", reason="pynq must be installed: pip install pynq")
parser = importlib.import_module("pynq.pl_server.hwh_parser")


class Simulated(pynq.Device):
    """A device whose logic and memory are a simulated board's.

    ``whole``: as PYNQ 4.0 does, flush and invalidate all of a buffer whatever part is asked for.
    """

    def __init__(self, board, whole):
        super().__init__("simulated")
        self.name, self.board, self.whole = "simulated", board, whole
        self.capabilities = {"REGISTER_RW": True}

    def has_capability(self, name):
        return self.capabilities.get(name, False)

    def read_registers(self, address, length):
        return struct.pack("<I", self.board.read_register(address))

    def write_registers(self, address, data):
        self.board.write_register(address, struct.unpack("<I", data)[0])

    def get_bitfile_metadata(self, path, partial=False):
        found = parser._HWHUltrascale(parser.get_hwh_name(path))
        found.systemgraph, found.clock_dict = None, {}  # the processor's clocks are not simulated
        return found

    def download(self, bitstream, parser=None):
        self.board.program(bitstream.bitfile_name)
        self.reset(parser, bitstream.timestamp, bitstream.bitfile_name)

    def allocate(self, shape, dtype, **options):
        block = self.board.allocate(shape[0])
        return pynq.buffer.PynqBuffer(shape, dtype, buffer=block.host, device=self, bo=block,
                                      device_address=block.address, coherent=False)

    def _part(self, block, offset, size):
        return (0, block.host.size) if self.whole else (offset, size)

    def flush(self, block, offset, pointer, size):
        block.flush(*self._part(block, offset, size))

    def invalidate(self, block, offset, pointer, size):
        block.invalidate(*self._part(block, offset, size))


@pytest.fixture(params=["parts", "whole"])
def board(request, monkeypatch, tmp_path):
    found = Board()
    device = Simulated(found, request.param == "whole")
    monkeypatch.setattr(pynq.Device, "_devices", [device], raising=False)
    monkeypatch.setattr(pynq.Device, "_active_device", device, raising=False)
    monkeypatch.setattr(zynq, "time", found)
    monkeypatch.setattr(zynq, "MEMINFO", tmp_path / "nothing")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return found


def test_tokens(program, board, pyxrt, tmp_path, monkeypatch):
    """As on the card of another platform, whose tests compare with the golden model."""
    folder = bundles.write("zcu104", SIM, tmp_path / "bundle", monkeypatch)
    other = bundles.write("u55c", SIM, tmp_path / "other", monkeypatch)
    assert tokens(program, f"pynq@{folder}") == ("pynq", tokens(program, f"alveo@{other}")[1])


def test_addresses_are_the_stand_ins(program, board, tmp_path, monkeypatch):
    """A slice of a buffer is at the address that the stand-in's is."""
    folder = bundles.write("zcu104", SIM, tmp_path / "bundle", monkeypatch)
    with closing(zynq.open_device(program, Place(None, folder))) as device:
        assert device.control.address in board.blocks
        assert device.control.array[64:128].device_address == device.control.address + 64


def test_description_is_read_as_the_stand_in_reads_it(tmp_path):
    path = tmp_path / "alula.hwh"
    path.write_text(described())
    found = parser._HWHUltrascale(str(path)).ip_dict["alula"]
    assert (found["type"], found["phys_addr"], found["addr_range"]) == (VLNV, BASE, CONTROL_BYTES)


@pytest.mark.parametrize("what, names", [
    (pynq.Overlay.__init__, ("bitfile_name", "download")), (pynq.allocate, ("shape", "dtype")),
    (pynq.MMIO.__init__, ("base_addr", "length")), (pynq.MMIO.read, ("offset", "length"))])
def test_forms_that_the_driver_uses(what, names):
    assert set(names) <= set(inspect.signature(what).parameters)


@pytest.mark.skipif(pynq.ps.ON_TARGET, reason="this machine is a board")
def test_without_a_board(program):
    assert zynq.probe(program) == "a Zynq board must be there that PYNQ sees, not none"
    assert zynq.found() == [] and zynq.read_health().clock_mhz is None
