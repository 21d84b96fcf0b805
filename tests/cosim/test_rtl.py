"""The hardware as a device: logits and memory equal to the golden model's, to the bit."""

import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from alula.compiler.compile import Options, compile as compile_graph
from alula.compiler.importer import import_model
from alula.host.device import GoldenDevice
from alula.host.rtl import RtlDevice
from alula.host.session import Session
from alula.hw.arch import SIM
from alula.sim.rtl.simulation import RunError, Simulation


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """A run that hangs fails."""
    monkeypatch.setattr(Simulation, "patience", 3_000_000)


@pytest.fixture(scope="module", params=["dense", "sparse"])
def program(request):
    graph, _ = import_model(Path(str(files("alula.host.bundled"))) / request.param)
    return compile_graph(graph, SIM, Options(context=256), name=request.param)


def _same(program, feeds):
    """Feed both devices alike; ``feeds`` are (sequence, tokens, rows in a step)."""
    sessions = Session(GoldenDevice(program)), Session(RtlDevice(program))
    for session in sessions:
        for _ in range(1 + max(sequence for sequence, _, _ in feeds)):
            session.open()
    for sequence, tokens, rows in feeds:
        golden, rtl = (session.feed(sequence, tokens, chunk=rows, all_logits=True)
                       for session in sessions)
        np.testing.assert_array_equal(rtl.view(np.uint32), golden.view(np.uint32))
    return sessions


def test_rtl_tokens(program):
    """Tokens alone, steps of several rows over a page's end, and a second sequence."""
    golden, rtl = _same(program, [(0, [5, 17, 300], 1), (0, list(range(10, 74)), 8),
                                  (1, [40, 41, 42], 3), (0, [9], 1),
                                  (1, list(range(50, 110)), 16), (1, [7, 8], 1)])
    size = golden.device.machine.control.size
    np.testing.assert_array_equal(rtl.device.control[:size], golden.device.machine.control)


def test_rtl_watchdog_wrong(program):
    """A run that is stopped leaves the accelerator usable."""
    device = RtlDevice(program)
    session, golden = Session(device), Session(GoldenDevice(program))
    session.open(), golden.open()
    run = device.simulation.run
    device.simulation.run = lambda: run(watchdog=5_000)
    with pytest.raises(RunError, match=r"^the accelerator must end its run without an error, not "
                                       r"with WATCHDOG at instruction \d+$"):
        session.feed(0, [7])
    device.simulation.run = run
    np.testing.assert_array_equal(session.feed(0, [7]), golden.feed(0, [7]))


def test_rtl_demo():
    """The command itself: figures of the run, and every logit compared."""
    done = subprocess.run(
        [sys.executable, "-m", "alula.host.cli", "demo", "--max-new-tokens", "4", "--quiet",
         "--json", "--memory", "latency=40,stall=0.1"],
        capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["device"] == "rtl" and len(facts["tokens"]) == 4
    assert facts["compared_bytes"] == 4 * 4 * 2048
    assert 0 < facts["bandwidth_share"] < 1
    assert {"cycles_per_token", "bytes_per_token", "cycles_per_s", "macs_per_s"} <= facts.keys()
