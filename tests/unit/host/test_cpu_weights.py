"""Streams in the processor's order give the products of the streams, with and without AVX-512."""

import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from programs.values import matrix

from alula.compiler.image import LaneImages, work_folder
from alula.host.cpu import linear
from alula.host.cpu.machine import kernel
from alula.host.cpu.simd import has_avx512
from alula.host.cpu.weights import pack
from alula.hw import isa, numerics
from alula.hw.arch import SIM
from alula.hw.isa import BLOCK
from alula.sim.golden import _read_matrix
from alula.sim.machine import MachineError
from alula.sim.unpack import StreamError

WAYS = [pytest.param(True, marks=pytest.mark.skipif(not has_avx512(), reason="no AVX-512 VNNI")),
        False]


def stream(seed):
    """Return a program with one random stream, and the instruction for it."""
    chooser = random.Random(seed)
    group = chooser.choice([16, 32, 64, 128, 256])
    outputs, inputs = chooser.choice([16, 40, 100, 300]), chooser.choice([16, 100, 512, 700])
    lanes = LaneImages(SIM, 1, Path((folder := work_folder(None)).name))
    with np.errstate(over="ignore"):  # scales past fp16 that the image then scales
        lanes.add(0, matrix(chooser, outputs, inputs, group), lambda made: None)
    images = [np.array(image) for image in lanes.finish()]
    folder.cleanup()
    return SimpleNamespace(lanes=images, arch=SIM), isa.Linear(
        target=0, source=0, outputs=outputs, inputs=inputs, group_log2=group.bit_length() - 1)


def product(packed, count, fast, codes, scales):
    """Run the kernel for ``count`` rows of codes ``(rows, inputs)``."""
    rows = next((rows for rows in linear.ROWS if rows >= count), max(linear.ROWS))
    blocks, (strips, groups) = -(-count // rows), packed.heads.shape
    out = np.zeros((count, BLOCK * (strips + 2)), np.float32)
    kernel(fast, packed.bits, rows)(
        packed.heads, packed.at, packed.meta, packed.codes, packed.exponent, packed.windows, codes,
        codes.view(np.int32), scales, 1,
        np.zeros((blocks, groups * rows * 4 * packed.windows), np.int32),
        np.zeros((blocks, groups * rows), np.float32), np.zeros((blocks, groups * rows), np.int32),
        out, 1)
    assert not out[:, :BLOCK].any() and not out[:, -BLOCK:].any()
    return out[:, BLOCK:-BLOCK]


@pytest.mark.parametrize("fast", WAYS)
@pytest.mark.parametrize("seed", range(60))
def test_products(seed, fast):
    program, i = stream(seed)
    packed = pack(program, 0, i, sparse=fast)
    want = _read_matrix(SimpleNamespace(program=program, arch=SIM), 0, i)
    groups, _, group = want.codes.shape
    generator = np.random.default_rng(seed)
    for count in (1, 3, 16) if fast else (2,):
        x = generator.integers(-127, 128, (count, BLOCK + groups * group)).astype(np.int8)
        scales = generator.standard_normal((count, x.shape[1] // BLOCK)).astype(np.float32)
        scales[generator.random(scales.shape) < 0.1] = 1e-37  # products that are subnormal
        scales[generator.random(scales.shape) < 0.02] = np.nan
        got = product(packed, count, fast, x, scales)
        with np.errstate(all="ignore"):
            expected = numerics.linear(
                want.codes, want.scales, x[:, BLOCK:].reshape(count, groups, group),
                scales[:, 1::group // BLOCK], want.exponent, want.present)
        np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("seed", range(20))
def test_pack_is_packed(seed):
    """What is kept in memory is about what the streams have."""
    program, i = stream(seed)
    packed = pack(program, 0, i, sparse=True)
    assert packed.size <= 1.25 * sum(image.size for image in program.lanes) + 512


def test_pack_strips_wrong():
    program, i = stream(0)
    other = isa.Linear(target=0, source=0, outputs=i.outputs + 16, inputs=i.inputs,
                       group_log2=i.group_log2)
    with pytest.raises(MachineError, match=r"^a stream for \d+ outputs must have \d+ strips, not"):
        pack(program, 0, other)


def test_pack_header_wrong():
    program, i = stream(0)
    start = int(program.lanes[0][:4].view("<u4")[0]) * isa.WORD_BYTES
    program.lanes[0][start + 3] = 0x80
    with pytest.raises(StreamError, match=r"^a segment's headers must give the totals "
                                          r"\(11, 0, 132, 0\), not \(257, 0, 132, 0\)$"):
        pack(program, 0, i)


def test_pack_cut_wrong():
    program, i = stream(0)
    program.lanes[0][4:8].view("<u4")[0] -= 1
    with pytest.raises(StreamError, match=r"^a stream must have at least \d+ bytes, not \d+$"):
        pack(program, 0, i)
