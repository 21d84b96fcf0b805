"""The commands, with cards that are stand-ins: what is run, listed, and taken by itself."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from standins import bundles

import alula
from alula.compiler.program import save
from alula.host import choice
from alula.host.choice import Devices
from alula.host.device import CARDS, DEVICES, open_device
from alula.hw.arch import SIM

TESTS = Path(__file__).parents[2]


def command(*arguments, drivers=True, code=0, **environment):
    """Run alula with the stand-ins in its path, or without."""
    found = {"PYTHONPATH": f"{TESTS}:{TESTS / 'standins'}"} if drivers else {}
    done = subprocess.run([sys.executable, "-m", "alula.host.cli", *map(str, arguments)],
                          capture_output=True, text=True, check=False, timeout=300,
                          env=os.environ | found | environment)
    assert done.returncode == code, done.stderr + done.stdout
    return done


@pytest.fixture
def folder(tmp_path, monkeypatch):
    return bundles.write("u55c", SIM, tmp_path / "data" / "alula" / "bundles" / "u55c", monkeypatch)


@pytest.fixture
def file(program, tmp_path):
    save(program, tmp_path / "sparse.alula")
    return tmp_path / "sparse.alula"


def test_run(folder, file, golden, tmp_path):
    """As on any device; every logit is compared."""
    done = command("run", file, "--device", f"alveo:0@{folder}", "--prompt", "The", "--json",
                   "--max-new-tokens", 2, "--check", TMPDIR=str(tmp_path))
    facts = json.loads(done.stdout)
    assert facts["device"] == "alveo:0" and tuple(facts["tokens"]) == golden[0][:2]
    assert facts["compared_bytes"] > 0 and "copy the program to the card" in done.stderr


def test_lists(tmp_path):
    cards = json.loads(command("boards", "--json", TMPDIR=str(tmp_path)).stdout)["cards"]
    assert [(card["name"], card["platform"]) for card in cards] == [
        ("alveo:0", "xilinx_u55c_gen3x16_xdma_base_3"), ("pynq", "embedded_xrt0")]
    told = command("doctor", "--json", TMPDIR=str(tmp_path)).stdout
    assert {"name": "alveo:0", "purpose": "runs programs", "found":
            "xilinx_u55c_gen3x16_xdma_base_3 at 0000:65:00.1, free, 225 MHz, 41 °C, 23.5 W"} in (
                json.loads(told)["checks"])
    assert "No card answers on this machine" in command("boards", drivers=False).stdout


def test_auto_takes_a_card(program, golden, folder, pyxrt, tmp_path, monkeypatch):
    """A board that answers comes before GPU and CPU; else the report says why not."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    with alula.LLM(program) as llm:
        assert llm.device == "alveo:0" and llm.device_report == ("alveo:0: runs sparse",)
        made = llm.generate("The", alula.SamplingParams(max_tokens=1))[0]
        assert made.outputs[0].token_ids == golden[0][:1]
    monkeypatch.setattr(pyxrt, "CARDS", [])
    monkeypatch.setattr(choice, "KINDS", tuple(
        kind for kind in choice.KINDS if kind.is_card or kind.name == "golden"))
    devices = Devices(program)
    assert devices.open().name == "golden"
    assert devices.report[0] == "alveo: an Alveo card must be there that XRT sees, not none"
    assert devices.report[1].startswith("pynq: pynq must be importable, not fail: ")


def test_card_is_given_back(program, folder, pyxrt):
    """By close, by the end of an LLM, and by that of a device."""
    for _ in range(2):
        with alula.LLM(program, device=f"alveo@{folder}"):
            pass
    llm = alula.LLM(program, device=f"alveo@{folder}")
    del llm
    device = open_device(f"alveo@{folder}", program)
    assert device.name == "alveo:0"
    del device
    open_device(f"alveo:0@{folder}", program).close()


@pytest.mark.parametrize("name", ["alveo:x", "alveo:0:1", "pynq@"])
def test_name_wrong(name, file):
    done = command("run", file, "--device", name, code=1)
    assert done.stderr.splitlines()[-1].startswith("alula: a card must be named by KIND")


def test_every_card_is_a_device_and_a_kind():
    assert set(CARDS) < set(DEVICES)
    assert [kind.name for kind in choice.KINDS if kind.is_card] == list(CARDS)
