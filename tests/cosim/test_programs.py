"""Random programs on the generated Verilog and on the golden model: every byte of memory equal."""

import os

import pytest
from programs.archs import ARCHS
from programs.generate import case
from programs.pair import Pair
from programs.report import covered

COUNT = int(os.environ.get("ALULA_PROGRAMS", "240"))


def check(seed, arch, **choices):
    """Make a program, run its steps on both devices behind a random memory, compare."""
    pair = Pair(case(seed, arch, **choices))
    for step in pair.case.steps:
        pair.run(step)
        covered(pair, step)


@pytest.mark.parametrize("seed", [*range(COUNT), 311])  # 311: a token past a loop
def test_random_program(seed):
    check(seed, ARCHS["sim"])


@pytest.mark.parametrize("rows", [1, 4, 8, 16])
@pytest.mark.parametrize("seed", range(1000, 1010))
def test_random_program_rows(seed, rows):
    """As many rows as the step takes, no fewer."""
    check(seed, ARCHS["sim"], rows=rows)


@pytest.mark.parametrize("rows", [9, 11, 16])
@pytest.mark.parametrize("seed", range(3000, 3010))
def test_random_program_halves(seed, rows):
    """One half of the rows after the other."""
    check(seed, ARCHS["sim"], rows=rows,
          only=("halves", "halves", "combine", "quantize", "linear", "attention"))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ARCHS if name != "sim"])
@pytest.mark.parametrize("seed", range(2000, 2060))
def test_random_program_builds(seed, name):
    """Other numbers of lanes and widths of beats."""
    check(seed, ARCHS[name])
