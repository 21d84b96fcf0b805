"""AMD ZCU104 with PYNQ 4.0: Zynq UltraScale+, 2 GiB of DDR4. Ref: AMD UG1267."""

from alula.boards.area import PARTS
from alula.boards.board import ULTRASCALE, Tool, Zynq
from alula.hw.arch import ZCU104

BOARD = Zynq(
    name="zcu104", title="AMD ZCU104", arch=ZCU104, part=PARTS["zcu104"],
    device="xczu7ev-ffvc1156-2-e", board_part="*:zcu104:*", processor=ULTRASCALE,
    tool=Tool(name="Vivado", commands=("vivado",), first="2022.1", last="2025.2"),
    runtime="PYNQ 4.0",
    limits=(
        "the lane reads through four 128-bit ports; that they carry all of the memory's "
        "19.2 GB/s together is the cycle model's assumption",
        "buffers come from Linux's contiguous memory, which the image's kernel arguments size",
    ),
)
