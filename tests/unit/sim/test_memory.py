"""The model of dynamic memory against published measurements, and what it is told."""

import ctypes
import subprocess
from importlib.resources import files

import numpy as np
import pytest

from alula.sim.memory import DRAMS, MemoryModel
from alula.sim.rtl.build import compiler

HARNESS = """
#include "dram.h"
extern "C" void run(const uint64_t *values, uint64_t bytes, uint64_t stride, uint64_t count,
                    uint64_t outstanding, uint64_t *done) {
    DramTiming timing;
    __builtin_memcpy(&timing, values, sizeof timing);
    Dram dram;
    dram.set(timing);
    for (uint64_t at = 0; at < count; ++at) {
        uint64_t asked = at < outstanding ? 0 : done[at - outstanding];
        done[at] = dram.access(at * stride, bytes, false, asked) + timing.controller;
    }
}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    cxx = compiler()
    if cxx is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("dram")
    (folder / "run.cpp").write_text(HARNESS)
    subprocess.run([*cxx, "-std=c++17", "-O2", "-shared", "-fPIC", "-w",
                    f"-I{files('alula.sim.rtl')}", str(folder / "run.cpp"), "-o",
                    str(folder / "run.so")], check=True)
    library = ctypes.CDLL(str(folder / "run.so"))

    def read(name, size, stride, count, outstanding=64):
        """Return when each of ``count`` reads is done, in nanoseconds."""
        values = DRAMS[name].values(225_000_000)
        done = np.zeros(count, np.uint64)
        library.run(ctypes.c_void_p(values.ctypes.data), ctypes.c_uint64(size),
                    ctypes.c_uint64(stride), ctypes.c_uint64(count),
                    ctypes.c_uint64(outstanding), ctypes.c_void_p(done.ctypes.data))
        return done / 1000
    return read


# Wang et al., Shuhai, FCCM 2020: U280, 32 pseudo-channels together 425 GB/s in sequence.
SHUHAI_SEQUENTIAL = 425e9 / 32


def test_sequential_hbm(run):
    done = run("hbm2", 64, 64, 200_000)
    rate = 64 * len(done) / done[-1] * 1e9
    print(f"HBM2, sequential: {rate / 1e9:.2f} GB/s, measured {SHUHAI_SEQUENTIAL / 1e9:.2f}")
    assert 1 <= rate / SHUHAI_SEQUENTIAL <= 1.02


def test_sequential_ddr4(run):
    """The bus without refresh: neighbouring accesses and rows cost nothing."""
    dram, done = DRAMS["ddr4-2400"], run("ddr4-2400", 64, 64, 200_000)
    rate = 64 * len(done) / done[-1] * 1e9
    left = 1 - dram.refresh_takes / dram.refresh_every
    assert rate == pytest.approx(dram.peak * left, rel=0.01)


@pytest.mark.parametrize("name, hit, closed, miss", [
    ("hbm2", 106.7, 122.2, 137.8), ("ddr4-2400", 73.3, 89.9, 106.6)])
def test_latency(run, name, hit, closed, miss):
    """One access at a time: on a closed bank, then on its open row, then on another row."""
    dram = DRAMS[name]
    first = run(name, dram.access_bytes, 0, 2, outstanding=1)
    assert first[0] == pytest.approx(closed, rel=0.03)
    assert first[1] - first[0] == pytest.approx(hit, rel=0.03)
    row = dram.row_bytes * dram.banks  # the same bank, its next row
    other = run(name, dram.access_bytes, row, 2, outstanding=1)
    assert other[1] - other[0] == pytest.approx(miss, rel=0.05)


def test_strides_cost(run):
    """The rate falls as rows are used for less, and is least where one bank has all of them."""
    dram = DRAMS["hbm2"]
    rates = [1 / run("hbm2", 64, stride, 20_000)[-1] for stride in (64, 1024, 4096)]
    one_bank = 1 / run("hbm2", 64, dram.row_bytes * dram.banks, 20_000)[-1]
    assert rates[0] >= rates[1] > rates[2] > one_bank
    cycle = dram.row_open + dram.precharge
    assert 1 / one_bank / 20_000 >= 0.99 * cycle


@pytest.mark.parametrize("name", DRAMS)
def test_parse(name):
    assert MemoryModel.parse(f"{name},stall=0.1") == MemoryModel(stall=0.1, dram=DRAMS[name])
    assert DRAMS[name].source


def test_parse_ideal():
    assert MemoryModel.parse("ideal") == MemoryModel()
