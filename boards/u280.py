"""AMD Alveo U280: 8 GiB of HBM2 and 32 GiB of DDR4. Ref: AMD DS963."""

from alula.boards.area import PARTS
from alula.boards.board import Alveo, Tool
from alula.hw.arch import U280

BOARD = Alveo(
    name="u280", title="AMD Alveo U280", arch=U280, part=PARTS["u280"],
    device="xcu280-fsvh2892-2L-e", platform="xilinx_u280_gen3x16_xdma_1_202211_1",
    channels=32, slrs=3, control="DDR[0]",
    tool=Tool(name="Vitis", commands=("vivado", "v++"), first="2022.1", last="2025.1"),
    runtime="XRT",
    limits=(
        "newer tools than these do not know the card",
    ),
)
