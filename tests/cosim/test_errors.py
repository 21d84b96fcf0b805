"""Every error ends a run cleanly, names the instruction, and leaves a machine that runs on.

Errors come at random in random programs, behind memories that stall; the next run, without a reset,
must leave the memory that the golden model leaves.
"""

import random

import numpy as np
import pytest
from programs.archs import ARCHS
from programs.generate import case
from programs.pair import Pair
from programs.report import covered
from programs.tags import executed

from alula.hw import csr, isa, layout
from alula.hw.csr import Error, Register
from alula.hw.isa import WORD_BYTES
from alula.sim.memory import MemoryModel
from alula.sim.rtl.simulation import APART, BASE, RunError

SEEDS = range(12)
BUILDS = ["sim", *(pytest.param(name, marks=pytest.mark.slow) for name in ARCHS if name != "sim")]


class Victim(Pair):
    """A pair whose hardware is given errors."""

    def __init__(self, seed, name, wanted=None, **choices):
        """Make the first case from a seed on that runs an instruction of a class wanted."""
        for number in range(seed, seed + 100_000, 1000):
            made = case(number, ARCHS[name], **choices)
            self.step = made.steps[0]
            self.ran = sorted(executed(made.program, self.step))
            self.found = [at for at in self.ran
                          if wanted is None or isinstance(made.program.instructions[at], wanted)]
            if self.found:
                break
        super().__init__(made)
        self.random = random.Random(seed)
        self.code = self.program.instructions

    def fail(self, watchdog=0):
        """Run the step; return the error, as the status record has it."""
        self.write(self.step)
        simulation = self.rtl.simulation
        runs = int(simulation.status["runs"][0])
        with pytest.raises(RunError) as caught:
            simulation.run(watchdog)
        status = simulation.status[0]
        assert status["magic"] == csr.STATUS_MAGIC
        assert status["runs"] == runs + 1
        assert (status["error"], status["index"]) == (caught.value.error, caught.value.index)
        assert simulation.read_register(Register.ERROR) == caught.value.error
        assert simulation.read_register(Register.INDEX) == caught.value.index
        assert simulation.read_register(Register.STATE) == csr.State.IDLE
        return caught.value

    def runs_on(self):
        """Start both from the memory the failed run left; the next run must be equal."""
        machine = self.golden.machine
        machine.control[:] = self.rtl.control[:machine.control.size]
        for mine, theirs in zip(machine.caches, self.rtl.caches, strict=True):
            mine[:] = theirs
        self.run(self.step)

    def deny(self, port, start, size):
        self.rtl.simulation.deny(port, start, size)

    def allow(self):
        for port in range(1 + self.program.arch.lanes):
            self.deny(port, 0, 0)

    def address(self, at):
        """Return the first byte that an instruction touches; registers as its first pass has."""
        registers = [0] * isa.ADDRESS_REGISTERS
        for before in self.ran[:self.ran.index(at)]:
            insn = self.code[before]
            if isinstance(insn, isa.SetAddress):
                registers[insn.register] = insn.value
            elif isinstance(insn, isa.AddAddress):
                registers[insn.register] += insn.value
        return (registers[self.code[at].register] + self.code[at].offset) * WORD_BYTES


@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.parametrize("seed", SEEDS)
def test_watchdog(seed, name):
    """Stopped at any clock, three times over."""
    victim = Victim(seed, name)
    victim.run(victim.step)
    first = victim.rtl.counters.cycles  # with what is done once, after reset
    victim.runs_on()
    # Memories that stall make a run differ.
    cycles = (victim.rtl.counters.cycles - first) * 3 // 4
    for _ in range(3):
        error = victim.fail(watchdog=victim.random.randint(1, cycles))
        assert error.error is Error.WATCHDOG
        assert error.index < len(victim.code)
        victim.runs_on()
        covered(victim, victim.step, error="WATCHDOG",
                culprit=error.index if error.index in victim.ran else None)


@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.parametrize("rows", [1, 2, 3, 8, 16])
def test_watchdog_sweep(rows, name):
    """Stopped again and again, at clocks not far apart, wherever the sequencer then is."""
    victim = Victim(40 + rows, name, rows=rows)
    victim.run(victim.step)
    cycles = victim.rtl.counters.cycles * 3 // 4
    stops = [victim.fail(watchdog=at).index
             for at in sorted(victim.random.sample(range(1, min(cycles, 6000)), 60))]
    victim.runs_on()
    for at in set(stops) & set(victim.ran):
        covered(victim, victim.step, error="WATCHDOG", culprit=at)


ONLY = {isa.StoreKeyValue: "attention", isa.StoreTop: "store_top", isa.RmsNorm: "rms_norm",
        isa.Rotate: "rotate", isa.End: "combine"}


@pytest.mark.parametrize("wanted", ONLY, ids=lambda cls: cls.__name__)
def test_watchdog_at(wanted):
    """Stopped while the sequencer is at an instruction, found by halving."""
    for seed in range(100, 200):
        victim = Victim(seed, "sim", wanted, only=(ONLY[wanted],), rows=2)
        if not any(isinstance(insn, isa.Loop) for insn in victim.code):
            break
    victim.rtl.simulation.set_memory(MemoryModel())
    victim.memory = MemoryModel()
    victim.run(victim.step)
    low, high, at = 1, victim.rtl.counters.cycles, victim.found[0]
    while low <= high:
        middle = (low + high) // 2
        index = victim.fail(watchdog=middle).index
        if index == at:
            break
        low, high = (middle + 1, high) if index < at else (low, middle - 1)
    else:
        raise AssertionError(f"a stop must come at instruction {at}")
    victim.runs_on()
    covered(victim, victim.step, error="WATCHDOG", culprit=at)


@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.parametrize("wanted", isa.INSTRUCTIONS.values(), ids=lambda cls: cls.__name__)
def test_opcode(wanted, name):
    """In any instruction's place, what is none."""
    seed = 60 + wanted.opcode
    victim = Victim(seed, name, wanted, rows=random.Random(seed).choice([1, 2, 3, 8, 16]))
    at = victim.random.choice(victim.found)
    start = victim.program.memory.program.start + at * isa.INSTRUCTION_BYTES
    kept = victim.rtl.read(start, isa.INSTRUCTION_BYTES)
    bad = kept.copy()
    bad[0] = victim.random.choice([value for value in range(256)
                                   if value not in isa.INSTRUCTIONS])
    victim.rtl.write(start, bad.tobytes())
    error = victim.fail()
    assert (error.error, error.index) == (Error.OPCODE, at)
    victim.rtl.write(start, kept.tobytes())
    victim.runs_on()
    covered(victim, victim.step, error="OPCODE", culprit=at)


@pytest.mark.parametrize("wanted, change", [
    (isa.Combine, dict(function=3)), (isa.Combine, dict(rows=3)), (isa.Loop, dict(source=5)),
    (isa.Loop, dict(source=15)),
], ids=["function", "rows", "source", "source 15"])
def test_opcode_field(wanted, change):
    """A field that has a value it may not have."""
    victim = Victim(1, "sim", wanted)
    at = victim.found[0]
    word = int.from_bytes(isa.encode(victim.code[at]), "little")
    widths = isa.HEADER_BITS | {name: spec["width"] for name, spec in wanted.operands().items()}
    shift = 0
    for name, width in widths.items():
        if name in change:
            word |= change[name] << shift
        shift += width
    start = victim.program.memory.program.start + at * isa.INSTRUCTION_BYTES
    victim.rtl.write(start, word.to_bytes(16, "little"))
    error = victim.fail()
    assert (error.error, error.index) == (Error.OPCODE, at)
    victim.rtl.write(start, isa.encode(victim.code[at]))
    victim.runs_on()


@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.parametrize("count", ["none", "too many"])
@pytest.mark.parametrize("rows", [1, 2, 3, 8, 16])
@pytest.mark.parametrize("seed", [3, 30, 300])
def test_program(seed, rows, count, name):
    victim = Victim(seed + rows, name, rows=rows)
    simulation = victim.rtl.simulation
    size = 0 if count == "none" else victim.program.arch.program_instructions + 1
    simulation.write_register(Register.INSTRUCTIONS, size)
    error = victim.fail()
    assert error.error is Error.PROGRAM
    simulation.write_register(Register.INSTRUCTIONS, len(victim.code))
    victim.runs_on()
    covered(victim, victim.step, error="PROGRAM")


@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.parametrize("rule, rows", [
    ("no rows", 1), ("rows", 2), ("repeats", 16), ("parent", 4), ("position", 8), ("sequence", 3)])
def test_step(rule, rows, name):
    """A step table that breaks a rule."""
    victim = Victim(5 + rows, name, rows=rows)
    good = victim.step
    header, table = good.header.copy(), good.rows.copy()
    if rule == "no rows":
        header["rows"] = 0
    elif rule == "rows":
        header["rows"] = victim.program.arch.rows + 1
    elif rule == "repeats":
        header["repeats"] = 0
    elif rule == "parent":
        table[1]["parent"] = 1
    elif rule == "position":
        table[1]["parent"], table[1]["position"] = 0, table[0]["position"] + 2
    else:
        table[2]["sequence"] = 1 << 16
    victim.step = type(good)(header, table, good.pages)
    error = victim.fail()
    read = next(at for at in victim.ran if isinstance(victim.code[at], isa.ReadStep))
    assert (error.error, error.index) == (Error.STEP, read)
    victim.step = good
    victim.runs_on()
    covered(victim, victim.step, error="STEP", culprit=read)


@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.parametrize("wanted, error", [
    (isa.ReadStep, Error.LOAD), (isa.LoadParams, Error.LOAD), (isa.LoadRow, Error.LOAD),
    (isa.StoreRow, Error.STORE), (isa.StoreTop, Error.STORE)], ids=lambda what: getattr(
        what, "__name__", None))
@pytest.mark.parametrize("seed", range(4))
def test_control_bus(seed, wanted, error, name):
    """An error on the control memory's port, at an instruction's first word."""
    victim = Victim(seed, name, wanted, rows=[1, 3, 8, 16][seed])
    rows = victim.step.rows
    for at in victim.found:
        insn, where = victim.code[at], victim.address(at)
        if isinstance(insn, isa.LoadParams) and not insn.size:
            continue
        if isinstance(insn, isa.LoadRow):
            index = rows["token" if insn.index is isa.Index.TOKEN else "position"][0]
            where += int(index) * insn.stride * WORD_BYTES
        if isinstance(insn, isa.StoreRow):
            wants = np.flatnonzero(rows["flags"] & layout.WANTS_LOGITS)
            if not len(wants):
                continue
            where += int(wants[0]) * insn.stride * WORD_BYTES
        break
    else:
        pytest.skip(f"seed {seed} has no {wanted.__name__} that touches memory")
    victim.deny(0, BASE + where, WORD_BYTES)
    found = victim.fail()
    assert found.error is error
    # An earlier instruction may touch the same word.
    assert isinstance(victim.code[found.index], wanted)
    assert found.index <= at
    victim.allow()
    victim.runs_on()
    covered(victim, victim.step, error=error.name, culprit=at)


@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.parametrize("seed", range(12))
def test_program_bus(seed, name):
    """An error while the program is read."""
    victim = Victim(seed, name)
    at = victim.random.randrange(len(victim.code))
    victim.deny(0, BASE + at * isa.INSTRUCTION_BYTES, WORD_BYTES)
    assert victim.fail().error is Error.LOAD
    victim.allow()
    victim.runs_on()
    covered(victim, victim.step, error="LOAD")


@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.parametrize("what", ["directory", "stream"])
@pytest.mark.parametrize("seed", range(4))
def test_lane_bus(seed, what, name):
    """An error on one lane's port: at a directory entry, and inside a stream."""
    victim = Victim(seed, name, isa.LoadStream)
    at = victim.found[0]
    arch = victim.program.arch
    lane, where = 0, victim.address(at)
    if what == "stream":
        entry = victim.program.lanes[0][where:where + WORD_BYTES].view(layout.DIRECTORY_ENTRY)[0]
        where = (int(entry["start"]) * WORD_BYTES
                 + victim.random.randrange(int(entry["beats"])) * arch.beat_bytes)
    else:
        lane = victim.random.randrange(arch.lanes)
    victim.deny(1 + lane, BASE + (1 + lane) * APART + where // arch.beat_bytes * arch.beat_bytes,
                WORD_BYTES)
    found = victim.fail()
    assert (found.error, found.index) == (Error.LANE, at)
    victim.allow()
    victim.runs_on()
    covered(victim, victim.step, error="LANE read", culprit=at)


@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.parametrize("rows", [1, 2, 3, 8, 16])
@pytest.mark.parametrize("seed", range(3))
def test_cache(seed, rows, name):
    """An error as a key or value is written to the cache, or as pages are read."""
    for wanted, kind in ((isa.StoreKeyValue, "LANE write"), (isa.LoadPages, "LANE read")):
        victim = Victim(seed + 20 * rows, name, wanted, rows=rows)
        at, where = victim.found[0], victim.program.memory.cache
        if kind == "LANE write":  # nothing is cached, so that nothing is read before
            table = victim.step.rows
            for row in range(len(table)):
                parent = table["parent"][row]
                table["position"][row] = table["position"][parent] + 1 if parent >= 0 else 0
        for lane in range(victim.program.arch.lanes):
            victim.deny(1 + lane, BASE + (1 + lane) * APART + where.start, where.size)
        table = victim.step.rows
        if kind == "LANE read" and not any(table["position"][table["parent"] < 0]):
            continue  # nothing is cached
        found = victim.fail()
        assert found.error is Error.LANE
        assert isinstance(victim.code[found.index], isa.StoreKeyValue | isa.LoadPages)
        victim.allow()
        victim.runs_on()
        if isinstance(victim.code[found.index], wanted):
            covered(victim, victim.step, error=kind, culprit=at)


@pytest.mark.parametrize("what", ["token", "slot", "place", "lane", "control"])
def test_out_of_region(what):
    """Addresses outside what is allocated: a host's mistakes."""
    wanted = {"token": isa.LoadRow, "slot": isa.LoadPages, "place": isa.StoreKeyValue}.get(what)
    victim = Victim(7, "sim", wanted)
    good, simulation = victim.step, victim.rtl.simulation
    rows, pages = good.rows.copy(), good.pages.copy()
    expected = {Error.LOAD} if what in ("token", "control") else {Error.LANE}
    if what == "token":
        rows["token"] = 0x7FFF_FFFF
    elif what == "slot":
        pages[:] = 0x00FF_FFFF
        rows["position"][rows["parent"] < 0] += 1
        rows["position"][0] = max(1, int(rows["position"][0]))
        rows = rows[:1]
    elif what == "place":
        rows["place"] = 0x3FFF_FFC0
    elif what == "lane":
        simulation.write_register(Register.LANE, 0)
        simulation.write_register(Register.LANE + 4, 0x7FFF)
    else:
        simulation.write_register(Register.CONTROL + 4, 0x7FFF)
    header = good.header.copy()
    header["rows"] = len(rows)
    victim.step = type(good)(header, rows, pages)
    assert victim.fail().error in expected
    simulation.load(BASE, [BASE + (1 + lane) * APART for lane in range(SIM_LANES)],
                    victim.program.memory.program.start, len(victim.code))
    victim.step = good
    victim.runs_on()


SIM_LANES = ARCHS["sim"].lanes
