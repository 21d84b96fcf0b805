"""Machines with cards: stand-ins in the place of vendors' packages."""

import sys
import tempfile

import pytest
import standins.pyxrt


@pytest.fixture
def pyxrt(monkeypatch, tmp_path):
    """XRT, with one card, and its locks in a folder of its own."""
    module = standins.pyxrt
    monkeypatch.setitem(sys.modules, "pyxrt", module)
    monkeypatch.setattr(module, "CARDS", [module.Card()])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return module
