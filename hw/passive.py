"""Data on which nothing depends but other data.

When anything happens in the accelerator depends on the program, the step table, the headers of
weight streams and how memories answer, and not on weights, activations or sums. So with the macro
``ALULA_TIMING`` defined, what goes through :func:`passive` and what is in passive memories
(:mod:`alula.hw.ram`) is zero, the logic that makes it has no use and is removed by the simulator,
and what is left keeps the time of the whole: see :mod:`alula.sim.cycles`. Without the macro, and so
on a device, nothing is changed.
"""

from amaranth.hdl import Instance, Signal, Value

MODULE = "alula_passive"
VERILOG = f"""
module {MODULE} #(parameter WIDTH = 1) (input [WIDTH-1:0] i, output [WIDTH-1:0] o);
`ifdef ALULA_TIMING
  assign o = {{WIDTH{{1'b0}}}};
`else
  assign o = i;
`endif
endmodule
"""


def passive(m, value):
    """Return a value that decides nothing but other values."""
    value = Value.cast(value)
    same = Signal(value.shape(), name="passive")
    m.submodules += Instance(MODULE, p_WIDTH=len(value), i_i=value, o_o=same)
    return same
