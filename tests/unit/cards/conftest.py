"""Machines with cards: stand-ins in the place of vendors' packages."""

import sys
import tempfile

import pytest
import standins.pynq
import standins.pyxrt
from standins.bundles import SPARSE, tokens
from standins.zynq import Board

import alula
from alula.host.cards import zynq


@pytest.fixture
def pyxrt(monkeypatch, tmp_path):
    """XRT, with one card, and its locks in a folder of its own."""
    module = standins.pyxrt
    monkeypatch.setitem(sys.modules, "pyxrt", module)
    monkeypatch.setattr(module, "CARDS", [module.Card()])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return module


@pytest.fixture
def pynq(monkeypatch, tmp_path):
    """PYNQ, with its board, its lock in a folder of its own, and Linux's word on memory."""
    module = standins.pynq
    monkeypatch.setitem(sys.modules, "pynq", module)
    monkeypatch.setattr(module, "BOARD", Board())
    monkeypatch.setattr(zynq, "time", module.BOARD)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "meminfo").write_text("MemTotal: 4000000 kB\nCmaFree:  65536 kB\n")
    monkeypatch.setattr(zynq, "MEMINFO", tmp_path / "meminfo")
    return module


@pytest.fixture(scope="package")
def program():
    return alula.compile(SPARSE, context=256, sequences=4)


@pytest.fixture(scope="package")
def golden(program):
    """The two texts that every device must make."""
    return tokens(program, "golden")[1]
