"""The CPU device leaves the memory that the golden model leaves, byte by byte."""

import os
from dataclasses import replace

import numpy as np
import pytest
from models import program
from programs.archs import ARCHS
from programs.generate import case
from programs.pair import fill_caches, write_step

from alula.host.cpu.device import CpuDevice
from alula.host.device import GoldenDevice
from alula.hw.arch import SIM

COUNT = int(os.environ.get("ALULA_PROGRAMS", "240"))


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
@pytest.mark.parametrize("seed", range(1000, 1005))
def test_random_program_rows(seed, rows):
    check(case(seed, ARCHS["sim"], rows=rows))


@pytest.mark.parametrize("name", [name for name in ARCHS if name != "sim"])
@pytest.mark.parametrize("seed", range(2000, 2020))
def test_random_program_builds(seed, name):
    """Other numbers of lanes, other orders of codes."""
    check(case(seed, ARCHS[name]))
