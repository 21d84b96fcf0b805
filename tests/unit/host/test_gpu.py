"""The GPU's kernels, interpreted on the processor, give the golden model's bits."""

import os
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton is loaded
pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("triton", reason="triton is not installed")

import torch  # noqa: E402
from gpu_pair import check  # noqa: E402
from models import program, random_codes  # noqa: E402
from programs.archs import ARCHS  # noqa: E402
from programs.generate import case  # noqa: E402
from triton.runtime.interpreter import interpreter_builder  # noqa: E402

from alula.compiler.compile import Options, compile  # noqa: E402
from alula.compiler.importer import import_model  # noqa: E402
from alula.compiler.recipe import parse  # noqa: E402
from alula.compiler.shapes import shape_graph  # noqa: E402
from alula.host import gpu  # noqa: E402
from alula.host.device import GoldenDevice, open_device  # noqa: E402
from alula.host.gpu.device import INTERPRETED, GpuDevice  # noqa: E402
from alula.host.gpu.linear import linear_kernel  # noqa: E402
from alula.host.gpu.plan import Key, Walk, launches  # noqa: E402
from alula.host.gpu.vector import Memory  # noqa: E402
from alula.host.gpu.weights import pack  # noqa: E402
from alula.host.session import Row, Session  # noqa: E402
from alula.hw import layout, numerics  # noqa: E402
from alula.hw.arch import SIM, U55C  # noqa: E402
from alula.sim.machine import MachineError  # noqa: E402
from alula.sim.unpack import Strips  # noqa: E402

FUSED = replace(INTERPRETED, columns=64, row_columns=32, tile=64, fused_rows=4)
SHAPES = [
    dict(bits=2, group=16), dict(bits=2, group=64, kept=4), dict(bits=3, group=16),
    dict(bits=3, group=64, asymmetric=True), dict(bits=3, group=32, kept=8),
    dict(bits=4, group=128), dict(bits=4, group=256, asymmetric=True),
    dict(bits=4, group=64, kept=8), dict(bits=4, group=32, dropped=0.5),
    dict(bits=4, group=64, kept=4, asymmetric=True, dropped=0.3),
    dict(bits=8, group=32, asymmetric=True), dict(bits=8, group=64, kept=4),
    dict(bits=8, group=16, kept=12, asymmetric=True), dict(bits=8, group=128, dropped=0.5),
]


@pytest.fixture(scope="module")
def small():
    return program(SIM, layers=1, context=128, sequences=3, hidden=32, heads=2, kv_heads=1,
                   ffn=32, vocab=50, qk_norm=True, qkv_bias=True)


@pytest.mark.parametrize("seed", [31, 332, 337])  # the last two have long contexts
def test_random_program(seed):
    check(case(seed, ARCHS["sim"]))


@pytest.mark.parametrize("seed", [2])
def test_random_program_fused(seed):
    """Vector instructions run in every program of the launch that follows."""
    check(case(seed, ARCHS["sim"], rows=2), tuning=FUSED)


def product(shape, count, seed):
    """Return what the kernel makes of a random matrix and rows of codes, and what it should."""
    generator = np.random.default_rng(seed)
    kind = dict(shape)
    bits, group, outputs, groups = kind.pop("bits"), kind.pop("group"), 40, 3
    found = random_codes(generator, 48, groups * group, bits, group, **kind)
    zeros = found.zero_points.repeat(group, axis=1).astype(np.int16)
    values = found.codes.astype(np.int16) - zeros
    scales = found.scales.copy()
    present = (values.reshape(48, groups, group) != 0).any(-1)
    present[outputs:] = False
    x = generator.integers(-127, 128, (count, groups * group)).astype(np.int8)
    x_scales = generator.standard_normal((count, groups)).astype(np.float32)
    x_scales[generator.random(x_scales.shape) < 0.2] = 1e-37  # products that are subnormal
    x_scales[generator.random(x_scales.shape) < 0.05] = np.nan
    matrix = pack(Strips(values, scales, present), outputs, group, 3, "cpu")
    got = run_kernel(matrix, x, x_scales, outputs)
    want = numerics.linear(
        values.reshape(48, groups, group).swapaxes(0, 1).astype(np.float32), scales.T,
        x.reshape(count, groups, group), x_scales, 3, present.T)
    want[:, outputs:] = 0
    return matrix, got, want


def run_kernel(matrix, x, x_scales, outputs):
    count, group = len(x), matrix.format.group
    spread = np.zeros((count, x.shape[1] // 16), np.float32)
    spread[:, ::group // 16] = x_scales
    codes, out = torch.from_numpy(x), torch.zeros((count, 48))
    none = torch.zeros(1)
    memory = Memory(**dict.fromkeys(Memory._fields, none) | dict(
        vector=out, codes=codes, code_words=codes.view(torch.int32),
        code_scales=torch.from_numpy(spread)))
    linear_kernel[(1,)](
        memory, none, matrix.words, matrix.high, matrix.scales, matrix.zeros, matrix.bitmaps,
        matrix.masks, matrix.first, matrix.exponent, count, SIZES=(48, x.shape[1]),
        FORMAT=tuple(matrix.format), TARGET=0, SOURCE=0, OUTPUTS=outputs, GROUPS=matrix.groups,
        BEFORE=(), AFTER=(), ROWS=1 if count == 1 else 16, COLUMNS=64, TILE=64, ASSEMBLY=False)
    return out.numpy()


@pytest.mark.parametrize("count", [1, 3, 16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_product(shape, count):
    with np.errstate(all="ignore"):
        for seed in range(3):
            matrix, got, want = product(shape, count, seed)
            np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))


@pytest.mark.parametrize("shape, kept", [
    (dict(bits=4, group=64, kept=8), 8), (dict(bits=8, group=32, kept=4), 4),
    (dict(bits=4, group=64, kept=12), 16), (dict(bits=2, group=64, kept=8), 16)])
def test_pack_takes_least(shape, kept):
    """A matrix is sparse where its bitmaps and kept codes are fewer bits than all codes."""
    matrix, _, _ = product(shape, 1, 0)
    assert matrix.format.kept == kept and matrix.format.bits == shape["bits"]


def test_pack_drops():
    """Nothing but bits of a mask is stored of groups that are dropped."""
    whole, _, _ = product(dict(bits=4, group=128), 1, 0)
    half, _, _ = product(dict(bits=4, group=128, dropped=0.5), 1, 0)
    assert whole.format.full and not half.format.full
    assert half.size < 0.7 * whole.size


@pytest.mark.parametrize("tuning", [
    pytest.param(INTERPRETED, id="apart"),
    pytest.param(FUSED, id="fused", marks=pytest.mark.slow)])
def test_batch(small, tuning):
    """Chains of several sequences share steps, then each makes tokens without the host."""
    sessions = Session(GoldenDevice(small)), Session(GpuDevice(small, tuning))
    found = []
    for session in sessions:
        one, two = session.open(), session.open()
        session.step([Row(one, 3, 0), Row(one, 4, 1, 0, True), Row(two, 5, 0, -1, True)])
        found.append([session.logits(row) for row in (1, 2)])
        session.step([Row(one, 6, 2, -1, True), Row(two, 7, 1, -1, True)], repeats=2)
        found[-1] += [session.best(row, repeat) for row in (0, 1) for repeat in (0, 1)]
    for want, got in zip(*found, strict=True):
        np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))


def test_five_launches_a_layer():
    """Of a Llama's layer for one token: two products, attention, and again two."""
    made = compile(shape_graph("llama2-7b", parse("w4g128")), U55C,
                   Options(context=64, sequences=1), images=False)
    key = Key(1, 1, 0, False)
    work = launches(Walk(made, 1, 0).events(), made, key, fused_rows=1)
    kinds = [type(launch.work.instruction).__name__ for launch in work if launch.work]
    assert kinds == ["Linear", "Attend", "Linear", "Linear", "Linear"] * 32
    assert len(work) == 5 * 32 + 2  # and what reads the step and the tables, and the last norm


def test_rows_wrong(small):
    device = GpuDevice(small)
    with pytest.raises(MachineError, match=r"^a step must have from 1 to 16 rows, not 0$"):
        device.step()


def test_slot_wrong(small):
    device = GpuDevice(small)
    session = Session(device)
    session.step([Row(session.open(), 1, 0)])
    device.write(small.memory.pages.start, b"\xff\xff\0\0")
    with pytest.raises(MachineError, match=r"^cache slot must be below \d+, not 65535$"):
        device.step()


def test_address_wrong(small):
    device = GpuDevice(small)
    with pytest.raises(MachineError, match=r"^a control address must be below \d+, not \d+$"):
        device.read(small.memory.top.stop - 4, 8)


def test_probe_without_triton_wrong(small, monkeypatch):
    monkeypatch.setattr("alula.host.gpu.find_spec", lambda name: None)
    assert gpu.probe(small) == (
        "torch and triton must be installed, not without torch and triton; install them with "
        "`pip install alula[gpu]`")
    with pytest.raises(gpu.NoGpu, match=r"^torch and triton must be installed, not without"):
        open_device("cuda", small)


@pytest.fixture
def backwards(monkeypatch):
    """Programs of a launch run in the opposite order: a GPU keeps none."""
    forwards = interpreter_builder.set_grid_idx

    def set_grid_idx(*at):
        forwards(*(count - 1 - one for count, one in zip(interpreter_builder.grid_dim, at,
                                                         strict=True)))

    monkeypatch.setattr(interpreter_builder, "set_grid_idx", set_grid_idx)


@pytest.mark.parametrize("tuning", [INTERPRETED, FUSED], ids=["apart", "fused"])
@pytest.mark.parametrize("seed", [5])
def test_order_of_programs(seed, tuning, backwards):
    check(case(seed, ARCHS["sim"], rows=3), tuning=tuning)


def test_chain_backwards(backwards):
    """A row reads keys of the rows it follows, which other programs quantize too."""
    plain = program(SIM, layers=1, context=128, sequences=1, hidden=32, heads=2, kv_heads=1,
                    ffn=32, vocab=50)
    found = []
    for device in (GoldenDevice(plain), GpuDevice(plain, FUSED)):
        session = Session(device)
        session.step([Row(session.open(), 3, 0), Row(0, 4, 1, 0), Row(0, 5, 2, 1, True)])
        found.append(session.logits(2))
    np.testing.assert_array_equal(found[1].view(np.uint32), found[0].view(np.uint32))


@pytest.mark.parametrize("window", [0, 300])
def test_long_context(window, backwards):
    """Pages of all classes weigh alike; the last program to arrive is the first class's."""
    made = program(SIM, layers=1, context=1024, sequences=1, hidden=32, heads=4, kv_heads=2,
                   ffn=32, vocab=50, window=window)
    golden, device = GoldenDevice(made), GpuDevice(made)
    generator = np.random.default_rng(4)
    page = 16 * layout.page_words(16)
    for cache in golden.machine.caches:
        pages = cache[:cache.size // page * page].reshape(-1, page)
        pages[:] = generator.integers(0, 256, pages.shape, np.uint8)
        pages[:, :512] = generator.uniform(1e-3, 2e-3, (len(pages), 128)).astype(
            np.float32).view(np.uint8)
    device.cache.copy_(torch.from_numpy(np.stack(golden.machine.caches)))
    found = []
    for session in (Session(golden), Session(device)):
        session.lengths[session.open()] = 700
        session.step([Row(0, 3, 700, -1, True)])
        found.append(session.logits(0))
    np.testing.assert_array_equal(found[1].view(np.uint32), found[0].view(np.uint32))


@pytest.fixture(scope="module", params=["dense", "sparse"])
def model(request):
    graph, _ = import_model(Path(str(files("alula.host.bundled"))) / request.param)
    return compile(graph, SIM)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 4, 16])
def test_bundled_model(model, chunk):
    tokens = np.random.default_rng(chunk).integers(0, model.model.vocab, max(3, chunk)).tolist()
    golden, gpu = Session(GoldenDevice(model)), Session(GpuDevice(model))
    want, got = (session.feed(session.open(), tokens, chunk=chunk, all_logits=True)
                 for session in (golden, gpu))
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))
