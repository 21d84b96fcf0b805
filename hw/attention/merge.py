"""Merge a lane's pages into partial attentions, classes into their tree, and send what is done."""

from amaranth.hdl import Array, Cat, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from alula.hw import fp, layout
from alula.hw.attention.softmax import EMPTY, PEAK_BITS, STATS
from alula.hw.attention.walk import HEAD_BITS, PAGE_BITS
from alula.hw.choice import choose
from alula.hw.numerics import PAGE_CLASSES
from alula.hw.passive import passive
from alula.hw.pipe import Pipe
from alula.hw.ram import Ram
from alula.hw.step import row_bits

SUM_BITS = 23  # of eight-bit weights times codes: below 64 * 255 * 127
LEVELS = ceil_log2(PAGE_CLASSES)
AT_ONCE = 2  # values of a word: so a page is merged in less time than it takes to read
_LOG = ceil_log2(AT_ONCE)
HEAD_DIM_LIMIT = 512
REGIONS = LEVELS + 1  # partials that wait for their sibling, and the one being made
SHIFT_BITS = 10  # of a power of two by which a partial is scaled down; clipped


def packet_layout(arch):
    """What a lane sends: a head word, then the values in words of the vector unit's width.

    What is whole, with every class in it, has no head word: each word says all that it takes to
    finish it, so that words of several lanes may come in any order.
    """
    return data.StructLayout({
        "values": 32 * arch.vector_width,  # in the head word: peak, then total
        "total": 32, "index": ceil_log2(HEAD_DIM_LIMIT // arch.vector_width),
        "first": 1, "last": 1,
        "row": row_bits(arch),
        "head": HEAD_BITS,  # of the queries
        "level": range(LEVELS + 1), "node": LEVELS,  # which part of the tree of classes
    })


def job_layout(arch):
    """Sums of a page's values for one query, ``beat_bytes`` of them or fewer."""
    return data.StructLayout({
        "query": range(arch.attention_queries),  # row * ratio + query head
        "chunk": 5,  # which run of values
        "fresh": 1,  # the first page of its class
        "final": 1,  # the last chunk of a query
        "zero": 1,  # no token counts: whatever the sums are, they are 0
        "unit_end": 1,  # the last chunk of a (head, class)
        "head": HEAD_BITS,  # of the keys
        "leaf": LEVELS, "low": LEVELS, "high": LEVELS,  # as in the walk's items
        "stats": STATS,
    })


def rescale(p, x, power):
    """Return ``x * 2**power`` with every zero positive."""
    scaled = p.scale_by_power(x, power)
    return p.apply(lambda bits: Mux(fp.is_zero(bits), 0, bits), scaled, latency=0)


def shifts(m, mine, theirs):
    """Return the larger of two peaks, and how far each is below it, as signed powers of two."""
    peak = Signal(signed(PEAK_BITS))
    low = -(1 << SHIFT_BITS - 1)
    powers = []
    m.d.comb += peak.eq(Mux(mine > theirs, mine, theirs))
    for own in (mine, theirs):
        power, difference = Signal(signed(SHIFT_BITS)), Signal(signed(PEAK_BITS + 1))
        m.d.comb += [difference.eq(own - peak),
                     power.eq(Mux(difference < low, low, difference))]
        powers.append(power)
    return peak, powers


class LaneMerge(wiring.Component):
    """Keep the partial attentions of one lane.

    Jobs come in the order of the walk; those of a (head, class) are followed by merging with what
    waits in the same half, quarter or eighth of the head's tree, and by sending what no other part
    in this lane will join.

    Members
    -------
    jobs : ``In(stream of job_layout)``, sums : ``In``
        A job is taken when its sums have been read.
    first_row, end_row, ratio, head_dim, piece : steady
        ``piece`` is log2 of the values of a chunk.
    top : ``In``
        The last page of any row: it tells which classes there are.
    packets : ``Out(stream of packet_layout)``
    idle : ``Out(1)``
    """

    def __init__(self, arch):
        self.arch = arch
        super().__init__({
            "jobs": In(stream.Signature(job_layout(arch))),
            "sums": In(signed(SUM_BITS)).array(arch.beat_bytes),
            "first_row": In(range(arch.rows + 1)),
            "end_row": In(range(arch.rows + 1)),
            "ratio": In(range(arch.attention_queries + 1)),
            "head_dim": In(9),
            "piece": In(3),
            "top": In(PAGE_BITS),
            "packets": Out(stream.Signature(packet_layout(arch))),
            "idle": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        arch = self.arch
        job = self.jobs.payload
        waiting = Array(Signal(data.StructLayout({"level": 2, "node": LEVELS}), name=f"waits_{at}")
                        for at in range(REGIONS))
        depth = Signal(range(REGIONS + 1))
        level, node = Signal(range(LEVELS + 1)), Signal(LEVELS)
        query, row, head = (Signal(range(arch.attention_queries + 1)),
                            Signal(range(arch.rows + 1)), Signal(range(arch.attention_queries + 1)))
        is_node, total_turn, issue = Signal(), Signal(), Signal()
        size, at, left = Signal(8), Signal(8), Signal(8)  # words: a query's, the next, after it
        base = Signal(range(arch.attention_elements // AT_ONCE))  # of the query's words
        index = Signal(range(arch.beat_bytes // AT_ONCE))  # of the next sums
        chunk_words = Signal(8)
        m.d.sync += [size.eq(self.head_dim >> _LOG), chunk_words.eq((1 << self.piece) >> _LOG)]
        store = _Store(m, arch, depth, is_node)
        m.d.comb += [store.word.eq(base + at), store.query.eq(query)]
        end = self._arithmetic(m, store, is_node, total_turn, issue, index, left == 0)

        # What the next pass reads is written in time if it begins that long after this one began.
        wait = Signal(range(end + 3))
        m.d.sync += wait.eq(wait - (wait != 0))
        with m.If(issue & ~total_turn):
            m.d.sync += [at.eq(at + 1), index.eq(index + 1), left.eq(left - 1)]
        next_query, last_query = Signal(), Signal()
        m.d.comb += last_query.eq((row + 1 == self.end_row) & (head + 1 == self.ratio))
        begin_query = [at.eq(0), left.eq(size - 1)]
        with m.FSM():
            with m.State("idle"):
                m.d.comb += self.idle.eq(~self.jobs.valid & (wait == 0))
                m.d.sync += [at.eq((job.chunk << self.piece) >> _LOG), index.eq(0),
                             left.eq(chunk_words - 1), query.eq(job.query),
                             base.eq(job.query * size)]
                with m.If(self.jobs.valid & (wait == 0)):
                    m.d.sync += wait.eq(end + 2)
                    m.next = "page"
                    with m.If(job.final):
                        m.next = "page total"
            with m.State("page total"):
                m.d.comb += [issue.eq(1), total_turn.eq(1)]
                m.next = "page"
            with m.State("page"):
                m.d.comb += issue.eq(1)
                with m.If(left == 0):
                    m.next = "page end"
            with m.State("page end"):
                m.d.sync += [level.eq(0), node.eq(job.leaf)]
                m.next = "resolve"
                with m.If(~job.unit_end):
                    m.d.comb += self.jobs.ready.eq(1)
                    m.next = "idle"
            with m.State("resolve"):
                m.d.sync += [*begin_query, base.eq(0), query.eq(0), row.eq(self.first_row),
                             head.eq(0)]
                sibling = Signal(LEVELS)
                m.d.comb += sibling.eq(node ^ 1)
                first = Signal(LEVELS + 1)
                final = Signal(LEVELS + 1)
                m.d.comb += [first.eq(sibling << level),
                             final.eq((sibling << level) + (1 << level) - 1)]
                leaves = Cat((first <= leaf) & (final >= leaf) & (number <= self.top)
                             for leaf, number in enumerate(layout.CLASS_ORDER))
                below = waiting[(depth - 1)[:REGIONS.bit_length() - 1]]
                joins = (depth != 0) & (below.level == level) & (below.node == sibling)
                comes = (sibling > node) & (first >= job.low) & (final <= job.high)
                absent, joined, coming = Signal(), Signal(), Signal()
                m.d.sync += [absent.eq(~leaves.any()), joined.eq(joins), coming.eq(comes)]
                m.next = "decide"
                with m.If(level == LEVELS):
                    m.next = "emit"
            with m.State("decide"):
                m.next = "resolve"
                with m.If(absent):
                    m.d.sync += [level.eq(level + 1), node.eq(node >> 1)]
                with m.Elif(joined):
                    m.next = "decide"
                    with m.If(wait == 0):
                        m.d.sync += wait.eq(end + 2)
                        m.next = "node total"
                with m.Elif(coming):
                    m.d.sync += [waiting[depth].level.eq(level), waiting[depth].node.eq(node),
                                 depth.eq(depth + 1)]
                    m.d.comb += self.jobs.ready.eq(1)
                    m.next = "idle"
                with m.Else():
                    m.next = "emit"
            with m.State("node total"):
                m.d.comb += [is_node.eq(1), issue.eq(1), total_turn.eq(1)]
                m.next = "node"
            with m.State("node"):
                m.d.comb += [is_node.eq(1), issue.eq(1)]
                with m.If(left == 0):
                    m.d.comb += next_query.eq(1)
                    m.d.sync += begin_query
                    m.next = "node total"
                    with m.If(last_query):
                        m.next = "node end"
            with m.State("node end"):
                m.d.comb += is_node.eq(1)
                m.d.sync += [depth.eq(depth - 1), level.eq(level + 1), node.eq(node >> 1)]
                m.next = "resolve"
            self._emit(m, store, wait, at, row, head, level, node, next_query, last_query)
        with m.If(next_query):
            m.d.sync += [query.eq(query + 1), head.eq(head + 1), base.eq(base + size)]
            with m.If(head + 1 == self.ratio):
                m.d.sync += [head.eq(0), row.eq(row + 1)]
        return m

    def _arithmetic(self, m, store, is_node, total_turn, issue, index, last):
        """Merge a word, or a query's totals; return the clocks from a turn to what it writes.

        The new peak is kept at a query's last turn: the others use the old one.
        """
        job = self.jobs.payload
        p = Pipe(m)
        # A clock after the turn there is what was kept, after two the new peak.
        node_now, fresh = p.input(is_node), p.input(~is_node & job.fresh)
        node_then = p.at(node_now, 1)
        peak, powers = shifts(m, Mux(p.at(fresh, 1), EMPTY, store.mine_peak),
                              Mux(node_then, store.other_peak, p.at(p.input(job.stats.peak), 1)))
        peak, *powers = (p.apply(lambda part: part, p.input(part, stage=1))
                         for part in (peak, *powers))
        is_total = p.input(total_turn)
        valid = p.input(issue, reset=True)
        old_total = p.input(store.mine_total, stage=1)
        other_total = p.mux(node_now, p.input(store.other_total, stage=1),
                            p.input(job.stats.total))
        numbers = choose(index, [Cat(self.sums[first:first + AT_ONCE])
                                 for first in range(0, self.arch.beat_bytes, AT_ONCE)])
        results = []
        for lane in range(AT_ONCE):
            number = p.apply(lambda v, zero: Mux(zero, 0, v).as_signed()[:SUM_BITS].as_signed(),
                             p.input(numbers[SUM_BITS * lane:SUM_BITS * (lane + 1)]),
                             p.input(job.zero))
            page = p.mul(fp.from_int(p, number), p.input(job.stats.back))
            old = p.input(store.mine.word_select(lane, 32), stage=1)
            other = p.mux(node_now, p.input(store.other.word_select(lane, 32), stage=1), page)
            if lane == 0:
                old, other = p.mux(is_total, old_total, old), p.mux(is_total, other_total, other)
            results.append(p.add(rescale(p, p.mux(fresh, p.const(0), old), powers[0]),
                                 rescale(p, other, powers[1])))
        end = p.stage(*results)
        ends = issue & last & ~total_turn & (is_node | job.final)
        out, out_total = p.at(valid, end), p.at(is_total, end)
        store.write(out & ~out_total, p.at(p.input(store.place), end),
                    Cat(p.at(result, end) for result in results))
        store.write_peak(p.at(p.input(ends, reset=True), peak.stage),
                         p.at(p.input(store.state_place), peak.stage), peak.signal)
        store.write_total(out & out_total, p.at(p.input(store.state_place), end),
                          p.at(results[0], end))
        return end

    def _emit(self, m, store, wait, at, row, head, level, node, next_query, last_query):
        """Send each query's partial: a word with its peak and total, then its values."""
        width = self.arch.vector_width
        packet, job = self.packets.payload, self.jobs.payload
        word = Signal(32 * width)
        ready = Signal()
        m.d.comb += [
            packet.row.eq(row), packet.head.eq(job.head * self.ratio + head),
            packet.level.eq(level), packet.node.eq(node),
            packet.total.eq(passive(m, store.mine_total)),
            packet.index.eq((at >> ceil_log2(width // AT_ONCE)) - 1),
        ]
        peak = store.mine_peak
        begin = Cat(peak, peak[-1].replicate(32 - PEAK_BITS), store.mine_total)
        m.d.comb += packet.values.eq(passive(
            m, Cat(Mux(packet.first, begin, word[:64]), word[64:])))
        with m.State("emit"):  # what is kept of the query is being read
            m.d.sync += [at.eq(0), ready.eq(0)]
            with m.If(wait == 0):
                m.next = "emit head"
                with m.If(level == LEVELS):
                    m.next = "emit read"
        with m.State("emit head"):
            m.d.comb += [self.packets.valid.eq(1), packet.first.eq(1)]
            with m.If(self.packets.ready):
                m.next = "emit read"
        with m.State("emit read"):
            # `ready` lags `at` by the memory's clock.
            m.d.sync += [at.eq(at + 1), ready.eq(1)]
            with m.If(ready):
                m.d.sync += word.eq(Cat(word, store.mine)[32 * AT_ONCE:])
            with m.If(ready & (at[:ceil_log2(width // AT_ONCE)] == 0)):
                m.d.sync += [at.eq(at), ready.eq(0)]
                m.next = "emit word"
        with m.State("emit word"):
            m.d.comb += [self.packets.valid.eq(1),
                         packet.last.eq(at == self.head_dim >> _LOG)]
            with m.If(self.packets.ready):
                m.next = "emit read"
                with m.If(packet.last):
                    m.d.comb += next_query.eq(1)
                    m.next = "emit"
                    with m.If(last_query):
                        m.d.comb += self.jobs.ready.eq(1)
                        m.next = "idle"


class _Store:
    """Partials of each region: values, peaks and totals; even regions and odd ones apart.

    A node of the tree merges a region with the one before, so both are read in one clock.

    Members
    -------
    word, query : what is read, of the region at ``depth`` (other) and the one before (mine), or for
        a page, of the region at ``depth`` (mine)
    mine, other, mine_peak, ... : a clock later
    place, state_place : where the same is written: a bank and its address
    """

    def __init__(self, m, arch, depth, is_node):
        self.m = m
        words = arch.attention_elements // AT_ONCE  # of a region
        self.word, self.query = Signal(range(words)), Signal(range(arch.attention_queries))
        half = depth[1]  # a bank has two regions
        mine_bank = depth[0] ^ is_node
        halves = (half, half ^ ~depth[0])
        mine_half = half ^ (is_node & ~depth[0])
        odd = Signal()  # mine, a clock later
        m.d.sync += odd.eq(mine_bank)
        self.place = Cat(mine_bank, (mine_half * words + self.word)[:(2 * words - 1).bit_length()])
        queries = arch.attention_queries
        self.state_place = Cat(mine_bank, (mine_half * queries + self.query)[
            :(2 * queries - 1).bit_length()])
        self.ports = {}
        for name, bits, count, at in (("values", 32 * AT_ONCE, words, self.word),
                                      ("peaks", PEAK_BITS, queries, self.query),
                                      ("totals", 32, queries, self.query)):
            read = []
            for bank in range(2):
                m.submodules[f"{name}_{bank}"] = store = Ram(
                    shape=bits, depth=2 * count, passive=True,
                    style="ultra" if name == "values" else "auto")
                port = store.read_port()
                m.d.comb += port.addr.eq(halves[bank] * count + at)
                read.append(port.data)
                self.ports[name, bank] = store.write_port()
            mine, other = Signal(bits, name=f"mine_{name}"), Signal(bits, name=f"other_{name}")
            m.d.comb += [mine.eq(Mux(odd, read[1], read[0])), other.eq(Mux(odd, read[0], read[1]))]
            self.__dict__[name] = mine, other
        self.mine, self.other = self.values
        self.mine_peak, self.other_peak = (peak.as_signed() for peak in self.peaks)
        self.mine_total, self.other_total = self.totals

    def _write(self, name, enable, place, value):
        for bank in range(2):
            port = self.ports[name, bank]
            self.m.d.comb += [port.en.eq(enable & (place[0] == bank)), port.addr.eq(place[1:]),
                              port.data.eq(value)]

    def write(self, enable, place, value):
        self._write("values", enable, place, value)

    def write_peak(self, enable, place, value):
        self._write("peaks", enable, place, value)

    def write_total(self, enable, place, value):
        self._write("totals", enable, place, value)
