"""Use a component many times and generate it once."""

import re

from amaranth._toolchain.yosys import find_yosys
from amaranth.back import rtlil
from amaranth.hdl import ClockSignal, Instance, Module, ResetSignal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out


class Once(wiring.Component):
    """Stand for a component whose Verilog is a module of its own, written once.

    Amaranth writes a module for each instance: thirty-two lanes would be thirty-two copies of the
    same code to every tool. Members are the component's, and ``clear`` : ``In(1)``, which resets
    it.
    """

    def __init__(self, signature, name):
        self.name = name
        super().__init__(dict(signature.members) | {"clear": In(1)})

    def elaborate(self, platform):
        m = Module()
        ports = {}
        for path, member, value in self.signature.flatten(self):
            if path != ("clear",):
                direction = "o" if member.flow is Out else "i"
                ports[f"{direction}_{'__'.join(map(str, path))}"] = value
        m.submodules.instance = Instance(
            self.name, i_clk=ClockSignal(), i_rst=ResetSignal() | self.clear, **ports)
        return m


_SCRIPT = """
read_rtlil <<rtlil
{rtlil}
rtlil
proc
opt_expr
opt_clean -purge
memory_collect
write_verilog -norename
"""
_ATTRIBUTE = re.compile(r"^\s*\(\* (?!rom_style).*\*\)\n", re.MULTILINE)
_ZERO = re.compile(r"^\s*\S+ ?\[\d+\] = \d+'h0+;\n", re.MULTILINE)


def generate(component, name):
    """Return the Verilog of the module that :class:`Once` stands for.

    Combinational logic comes as assignments: Amaranth's own writer leaves ``always @*`` blocks,
    one of which that only assigns a constant is never run by a simulator. Memories start at zero
    anyway, so their zeros are not listed.
    """
    text = rtlil.convert(component, name=name, emit_src=False)
    yosys = find_yosys(lambda version: version >= (0, 40))
    result = yosys.run(["-q", "-"], _SCRIPT.format(rtlil=text), ignore_warnings=True)
    result = _ATTRIBUTE.sub("", result)
    return _ZERO.sub("", result)  # ROMs keep what is not zero
