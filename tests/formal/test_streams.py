"""Offers stay until they are taken, on every stream of the units that have some."""

from dataclasses import replace

import pytest
from prove import Bench

from alula.hw.arch import build
from alula.hw.attention.fetch import PageFetch
from alula.hw.attention.walk import PageWalk
from alula.hw.buffers import VectorBuffer
from alula.hw.gather import Gather
from alula.hw.lane.prefetch import Prefetch
from alula.hw.load import LoadUnit
from alula.hw.sequencer import Sequencer
from alula.hw.step import StepTable
from alula.hw.store import StoreUnit
from alula.hw.supervisor import Supervisor

ARCH = replace(build("sim"), lanes=2, rows=2, beat_bytes=16, lane_dsps=32, vector_width=4,
               prefetch_beats=32, vector_elements=64,
               page_entries=16, program_instructions=16)
STEP = ("base", "rows", "table", "slot_words", "lane")
# What a unit is, inputs that are steady while it works, and clocks from reset.
UNITS = {
    "gather": (Gather, (), 8),
    "load": (LoadUnit, STEP, 5),
    "prefetch": (Prefetch, STEP, 8),
    "sequencer": (Sequencer, (*STEP, "program", "instructions", "repeats", "head", "halves"), 6),
    "step": (StepTable, ("base",), 7),
    "store": (StoreUnit, STEP, 8),
    "fetch": (lambda arch: PageFetch(arch, 4), STEP, 8),
    "walk": (PageWalk, (*STEP, "kv_heads", "part"), 8),
    "buffer": (lambda arch: VectorBuffer(arch, 3), STEP, 8),
    "supervisor": (lambda arch: Supervisor(), ("status", "watchdog"), 8),
}


def _offers(unit, steady):
    bench = Bench()
    dut = bench.add(unit)
    bench.surround(dut, steady=steady)
    if isinstance(dut, Supervisor):  # no lane gets a beat when a run has ended
        bench.assume(~dut.words.valid | (bench.past(dut.beats) == dut.beats))
    return bench


@pytest.mark.parametrize("name", UNITS)
def test_offers_stay(name):
    unit, steady, depth = UNITS[name]
    _offers(unit(ARCH), steady).check(depth)


class _Fickle(Gather):
    """Lets the first input through whenever it comes."""

    def elaborate(self, platform):
        m = super().elaborate(platform)
        with m.If(self.lanes[0].valid):
            m.d.comb += self.output.payload.eq(self.lanes[0].payload)
        return m


def test_offers_that_change_wrong():
    _offers(_Fickle(ARCH), ()).refute(6)
