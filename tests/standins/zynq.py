"""A Zynq board: the simulated RTL behind a bus of registers, memory, and a cache before it.

The accelerator's ports do not see the cache. What the host writes stays there until it is flushed;
what it has read stays there until it is invalidated; lines that it did not write are not flushed.
"""

from __future__ import annotations

from pathlib import Path

from alula.boards.buses import memories
from alula.boards.kernel_xml import VLNV
from alula.hw.csr import CONTROL_BYTES, Register
from standins.fabric import Fabric, parse, rubbish

BASE = 0xA000_0000  # of the registers, on the processor's bus
LINE = 64
POLL_CLOCKS = 5_000  # that pass from one look at CTRL to the next
CLOCKS_PER_S = 2_000_000  # of simulated time, for who waits
ALIGNED = 4096


def described():
    """Return a ``.hwh`` with what PYNQ reads of it: blocks, their registers' place, and clocks."""
    clocks = "".join(
        f'<PARAMETER NAME="PSU__FPGA_PL{at}_ENABLE" VALUE="{int(at == 0)}"/>'
        + "".join(f'<PARAMETER NAME="PSU__CRL_APB__PL{at}_REF_CTRL__DIVISOR{which}" VALUE="5"/>'
                  for which in range(2)) for at in range(4))
    return f"""<EDKSYSTEM><EXTERNALPORTS/><MODULES>
<MODULE FULLNAME="/ps" INSTANCE="ps" MODTYPE="zynq_ultra_ps_e"
        VLNV="xilinx.com:ip:zynq_ultra_ps_e:3.5"><PARAMETERS>{clocks}</PARAMETERS><MEMORYMAP>
<MEMRANGE INSTANCE="interrupts" BASEVALUE="0xA0010000" HIGHVALUE="0xA001FFFF" MEMTYPE="REGISTER"
          SLAVEBUSINTERFACE="s_axi"/>
<MEMRANGE INSTANCE="alula" BASEVALUE="{BASE:#x}" HIGHVALUE="{BASE + CONTROL_BYTES - 1:#x}"
          MEMTYPE="REGISTER" SLAVEBUSINTERFACE="s_axi_control"/></MEMORYMAP></MODULE>
<MODULE FULLNAME="/interrupts" INSTANCE="interrupts" MODTYPE="axi_intc"
        VLNV="xilinx.com:ip:axi_intc:4.1"/>
<MODULE FULLNAME="/alula" INSTANCE="alula" MODTYPE="alula" VLNV="{VLNV}"/>
</MODULES></EDKSYSTEM>
"""


class Block:
    """Contiguous memory: ``host`` is as the processor sees it, ``memory`` as the accelerator."""

    def __init__(self, size, address):
        whole = -(-size // ALIGNED) * ALIGNED
        self.address = address
        self.host, self.memory = rubbish(whole, 1), rubbish(whole, 2)
        self._clean = self.host.copy()  # the cache's lines, as they were filled

    def flush(self, start, size):
        lines = self._lines(start, size)
        host, clean = self.host[lines].reshape(-1, LINE), self._clean[lines].reshape(-1, LINE)
        written = (host != clean).any(axis=1)
        self.memory[lines].reshape(-1, LINE)[written] = host[written]
        clean[written] = host[written]

    def invalidate(self, start, size):
        lines = self._lines(start, size)
        self.host[lines] = self._clean[lines] = self.memory[lines]

    @staticmethod
    def _lines(start, size):
        return slice(start // LINE * LINE, -(-(start + size) // LINE) * LINE)


class Board:
    """A board, and its faults: ``before_start(board)`` is called as a run starts."""

    def __init__(self, contiguous_bytes=64 << 20):
        self.contiguous_bytes, self.next = contiguous_bytes, 0x4000_0000
        self.blocks, self.fabric = {}, None
        self.before_start, self.starts = lambda board: None, 0

    def program(self, path):
        try:
            image = parse(Path(path).read_bytes())
        except ValueError:
            raise OSError("Bitstream is not whole") from None
        self.fabric = Fabric(image["arch"])
        for block in self.blocks.values():
            self._attach(block)

    def _attach(self, block):
        for bus in memories(self.fabric.arch):
            self.fabric.attach(bus, block.address, block.memory)

    def allocate(self, size):
        block = Block(size, self.next)
        if block.host.size > self.contiguous_bytes:
            raise RuntimeError("Failed to allocate Memory!")
        self.contiguous_bytes -= block.host.size
        self.next += block.host.size + ALIGNED
        self.blocks[block.address] = block
        if self.fabric:
            self._attach(block)
        return block

    def free(self, block):
        if self.blocks.pop(block.address, None):
            self.contiguous_bytes += block.host.size

    def monotonic(self):
        """Return the time, which does not depend on how fast the simulation is."""
        return self.fabric.rtl.clocks / CLOCKS_PER_S

    def sleep(self, seconds):
        """Time passes by looking."""

    def read_register(self, address):
        offset = address - BASE
        assert 0 <= offset < CONTROL_BYTES and offset % 4 == 0
        if offset == Register.CTRL:
            self.fabric.rtl.wait(POLL_CLOCKS)  # no interrupt: so many pass
        return self.fabric.rtl.read_register(offset)

    def write_register(self, address, value):
        offset = address - BASE
        assert 0 <= offset < CONTROL_BYTES and offset % 4 == 0
        if offset == Register.CTRL and value & 1:
            self.starts += 1
            self.before_start(self)
        self.fabric.rtl.write_register(offset, value)


def rail(watts):
    class Sensor:
        value = watts

    class Rail:
        power = Sensor
    return Rail
