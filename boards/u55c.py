"""AMD Alveo U55C: 16 GiB of HBM2. Ref: AMD DS978."""

from alula.boards.area import PARTS
from alula.boards.board import Alveo, Tool
from alula.hw.arch import U55C

BOARD = Alveo(
    name="u55c", title="AMD Alveo U55C", arch=U55C, part=PARTS["u55c"],
    device="xcu55c-fsvh2892-2L-e", platform="xilinx_u55c_gen3x16_xdma_3_202210_1",
    channels=32, slrs=3, tool=Tool(name="Vitis", commands=("vivado", "v++"), first="2022.1"),
    runtime="XRT",
    limits=(
        "its memory is HBM only: lanes and the control memory share it",
        "whether the platform's memory subsystem takes more than 32 masters is not known",
    ),
)
