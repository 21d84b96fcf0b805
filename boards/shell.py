"""The module around the accelerator that has the clock and reset the vendor's tools expect."""

from __future__ import annotations

from alula.hw.arch import ArchConfig
from alula.hw.top import TOP_MODULE

SHELL_MODULE = "alula_shell"
CLOCK, RESET = "ap_clk", "ap_rst_n"


def ports(arch: ArchConfig) -> list[tuple[str, str, int]]:
    """Return direction, name and bits of each port of the accelerator but clock and reset."""
    from amaranth.hdl import Shape
    from amaranth.lib.wiring import Out

    from alula.hw.top import top_signature

    signature = top_signature(arch)
    found = []
    for path, member, _ in signature.flatten(signature.create()):
        found.append(("output" if member.flow is Out else "input",
                      "_".join(map(str, path)), Shape.cast(member.shape).width))
    return found


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
