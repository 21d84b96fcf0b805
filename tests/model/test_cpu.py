"""The CPU device gives the golden model's bits: memory byte by byte, logits, chosen tokens."""

import os
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from models import program as random_program
from programs.archs import ARCHS
from programs.generate import case
from programs.pair import fill_caches, write_step

from alula.compiler.compile import compile
from alula.compiler.graph import ActivationKind
from alula.compiler.importer import import_model
from alula.host.cpu.device import CpuDevice
from alula.host.device import GoldenDevice
from alula.host.generate import generate_greedy
from alula.host.session import Row, Session
from alula.hw.arch import SIM, U55C
from alula.hw.numerics import PAGE_TOKENS

COUNT = int(os.environ.get("ALULA_PROGRAMS", "60"))


def check(made, **choices):
    """Run a case's steps on both devices; compare control memory and caches after each."""
    golden, cpu = GoldenDevice(made.program), CpuDevice(made.program, **choices)
    for device in (golden, cpu):
        fill_caches(made, device.machine.caches)
    for step in made.steps:
        for device in (golden, cpu):
            write_step(device, step)
            with np.errstate(all="ignore"):
                device.step()
        np.testing.assert_array_equal(cpu.machine.whole_control(), golden.machine.control)
        for mine, theirs in zip(cpu.machine.caches, golden.machine.caches, strict=True):
            np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("seed", range(COUNT))
def test_random_program(seed):
    check(case(seed, ARCHS["sim"]))


@pytest.mark.parametrize("rows", [1, 4, 8, 16])
@pytest.mark.parametrize("seed", range(1000, 1003))
def test_random_program_rows(seed, rows):
    check(case(seed, ARCHS["sim"], rows=rows))


@pytest.mark.parametrize("name", [name for name in ARCHS if name != "sim"])
@pytest.mark.parametrize("seed", range(2000, 2008))
def test_random_program_builds(seed, name):
    """Other numbers of lanes, other orders of codes."""
    check(case(seed, ARCHS[name]))


@pytest.mark.parametrize("seed", range(3000, 3006))
def test_random_program_without_avx512(seed):
    check(case(seed, ARCHS["sim"]), fast=False)


def both(program):
    return Session(GoldenDevice(program)), Session(CpuDevice(program))


@pytest.fixture(scope="module", params=["dense", "sparse"])
def model(request):
    graph, _ = import_model(Path(str(files("alula.host.bundled"))) / request.param)
    return compile(graph, SIM)


@pytest.mark.parametrize("chunk", [1, 4, 16])
def test_bundled_model(model, chunk):
    golden, cpu = both(model)
    tokens = np.random.default_rng(chunk).integers(0, model.model.vocab, 80 if chunk > 1 else 12)
    want, got = (session.feed(session.open(), tokens.tolist(), chunk=chunk, all_logits=True)
                 for session in (golden, cpu))
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))


def test_greedy_repeats(model):
    """Tokens that the device chooses by itself, many a run."""
    golden, cpu = both(model)
    assert generate_greedy(cpu, [5, 6, 7], 70) == generate_greedy(golden, [5, 6, 7], 70)


@pytest.fixture(scope="module")
def program():
    return random_program(SIM, context=256, qkv_bias=True, head_bias=True, qk_norm=True)


def test_batches(program):
    """Rows of several sequences, of several lengths, share steps."""
    sessions = both(program)
    random = np.random.default_rng(1)
    for session in sessions:
        for _ in range(5):
            session.open()
    for turn in range(12):
        rows = []
        for sequence in range(5):
            start = sessions[0].lengths[sequence]
            rows += [Row(sequence, int(random.integers(515)), start + at,
                         len(rows) - 1 + at if at else -1, True)
                     for at in range(1 + (sequence + turn) % 3)]
        for session in sessions:
            session.step(rows)
        for row in range(len(rows)):
            np.testing.assert_array_equal(sessions[1].logits(row), sessions[0].logits(row))
            np.testing.assert_array_equal(sessions[1].best(row), sessions[0].best(row))


def test_tree(program):
    """Candidates in one step: each row sees its ancestors only."""
    prompt = np.random.default_rng(2).integers(0, 515, PAGE_TOKENS - 1).tolist()
    tree = [(-1, 7), (0, 8), (0, 9), (1, 10), (2, 11), (4, 12)]  # parent, token
    found = []
    for session in both(program):
        sequence, spare = session.open(), session.open()
        session.feed(sequence, prompt)
        session.reserve(sequence, len(prompt) + 4)
        session.reserve(spare, 2 * PAGE_TOKENS)
        depth, rows = [], []
        for at, (parent, token) in enumerate(tree):
            depth.append(0 if parent < 0 else depth[parent] + 1)
            position = len(prompt) + depth[at]
            slot = session.pages[spare][position // PAGE_TOKENS]
            rows.append(Row(sequence, token, position, parent, True, slot * PAGE_TOKENS + at))
        session.step(rows)
        found.append(np.stack([session.logits(row) for row in range(len(rows))]))
    np.testing.assert_array_equal(found[1].view(np.uint32), found[0].view(np.uint32))


@pytest.mark.parametrize("decoder", [
    dict(kv_heads=6, bits=8, group=16, embedding="q8"),
    dict(kv_heads=1, bits=3, group=64, asymmetric=True, embedding="f16"),
    dict(bits=2, group=16, activation=ActivationKind.GELU, embedding="q4"),
    dict(kept=8, activation=ActivationKind.GELU_TANH),
    dict(dropped=0.5, window=50, interleaved=True, activation=ActivationKind.RELU),
    dict(hidden=80, ffn=200, head_dim=48, heads=2, kv_heads=2),
], ids=str)
@pytest.mark.parametrize("arch", [SIM, U55C], ids=lambda arch: arch.name)
def test_formats(decoder, arch):
    golden, cpu = both(random_program(arch, layers=2, **decoder))
    tokens = np.random.default_rng(3).integers(0, 515, 90).tolist()
    np.testing.assert_array_equal(cpu.feed(cpu.open(), tokens, all_logits=True),
                                  golden.feed(golden.open(), tokens, all_logits=True))


def test_write_to_the_image(program):
    """A host may write what the program brought: the device's own copy, not the program's."""
    device, before = CpuDevice(program), program.control.copy()
    start = program.memory.params.start
    device.write(start, b"\1\2\3\4")
    assert device.read(start, 4).tolist() == [1, 2, 3, 4]
    np.testing.assert_array_equal(program.control, before)


def test_address_wrong(program):
    device = CpuDevice(program)
    with pytest.raises(ValueError, match=r"^a control address must be below \d+, not \d+$"):
        device.read(program.memory.top.stop - 4, 8)
