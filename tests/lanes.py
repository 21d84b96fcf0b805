"""Random weight streams for the tests of a lane, and what they mean."""

import itertools
import random
from dataclasses import dataclass, replace

import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import RisingEdge
from models import random_codes

from alula.compiler.graph import Codes
from alula.compiler.pack import PackStats, pack_strips
from alula.hw.arch import BUILDS, ArchConfig
from alula.sim.unpack import unpack_stream


def pauses(seed, share):
    generator = random.Random(seed)
    return (generator.random() < share for _ in itertools.count())


async def start(dut):
    clock = Clock(dut.clk, 10, unit="ns")
    clock.start()
    dut.rst.value = 1
    for _ in range(3):
        await RisingEdge(dut.clk)
    dut.rst.value = 0


@dataclass
class Weights:
    """A packed matrix of one lane."""

    strips: int
    groups: int
    group: int
    arch: ArchConfig
    data: np.ndarray

    @property
    def group_log2(self):
        return self.group.bit_length() - 1

    def unpacked(self):
        return unpack_stream(self.data, self.strips, self.groups, self.group, self.arch)


def mixed(generator, rows, cols, bits, group, arch, exponent=0, uniform=None):
    """Return a matrix whose tiles are of all kinds, or all of one: arguments of random_codes."""
    kinds = [uniform] if uniform is not None else [
        dict(kept=kept, dropped=dropped, asymmetric=asymmetric)
        for kept in (0, 4, 8, 12) for dropped in (0, 0.6, 1) for asymmetric in (False, True)]
    groups = -(-cols // group)
    if not rows:
        return Weights(0, groups, group, arch, np.zeros(0, np.uint8))
    parts = []
    for _ in range(groups):
        kind = kinds[generator.integers(len(kinds))]
        parts.append(random_codes(generator, rows, group, bits, group, **kind))
    codes, scales, zeros = (np.concatenate([part[i] for part in parts], axis=1) for i in range(3))
    codes = codes[:, :cols]
    data = b"".join(pack_strips(Codes(codes, np.ldexp(scales, exponent), zeros), bits, group,
                                exponent, arch, PackStats()))
    return Weights(-(-rows // 16), groups, group, arch, np.frombuffer(data, np.uint8))


# Lanes with less memory, which build faster.
SMALL = dict(activation_elements=8192, prefetch_beats=256, rows=4)
NARROW = replace(BUILDS["sim"], beat_bytes=16, lane_dsps=32, vector_width=4)
ARCHS = {"narrow": NARROW, "one row": replace(NARROW, rows=1),
         "wide": replace(BUILDS["u55c"], **SMALL),
         "middle": replace(BUILDS["u55c"], beat_bytes=32, lane_dsps=64, vector_width=8, **SMALL),
         "deep": replace(BUILDS["kv260"], **{**SMALL, "rows": 2})}


def extreme(rows, cols, group, arch):
    """Return a matrix whose weights are all 255, or all -255 in odd rows."""
    codes, zeros = np.full((rows, cols), 255, np.uint8), np.zeros((rows, cols // group), np.uint8)
    codes[1::2], zeros[1::2] = 0, 255
    scales = np.ones(zeros.shape, np.float32)
    data = b"".join(pack_strips(Codes(codes, scales, zeros), 8, group, 0, arch, PackStats()))
    return Weights(-(-rows // 16), cols // group, group, arch, np.frombuffer(data, np.uint8))


def arch_of(name):
    return ARCHS[name]


def beats_of(data, beat):
    return [int.from_bytes(data[at:at + beat].tobytes(), "little")
            for at in range(0, len(data), beat)]
