"""AMD Kria KV260 with Kria-PYNQ 3.0.1: Zynq UltraScale+, 4 GiB of DDR4. Ref: AMD DS987."""

from alula.boards.area import PARTS
from alula.boards.board import ULTRASCALE, Tool, Zynq
from alula.hw.arch import KV260

BOARD = Zynq(
    name="kv260", title="AMD Kria KV260", arch=KV260, part=PARTS["kv260"],
    device="xck26-sfvc784-2LV-c", board_part="*:kv260_som:*", processor=ULTRASCALE,
    connections="som240_1_connector xilinx.com:kv260_carrier:som240_1_connector:1.3",
    tool=Tool(name="Vivado", commands=("vivado",), first="2022.1"),
    runtime="Kria-PYNQ 3.0.1",
    limits=(
        "the lane reads through four 128-bit ports; that they carry all of the memory's "
        "19.2 GB/s together is the cycle model's assumption",
        "Kria-PYNQ is for Ubuntu 22.04, Python 3.10 and NumPy 1: Alula wants Python 3.11",
        "buffers come from Linux's contiguous memory, which the image's kernel arguments size",
    ),
)
