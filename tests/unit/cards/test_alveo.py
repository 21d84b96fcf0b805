"""The driver for Alveo, over a stand-in for XRT whose card is the simulated hardware."""

import os
import re
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from standins import bundles
from standins.bundles import PARAMS, PROMPTS, is_usable, tokens

import alula
from alula.boards import manifest as manifests
from alula.boards.manifest import ManifestError
from alula.host.cards import alveo
from alula.host.cards.link import CardError, Health, Limit
from alula.host.cards.place import Place, parse
from alula.host.choice import NoDevice
from alula.host.session import Row, Session
from alula.hw import isa
from alula.hw.arch import SIM
from alula.hw.csr import Register


@pytest.fixture
def folder(tmp_path, monkeypatch):
    return bundles.write("u55c", SIM, tmp_path / "bundle", monkeypatch)


QUICK = Limit(seconds=0.002, grace=0.001)  # 400,000 clocks; a run of these tests has 100,000


@pytest.fixture
def card(pyxrt):
    return pyxrt.CARDS[0]


def opener(folder, limit=QUICK, index=0):
    return partial(alveo.open_device, place=Place(index, folder), limit=limit)


def test_tokens(program, golden, folder, card):
    assert tokens(program, f"alveo:0@{folder}") == ("alveo:0", golden)
    assert card.starts == 4


def test_old_forms(program, golden, folder, pyxrt, monkeypatch):
    """XRT before hardware contexts."""
    monkeypatch.delattr(pyxrt, "hw_context")
    assert tokens(program, f"alveo@{folder}") == ("alveo:0", golden)


def test_new_forms_do_not_warn(program, folder, card, recwarn):
    opener(folder)(program).close()
    assert not [one for one in recwarn if one.category is DeprecationWarning
                and "xclbin" in str(one.message)]


@pytest.mark.parametrize("value, message", [
    (1 << 31, "argument watchdog must be from 0 to 2147483647, not 2147483648"),
    (-1, "argument watchdog must be from 0 to 2147483647, not -1"),
    (1.5, "argument watchdog must be a whole number, not 1.5"),
    (None, "argument watchdog must be a whole number, not None")])
def test_scalar_wrong(value, message):
    with pytest.raises(CardError, match=f"^{message}$"):
        alveo.scalar("watchdog", value)


def test_scalars_are_dropped_without_the_check(program, folder, card, pyxrt):
    """Why there is one: the binding's shorter form starts a kernel without them."""
    with closing(opener(folder)(program)) as device:
        assert alveo.scalar("program", np.uint32(7)) == 7
        started = device.link.kernel(*[1 << 31] * len(device.link.kernel.args))
    assert set(started.values) == {None}


def test_counters(program, folder, card):
    """Clocks and beats of this process's runs, also on a card that ran before."""
    counters = []
    for _ in range(2):
        with closing(opener(folder)(program)) as device:
            session = Session(device)
            session.feed(session.open(), [5, 6])
            session.feed(0, [7])
            counters.append(device.counters)
    assert counters[0].lane_beats > 1000 and counters[0].cycles > 10_000
    assert counters[0].lane_beats / 3 < counters[1].lane_beats < counters[0].lane_beats


def test_health_and_enumeration(pyxrt, program, folder):
    pyxrt.CARDS.append(pyxrt.Card("xilinx_u50_gen3x16_xdma_5", "0000:66:00.1"))
    with closing(opener(folder)(program)) as device:
        cards = alveo.found()
        assert device.link.health() == cards[0].health == Health(225.0, 41.0, 23.5)
    assert [(one.name, one.address, one.in_use) for one in cards] == [
        ("alveo:0", "0000:65:00.1", True), ("alveo:1", "0000:66:00.1", False)]
    assert not alveo.found()[0].in_use


def test_enumeration_when_xrt_fails(program, pyxrt, monkeypatch):
    """A driver that is not loaded stops nobody from listing what else is there."""
    def fail():
        raise RuntimeError("No xocl\nkernel module")
    monkeypatch.setattr(pyxrt, "enumerate_devices", fail)
    assert alveo.found() == []
    refused(program, "alveo", "^XRT must answer, not fail: No xocl$")


# What is refused.


def refused(program, device, message, kind=CardError):
    with pytest.raises(kind, match=message) as caught:
        alula.LLM(program, device=device)
    assert "\n" not in str(caught.value)


def test_second_card_is_chosen_by_number(program, golden, folder, pyxrt):
    pyxrt.CARDS.insert(0, pyxrt.Card("xilinx_u50_gen3x16_xdma_5", "0000:66:00.1"))
    assert tokens(program, f"alveo:1@{folder}") == ("alveo:1", golden)
    assert tokens(program, f"alveo@{folder}")[0] == "alveo:1"  # the first that fits
    refused(program, f"alveo:0@{folder}", "^alveo:0 must be a u55c, as the bundle's, not "
                                          "xilinx_u50_gen3x16_xdma_5$")
    refused(program, f"alveo:2@{folder}", "^alveo:2 must be one of 2 cards, counted from 0$")


def test_binding_absent(program, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyxrt", None)
    refused(program, "alveo", "^pyxrt must be importable, not absent; install XRT and source its "
                              "setup.sh$", NoDevice)


def test_binding_of_another_python_wrong(program, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pyxrt", None)
    (tmp_path / "pyxrt.cpython-38-x86_64-linux-gnu.so").touch()
    monkeypatch.syspath_prepend(tmp_path)
    mine = f"{sys.version_info.major}.{sys.version_info.minor}"
    refused(program, "alveo", f"^pyxrt must be built for Python {mine}, which runs Alula, not for "
            "3.8; run Alula with Python 3.8, or build XRT for this one$", NoDevice)


def test_no_card(program, pyxrt, monkeypatch):
    monkeypatch.setattr(pyxrt, "CARDS", [])
    refused(program, "alveo", "^an Alveo card must be there that XRT sees, not none$", NoDevice)


def test_no_bundle(program, card, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    refused(program, "alveo", f"^a bundle for alveo must be in {tmp_path}/alula/bundles, not none; "
                              "alula build makes one, and --device alveo@DIR names one elsewhere$")


def test_bundle_of_this_user_is_found(program, golden, card, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    place = tmp_path / "alula" / "bundles"
    bundles.write("u55c", replace(SIM, lanes=1), place / "a", monkeypatch)
    refused(program, "alveo", f"^a: bundle's architecture must be {SIM.hash}, as the program's "
                              r"\(sim, 2 lanes\), not [0-9a-f]{16} \(sim, 1 lanes\); compile")
    bundles.write("zcu104", SIM, place / "b", monkeypatch)
    bundles.write("u55c", SIM, place / "c", monkeypatch)
    assert is_usable(program, "alveo", golden)


def test_instruction_set_wrong(program, folder, card):
    made = manifests.load(folder)
    manifests.save(made.model_copy(update={"isa_hash": "0123456789abcdef"}), folder)
    refused(program, f"alveo@{folder}", f"^bundle's instruction set must be {isa.isa_hash()}, as "
            "the program's, not 0123456789abcdef; build", ManifestError)


def test_bitstream_cut_short(program, golden, folder, card):
    file = folder / "alula.xclbin"
    whole = file.read_bytes()
    file.write_bytes(whole[:1000])
    refused(program, f"alveo@{folder}", rf"^{file} must have {len(whole):,} bytes, not 1,000: it "
            "was cut short or comes from another build; copy the bundle again$", ManifestError)
    file.write_bytes(whole[:-1] + b"?")
    refused(program, f"alveo@{folder}", f"^{file} must have hash [0-9a-f]+, not [0-9a-f]+: it was "
            "altered; copy the bundle again$", ManifestError)
    made = manifests.load(folder)  # as when build.sh was run by hand
    manifests.save(made.model_copy(update={"bitstream_bytes": None, "bitstream_hash": None}),
                   folder)
    refused(program, f"alveo@{folder}", "^alveo:0 must answer, not fail: Invalid xclbin$")
    file.unlink()
    refused(program, f"alveo@{folder}", f"^{file} must be there; sh .*build.sh makes it$",
            ManifestError)
    file.write_bytes(whole)
    assert is_usable(program, f"alveo@{folder}", golden)


def test_memory_too_small(program, golden, folder, pyxrt, monkeypatch):
    small = pyxrt.Card(bank_bytes=1 << 18)
    monkeypatch.setattr(pyxrt, "CARDS", [small])
    refused(program, f"alveo@{folder}", r"^the memory behind m_axi_control of alveo:0 must have "
            r"[\d,]+ bytes for this program, not 262,144 \(HBM\[2\]\); compile with a smaller "
            "--context, or for a larger board$")
    monkeypatch.setattr(pyxrt, "CARDS", [pyxrt.Card()])
    assert is_usable(program, f"alveo@{folder}", golden)


def test_memory_taken_by_others(program, golden, folder, card):
    card.used["HBM[1]"] = (16 << 20) - 4096
    refused(program, f"alveo@{folder}", r"^the memory behind m_axi_lane_1 of alveo:0 must have "
            r"[\d,]+ bytes free, not fewer: failed to allocate buffer; end what else uses the "
            "card$")
    card.used["HBM[1]"] = 0
    assert is_usable(program, f"alveo@{folder}", golden)
    assert set(card.used.values()) == {0}  # all was given back


def test_one_process_at_a_time(program, golden, folder, card, tmp_path):
    """Another process has the card, and loses it by its death."""
    script = ("import sys, tempfile; tempfile.tempdir = sys.argv[1]\n"
              "from alula.host.cards.lock import Lock\n"
              "lock = Lock('alveo:0', '0000:65:00.1'); print('mine', flush=True); input()")
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], text=True,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == "mine\n"
        refused(program, f"alveo@{folder}", f"^alveo:0 must be free, not in use by process "
                f"{other.pid}; stop that, or name another card$")
        other.kill()
    assert is_usable(program, f"alveo@{folder}", golden)


# What fails at work: the next device goes on, and the card is of use again.


def bus_error(card):
    card.fabric.deny("m_axi_lane_1")


def corrupt(card):
    """An instruction in the card's memory becomes none."""
    control = card.memories[-4][2]()  # allocated before two lanes' and the status
    start = card.fabric.rtl.read_register(Register.PROGRAM) * isa.WORD_BYTES
    control[start + 10 * isa.INSTRUCTION_BYTES] = 0xFF


def vanish(card):
    card.gone = True


def unplug(card):
    """The run ends, and then there is no card to read from."""
    card.fabric.run = lambda clocks: setattr(card, "gone", True) or True


def hang(card):
    card.fabric.silence()
    card.clocks_per_ms = 100_000


def slow(card):
    card.fabric.slow(420_000)


def late(fault, start):
    """Return a fault that comes with the given start of a run."""
    return lambda card: fault(card) if card.starts == start else None


@pytest.fixture
def xrt_smi(tmp_path, monkeypatch):
    """Put an xrt-smi on PATH whose resets the stand-in carries out."""
    place = tmp_path / "bin"
    place.mkdir()
    (place / "xrt-smi").write_text("#!/bin/sh\n[ \"$1 $2 $3\" = '--force reset --device' ] && "
                                   f"touch {tmp_path}/$4\n")
    (place / "xrt-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    monkeypatch.setenv("STANDIN_RESET", str(tmp_path))


FAULTS = {
    bus_error: r"CardError: alveo:0 must end a run without an error, not with LANE at instruction "
               r"\d+ \(LD\.\w+ .*\), where a lane's memory gave a bus error; run \d+, [\d,]+ "
               "clocks",
    corrupt: r"CardError: alveo:0 must end a run without an error, not with OPCODE at instruction "
             r"10 \(.*\), where it is none of the instruction set's; the program in memory was "
             r"changed; run 3, [\d,]+ clocks",
    vanish: "CardError: alveo:0 must complete a run, not end it in state .*ABORT; see the log of "
            "XRT, and dmesg",
    unplug: "CardError: alveo:0 must answer, not fail: No such device",
    hang: r"CardHung: alveo:0 must end a run within 0\.005 s, not later: run \d+ was the last to "
          r"end, with NONE at instruction \d+ \(SYS\.End\); the driver resets the card",
    slow: r"CardError: alveo:0 must end a run without an error, not with WATCHDOG at instruction "
          r"\d+ \(.*\), where it was not done when the time was up: \w+ has it.*; run \d+, "
          r"[\d,]+ clocks",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_fault(fault, program, golden, folder, card, pyxrt, xrt_smi, monkeypatch):
    """At the third run: no token is lost or told twice, and the card runs again."""
    card.before_start = late(fault, 3)
    chunks = []
    with alula.LLM(program, device=[opener(folder), "golden"]) as llm:
        requests = [llm.submit(prompt, PARAMS) for prompt in PROMPTS]
        for request in requests:
            chunks.append([token for chunk in request for token in chunk.token_ids])
        assert llm.device == "golden" and llm.statistics.handovers == 1
        assert re.fullmatch(f"alveo:0 failed: {FAULTS[fault]}; golden goes on",
                            llm.device_report[2])
    assert [tuple(one) for one in chunks] == golden
    if card.gone:  # it comes back without its logic
        card.gone, card.loaded = False, None
    card.before_start, card.clocks_per_ms = lambda card: None, 200_000
    if fault is bus_error:
        card.fabric.rtl.deny(2, 0, 0)
    if fault is slow:
        card.fabric.slow(1)
    assert is_usable(program, opener(folder), golden)


def test_card_takes_over_from_itself(program, golden, folder, card, xrt_smi):
    """Hung, reset, loaded anew."""
    card.before_start = late(hang, 3)
    assert tokens(program, [opener(folder), opener(folder)]) == ("alveo:0", golden)
    assert card.starts == 2 + 1 + 2


def test_reset_without_the_command(program, golden, folder, card, monkeypatch, caplog):
    """The card stays hung, and is not taken for a good one."""
    monkeypatch.setattr(alveo, "RESET_COMMANDS", ())
    monkeypatch.setattr(alveo.LOG, "propagate", True)
    card.before_start = late(hang, 3)
    assert tokens(program, [opener(folder), opener(folder), "golden"]) == ("golden", golden)
    assert ("alveo:0 must be reset; run `xrt-smi reset --device 0000:65:00.1`, which is not on "
            "PATH here") in caplog.text


def test_closed_device(program, folder, card):
    device = opener(folder)(program)
    device.close()
    device.close()
    with pytest.raises(CardError, match="^alveo:0 must be open, not closed; open it again$"):
        device.step()


@pytest.mark.parametrize("options, message", [
    (dict(seconds=0), "seconds must be above 0 and at most 3600, not 0"),
    (dict(grace=9999), "grace must be above 0 and at most 3600, not 9999")])
def test_limit_wrong(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        Limit(**options)


def test_limit_is_of_a_greedy_step(program, folder, card):
    """A run of several steps has more time, in the accelerator and on the host."""
    assert Limit(seconds=2).clocks(225_000_000) == 450_000_000
    assert Limit(seconds=2).clocks(225_000_000, 5) == 0  # more than XRT can pass: no watchdog
    assert Limit(seconds=2, grace=1).patience(5) == 21
    with closing(opener(folder, Limit(seconds=1))(program)) as device:
        session = Session(device)
        session.open()
        session.step([Row(0, 5, 0)])
        assert 200_000_000 in device.link.run.values
        session.step([Row(0, 6, 1)], repeats=3)
        assert 600_000_000 in device.link.run.values


@pytest.mark.parametrize("name, place", [
    ("alveo", Place()), ("alveo:1", Place(1)), ("alveo@a:b", Place(None, Path("a:b"))),
    ("alveo:0@/x y", Place(0, Path("/x y")))])
def test_place(name, place):
    assert parse(name) == ("alveo", place)


@pytest.mark.parametrize("name", ["alveo:", "alveo:x", "alveo:-1", "alveo@"])
def test_place_wrong(name):
    with pytest.raises(ValueError, match="^a card must be named by KIND, KIND:NUMBER, KIND@BUNDLE "
                                         "or KIND:NUMBER@BUNDLE, not by KIND"):
        parse(name)
