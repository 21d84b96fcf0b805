"""A lane's copy of the quantized activations."""

from amaranth.hdl import Cat, Const, Module, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from alula.hw.isa import BLOCK
from alula.hw.lane.shape import LaneShape
from alula.hw.ram import Ram

READ_LATENCY = 2
BLOCK_BITS = 16  # block numbers
ROW_BITS = 6

CODES = data.StructLayout({"valid": 1, "row": ROW_BITS, "block": BLOCK_BITS, "codes": 8 * BLOCK})
SCALES = data.StructLayout({"valid": 1, "row": ROW_BITS, "block": BLOCK_BITS, "scale": 32})


class ActivationBuffer(wiring.Component):
    """Hold int8 codes of each row, and an fp32 scale for each block; even and odd rows apart.

    Members
    -------
    codes : ``In(CODES)``, scales : ``In(SCALES)``
        What ``valid`` marks is written, and read from the third clock on. A group's scale is
        written, and read, at the group's first block.
    pair : ``In``
        Rows ``2 * pair`` and ``2 * pair + 1``.
    word : ``In``
        Which ``slots`` codes of them.
    block : ``In``
        Which block's scale.
    even, odd : ``Out(8 * slots)``; even_scale, odd_scale : ``Out(32)``
        ``READ_LATENCY`` clocks later.
    """

    def __init__(self, arch):
        self.arch, self.shape = arch, LaneShape(arch)
        self.words = arch.activation_elements // self.shape.slots
        self.blocks = arch.activation_elements // BLOCK
        super().__init__({
            "codes": In(CODES), "scales": In(SCALES),
            "pair": In(range(max(2, self.shape.pairs))), "word": In(range(self.words)),
            "block": In(range(self.blocks)),
            "even": Out(8 * self.shape.slots), "odd": Out(8 * self.shape.slots),
            "even_scale": Out(32), "odd_scale": Out(32)})

    def elaborate(self, platform):
        m = Module()
        word_blocks = self.shape.slots // BLOCK
        codes, scales = Signal(CODES, reset_less=True), Signal(SCALES, reset_less=True)
        writes = Signal(2)
        m.d.sync += [codes.eq(self.codes), scales.eq(self.scales),
                     writes.eq(Cat(self.codes.valid, self.scales.valid))]
        log2 = word_blocks.bit_length() - 1
        for odd, (out, out_scale) in enumerate(((self.even, self.even_scale),
                                                (self.odd, self.odd_scale))):
            held = Ram(shape=8 * self.shape.slots,
                                 depth=self.words * self.shape.pairs)
            m.submodules[f"codes_{odd}"] = held
            write, read = held.write_port(granularity=8 * BLOCK), held.read_port()
            enable = (writes[0] & (codes.row[0] == odd)) << (codes.block[:log2] if log2
                                                             else Const(0, 1))
            m.d.comb += [
                write.addr.eq((codes.row >> 1) * self.words + (codes.block >> log2)),
                write.data.eq(codes.codes.replicate(word_blocks)), write.en.eq(enable),
                read.addr.eq(self.pair * self.words + self.word)]
            held = Ram(shape=32, depth=self.blocks * self.shape.pairs)
            m.submodules[f"scales_{odd}"] = held
            write, scale = held.write_port(), held.read_port()
            m.d.comb += [
                write.addr.eq((scales.row >> 1) * self.blocks + scales.block),
                write.data.eq(scales.scale), write.en.eq(writes[1] & (scales.row[0] == odd)),
                scale.addr.eq(self.pair * self.blocks + self.block)]
            m.d.sync += [out.eq(read.data), out_scale.eq(scale.data)]
        return m
