"""The module around the accelerator that has the clock and reset the vendor's tools expect."""

from __future__ import annotations

import re

from alula.hw.arch import ArchConfig
from alula.hw.top import KERNEL_MODULE, TOP_MODULE, verilog

SHELL_MODULE = "alula_shell"
_KERNEL = re.compile(rf"^\s*{KERNEL_MODULE} \S+\s+\(.*?^\s*\);", re.MULTILINE | re.DOTALL)
_PIN = re.compile(r"\.([ms]_axi_control)_(?=[a-z])")
CLOCK, RESET = "ap_clk", "ap_rst_n"


def ports(arch: ArchConfig) -> list[tuple[str, str, int]]:
    """Return direction, name and bits of each port of the accelerator but clock and reset."""
    from amaranth.hdl import Shape
    from amaranth.lib.wiring import Out, Signature

    from alula.hw import axi
    from alula.hw.kernel import kernel_signature

    kernel = dict(kernel_signature(arch).members)
    outside = {name: kernel[name] for name in ("s_axi_control", "m_axi_control", "interrupt")}
    outside["m_axi_lane"] = Out(axi.signature(arch.beat_bytes)).array(arch.lanes)
    signature = Signature(outside)
    found = []
    for path, member, _ in signature.flatten(signature.create()):
        found.append(("output" if member.flow is Out else "input",
                      "_".join(map(str, path)), Shape.cast(member.shape).width))
    return found


def buses(arch: ArchConfig) -> list[str]:
    """Return the AXI masters' names, the control memory's first."""
    return ["m_axi_control", *(f"m_axi_lane_{lane}" for lane in range(arch.lanes))]


def accelerator(arch: ArchConfig, primitive: bool) -> str:
    """Return the accelerator's Verilog with each pin of the kernel's instance as the kernel has it.

    The top names buses as XRT does, with one underscore, and with them the pins that it joins them
    to; the kernel's own ports keep two, so no tool would find them.
    """
    return _KERNEL.sub(lambda instance: _PIN.sub(r".\1__", instance[0]), verilog(arch, primitive))


def shell(arch: ArchConfig) -> str:
    """Return the Verilog: names as XRT wants them, and a reset, active low there, in a register."""
    found = ports(arch)
    declared = [f"  input wire {CLOCK}", f"  input wire {RESET}"] + [
        f"  {way} wire {f'[{bits - 1}:0] ' if bits > 1 else ''}{name}" for way, name, bits in found]
    joined = [".clk(ap_clk)", ".rst(reset)", *(f".{name}({name})" for _, name, _ in found)]
    return (f"module {SHELL_MODULE} (\n" + ",\n".join(declared) + "\n);\n"
            "  reg reset = 1'b1;\n"
            f"  always @(posedge {CLOCK}) reset <= ~{RESET};\n"
            f"  {TOP_MODULE} accelerator (\n    " + ",\n    ".join(joined) + "\n  );\nendmodule\n")
