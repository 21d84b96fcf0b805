"""TUL PYNQ-Z2 with PYNQ up to 3.1: Zynq-7000, 512 MiB of DDR3. Ref: its manual; AMD DS190.

The part has 4 % of the LUTs of a U55C's, so its build has the fewest DSP slices that the rules of
:class:`alula.hw.arch.ArchConfig` give a lane of 16-byte beats, and room for small models only.
"""

from alula.boards.area import Part
from alula.boards.board import SERIES_7, Tool, Zynq
from alula.hw.arch import MIB, ArchConfig

# DDR3-1050 x 16 bits.
PYNQ_Z2 = ArchConfig(
    name="pynq-z2", lanes=1, beat_bytes=16, rows=1, lane_dsps=32, vector_width=4,
    vector_elements=8192, activation_elements=4096, param_elements=4096,
    attention_elements=2048, attention_queries=32, merge_elements=2048, prefetch_beats=512,
    page_entries=512, program_instructions=1024, queue_depth=16, clock_hz=100_000_000,
    channel_bytes=256 * MIB, control_bytes=64 * MIB, channel_bytes_per_s=2_100_000_000,
    lane_ports=2, one_memory=True,
)

BOARD = Zynq(
    name="pynq-z2", title="TUL PYNQ-Z2", arch=PYNQ_Z2,
    part=Part(name="XC7Z020", lut=53_200, ff=106_400, bram=140, uram=0, dsp=220),
    device="xc7z020clg400-1", board_part="*:pynq-z2:*", processor=SERIES_7, primitive=False,
    tool=Tool(name="Vivado", commands=("vivado",), first="2022.1", last="2024.1"),
    runtime="PYNQ up to 3.1",
    limits=(
        "whether the build fits the part is not known: it was never mapped to Zynq-7000",
        "products are left to the tool: its DSP slices are not those the lanes are made for",
        "memories that ask for UltraRAM take block RAM, of which there is little",
        "the lane's two 64-bit ports carry 1.6 of the memory's 2.1 GB/s at 100 MHz",
        "the vendor's tool needs TUL's board files",
        "no release of PYNQ after 3.1 has it",
    ),
)
