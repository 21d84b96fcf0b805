"""The instruction set: every instruction encodes, decodes, prints, means and is documented."""

import struct
from enum import IntEnum
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from alula.hw import isa
from alula.hw.isadoc import page
from alula.sim.golden import EXECUTE

ALL = list(isa.INSTRUCTIONS.values())


def _values(spec):
    if spec["kind"] is float:
        return st.floats(width=32, allow_nan=False)
    if issubclass(spec["kind"], IntEnum):
        return st.sampled_from(spec["kind"])
    return st.integers(0, (1 << spec["width"]) - 1)


@st.composite
def instructions(draw, classes=ALL):
    cls = draw(st.sampled_from(classes))
    operands = {name: draw(_values(spec)) for name, spec in cls.operands().items()}
    return cls(wait=draw(st.integers(0, 63)), release=draw(st.integers(0, 63)), **operands)


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_instruction_is_complete(cls):
    assert cls in EXECUTE, "no golden function"
    assert cls.__doc__ and cls.__doc__.strip().endswith("."), "no description"
    assert all(spec["doc"] for spec in cls.operands().values())
    assert f"{cls.queue.name}.{cls.__name__}" in page()
    zero = cls(**{name: spec["kind"](0) for name, spec in cls.operands().items()})
    assert isa.decode(isa.encode(zero)) == zero
    assert isa.text(zero).startswith(f"{cls.queue.name}.{cls.__name__}")


@given(instructions())
def test_encode_decode_inverse(instruction):
    assert isa.decode(isa.encode(instruction)) == instruction


@given(st.binary(min_size=16, max_size=16))
def test_decode_any_word(word):
    """A word is an instruction that encodes to it, or a clear error."""
    try:
        instruction = isa.decode(word)
    except isa.EncodingError:
        return
    if b"\xc0\x7f" not in word and b"\xff" not in word:  # a float operand may be a NaN
        assert isa.encode(instruction) == word


def test_encode_too_big_wrong():
    with pytest.raises(isa.EncodingError, match="^AddAddress.register must be from 0 to 15"):
        isa.encode(isa.AddAddress(register=16, value=0))


def test_decode_opcode_wrong():
    with pytest.raises(isa.EncodingError, match="^opcode must be one of the instruction"):
        isa.decode(b"\xff" * 16)


def test_decode_spare_bits_wrong():
    word = bytearray(isa.encode(isa.End()))
    word[15] = 1
    with pytest.raises(isa.EncodingError, match=r"^End: the bits past its fields must be 0$"):
        isa.decode(bytes(word))


def test_decode_enum_wrong():
    word = isa.encode(isa.Loop(source=isa.Count.HEAD))
    broken = (int.from_bytes(word, "little") | 7 << 22).to_bytes(16, "little")
    with pytest.raises(isa.EncodingError,
                       match=r"^Loop.source must be one of \[0, 1, 2, 3, 4\], not 7$"):
        isa.decode(broken)


def test_decode_rows_wrong():
    word = isa.encode(isa.Attend(target=0, query=0, key=0, value=0, heads=1, kv_heads=1,
                                 head_dim=16, window=0, rows=isa.Rows.SECOND))
    assert isa.decode(word).rows is isa.Rows.SECOND
    broken = (int.from_bytes(word, "little") | 3 << 20).to_bytes(16, "little")
    with pytest.raises(isa.EncodingError, match=r"^Attend.rows must be one of \[0, 1, 2\], not 3$"):
        isa.decode(broken)


def test_disassemble_wrong():
    with pytest.raises(isa.EncodingError, match="^a program must be a multiple of 16 bytes"):
        isa.disassemble(b"abc")
    with pytest.raises(isa.EncodingError, match="^instruction 1: opcode"):
        isa.disassemble(isa.encode(isa.End()) + b"\xff" * 16)


def test_floats_are_bits():
    word = isa.encode(isa.RmsNorm(target=0, source=0, gamma=0, size=1, parts=1, eps=1e-5))
    assert isa.decode(word).eps == struct.unpack("<f", struct.pack("<f", 1e-5))[0]


def test_docs_are_current():
    stored = Path(__file__).parents[3] / "docs/isa.md"
    assert stored.read_text() == page(), "run: python -m alula.hw.isadoc > docs/isa.md"
