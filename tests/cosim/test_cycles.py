"""The cycle model against the hardware: random programs, clock by clock.

The model is the hardware's description without data, so there is one difference: how many logits
enter a list of the best ones, which takes clocks when several come together at a row's end.
"""

import random

import numpy as np
import pytest
from programs.archs import ARCHS
from programs.generate import case
from programs.pair import Pair, memory_model
from rich.console import Console
from rich.table import Table

from alula.host.rtl import RtlDevice
from alula.hw import isa
from alula.sim.memory import MemoryModel

PROGRAMS = 60
MEMORIES = {
    "ideal": lambda seed: MemoryModel(),
    "random stalls": lambda seed: memory_model(4 * seed + 2),
    "hbm2": lambda seed: MemoryModel.parse("hbm2"),
    "ddr4-2400": lambda seed: MemoryModel.parse("ddr4-2400"),
}


def clocks(pair, device, step):
    pair.rtl = device
    pair.write(step)
    before = device.counters.cycles
    device.step()
    return device.counters.cycles - before


def cycles(seed, memory):
    """Return the clocks of a random program's steps on the hardware and on the model."""
    found = []
    made = case(seed, ARCHS["sim"])
    pair = Pair(made, memory)
    hardware = pair.rtl
    model = RtlDevice(made.program, memory=memory, timing=True)
    selects = any(isinstance(insn, isa.SelectTop) and insn.size
                  for insn in made.program.instructions)
    for step in made.steps:
        found.append((clocks(pair, hardware, step), clocks(pair, model, step), selects))
    return found


@pytest.mark.parametrize("name", MEMORIES)
def test_cycles(name):
    seeds = random.Random(name).sample(range(100_000), PROGRAMS)
    found = [row for seed in seeds for row in cycles(seed, MEMORIES[name](seed))]
    errors = np.array([abs(model / real - 1) for real, model, _ in found])
    table = Table("programs", "steps", "equal", "median", "95th percentile", "worst",
                  title=f"Clocks of the cycle model against the hardware, {name} memory")
    table.add_row(str(PROGRAMS), str(len(found)), str((errors == 0).sum()),
                  *(f"{100 * np.quantile(errors, q):.3f} %" for q in (0.5, 0.95, 1)))
    Console().print(table)
    without = [(real, model) for real, model, selects in found if not selects]
    assert len(without) > len(found) // 4
    assert all(real == model for real, model in without)
    assert np.median(errors) == 0
    assert np.quantile(errors, 0.95) <= 0.05
