"""Program files: what is saved is loaded; what was cut, altered or is foreign is refused."""

import json

import numpy as np
import pytest
from models import program

from alula.compiler.program import ProgramError, load, save
from alula.hw import isa
from alula.hw.arch import SIM


@pytest.fixture(scope="module")
def made():
    return program(SIM, layers=1, hidden=32, heads=2, ffn=32, vocab=33, context=64, sequences=1)


@pytest.fixture
def path(made, tmp_path):
    save(made, tmp_path / "p.alula")
    return tmp_path / "p.alula"


def test_save_load(made, path):
    again = load(path)
    assert again.instructions == made.instructions and again.arch == made.arch
    assert again.memory == made.memory and again.model == made.model
    for one, two in zip(again.lanes, made.lanes, strict=True):
        np.testing.assert_array_equal(one, two)
    assert [p.name for p in path.parent.iterdir()] == ["p.alula"]


def test_file_is_safetensors(path):
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        assert {"program", "control", "lane.0", "lane.1"} <= set(file.keys())
        assert json.loads(file.metadata()["alula"])["isa"] == isa.isa_hash()


def test_truncated_wrong(path):
    whole = path.read_bytes()
    for size in (0, 3, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ProgramError):
            load(path)


def test_altered_wrong(path):
    whole = bytearray(path.read_bytes())
    whole[-5] ^= 1
    path.write_bytes(whole)
    with pytest.raises(ProgramError, match=r"part '[\w.]+' must have hash [0-9a-f]{16}, not "
                                           r"[0-9a-f]{16}: the file was altered$"):
        load(path)


def test_other_isa_wrong(path):
    whole = path.read_bytes()
    path.write_bytes(whole.replace(isa.isa_hash().encode(), b"0123456789abcdef"))
    with pytest.raises(ProgramError, match=rf"must be made for instruction set {isa.isa_hash()}, "
                                           r"not 0123456789abcdef; compile the model again$"):
        load(path)


def test_other_arch_wrong(path, made):
    whole = path.read_bytes()
    path.write_bytes(whole.replace(made.arch.hash.encode(), b"0123456789abcdef"))
    with pytest.raises(ProgramError, match=r"the build's hash must be 0123456789abcdef, not"):
        load(path)


def test_not_a_file_wrong(tmp_path):
    with pytest.raises(ProgramError, match=r"must be a readable file"):
        load(tmp_path / "none")
    with pytest.raises(ProgramError, match=r"must be a readable file"):
        load(tmp_path)
