"""The activations of the tile that is multiplied and of the next one, as the chain wants them."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from alula.hw.choice import choose
from alula.hw.isa import BLOCK
from alula.hw.lane.activation import BLOCK_BITS, READ_LATENCY, ROW_BITS
from alula.hw.lane.delay import delayed, delayed_flag
from alula.hw.lane.shape import CHUNK_BITS, GROUPS_BITS, STRIPS_BITS, LaneShape
from alula.hw.ram import Ram

BUFFERS = 2  # tiles
PIECES_BITS = 5  # of the number of a query's piece


def query_port(arch):
    """What attention has kept here while it is ``busy``: a query's pieces, as even inputs.

    What comes from the activation buffer is kept as number ``part`` when ``keep``: the piece of
    ``2**piece`` codes at block ``offset``, over and over. ``wanted`` is read unless ``nothing``,
    which gives zeros, as odd inputs are.
    """
    return wiring.Signature({
        "busy": Out(1), "keep": Out(1), "part": Out(PIECES_BITS), "piece": Out(4),
        "offset": Out(ceil_log2(arch.beat_bytes // BLOCK)),
        "wanted": Out(PIECES_BITS), "nothing": Out(1)})


class Operands(wiring.Component):
    """Read activations ahead, a word a clock, in the order of the tiles of a matrix.

    The activation buffer is as narrow as a beat; a bundle takes ``slots`` inputs of two tokens. A
    tile's inputs are used by up to sixteen rows, so there is time to gather them.

    Members
    -------
    begin : ``In(1)``
        A matrix begins: ``source`` is its first block of inputs.
    source, groups, group_log2, strips, tokens : ``In``
        Steady until the last strip's operands have been read.
    reads : ``Out(1)``, row, word, block : ``Out``; codes, scale : ``In``
        The activation buffer's; what is asked for comes.
    ready : ``Out(1)``
        The tile's inputs are there.
    done : ``In(1)``
        The tile is through; only when ``ready``.
    chunk, pair : ``In``
        Which ``slots`` inputs of which two tokens.
    query : ``In(query_port)``
    even, odd : ``Out(8 * slots)``; even_scale, odd_scale : ``Out(32)``
        A clock later. A group that is shorter is repeated.
    """

    def __init__(self, arch):
        self.arch, self.shape = arch, LaneShape(arch)
        slots = self.shape.slots
        super().__init__({
            "begin": In(1), "source": In(BLOCK_BITS), "groups": In(GROUPS_BITS),
            "group_log2": In(4), "strips": In(STRIPS_BITS), "tokens": In(7),
            "reads": Out(1), "row": Out(ROW_BITS), "word": Out(BLOCK_BITS),
            "block": Out(BLOCK_BITS), "codes": In(8 * arch.beat_bytes), "scale": In(32),
            "ready": Out(1), "done": In(1), "chunk": In(CHUNK_BITS),
            "pair": In(range(max(2, self.shape.pairs))), "query": In(query_port(arch)),
            "even": Out(8 * slots), "odd": Out(8 * slots), "even_scale": Out(32),
            "odd_scale": Out(32)})

    def elaborate(self, platform):
        self.m = Module()
        self._fill()
        self._hold()
        return self.m

    def _fill(self):
        """Ask for the words of one tile after the other, as buffers come free."""
        m, beat = self.m, self.arch.beat_bytes
        word_log2 = ceil_log2(beat // BLOCK)
        strips, tile = Signal(STRIPS_BITS), Signal(GROUPS_BITS)
        token, word = Signal(ROW_BITS), Signal(range(256 // beat))
        first, final = Signal(), Signal()  # word and token of a tile
        self.claimed, self.buffer = Signal(range(BUFFERS + 1)), Signal()
        last_word, last = Signal(), Signal()
        m.d.comb += [
            first.eq((word == 0) & (token == 0)),
            last_word.eq(((word + 1) << ceil_log2(beat)) >> self.group_log2 != 0),
            final.eq(last_word & (token + 1 == self.tokens)),
            self.reads.eq((strips != 0) & (~first | (self.claimed != BUFFERS))),
            last.eq(self.reads & final),
            self.row.eq(token), self.word.eq((self.block >> word_log2) + word),
        ]
        m.d.sync += self.claimed.eq(self.claimed + (self.reads & first) - self.done)
        with m.If(self.reads):
            m.d.sync += word.eq(word + 1)
            with m.If(last_word):
                m.d.sync += [word.eq(0), token.eq(token + 1)]
            with m.If(final):
                m.d.sync += [token.eq(0), tile.eq(tile + 1), self.buffer.eq(self.buffer + 1),
                             self.block.eq(self.block
                                           + (1 << (self.group_log2 - ceil_log2(BLOCK))[:3]))]
                with m.If(tile + 1 == self.groups):
                    m.d.sync += [tile.eq(0), strips.eq(strips - 1), self.block.eq(self.source)]
        with m.If(self.begin):
            m.d.sync += [strips.eq(self.strips), tile.eq(0), self.block.eq(self.source)]
        self._arrive(Cat(self.buffer, token, word, self.block[:word_log2]), last)

    def _arrive(self, tag, last):
        """What was asked for comes."""
        m = self.m
        tag = delayed(m, tag, READ_LATENCY)
        self.buffer_in, tag = tag[0], tag[1:]
        self.token_in, tag = tag[:ROW_BITS], tag[ROW_BITS:]
        word_bits = ceil_log2(256 // self.arch.beat_bytes)
        self.word_in, self.offset_in = tag[:word_bits], tag[word_bits:]
        self.there = delayed_flag(m, self.reads, READ_LATENCY)
        there = Signal(range(BUFFERS + 1))  # tiles
        m.d.comb += self.ready.eq(there != 0)
        m.d.sync += there.eq(there + delayed_flag(m, last, READ_LATENCY) - self.done)

    def _hold(self):
        """Keep the inputs of each section of the slots, of even and of odd tokens apart."""
        m, shape, beat = self.m, self.shape, self.arch.beat_bytes
        out = Signal()  # buffer that is read
        with m.If(self.done):
            m.d.sync += out.eq(out + 1)
        codes, parts_log2 = self._repeated(), ceil_log2(shape.parts)
        chunk_bits = ceil_log2(shape.chunks)
        pair_bits = ceil_log2(shape.pairs)
        query = self.query
        own_write = Cat(self.token_in[1:1 + pair_bits],
                        (self.word_in >> parts_log2)[:chunk_bits], self.buffer_in)
        read_at = Cat(self.pair[:pair_bits], self.chunk[:chunk_bits], out)
        depth = max(1 << len(own_write), 1 << PIECES_BITS)
        write_at = Mux(query.busy, query.part, own_write)
        read_at = Mux(query.busy, query.wanted, read_at)
        words = (1 << self.group_log2 >> ceil_log2(beat))[:5]  # of a tile
        mask = Mux(words > shape.parts, shape.parts - 1, Mux(words == 0, 0, words - 1))
        clear = Signal()  # one signal, so that it is the registers' reset
        m.d.comb += clear.eq(query.busy & query.nothing)
        # Where nothing is written there are zeros, which are the odd inputs of a query.
        odd_read = Cat(Cat(self.pair[:pair_bits], self.chunk[:chunk_bits], out), query.busy)
        kept = [(self.even, self.even_scale), (self.odd, self.odd_scale)]
        for odd, (vector, scale) in enumerate(kept[:1 + shape.pair]):
            mine = self.there & (self.token_in[0] == odd)
            parts = []
            for part in range(shape.parts):
                here = mine & (((self.word_in ^ part) & mask)[:parts_log2] == 0)
                name = f"codes_{odd}_{part}"
                if odd:
                    parts.append(self._ram(name, 2 << len(own_write), here, own_write, codes,
                                           odd_read))
                else:
                    parts.append(self._ram(name, depth, here | query.keep, write_at, codes,
                                           read_at, clear))
            m.d.comb += [vector.eq(Cat(parts)), scale.eq(self._ram(
                f"scale_{odd}", BUFFERS << pair_bits, mine & (self.word_in == 0),
                Cat(self.token_in[1:1 + pair_bits], self.buffer_in), self.scale,
                Cat(self.pair[:pair_bits], out)))]

    def _ram(self, name, depth, enable, address, content, read_address, clear=0):
        """Keep words in LUT memory; return a word, or zeros, a clock after its address."""
        m = self.m
        m.submodules[name] = held = Ram(shape=len(content), depth=depth, passive=True)
        write, read = held.write_port(), held.read_port(domain="comb")
        m.d.comb += [write.en.eq(enable), write.addr.eq(address), write.data.eq(content),
                     read.addr.eq(read_address)]
        later = Signal(len(content), name=f"{name}_read", reset_less=True)
        m.d.sync += later.eq(read.data)
        with m.If(clear):
            m.d.sync += later.eq(0)
        return later

    def _repeated(self):
        """Return the word that comes, a group shorter than it repeated."""
        blocks, query = self.arch.beat_bytes // BLOCK, self.query
        if blocks == 1:
            return self.codes
        parts = [self.codes.word_select(at, 8 * BLOCK) for at in range(blocks)]
        offset = Mux(query.busy, query.offset, self.offset_in)
        group_log2 = Mux(query.busy, query.piece, self.group_log2)
        repeated = []
        for at in range(blocks):
            # Bits of a block's number inside its group are its own, the others the group's.
            select = Signal(ceil_log2(blocks), name=f"from_block_{at}")
            self.m.d.comb += [select[bit].eq(Mux(group_log2 > ceil_log2(BLOCK) + bit,
                                                 at >> bit & 1, offset[bit]))
                              for bit in range(len(select))]
            repeated.append(choose(select, parts))
        return Cat(repeated)
