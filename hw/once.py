"""Use a component many times and generate it once."""

from amaranth.back import verilog
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


def generate(component, name):
    """Return the Verilog of the module that :class:`Once` stands for."""
    return verilog.convert(component, name=name, strip_internal_attrs=True)
