"""Attention in a lane: keys against queries, softmax, weights against values, page by page."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, fifo, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from alula.hw import fp, isa, rows as rows_of
from alula.hw.attention.fetch import LAG, SCALE_BYTES, key_beats, value_beats
from alula.hw.attention.merge import SUM_BITS, LaneMerge, packet_layout
from alula.hw.attention.softmax import DOT_BITS, PLACES, Softmax, count_bits
from alula.hw.attention.walk import PageWalk, item_layout, tokens_before
from alula.hw.choice import choose
from alula.hw.formats import COMMAND_BITS, instruction_layout
from alula.hw.isa import BLOCK
from alula.hw.lane.activation import READ_LATENCY
from alula.hw.lane.chain import CASCADE
from alula.hw.lane.operands import query_port
from alula.hw.numerics import PAGE_TOKENS
from alula.hw.pipe import Pipe
from alula.hw.ram import Ram
from alula.hw.step import POSITION_BITS, row_bits, row_layout

RING_LATENCY = 2
# Clocks from a turn to its codes: a register, then the slower of the two that it may read.
LATENCY = 1 + max(READ_LATENCY, RING_LATENCY)
_TOKENS = ceil_log2(PAGE_TOKENS)


def chain_port(arch):
    """What drives the DSP chain in attention: a piece of a key or a value on its weights.

    ``codes`` come a clock before the rest, and what is ``wanted`` of the query two.
    ``sum`` (reduce) answers ``sum_latency`` clocks later; ``own`` (accumulate) of byte ``b``
    ``own_latency + b % CASCADE`` clocks later.
    """
    return wiring.Signature({
        "query": Out(query_port(arch)),
        "valid": Out(1),
        "accumulate": Out(1),
        "first": Out(1),  # of an accumulation
        "codes": Out(8 * arch.beat_bytes),
        "blocks": Out(arch.beat_bytes // BLOCK),  # of codes: those that are of the piece
        "weight": Out(8),  # instead of the query, if ``accumulate``
        "sum": In(signed(DOT_BITS)),
        "own": In(signed(SUM_BITS)).array(arch.beat_bytes),
    })


class AttendUnit(wiring.Component):
    """Run ``Attend`` in a lane.

    A key or value is taken in pieces: the largest power of two of codes, at most a beat, that
    divides it; one piece a clock.

    Members
    -------
    commands : ``In(stream of COMMAND_BITS)``, done : ``Out(1)``
    lane, table : steady
    ring_pointer, ring_data, ring_available, ring_release
        The prefetch ring: data ``RING_LATENCY`` clocks after its pointer; beats below
        ``ring_available`` are there; those below ``ring_release`` are given back. Pages begin at
        ``ring_begin``.
    reads, row, word, block
        A read of the activation buffer: a word of a row, of a beat's codes, and the scale at a
        block; ``codes`` and ``scale`` come ``READ_LATENCY`` clocks later.
    chain : to the DSP chain
    packets : ``Out(stream of packet_layout)``
    """

    def __init__(self, arch, sum_latency, own_latency):
        self.arch, self.sum_latency, self.own_latency = arch, sum_latency, own_latency
        pointer = range(2 * arch.prefetch_beats)
        self.words = arch.activation_elements // arch.beat_bytes
        super().__init__({
            "commands": In(stream.Signature(COMMAND_BITS)),
            "done": Out(1),
            "busy": Out(1),
            "lane": In(range(arch.lanes)),
            "table": In(row_layout(arch)).array(arch.rows),
            "ring_begin": In(pointer),
            "ring_pointer": Out(pointer),
            "ring_data": In(8 * arch.beat_bytes),
            "ring_available": In(pointer),
            "ring_release": Out(pointer),
            "reads": Out(1),
            "row": Out(row_bits(arch)),
            "word": Out(range(self.words)),
            "block": Out(range(arch.activation_elements // BLOCK)),
            "codes": In(8 * arch.beat_bytes),
            "scale": In(32),
            "chain": Out(chain_port(arch)),
            "packets": Out(stream.Signature(packet_layout(arch))),
        })

    def elaborate(self, platform):
        m = Module()
        arch = self.arch
        m.submodules.walk = walk = PageWalk(arch)
        m.submodules.softmax = softmax = Softmax(arch)
        m.submodules.merge = merge = LaneMerge(arch)
        page = data.StructLayout({"item": item_layout(arch), "place": range(PLACES),
                                  "number": count_bits(arch)})
        m.submodules.pages = pages = fifo.SyncFIFOBuffered(width=page.size, depth=LAG + 1)
        entering, leaving = data.View(page, pages.w_data), data.View(page, pages.r_data)
        word = Signal(COMMAND_BITS)
        insn = instruction_layout(isa.Attend)(word)
        rows, first_row, end_row = (Signal(range(arch.rows + 1), name=name)
                                    for name in ("rows", "first_row", "end_row"))
        m.d.comb += rows.eq(rows_of.told(arch, word))
        m.d.sync += [first_row.eq(rows_of.first_row(arch, word)),
                     end_row.eq(rows_of.end_row(arch, word, rows))]
        piece = Signal(3)  # log2 of its codes
        ratio, left = Signal(range(arch.attention_queries + 1)), Signal(8)
        item = Signal(item_layout(arch))
        in_values = Signal()  # the item is the values of a page, not the keys
        place, key_place = Signal(range(PLACES)), Signal(range(PLACES))
        pointer, begin, beats = (Signal.like(self.ring_pointer, name=name)
                                 for name in ("pointer", "begin", "beats"))
        row, query = Signal(range(arch.rows + 1)), Signal(range(arch.attention_queries + 1))
        position = Signal(POSITION_BITS)
        root = Signal(row_layout(arch))
        member = Signal()
        # Tokens of the page that the row sees: low to high - 1; those below `own` are in the cache.
        count, low, own = (Signal(range(PAGE_TOKENS + 1), name=name)
                           for name in ("count", "low", "own"))
        number, next_number = (Signal(count_bits(arch), name=name)  # of queries, modulo
                               for name in ("number", "next_number"))
        begun, ahead = (Signal(signed(count_bits(arch)), name=name)  # of queries, before this one
                        for name in ("begun", "ahead"))
        known = Signal()  # the query's statistics can be read
        ending = Signal()
        size = Signal(16)  # bytes of the item's keys
        m.d.comb += size.eq(item.tokens * insn.head_dim)
        table = [entry.as_value() for entry in self.table]
        here = data.View(row_layout(arch), choose(row, table))
        m.d.comb += [
            walk.kv_heads.eq(insn.kv_heads), walk.lane.eq(self.lane),
            walk.rows.eq(rows), walk.part.eq(insn.rows),
            merge.first_row.eq(first_row), merge.end_row.eq(end_row), merge.ratio.eq(ratio),
            merge.head_dim.eq(insn.head_dim), merge.piece.eq(piece),
            position.eq(here.position),
            member.eq(here.root == item.root),
            beats.eq(Mux(in_values, value_beats(size, arch.beat_bytes),
                         key_beats(size, arch.beat_bytes))),
            entering.item.eq(item), entering.place.eq(key_place), entering.number.eq(number),
            own.eq(item.tokens), ahead.eq(softmax.finished - number),
            begun.eq(softmax.begun - number),
        ]
        m.d.comb += [mine.eq(theirs) for mine, theirs in zip(walk.table, self.table, strict=True)]
        m.d.comb += merge.top.eq(walk.top)
        m.d.sync += root.eq(choose(item.root, table))  # two clocks after "item"
        after, edge = Signal(POSITION_BITS + 1), Signal(signed(POSITION_BITS + 2))
        m.d.comb += [after.eq(position + 1), edge.eq(after - insn.window)]
        m.d.sync += [  # a clock after "row"
            count.eq(tokens_before(after, item.page)),
            low.eq(Mux((insn.window == 0) | (edge < 0), 0,
                       tokens_before(edge.as_unsigned(), item.page))),
        ]
        scan = _Scan(self, m, insn, item, in_values, piece, begin, count, own, position, row,
                     query, ratio, root, place, softmax, merge, first_row, end_row)
        last_query = query + 1 == ratio
        scan.known = known
        m.d.sync += scan.over.eq(last_query & (row + 1 == end_row))
        m.d.sync += known.eq(ahead >= 0)  # `number` counts this query already
        with m.FSM():
            with m.State("idle"):
                m.d.comb += self.commands.ready.eq(1)
                m.d.sync += [word.eq(self.commands.payload), ratio.eq(0), key_place.eq(0),
                             ending.eq(0), pointer.eq(self.ring_begin),
                             self.ring_release.eq(self.ring_begin)]
                fresh = instruction_layout(isa.Attend)(self.commands.payload)
                m.d.sync += [left.eq(fresh.heads), scan.loaded.eq(0)]
                with m.If(self.commands.valid):
                    m.next = "divide"
            with m.State("divide"):
                m.d.sync += piece.eq(largest_piece(insn.head_dim, arch.beat_bytes))
                m.d.sync += [ratio.eq(ratio + 1), left.eq(left - insn.kv_heads)]
                with m.If(left == insn.kv_heads):
                    m.d.comb += walk.start.eq(1)
                    m.d.sync += self.busy.eq(1)
                    m.next = "item"
            with m.State("item"):
                m.d.comb += walk.items.ready.eq(pages.level <= LAG)
                m.d.sync += [row.eq(first_row), query.eq(0), scan.own_base.eq(0), in_values.eq(0),
                             self.ring_release.eq(pointer),
                             place.eq(key_place), number.eq(next_number)]
                with m.If((pages.level > LAG) | (ending & pages.r_rdy)):
                    m.d.sync += [item.eq(leaving.item), place.eq(leaving.place),
                                 number.eq(leaving.number), in_values.eq(1)]
                    m.d.comb += pages.r_en.eq(1)
                    m.next = "begin"
                with m.Elif(ending):
                    m.next = "finish"
                with m.Elif(walk.items.valid):
                    m.d.sync += item.eq(walk.items.payload)
                    with m.If(walk.items.payload.end):
                        m.d.sync += ending.eq(1)
                    with m.Else():
                        m.next = "begin"
            with m.State("begin"):
                m.d.sync += [begin.eq(pointer), pointer.eq(pointer + beats), scan.offset.eq(0),
                             scan.limit.eq(self.ring_available - pointer)]
                m.d.comb += pages.w_en.eq(~in_values)
                m.next = "row"
                with m.If(~in_values):
                    m.next = "settle"
                    m.d.sync += key_place.eq(Mux(key_place == PLACES - 1, 0, key_place + 1))
                    with m.If(item.tokens != 0):
                        m.next = "scales"
            scan.scales("scales", "row")
            with m.State("settle"):  # addresses of the item
                m.next = "row"
            with m.State("row"):
                m.d.sync += [scan.token.eq(0), scan.part.eq(0),
                             scan.offset.eq(Mux(in_values, 0, SCALE_BYTES))]
                with m.If(row == end_row):
                    m.next = "item"
                with m.Elif(~member):
                    m.d.sync += row.eq(row + 1)
                with m.Elif(in_values):
                    m.next = "values"
                with m.Elif(scan.has_query):
                    m.next = "announce"
                with m.Else():
                    m.next = "query"
            scan.load_query("query", "announce")
            with m.State("announce"):
                m.d.comb += [
                    softmax.queries.valid.eq(1),
                    softmax.queries.payload.place.eq(place),
                    softmax.queries.payload.query.eq(scan.query_now),
                    softmax.queries.payload.scale.eq(scan.query_scale),
                    softmax.queries.payload.count.eq(count),
                    softmax.queries.payload.low.eq(low),
                    softmax.queries.payload.high.eq(count),
                ]
                with m.If(softmax.queries.ready):
                    m.d.sync += next_number.eq(next_number + 1)
                    m.next = "keys"
                    with m.If(count == 0):
                        m.next = "next"
            scan.tokens("keys", "next")
            with m.State("values"):  # until the query's weights are there
                m.d.sync += known.eq(ahead > 0)
                with m.If(begun > 0):
                    m.d.sync += number.eq(number + 1)
                    m.next = "weigh"
            scan.chunks("weigh", "next")
            with m.State("next"):
                m.d.sync += [query.eq(query + 1), scan.own_base.eq(scan.own_base + insn.head_dim)]
                m.next = "row"
                with m.If(last_query):
                    m.d.sync += [query.eq(0), scan.own_base.eq(0), row.eq(row + 1)]
            with m.State("finish"):
                with m.If(merge.idle & ~scan.captured & ~scan.pending):
                    m.d.comb += self.done.eq(1)
                    m.d.sync += self.busy.eq(0)
                    m.next = "idle"
        wiring.connect(m, merge.packets, wiring.flipped(self.packets))
        return m


def largest_piece(head_dim, beat_bytes):
    """Return log2 of the largest power of two, at most a beat, that divides ``head_dim``."""
    result = ceil_log2(beat_bytes)
    for bit in reversed(range(ceil_log2(BLOCK), ceil_log2(beat_bytes))):
        result = Mux(head_dim[bit], bit, result)
    return result


def first_blocks(m, word, at):
    """Return a word with the piece that begins at block ``at``, at a multiple of its size, first.

    Blocks behind the piece are any.
    """
    blocks = [word[8 * BLOCK * b:8 * BLOCK * (b + 1)] for b in range(len(word) // (8 * BLOCK))]
    found = []
    for b in range(len(blocks)):
        size = 1 << b.bit_length()  # the least of a piece that has this block
        found.append(choose(at[b.bit_length():], blocks[b::size]))
    return Cat(found)


class _Scan:
    """The states of :class:`AttendUnit` that read, and the pipeline behind them.

    A read issued in a clock has its codes ``LATENCY`` clocks later, and at the chain in the next.
    """

    def __init__(self, unit, m, insn, item, in_values, piece, begin, count, own, position, row,
                 query, ratio, root, place, softmax, merge, first_row, end_row):
        self.end_row = end_row
        self.unit, self.m, self.insn, self.item = unit, m, insn, item
        self.in_values, self.piece, self.count, self.own = in_values, piece, count, own
        self.row, self.query, self.ratio, self.softmax = row, query, ratio, softmax
        arch = unit.arch
        self.beat = ceil_log2(arch.beat_bytes)
        self.captured, self.pending = Signal(), Signal()
        self.over = Signal()  # the query is the item's last
        self.query_scale = Signal(32)
        # Bases of this query's and this head's codes, in the activation buffer's codes.
        codes = ceil_log2(arch.activation_elements)
        self.bases = query_base, key_base, value_base = [
            Signal(codes, name=name) for name in ("query_base", "key_base", "value_base")]
        head_base, group_base, self.own_base = (Signal(codes, name=name) for name in (
            "head_base", "group_base", "own_base"))
        self.query_now = Signal(range(arch.attention_queries))
        block = ceil_log2(BLOCK)
        m.d.sync += [
            head_base.eq(item.head * insn.head_dim), group_base.eq(head_base * ratio),
            query_base.eq(group_base + self.own_base + (insn.query << block)),
            key_base.eq(head_base + (insn.key << block)),
            value_base.eq(head_base + (insn.value << block)),
            self.query_now.eq((row - first_row) * ratio + query),
        ]
        # Whose codes are kept; a query alone stays there from page to page.
        self.loaded = Signal()
        now, self.held_query = Cat(item.head, row, query), Signal(
            len(item.head) + len(row) + len(query))
        self.has_query = self.loaded & (self.held_query == now)
        self.now_query = now
        self.token, self.part = Signal(_TOKENS + 1), Signal(6)
        self.offset = Signal(20)  # in the page, of a piece in the ring
        self.begin = begin
        self.last_part = Signal()
        final_part = Signal.like(self.part)
        m.d.sync += final_part.eq((insn.head_dim >> piece) - 1)
        m.d.comb += self.last_part.eq(self.part == final_part)
        self.is_own, self.ring_has, self.there = Signal(), Signal(), Signal()
        self.scaled = Signal()  # the scale of an own token's value has been read
        self.limit = limit = Signal.like(begin)  # beats from the item's begin on that are there
        m.d.sync += limit.eq(unit.ring_available - begin)
        m.d.comb += [
            self.is_own.eq(self.token >= own),
            self.ring_has.eq(self.offset >> self.beat < limit),
            self.there.eq(self.is_own | self.ring_has),
        ]
        # The ancestor whose key and value a token is that is not in the cache.
        bits = row_bits(arch)
        chain = choose(row, [entry.chain for entry in unit.table])
        depth = Signal(range(arch.rows))
        self.ancestor = Signal(bits)
        m.d.comb += [
            depth.eq((item.page << _TOKENS) + self.token - root.base),
            self.ancestor.eq(chain.word_select(depth, bits)),
        ]
        # What a turn issues.
        self.issue, self.scale_turn = Signal(), Signal()
        self.query_turn, self.ring_scale_turn = Signal(), Signal()
        self.turn_last, self.turn_zero = Signal(), Signal()
        self.turn_first = Signal()
        self._pipeline(softmax, merge, place)

    def _pipeline(self, softmax, merge, place):
        m, unit = self.m, self.unit
        arch = unit.arch
        p = Pipe(m)
        block = ceil_log2(BLOCK)
        codes = Signal(ceil_log2(arch.activation_elements))  # first code of a read
        query_base, key_base, value_base = self.bases
        source = Mux(self.query_turn, query_base,
                     Mux(self.in_values | self.scale_turn, value_base, key_base))
        ring_beat = Signal.like(unit.ring_pointer)
        from_buffer = Signal()
        m.d.comb += [
            codes.eq(source + (self.part << self.piece)),
            ring_beat.eq(self.begin + (self.offset >> self.beat)),
            from_buffer.eq(self.query_turn | self.is_own),
        ]

        def late(signal, clocks=LATENCY, reset=False):
            return p.at(p.input(signal, reset=reset), clocks)

        asked = LATENCY - READ_LATENCY
        m.d.comb += [
            unit.row.eq(late(Mux(self.query_turn, self.row, self.ancestor), asked)),
            unit.word.eq(late(codes[self.beat:], asked)),
            unit.block.eq(late(source[block:], asked)),
            unit.reads.eq(late(self.query_turn | ((self.issue | self.scale_turn) & self.is_own),
                               asked, True)),
            unit.ring_pointer.eq(late(ring_beat, LATENCY - RING_LATENCY)),
        ]

        # The beat or the word is there; its piece comes first.
        at = Mux(from_buffer, codes[block:self.beat], self.offset[block:self.beat])
        word = Signal(8 * arch.beat_bytes)
        m.d.comb += word.eq(Mux(late(from_buffer), unit.codes, unit.ring_data))
        port = unit.chain
        m.d.comb += [
            port.codes.eq(first_blocks(m, word, late(at) if len(at) else at)),
            port.blocks.eq(Cat(self.piece >= block + b.bit_length()
                               for b in range(arch.beat_bytes // BLOCK))),
            port.query.busy.eq(unit.busy), port.query.keep.eq(late(self.query_turn, reset=True)),
            port.query.part.eq(late(self.part)), port.query.piece.eq(self.piece),
            port.query.offset.eq(late(codes[block:self.beat]) if len(at) else 0),
            port.query.wanted.eq(late(self.part, LATENCY - 1)),
            port.query.nothing.eq(late(self.in_values, LATENCY - 1)),
        ]
        with m.If(late(self.query_turn & (self.part == 0), reset=True)):
            m.d.sync += self.query_scale.eq(unit.scale)
        key_scale, value_scale = self._scales(late)
        own_value_scale = Signal(32)
        with m.If(late(self.scale_turn, reset=True)):
            m.d.sync += own_value_scale.eq(unit.scale)
        own = late(self.is_own)

        # A clock later: the chain.
        m.d.comb += [
            softmax.place.eq(place), softmax.query.eq(self.query_now),
            softmax.code_place.eq(late(place)),
            softmax.code_query.eq(late(self.query_now)), softmax.token.eq(late(self.token)),
            unit.chain.valid.eq(late(self.issue & ~self.turn_zero, LATENCY + 1, True)),
            unit.chain.first.eq(late(self.turn_first, LATENCY + 1)),
            unit.chain.accumulate.eq(late(self.in_values, LATENCY + 1)),
            unit.chain.weight.eq(softmax.code),
        ]
        self._scores(softmax, p, LATENCY + 1 + unit.sum_latency, Mux(own, unit.scale, key_scale),
                     Mux(own, own_value_scale, value_scale))
        self._capture(softmax, merge, [
            late(self.issue & self.turn_last & self.in_values,
                 LATENCY + 1 + unit.own_latency + at, True)
            for at in range(CASCADE)])

    def _scales(self, late):
        """The page's scales: return a token's for key and value ``LATENCY`` clocks after issue."""
        m, unit = self.m, self.unit
        beat = unit.arch.beat_bytes
        m.submodules.scales = store = Ram(
            shape=8 * beat, depth=SCALE_BYTES // beat, passive=True)
        write, read = store.write_port(), store.read_port(domain="comb")
        self.scale_at = Signal.like(write.addr)
        token, inside = late(self.token), ceil_log2(beat // 8)
        m.d.comb += [
            write.addr.eq(late(self.scale_at)), write.data.eq(unit.ring_data),
            write.en.eq(late(self.ring_scale_turn, reset=True)), read.addr.eq(token >> inside)]
        both = read.data.word_select(token[:inside], 64)
        return fp.flushed(both[:32]), fp.flushed(both[32:])

    def _scores(self, softmax, p, end, key_scale, value_scale):
        """Add up the pieces of a dot product, and hand it over with its scales."""
        m, unit = self.m, self.unit
        valid = p.at(p.input(self.issue & ~self.in_values, reset=True), end)
        first = p.at(p.input(self.part == 0), end)
        last = p.at(p.input(self.last_part), end)
        so_far, total = Signal(signed(DOT_BITS)), Signal(signed(DOT_BITS))
        m.d.comb += [
            total.eq(Mux(first, 0, so_far) + unit.chain.sum),
            softmax.score.valid.eq(valid & last),
            softmax.score.token.eq(p.at(p.input(self.token), end)),
            softmax.score.dot.eq(total),
            softmax.score.key_scale.eq(p.at(p.input(key_scale, stage=LATENCY), end)),
            softmax.score.value_scale.eq(p.at(p.input(value_scale, stage=LATENCY), end)),
        ]
        with m.If(valid):
            m.d.sync += so_far.eq(total)

    def _capture(self, softmax, merge, now):
        """Keep the sums of a run of values until the merging has read them."""
        m, unit, item = self.m, self.unit, self.item
        later_member = Cat((entry.root == item.root) & (at > self.row) & (at < self.end_row)
                           for at, entry in enumerate(unit.table)).any()
        job = Signal.like(merge.jobs.payload)
        with m.If(self.turn_last & self.in_values & self.issue):
            m.d.sync += [
                self.pending.eq(1),
                job.query.eq(self.query_now),
                job.chunk.eq(self.part), job.fresh.eq(item.first),
                job.final.eq(self.last_part),
                job.unit_end.eq(self.last_part & item.unit_end & ~later_member
                                & (self.query + 1 == self.ratio)),
                job.head.eq(item.head), job.leaf.eq(item.leaf),
                job.low.eq(item.low), job.high.eq(item.high),
                job.stats.eq(softmax.stats),
                job.zero.eq(self.turn_zero),
            ]
        sums = [Signal(signed(SUM_BITS), name=f"sum_{at}") for at in range(unit.arch.beat_bytes)]
        for at, (mine, theirs) in enumerate(zip(sums, unit.chain.own, strict=True)):
            with m.If(now[at % CASCADE]):
                m.d.sync += mine.eq(theirs)
        with m.If(now[-1]):
            m.d.sync += [self.pending.eq(0), self.captured.eq(1)]
        m.d.comb += [merge.jobs.valid.eq(self.captured), merge.jobs.payload.eq(job)]
        m.d.comb += [theirs.eq(mine) for mine, theirs in zip(sums, merge.sums, strict=True)]
        with m.If(self.captured & merge.jobs.ready):
            m.d.sync += self.captured.eq(0)

    def scales(self, state, then):
        m, unit = self.m, self.unit
        with m.State(state):
            m.d.comb += self.ring_scale_turn.eq(self.ring_has)
            with m.If(self.ring_scale_turn):
                m.d.sync += [self.offset.eq(self.offset + unit.arch.beat_bytes),
                             self.scale_at.eq(self.scale_at + 1)]
                with m.If(self.scale_at == SCALE_BYTES // unit.arch.beat_bytes - 1):
                    m.d.sync += self.scale_at.eq(0)
                    m.next = then

    def load_query(self, state, then):
        """Read the query's pieces and its scale."""
        m = self.m
        with m.State(state):
            m.d.comb += self.query_turn.eq(1)
            m.d.sync += self.part.eq(self.part + 1)
            with m.If(self.last_part):
                m.d.sync += self.part.eq(0)
                m.next = f"{state} arrives"
        with m.State(f"{state} arrives"):
            m.d.sync += self.token.eq(self.token + 1)
            with m.If(self.token == LATENCY):
                m.d.sync += [self.token.eq(0), self.loaded.eq(1),
                             self.held_query.eq(self.now_query)]
                m.next = then

    def tokens(self, state, then):
        """Score the page's tokens one after the other, each in pieces."""
        m = self.m
        with m.State(state):
            with m.If(self.is_own & ~self.scaled):
                m.d.comb += self.scale_turn.eq(1)
                m.d.sync += self.scaled.eq(1)
            with m.Elif(self.there):
                m.d.comb += self.issue.eq(1)
                m.d.sync += [self.part.eq(self.part + 1),
                             self.offset.eq(self.offset + (1 << self.piece))]
                with m.If(self.last_part):
                    m.d.sync += [self.part.eq(0), self.token.eq(self.token + 1), self.scaled.eq(0)]
                    with m.If(self.token + 1 == self.count):
                        self._leave(then)

    def _leave(self, then):
        self.m.next = then
        with self.m.If(self.over):
            self.m.next = "item"

    def chunks(self, state, then):
        """Sum the page's values, a piece of all tokens after the other."""
        m = self.m
        with m.State(state):
            m.d.comb += [
                self.turn_zero.eq(self.count == 0),
                self.turn_first.eq(self.token == 0),
                self.turn_last.eq((self.token + 1 == self.count) | self.turn_zero),
                # One run of sums is kept; its place must be free when the next ends.
                self.issue.eq((self.there | self.turn_zero)
                              & ~(self.turn_last & (self.pending | self.captured | ~self.known))),
            ]
            with m.If(self.issue):
                m.d.sync += [self.token.eq(self.token + 1),
                             self.offset.eq(self.offset + self.insn.head_dim)]
                with m.If(self.turn_last):
                    m.d.sync += [self.token.eq(0), self.part.eq(self.part + 1),
                                 self.offset.eq((self.part + 1) << self.piece)]
                    with m.If(self.last_part):
                        self._leave(then)
