"""What a device's name means, and devices that confirm each other."""

from dataclasses import replace

import numpy as np
import pytest
from models import program

from alula.host.compared import Compared, Mismatch
from alula.host.device import GoldenDevice, resolve
from alula.host.session import Session
from alula.hw.arch import SIM, U55C
from alula.sim.memory import MemoryModel
from alula.sim.rtl import build


@pytest.fixture(scope="module")
def made():
    return program(SIM, layers=1, context=128, sequences=2, head_dim=32)


def test_auto_is_rtl(made, monkeypatch):
    monkeypatch.setattr(build, "compiler", lambda: ["c++"])
    assert resolve("auto", made) == ("rtl", "")


def test_auto_without_a_compiler(made, monkeypatch):
    monkeypatch.setattr(build, "compiler", lambda: None)
    name, why = resolve("auto", made)
    assert name == "golden"
    assert why == ("simulating the hardware needs a C++ compiler; install g++, or `pip install "
                   "ziglang`; running the golden model")


def test_auto_beyond_a_limit(made, monkeypatch):
    """What the hardware of this build cannot run, the golden model can."""
    monkeypatch.setattr(build, "compiler", lambda: ["c++"])
    name, why = resolve("auto", replace(made, arch=replace(made.arch, page_entries=1)))
    assert name == "golden" and why.startswith("context must be at most 0 tokens on sim, not 128;")


def test_auto_of_a_large_build(monkeypatch):
    monkeypatch.setattr(build, "compiler", lambda: ["c++"])
    name, why = resolve("auto", program(U55C, layers=1, context=128, sequences=2))
    assert name == "golden" and "only on request, with --device rtl" in why


def test_compared_is_equal(made):
    both, one = Session(Compared(GoldenDevice(made), GoldenDevice(made))), Session(
        GoldenDevice(made))
    both.open(), one.open()
    np.testing.assert_array_equal(both.feed(0, [3, 4]), one.feed(0, [3, 4]))
    assert both.device.compared == 4 * made.model.vocab


def test_compared_wrong(made):
    """A bit of an answer that differs is found."""
    other = GoldenDevice(made)
    read = other.read

    def flipped(start, size):
        found = read(start, size)
        found[5] ^= 1
        return found

    other.read = flipped
    session = Session(Compared(GoldenDevice(made), other))
    session.open()
    with pytest.raises(Mismatch, match=r"^golden and golden must give the same bits, not differ in "
                                       r"1 of \d+ bytes from control address \d+ on; this is a "
                                       r"defect of Alula: please report"):
        session.feed(0, [3])


@pytest.mark.parametrize("text, message", [
    ("latency", "a memory model must be ideal, hbm2, ddr4-2400, ddr3-1050, or some of "
     "latency=NUMBER,bandwidth=NUMBER,stall=NUMBER,seed=NUMBER, not 'latency'"),
    ("latency=two", "a memory model must be ideal"),
    ("bandwidth=0", r"a memory's bandwidth must be from 0.001 to 1, not 0\.0"),
    ("latency=-1", "a memory's latency must be from 0 to 1000000 clocks, not -1"),
])
def test_memory_model_wrong(text, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        MemoryModel.parse(text)


def test_memory_model():
    assert MemoryModel.parse("latency=80,stall=0.25") == MemoryModel(latency=80, stall=0.25)
