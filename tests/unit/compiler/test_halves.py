"""Layers in two halves of a step's rows: the same bits, and what keeps them apart."""

from dataclasses import replace

import numpy as np
import pytest
from models import random_decoder

from alula.compiler.compile import Options, compile
from alula.compiler.fuse import fuse
from alula.compiler.halves import phases, worth
from alula.compiler.quantize import quantize
from alula.compiler.recipe import parse
from alula.compiler.sections import sections
from alula.compiler.verify import VerifyError, verify
from alula.host.cpu.device import CpuDevice
from alula.host.device import GoldenDevice
from alula.host.session import Session
from alula.hw import isa
from alula.hw.arch import KV260, SIM, U55C

LAYERS = 3


def _graph(ffn=64):
    return random_decoder(layers=LAYERS, hidden=64, heads=2, ffn=ffn)


def _halves(program):
    code = program.instructions
    at = next((at for at, i in enumerate(code) if isinstance(i, isa.Loop)
               and i.source is isa.Count.HALVES), None)
    return [] if at is None else code[at:]


@pytest.mark.parametrize("arch, ffn", [(SIM, 64), (replace(U55C, lanes=2), 8192)],
                         ids=["sim", "pieces"])
def test_halves_bits(arch, ffn):
    """Steps of any rows make the same logits; a gate of 8,192 is in four pieces."""
    program = compile(_graph(ffn), arch, Options(context=128))
    products = [i for i in _halves(program) if isinstance(i, isa.Linear)]
    assert {i.rows for i in products[:-1]} >= {isa.Rows.FIRST, isa.Rows.SECOND}
    tokens, found = list(range(3, 3 + 3 * arch.rows)), []
    for device, rows in ((GoldenDevice, 1), (GoldenDevice, arch.rows),
                         (GoldenDevice, isa.half(arch.rows) + 1), (CpuDevice, arch.rows)):
        session = Session(device(program))
        session.open()
        found.append(np.concatenate([
            session.feed(0, tokens, chunk=rows),  # of all but the last no logits are wanted
            session.feed(0, tokens[:arch.rows], chunk=rows, all_logits=True)]))
    for other in found[1:]:
        np.testing.assert_array_equal(other.view(np.uint32), found[0].view(np.uint32))


def test_halves_where_products_take_longer():
    graph = fuse(quantize(_graph(), parse("w4g16")))
    assert worth(graph, sections(graph), SIM)
    assert not worth(graph, sections(graph), KV260)  # two rows take no longer than one
    assert not _halves(compile(_graph(), KV260, Options(context=128)))


def test_phases():
    graph = fuse(_graph())
    loop = next(part for part in sections(graph) if len(part.passes) > 1)
    found = phases(loop)
    assert found == sorted(found) and found[0] == 0 and found[-1] == 5


def _changed(program, change):
    code = [change(i) for i in program.instructions]
    control = program.control.copy()
    control[:len(code) * isa.INSTRUCTION_BYTES] = np.frombuffer(isa.assemble(code), np.uint8)
    return replace(program, instructions=code, control=control)


@pytest.mark.parametrize("change, message", [
    (lambda i: replace(i, rows=isa.Rows.FIRST) if isinstance(i, isa.StoreTop) else i,
     r"rows must be ALL, outside of a loop of HALVES and for what is done once a step$"),
    (lambda i: replace(i, rows=isa.Rows.FIRST) if getattr(i, "packed", 0) else i,
     r"only codes of the second half's rows can be packed$"),
    (lambda i: replace(i, source=isa.Count.WHOLE)
     if getattr(i, "source", None) is isa.Count.HALVES else i, r"rows must be ALL"),
], ids=["once", "packed", "whole"])
def test_rows_wrong(change, message):
    program = compile(_graph(), SIM, Options(context=128))
    with pytest.raises(VerifyError, match=message):
        verify(_changed(program, change))


def test_every_token_of_halves_matters():
    """Without any single wait or release between queues a program is refused."""
    program = compile(_graph(), SIM, Options(context=128))
    code = program.instructions
    first = len(code) - len(_halves(program))
    for at, instruction in list(enumerate(code))[first::7]:
        for name in ("wait", "release"):
            for bit in isa.Queue:
                if getattr(instruction, name) >> bit & 1:
                    fewer = replace(instruction,
                                    **{name: getattr(instruction, name) & ~(1 << bit)})
                    with pytest.raises(VerifyError):
                        verify(_changed(program, lambda i, at=instruction, to=fewer:
                                        to if i is at else i))
