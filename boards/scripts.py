"""The scripts of a bundle: settings that Tcl reads, the link file, floorplan, constraints, build.

What is the same for every build is in ``boards/tcl`` and copied; it reads ``settings.tcl``.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files

from alula.boards.board import NAME, Alveo, Board, Zynq
from alula.boards.buses import buses
from alula.boards.kernel_xml import PROTOCOL, VLNV, kernel_xml
from alula.boards.register import Entry, entries
from alula.boards.shell import CLOCK, RESET, SHELL_MODULE
from alula.hw.arch import ArchConfig
from alula.hw.csr import CONTROL_BYTES

INSTANCE = f"{NAME}_1"  # of the kernel, in a linked card
STAGE = "#alula"  # begins the lines that say which stage a build is in
VERILOG = ("alula.v", "alula_shell.v")
KERNEL, CARD = f"{NAME}.xo", f"{NAME}.xclbin"
OVERLAY = f"overlay/{NAME}"  # PYNQ wants .bit and .hwh of one stem


def tcl(name: str) -> str:
    """Return a script that is the same for every build."""
    return files("alula.boards").joinpath("tcl", name).read_text()


def _word(value: str) -> str:
    """Return a value as one word of Tcl; ours have no braces of their own."""
    return "{" + value + "}"


def _list(values: Iterable[str]) -> str:
    return _word(" ".join(values))


def settings(board: Board, arch: ArchConfig) -> str:
    """Return ``settings.tcl``: every name and number that the other scripts use."""
    values = {
        "name": NAME, "vlnv": VLNV, "top": SHELL_MODULE, "part": board.device,
        "protocol": PROTOCOL, "clock_port": CLOCK, "reset_port": RESET,
        "clock_mhz": str(board.clock_mhz), "register_bytes": str(CONTROL_BYTES),
    }
    lines = [f"set {key} {_word(value)}" for key, value in values.items()]
    lines += [f"set verilog {_list(VERILOG)}", f"set masters {_list(buses(arch))}"]
    if isinstance(board, Zynq):
        lines += _processor(board, arch)
    shown = [entry for entry in entries(arch)
             if isinstance(board, Zynq) or not entry.readable_only]
    lines += ["# name, offset, bits, access, bus of a pointer, fields and their bits",
              "set registers {", *(f"  {_register(entry)}" for entry in shown), "}"]
    return "\n".join(["# Written by alula build: what the scripts beside it build.", *lines, ""])


def _register(entry: Entry) -> str:
    fields = _list(f"{name} {bit}" for name, bit in entry.fields)
    access = "read-only" if entry.readable_only else "read-write"
    return _list([entry.name, f"0x{entry.offset:03x}", str(entry.bits), access,
                  _word(entry.bus), fields])


def _processor(board: Zynq, arch: ArchConfig) -> list[str]:
    chip = board.processor
    properties = chip.settings | {chip.clock_setting: str(board.clock_mhz)}
    clocks = dict(chip.memory)
    joined = [f"{{{bus} {port} {clocks[port]}}}" for bus, port in board.ports(arch).items()]
    values = {
        "board_part": board.board_part, "board_connections": board.connections,
        "processor": chip.block, "processor_rule": chip.rule,
        "processor_automation": chip.automation, "processor_clock": chip.clock,
        "processor_reset": chip.reset, "processor_interrupt": chip.interrupt,
        "control_port": chip.control[0], "control_clock": chip.control[1], "overlay": OVERLAY,
    }
    return [*(f"set {key} {_word(value)}" for key, value in values.items()),
            f"set processor_settings {_list(f'CONFIG.{k} {v}' for k, v in properties.items())}",
            "# our master, the port into memory, its clock", f"set memory {_list(joined)}"]


def link_file(board: Alveo, arch: ArchConfig) -> str:
    """Return what ``v++ --config`` reads: one instance, and the memory behind each port."""
    lines = [f"platform={board.platform}", f"kernel_frequency=0:{board.clock_mhz}",
             "report_level=2", "save-temps=1", "", "[connectivity]", f"nk={NAME}:1:{INSTANCE}"]
    return "\n".join([*lines, *(f"sp={INSTANCE}.{port}:{memory}"
                                for port, memory in board.ports(arch).items()), ""])


def floorplan(board: Alveo, arch: ArchConfig) -> str:
    """Return hints for placement: each lane in one die, the kernel beside the HBM in the first."""
    lines = ["# Written by alula build. Hints, run before placement: a lane stays in one die.",
             "proc hint {pattern die} {",
             "  set cells [get_cells -quiet -hierarchical -filter \"NAME =~ $pattern\"]",
             "  if {[llength $cells] == 0} { error \"no cell is named $pattern\" }",
             "  set_property USER_SLR_ASSIGNMENT $die $cells", "}",
             f"hint {{*{INSTANCE}/*accelerator/kernel}} SLR0"]
    lines += [f"hint {{*{INSTANCE}/*accelerator/lane_{lane}}} SLR{board.slr(arch, lane)}"
              for lane in range(arch.lanes)]
    return "\n".join([*lines, ""])


def constraints(board: Zynq) -> str:
    """Return the constraints: the processor's block makes its clock's, and no pin is ours."""
    return (f"# {board.title}: the processing system constrains its own clock, "
            f"{board.clock_mhz} MHz;\n# every pin is its own too.\n"
            "set_property BITSTREAM.GENERAL.COMPRESS TRUE [current_design]\n")


def build_script(board: Board) -> str:
    """Return ``build.sh``, which runs every stage; each begins with a line that ``STAGE`` marks."""
    vivado = "vivado -mode batch -nojournal -notrace"
    stages = [("package the kernel", [f"{vivado} -log package.log -source package.tcl"])]
    if isinstance(board, Alveo):
        stages += [
            ("link it with the platform", [
                f"v++ -l -t hw --config link.cfg --log_dir logs \\\n"
                f'  --vivado.prop run.impl_1.STEPS.PLACE_DESIGN.TCL.PRE="$PWD/floorplan.tcl" \\\n'
                f"  {KERNEL} -o {CARD}"]),
            ("collect reports", [
                'find _x -name "*timing_summary*routed*.rpt" -exec cp {} reports/timing.rpt \\;',
                'find _x -name "*full_util_routed.rpt" -exec cp {} reports/utilization.rpt \\;'])]
    else:
        stages += [
            ("put it beside the processor",
             [f"{vivado} -log design.log -source block_design.tcl"]),
            ("implement it", [f"{vivado} -log implement.log -source implement.tcl"])]
    lines = ["#!/bin/sh", f"# Written by alula build, for {board.tool.name} "
             f"{board.tool.versions}; it was verified with: {board.verified}.",
             "set -eu", 'cd "$(dirname "$0")"', "mkdir -p reports"]
    for at, (title, commands) in enumerate(stages, 1):
        lines += [f'echo "{STAGE} {at}/{len(stages)} {title}"', *commands]
    return "\n".join([*lines, ""])


def _common(board: Board, arch: ArchConfig) -> dict[str, str]:
    return {"settings.tcl": settings(board, arch), "build.sh": build_script(board)}


def scripts(board: Board, arch: ArchConfig) -> dict[str, str]:
    """Return the text of every script of a build by its name."""
    if isinstance(board, Alveo):
        return _common(board, arch) | {
            "package.tcl": tcl("package.tcl") + tcl("package_xo.tcl"),
            "kernel.xml": kernel_xml(arch), "link.cfg": link_file(board, arch),
            "floorplan.tcl": floorplan(board, arch)}
    assert isinstance(board, Zynq)
    return _common(board, arch) | {
        "package.tcl": tcl("package.tcl") + tcl("package_ip.tcl"),
        "block_design.tcl": tcl("block_design.tcl"),
        "implement.tcl": tcl("implement.tcl"), "constraints.xdc": constraints(board)}
