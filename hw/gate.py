"""Clocks that rest while a unit has nothing to do.

In simulation a clock that does not tick costs nothing, and most units have nothing to do most of
the time. On a device it would save power, but there are more units than clock buffers: synthesis
gets the plain clock. Either way a unit sees the same, as long as it changes nothing while it rests.
"""

from amaranth.hdl import ClockDomain, ClockSignal, Instance, ResetSignal, Signal

FLUSH = 1023  # clocks after a reset, in which what was under way leaves pipelines without reset
MODULE = "alula_gate"
# What opens the gate is taken while the clock is low, and held while it is high.
VERILOG = f"""
module {MODULE} (input clk, input open, output gated);
`ifdef SYNTHESIS
  assign gated = clk;
`else
  reg opened;
  always_latch if (!clk) opened = open;
  assign gated = clk & opened;
`endif
endmodule
"""


def gated(m, name, awake, linger=4):
    """Add a clock domain to a module: ``sync`` while ``awake``, some clocks longer, after a reset.

    ``awake`` must be high in the clock in which something first reaches what is in the domain, and
    while a stream out of it offers anything. What is there must have ended ``linger`` clocks after
    it: outputs keep their last values.
    """
    m.domains += ClockDomain(name, local=True)
    left = Signal(range(FLUSH + 1), init=FLUSH, name=f"{name}_left")
    m.d.sync += left.eq(left - (left != 0))
    with m.If(awake & (left < linger)):
        m.d.sync += left.eq(linger)
    m.submodules[f"{name}_gate"] = Instance(
        MODULE, i_clk=ClockSignal(), i_open=awake | (left != 0) | ResetSignal(),
        o_gated=ClockSignal(name))
    m.d.comb += ResetSignal(name).eq(ResetSignal())
