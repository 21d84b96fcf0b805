"""A DSP slice's two bodies agree, on every operand; so do chains of them."""

import os
import subprocess
from pathlib import Path

import pytest
from amaranth.back import verilog
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from cosimulate import _tools
from lanes import arch_of

from alula.hw.lane.chain import Chain
from alula.hw.lane.simd import Simd
from alula.hw.lane.slice import DSP48E1, DSP48E2, DspSlice

HERE = Path(__file__).parent


class Both(wiring.Component):
    """Two components of one signature with the same inputs; outputs of the first, and equality."""

    def __init__(self, first, second):
        self.bodies = first, second
        self.names = list(first.signature.members)
        super().__init__({**first.signature.members, "equal": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.one, m.submodules.other = first, second = self.bodies
        same = 1
        for name in self.names:
            mine, one, other = (getattr(part, name) for part in (self, first, second))
            if self.signature.members[name].flow is In:
                m.d.comb += [one.eq(mine), other.eq(mine)]
            else:
                m.d.comb += mine.eq(one)
                same = same & (one == other)
        m.d.comb += self.equal.eq(same)
        return m


def _run(component, folder, *flags):
    """Build the component with the harness and the slices' models, and run it."""
    (folder / "dut.v").write_text(verilog.convert(component, name="dut",
                                                  strip_internal_attrs=True))
    environment = {**os.environ, **_tools()}
    subprocess.run(["verilator", "-cc", "--exe", "--build", "-j", "2", "--Mdir", folder,
                    "--top-module", "dut", "-O3", "-Wno-fatal", "-Wno-WIDTH", "--no-timing",
                    "-CFLAGS", " ".join(["-O2", *flags]), folder / "dut.v", HERE / "dsp48e1.v",
                    HERE / "dsp48e2.v", HERE / "slices.cpp"],
                   check=True, env=environment, capture_output=True)
    return subprocess.run([folder / "Vdut"], capture_output=True, text=True).stdout


def test_slice_bodies(tmp_path):
    """All 2**25 operands, then random operands, cascades and modes."""
    assert _run(Both(DspSlice(), DspSlice(DSP48E2)), tmp_path, "-DSLICE", "-DPAIR=1") == "ok\n"


@pytest.mark.parametrize("primitive", [DSP48E1, DSP48E2])
def test_slice_of_one_row(tmp_path, primitive):
    """All 2**17 operands, and each ``shared`` with some."""
    bodies = Both(DspSlice(pair=False), DspSlice(primitive, pair=False))
    assert _run(bodies, tmp_path, "-DSLICE", "-DPAIR=0") == "ok\n"


def test_narrow_pre_adder_wrong():
    with pytest.raises(ValueError, match="^a build of several rows must be for DSP48E2"):
        DspSlice(DSP48E1)


@pytest.mark.parametrize("fields, subtract, held",
                         [(2, False, False), (4, True, True), (4, False, True), (2, True, False)])
def test_simd_bodies(tmp_path, fields, subtract, held):
    """Random numbers, now and then not enabled."""
    both = Both(*(Simd(fields, subtract=subtract, held=held, primitive=body)
                  for body in ("", DSP48E2)))
    flags = f"-DFIELDS={fields}", f"-DSUBTRACT={int(subtract)}", f"-DHELD={int(held)}"
    assert _run(both, tmp_path, *flags) == "ok\n"


@pytest.mark.parametrize("arch", ["narrow"])
def test_chain_bodies(tmp_path, arch):
    arch = arch_of(arch)
    chains = Both(Chain(arch), Chain(arch, DSP48E2))
    assert _run(chains, tmp_path, f"-DSLOTS={arch.lane_dsps}") == "ok\n"
