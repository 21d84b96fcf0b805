"""The driver for Zynq, over a stand-in for PYNQ whose board is the simulated hardware."""

import re
import shutil
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from standins import bundles
from standins.bundles import PARAMS, PROMPTS, is_usable, tokens

import alula
from alula.boards import manifest as manifests
from alula.boards.manifest import ManifestError
from alula.host.cards import zynq
from alula.host.cards.link import CardError, Health, Limit
from alula.host.cards.place import Place
from alula.host.choice import NoDevice
from alula.hw.arch import BUILDS, SIM
from alula.hw.csr import Ctrl, Register

QUICK = Limit(seconds=0.002, grace=0.001)  # the watchdog's 400,000 clocks; a run has 100,000


@pytest.fixture
def folder(tmp_path, monkeypatch):
    return bundles.write("zcu104", SIM, tmp_path / "bundle", monkeypatch)


@pytest.fixture
def board(pynq):
    return pynq.BOARD


def opener(folder, limit=Limit()):
    return partial(zynq.open_device, place=Place(None, folder), limit=limit)


def refused(program, device, message, kind=CardError):
    with pytest.raises(kind, match=message) as caught:
        alula.LLM(program, device=device)
    assert "\n" not in str(caught.value)


def test_tokens(program, golden, folder, board):
    assert tokens(program, f"pynq@{folder}") == ("pynq", golden)
    assert board.starts == 4 and not board.blocks


@pytest.mark.slow
def test_striped_tokens(tmp_path, pynq, golden, monkeypatch):
    """A lane that reads through two ports finds its bytes; its memory begins at a whole block."""
    arch = replace(SIM, name="striped", lane_ports=2, one_memory=True)
    monkeypatch.setitem(BUILDS, arch.name, arch)
    program = alula.compile(bundles.SPARSE, arch=arch.name, context=256, sequences=4)
    folder = bundles.write("zcu104", arch, tmp_path / "bundle", monkeypatch)
    pynq.BOARD.next += 4096
    assert tokens(program, f"pynq@{folder}") == ("pynq", golden)


@pytest.mark.parametrize("forgotten", ["flush", "invalidate"])
def test_cache_matters(forgotten, program, golden, folder, pynq, monkeypatch):
    """A driver that forgot it would run on rubbish, or read what was there before."""
    monkeypatch.setattr(pynq.PynqBuffer, forgotten, lambda buffer: None)
    with pytest.raises(CardError, match="^pynq must "):
        alula.LLM(program, device=opener(folder, QUICK)).generate(PROMPTS, PARAMS)


def test_every_piece_is_synchronized(program, folder, board):
    """Whatever is written is in memory, and nothing beside it is touched."""
    random = np.random.default_rng(0)
    with closing(opener(folder)(program)) as device:
        block = board.blocks[device.control.address]
        before = block.memory.copy()
        for start, size in [(0, 1), (63, 2), (4096, 4096), (130, 700)]:
            data = random.integers(0, 256, size, np.uint8)
            device.write(start, data.tobytes())
            before[start:start + size] = data
            np.testing.assert_array_equal(block.memory, before)
            block.memory[start] ^= 0xFF  # as the accelerator would
            before[start] ^= 0xFF
            assert device.read(start, size)[0] == before[start]
        with pytest.raises(ValueError, match="^a control address must be below"):
            device.read(device.control.size, 1)


def test_registers_and_health(program, folder, board, tmp_path, monkeypatch):
    (tmp_path / "thermal_zone0").mkdir()
    (tmp_path / "thermal_zone0" / "temp").write_text("45250\n")
    monkeypatch.setattr(zynq, "THERMAL", tmp_path)
    with closing(opener(folder)(program)) as device:
        found = device.link.registers()
        assert f"{found['hash']:016x}" == SIM.hash and found["lanes"] == 2
        assert device.link.health() == zynq.found()[0].health == Health(299.997, 45.25, 9.5)
        assert zynq.found()[0].in_use
    assert not zynq.found()[0].in_use


# What is refused.


def test_pynq_absent(program, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynq", None)
    refused(program, "pynq", "^pynq must be importable, not fail: .*; run Alula in the board's "
                             "PYNQ environment$", NoDevice)


def test_no_board(program, pynq, monkeypatch):
    monkeypatch.setattr(pynq.Device, "devices", [])
    refused(program, "pynq", "^a Zynq board must be there that PYNQ sees, not none$", NoDevice)


def test_second_board_wrong(program, folder, board):
    refused(program, f"pynq:1@{folder}", "^a board has one device, pynq:0, not pynq:1$")


def test_bundle_of_another_kind_wrong(program, board, tmp_path, monkeypatch):
    other = bundles.write("u55c", SIM, tmp_path / "other", monkeypatch)
    refused(program, f"pynq@{other}", f"^{other} must be a bundle for pynq, not for u55c, which is "
                                      "alveo's$", ManifestError)


def test_logic_is_not_the_manifests_wrong(program, folder, board, tmp_path, monkeypatch):
    """The registers say what was loaded, whatever the files say."""
    another = replace(SIM, name="another")
    other = bundles.write("zcu104", another, tmp_path / "other", monkeypatch)
    shutil.copy(folder / "overlay" / "alula.bit", other / "overlay")
    unhashed(other)
    refused(replace(program, arch=another), f"pynq@{other}", "^the logic's architecture must be "
            rf"{another.hash}, as the bundle's \(another, 2 lanes\), not {SIM.hash}; load the "
            "bundle that belongs to the bitstream$")


def unhashed(folder):
    """Change a manifest to what it is when build.sh was run by hand."""
    made = manifests.load(folder)
    manifests.save(made.model_copy(update={"bitstream_bytes": None, "bitstream_hash": None}),
                   folder)


def test_bitstream_cut_short(program, golden, folder, board):
    unhashed(folder)
    file = folder / "overlay" / "alula.bit"
    whole = file.read_bytes()
    file.write_bytes(whole[:500])
    refused(program, f"pynq@{folder}", "^pynq must answer, not fail: Bitstream is not whole$")
    file.write_bytes(whole)
    assert is_usable(program, f"pynq@{folder}", golden)


def test_description_absent(program, folder, board):
    (folder / "overlay" / "alula.hwh").unlink()
    refused(program, f"pynq@{folder}", "^.*alula.hwh must be beside alula.bit; copy the bundle "
                                       "again$")


def test_description_of_another_design_wrong(program, folder, board):
    described = folder / "overlay" / "alula.hwh"
    described.write_text(described.read_text().replace("alula:kernel", "other:kernel"))
    refused(program, f"pynq@{folder}", "^alula.bit must have a block of type alula:kernel:alula, "
                                       "not none; build the bundle again$")


def test_memory_too_small(program, golden, folder, board, tmp_path):
    (tmp_path / "meminfo").write_text("CmaFree: 1024 kB\n")
    refused(program, f"pynq@{folder}", r"^contiguous memory must have [\d,]+ bytes free for this "
            "program, not 1,048,576; compile with a smaller --context, or give the kernel a larger "
            "cma=$")
    (tmp_path / "meminfo").unlink()  # Linux does not say
    board.contiguous_bytes = 1 << 20
    refused(program, f"pynq@{folder}", r"^contiguous memory must have [\d,]+ bytes in one piece "
            "for m_axi_\\w+, not fewer: Failed to allocate Memory!; give the kernel a larger cma=$")
    assert not board.blocks
    board.contiguous_bytes = 64 << 20
    assert is_usable(program, f"pynq@{folder}", golden)


def test_one_process_at_a_time(program, folder, board, tmp_path):
    script = ("import sys, tempfile; tempfile.tempdir = sys.argv[1]\n"
              "from alula.host.cards.lock import Lock\n"
              "lock = Lock('pynq', 'pynq'); print('mine', flush=True); input()")
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], text=True,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == "mine\n"
        refused(program, f"pynq@{folder}", f"^pynq must be free, not in use by process "
                f"{other.pid}; stop that, or name another card$")
        other.kill()
    opener(folder)(program).close()


# What fails at work.


def bus_error(board):
    board.fabric.deny("m_axi_control")


def hang(board):
    board.fabric.silence()


def slow(board):
    board.fabric.slow(420_000)


FAULTS = {
    bus_error: (r"CardError: pynq must write a record of each run, not none; is the bitstream the "
                r"bundle's\?", Limit()),
    hang: (r"CardHung: pynq must end a run within 0\.2 s, not later: it is at instruction \d+ "
           r"\(\w+\.\w+.*\) after [\d,]+ clocks: \w+ has it.*, and no other queue has a "
           r"later one; the driver resets the card",
           Limit(seconds=0.05, grace=0.1)),
    slow: (r"CardError: pynq must end a run without an error, not with WATCHDOG at instruction "
           r"\d+ \(.*\), where it was not done when the time was up: \w+ has it.*; "
           r"run 3, "
           r"[\d,]+ clocks", Limit(seconds=0.002, grace=60)),
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_fault(fault, program, golden, folder, board):
    """At the third run: no token is lost or told twice, and the board runs again."""
    message, limit = FAULTS[fault]
    board.before_start = lambda board: fault(board) if board.starts == 3 else None
    with alula.LLM(program, device=[opener(folder, limit), "golden"]) as llm:
        requests = [llm.submit(prompt, PARAMS) for prompt in PROMPTS]
        made = [tuple(token for chunk in request for token in chunk.token_ids)
                for request in requests]
        assert llm.device == "golden" and llm.statistics.handovers == 1
        assert re.fullmatch(f"pynq failed: {message}; golden goes on", llm.device_report[2])
    assert made == golden
    assert is_usable(program, opener(folder), golden)


def test_stopped_while_a_bus_is_silent(program, folder, board):
    """The watchdog stopped it, but it cannot end: the registers say what it waits for."""
    device = opener(folder, Limit(seconds=1e-5, grace=0.3))(program)
    board.before_start = hang
    with closing(device), pytest.raises(
            CardError, match=r"not later: it was stopped at instruction \d+ .* after [\d,]+ clocks "
                             "and waits for a bus to answer; the driver resets the card$"):
        device.step()


def test_done_is_acknowledged(program, folder, board):
    """Each run's end is taken, or the next one would not begin."""
    with closing(opener(folder)(program)) as device:
        board.fabric.rtl.write_register(Register.CTRL, 1 << Ctrl.START)
        assert device.link.wait(60)
        assert not board.read_register(0xA000_0000) >> Ctrl.DONE & 1
