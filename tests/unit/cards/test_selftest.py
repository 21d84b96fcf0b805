"""The self-test, on cards that are the simulated hardware, good and bad."""

import json
import shutil

import numpy as np
import pytest
import typer
from standins import bundles

from alula.boards import manifest as manifests
from alula.boards.manifest import ManifestError
from alula.host import vectors
from alula.host.boards_command import selftest
from alula.host.cards.link import CardError
from alula.host.cards.selftest import Check, run
from alula.host.device import GoldenDevice
from alula.host.vectors import VectorError
from alula.hw.arch import SIM, build

CHECKS = ["bundle", "registers", "memories", "copies", "vectors", "lanes", "sensors"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Bundles with vectors of two steps, which are soon simulated."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "PROMPT", (5, 6, 7))
        patch.setattr(vectors, "STEPS", 1)
        root = tmp_path_factory.mktemp("bundles")
        yield {board: bundles.write(board, SIM, root / board, patch, selftest=True)
               for board in ("u55c", "zcu104")}


def outcome(name):
    return {check.name: check for check in run(name, lambda name, total: lambda made: None)}


def test_alveo(folders, pyxrt, capsys):
    selftest(f"alveo@{folders['u55c']}", as_json=True, quiet=True)
    facts = json.loads(capsys.readouterr().out)
    found = {check["name"]: Check(**check) for check in facts["checks"]}
    assert facts["good"] and list(found) == CHECKS
    assert found.pop("registers").outcome == "not possible"
    assert {check.outcome for check in found.values()} == {"good"}
    assert found["vectors"].found == "2 steps, each logit the golden model's, to the bit"
    assert found["memories"].found == "4 MiB behind each of 3 ports"
    assert found["sensors"].found == "225 MHz, 41 °C, 23.5 W"


def test_zynq(folders, pynq):
    found = outcome(f"pynq@{folders['zcu104']}")
    assert list(found) == CHECKS and all(check.ok for check in found.values())
    assert found["registers"].found == f"7 written and read, hash {SIM.hash}"


def test_bad_memory(folders, pyxrt, monkeypatch, capsys):
    """A bit that sticks: the pattern finds it, with its place, and the command fails."""
    sync = pyxrt.bo.sync

    def stick(bo, direction, size=None, offset=0):
        sync(bo, direction, size, offset)
        if bo.size() == 4 << 20 and bo.address() >> 34 == 1:
            bo.card_bytes[[12_345, 99_999]] ^= 4
    monkeypatch.setattr(pyxrt.bo, "sync", stick)
    with pytest.raises(typer.Exit):
        selftest(f"alveo@{folders['u55c']}", as_json=True, quiet=True)
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert not checks["memories"]["ok"] and checks["memories"]["found"].startswith(
        "m_axi_lane_1: 2 bytes are wrong, the first at 0x3039: must be 0x")


def test_wrong_weights(folders, pyxrt, tmp_path):
    """Vectors of another program: every step that differs is told."""
    shutil.copytree(folders["u55c"], tmp_path / "b")
    path = tmp_path / "b" / "selftest" / "vectors.json"
    made = json.loads(path.read_text())
    made["steps"][1]["logits"] = "0" * 64
    path.write_text(json.dumps(made))
    check = outcome(f"alveo@{tmp_path / 'b'}")["vectors"]
    assert not check.ok and check.found.startswith("step 1: logits must hash to 0000000000000000, ")


def test_card_fails_at_work(folders, pyxrt):
    """A bus error is told as the other checks are, and they as well."""
    pyxrt.CARDS[0].before_start = lambda card: card.fabric.deny("m_axi_lane_0")
    found = outcome(f"alveo@{folders['u55c']}")
    assert found["memories"].ok and not found["vectors"].ok and found["sensors"].ok
    assert found["vectors"].found.startswith("alveo:0 must end a run without an error, not with "
                                             "LANE at instruction ")


def test_bad_register(folders, pynq, monkeypatch):
    """A bit of a register that cannot be written."""
    write = pynq.MMIO.write
    monkeypatch.setattr(pynq.MMIO, "write", lambda mmio, offset, data: write(
        mmio, offset, data & ~2 if offset == 0x28 and data == 0xAAAA_AAAA else data))
    check = outcome(f"pynq@{folders['zcu104']}")["registers"]
    assert not check.ok and check.found == "watchdog 0xaaaaaaa8 for 0xaaaaaaaa"


def test_without_vectors_wrong(folders, pyxrt, tmp_path):
    shutil.copytree(folders["u55c"], tmp_path / "b")
    manifests.save(manifests.load(tmp_path / "b").model_copy(update={"selftest": None}),
                   tmp_path / "b")
    with pytest.raises(ManifestError, match="must have vectors for a self-test, not none; build "
                                            "the bundle again$"):
        outcome(f"alveo@{tmp_path / 'b'}")


@pytest.mark.parametrize("name, kind, message", [
    ("cpu", ValueError, "a self-test is of a card, one of alveo, pynq, not 'cpu'"),
    ("alveo", CardError, "a bundle for alveo must be in .*, not none; name one: alveo@DIR")])
def test_card_wrong(name, kind, message, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    with pytest.raises(kind, match=f"^{message}$"):
        outcome(name)


# Vectors.


def test_vectors_do_not_depend_on_the_build(folders):
    """The promise of one arithmetic, which a card's vectors hold it to."""
    program, mine = vectors.read(folders["u55c"] / "selftest")
    _, theirs = vectors.make(build("kv260"))
    assert mine.steps == theirs.steps and mine.arch_hash != theirs.arch_hash
    assert vectors.differences(GoldenDevice(program), mine) == []


def test_vectors_find_a_single_bit(folders):
    program, wanted = vectors.read(folders["u55c"] / "selftest")

    class Flawed(GoldenDevice):
        def read(self, start, size):
            found = super().read(start, size)
            found[-1] ^= np.uint8(size == 4 * program.model.vocab)
            return found
    assert len(vectors.differences(Flawed(program), wanted)) == len(wanted.steps)


@pytest.mark.parametrize("change, message", [
    (dict(arch_hash="00"), "must be for [0-9a-f]{16}, the program's architecture, not 00"),
    (dict(format=2), "must be vectors of format 1: "),
    (None, "must be vectors that can be read; alula build makes them")])
def test_vectors_wrong(folders, tmp_path, change, message):
    shutil.copytree(folders["u55c"] / "selftest", tmp_path / "s")
    path = tmp_path / "s" / "vectors.json"
    if change is None:
        path.unlink()
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(VectorError, match=f"^{path} {message}"):
        vectors.read(tmp_path / "s")
