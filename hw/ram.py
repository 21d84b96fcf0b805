"""Memories that start at zero, written by one port and read by any number."""

from amaranth.hdl import ClockSignal, Instance, Module, Shape, Value
from amaranth.lib import wiring
from amaranth.lib.memory import MemoryData, ReadPort, WritePort

MODULE = "alula_ram"
# One writes and one reads; a word that is read as it is written comes as it was before. With
# ALULA_TIMING those whose contents never decide when anything happens hold nothing.
VERILOG = f"""
module {MODULE} #(parameter WIDTH = 1, DEPTH = 1, ADDRESS = 1, PARTS = 1, CLOCKED = 1,
                    PASSIVE = 0, STYLE = "auto")
  (input clk, input [ADDRESS-1:0] write_address, input [WIDTH-1:0] write_data,
   input [PARTS-1:0] write_enable, input [ADDRESS-1:0] read_address, input read_enable,
   output [WIDTH-1:0] read_data);
  localparam PART = WIDTH / PARTS;
`ifdef ALULA_TIMING
  localparam EMPTY = PASSIVE;
`else
  localparam EMPTY = 0;
`endif
  generate
    if (EMPTY) begin : empty
      assign read_data = {{WIDTH{{1'b0}}}};
    end else begin : kept
      (* ram_style = STYLE *)
      reg [WIDTH-1:0] words [0:DEPTH-1];
      integer part;
      always @(posedge clk)
        for (part = 0; part < PARTS; part = part + 1)
          if (write_enable[part])
            words[write_address][part*PART +: PART] <= write_data[part*PART +: PART];
      if (CLOCKED) begin : clocked
        reg [WIDTH-1:0] held;
        always @(posedge clk) if (read_enable) held <= words[read_address];
        assign read_data = held;
      end else begin : direct
        assign read_data = words[read_address];
      end
    end
  endgenerate
endmodule
"""


class Ram(wiring.Component):
    """A memory whose contents start at zero.

    Used as :class:`amaranth.lib.memory.Memory`, with one write port. Amaranth lists a memory's
    contents word by word, which takes most of the time of writing the Verilog of large ones; this
    is an instance of one small module, with a copy of the memory for each read port. ``style`` is
    for synthesis: ``block`` or ``ultra`` memory, or what the tool likes. ``passive`` says that when
    anything happens never depends on the contents: see :mod:`alula.sim.cycles`.
    """

    def __init__(self, *, shape, depth, style="auto", passive=False):
        self.shape, self.depth, self.style, self.passive = shape, depth, style, passive
        self._data = MemoryData(shape=shape, depth=depth, init=[])
        self._write, self._reads = None, []
        super().__init__({})

    def write_port(self, *, granularity=None):
        assert self._write is None
        signature = WritePort.Signature(addr_width=(self.depth - 1).bit_length(),
                                        shape=self.shape, granularity=granularity)
        self._write = signature.create(path=("write",))
        return self._write

    def read_port(self, *, domain="sync"):
        signature = ReadPort.Signature(addr_width=(self.depth - 1).bit_length(), shape=self.shape)
        port = signature.create(path=(f"read_{len(self._reads)}",))
        self._reads.append((port, domain))
        return port

    def elaborate(self, platform):
        m = Module()
        write = wiring.flipped(self._write)
        width = Shape.cast(self.shape).width
        for at, (port, domain) in enumerate(self._reads):
            m.submodules[f"copy_{at}"] = Instance(
                MODULE, p_WIDTH=width, p_DEPTH=self.depth, p_PARTS=len(write.en),
                p_ADDRESS=max(1, len(write.addr)), p_CLOCKED=int(domain == "sync"),
                p_STYLE=self.style, p_PASSIVE=int(self.passive),
                i_clk=ClockSignal(), i_write_address=write.addr,
                i_write_data=Value.cast(write.data), i_write_enable=write.en,
                i_read_address=port.addr, i_read_enable=port.en if domain == "sync" else 1,
                o_read_data=Value.cast(port.data))
        return m
