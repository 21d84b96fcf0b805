"""TUL PYNQ-Z2 with PYNQ up to 3.1: Zynq-7000, 512 MiB of DDR3. Ref: its manual; AMD DS190."""

from alula.boards.area import PARTS
from alula.boards.board import SERIES_7, Tool, Zynq
from alula.hw.arch import PYNQ_Z2

BOARD = Zynq(
    name="pynq-z2", title="TUL PYNQ-Z2", arch=PYNQ_Z2, part=PARTS["pynq-z2"],
    device="xc7z020clg400-1", board_part="*:pynq-z2:*", processor=SERIES_7,
    tool=Tool(name="Vivado", commands=("vivado",), first="2022.1", last="2024.1"),
    runtime="PYNQ up to 3.1",
    limits=(
        "the lane's two 64-bit ports carry 1.6 of the memory's 2.1 GB/s at 100 MHz",
        "the vendor's tool needs TUL's board files",
        "no release of PYNQ after 3.1 has it, and that one's Python is 3.10: Alula wants 3.11",
    ),
)
