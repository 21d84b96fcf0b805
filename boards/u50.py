"""AMD Alveo U50: 8 GiB of HBM2 within 75 W. Ref: AMD DS965."""

from alula.boards.area import PARTS
from alula.boards.board import Alveo, Tool
from alula.hw.arch import U50

BOARD = Alveo(
    name="u50", title="AMD Alveo U50", arch=U50, part=PARTS["u50"],
    device="xcu50-fsvh2104-2-e", platform="xilinx_u50_gen3x16_xdma_5_202210_1",
    channels=32, slrs=2, tool=Tool(name="Vitis", commands=("vivado", "v++"), first="2022.1"),
    runtime="XRT",
    limits=(
        "its power limit holds HBM at 316 GB/s for all channels together",
    ),
)
