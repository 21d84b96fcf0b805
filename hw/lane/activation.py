"""A lane's copy of the quantized activations."""

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from alula.hw.isa import BLOCK
from alula.hw.ram import Ram

READ_LATENCY = 2
BLOCK_BITS = 16  # block numbers
ROW_BITS = 6

CODES = data.StructLayout({"valid": 1, "row": ROW_BITS, "block": BLOCK_BITS, "codes": 8 * BLOCK})
SCALES = data.StructLayout({"valid": 1, "row": ROW_BITS, "block": BLOCK_BITS, "scale": 32})


class ActivationBuffer(wiring.Component):
    """Hold int8 codes of each row, and an fp32 scale for each block.

    Members
    -------
    write_codes : ``In(CODES)``, write_scales : ``In(SCALES)``
        What ``valid`` marks is written, and read from the third clock on. A group's scale is
        written, and read, at the group's first block.
    row : ``In``
    word : ``In``
        Which ``beat_bytes`` codes of it.
    block : ``In``
        Which block's scale.
    codes : ``Out(8 * beat_bytes)``, scale : ``Out(32)``
        ``READ_LATENCY`` clocks later.
    """

    def __init__(self, arch):
        self.arch = arch
        super().__init__({
            "write_codes": In(CODES), "write_scales": In(SCALES),
            "row": In(range(arch.rows)), "word": In(range(arch.activation_elements
                                                           // arch.beat_bytes)),
            "block": In(range(arch.activation_elements // BLOCK)),
            "codes": Out(8 * arch.beat_bytes), "scale": Out(32)})

    def elaborate(self, platform):
        m = Module()
        codes, scales = Signal(CODES, reset_less=True), Signal(SCALES, reset_less=True)
        writes = Signal(2)
        m.d.sync += [codes.eq(self.write_codes), scales.eq(self.write_scales),
                     writes.eq(Cat(self.write_codes.valid, self.write_scales.valid))]
        word = self._store(m, "codes", 8 * BLOCK, codes, codes.codes, writes[0],
                           Cat(self.row, self.word))
        scale = self._store(m, "scales", 32, scales, scales.scale, writes[1],
                            Cat(self.row, self.block >> self._blocks_log2()))
        inside = Signal(range(self.arch.beat_bytes // BLOCK))
        m.d.sync += [inside.eq(self.block), self.codes.eq(word),
                     self.scale.eq(scale.word_select(inside, 32))]
        return m

    def _blocks_log2(self):
        return ceil_log2(self.arch.beat_bytes // BLOCK)

    def _store(self, m, name, bits, put, content, enable, address):
        """Hold ``bits`` of each block, a word's together; return what an address has."""
        blocks, log2 = self.arch.beat_bytes // BLOCK, self._blocks_log2()
        words = self.arch.activation_elements // self.arch.beat_bytes
        row_bits = ceil_log2(self.arch.rows)
        m.submodules[name] = held = Ram(shape=bits * blocks, depth=words << row_bits,
                                             passive=True)
        write, read = held.write_port(granularity=bits), held.read_port()
        m.d.comb += [
            write.addr.eq(Cat(put.row[:row_bits], put.block >> log2)),
            write.data.eq(content.replicate(blocks)),
            write.en.eq(enable << put.block[:log2] if log2 else enable),
            read.addr.eq(address)]
        return read.data
