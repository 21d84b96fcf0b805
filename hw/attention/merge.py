"""Merge a lane's pages into partial attentions, classes into their tree, and send what is done."""

from amaranth.hdl import Array, Cat, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from alula.hw import fp, layout
from alula.hw.attention.softmax import EMPTY, PEAK_BITS, STATS
from alula.hw.attention.walk import HEAD_BITS, PAGE_BITS
from alula.hw.numerics import PAGE_CLASSES
from alula.hw.pipe import Pipe
from alula.hw.ram import Ram
from alula.hw.step import row_bits

SUM_BITS = 23  # of eight-bit weights times codes: below 64 * 255 * 127
LEVELS = ceil_log2(PAGE_CLASSES)
AT_ONCE = 4  # values of a word: so a page is merged in less time than it takes to read
_LOG = ceil_log2(AT_ONCE)
REGIONS = LEVELS + 1  # partials that wait for their sibling, and the one being made
SHIFT_BITS = 10  # of a power of two by which a partial is scaled down; clipped


def packet_layout(arch):
    """What a lane sends: a head word, then the values in words of the vector unit's width."""
    return data.StructLayout({
        "values": 32 * arch.vector_width,  # in the head word: peak, then total
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
    rows, ratio, head_dim, piece : steady
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
            "rows": In(range(arch.rows + 1)),
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
        m.submodules.values = values = Ram(
            shape=32 * AT_ONCE, depth=REGIONS * arch.attention_elements // AT_ONCE)
        state = data.StructLayout({"peak": signed(PEAK_BITS), "total": 32})
        m.submodules.states = states = Ram(
            shape=state, depth=REGIONS * arch.attention_queries)
        read, write = values.read_port(), values.write_port()
        mine, theirs = states.read_port(domain="comb"), states.read_port(domain="comb")
        renewed = states.write_port()
        job = self.jobs.payload
        words = arch.attention_elements // AT_ONCE  # of a region
        size = Signal(8)  # words of a query's values
        m.d.comb += size.eq(self.head_dim >> _LOG)

        waiting = Array(Signal(data.StructLayout({"level": 2, "node": LEVELS}), name=f"waits_{at}")
                        for at in range(REGIONS))
        depth = Signal(range(REGIONS + 1))
        level, node = Signal(range(LEVELS + 1)), Signal(LEVELS)
        query, row, head = (Signal(range(arch.attention_queries + 1)),
                            Signal(range(arch.rows + 1)), Signal(range(arch.attention_queries + 1)))
        at, second = Signal(10), Signal()
        is_node, is_emit = Signal(), Signal()
        region = Signal(range(REGIONS))
        total_turn = Signal()  # the turn after the values is that of the total
        base = Signal(range(words))  # of the query's values
        new_peak, powers = shifts(m, Mux(~is_node & job.fresh, EMPTY, mine.data.peak),
                                  Mux(is_node, theirs.data.peak, job.stats.peak))
        m.d.comb += [
            region.eq(Mux(is_node, depth - 1, depth)),
            mine.addr.eq(region * arch.attention_queries + query),
            theirs.addr.eq(depth * arch.attention_queries + query),
            base.eq(query * size),
        ]

        # Turns: one a word for a page; two for a merge, whose second operand is read first.
        issue = Signal()
        start = Signal(10)
        m.d.comb += start.eq(Mux(is_node | is_emit, 0, (job.chunk << self.piece) >> _LOG))
        source = Mux(is_node & ~second, depth, region)
        m.d.comb += read.addr.eq(source * words + base + at)
        held = Signal(32 * AT_ONCE)
        m.d.sync += held.eq(read.data)
        p = Pipe(m)
        # In a register, and steady from the first turn's clock to the end of the query.
        steady = [Signal.like(part, name="steady") for part in (new_peak, *powers)]
        m.d.sync += [now.eq(part) for now, part in zip(steady, (new_peak, *powers), strict=True)]
        new_peak, *powers = (p.input(part, stage=1) for part in steady)
        counts = p.input(issue & (second | ~is_node) & ~is_emit, reset=True)
        place = p.input(region * words + base + at)
        is_total = p.input(total_turn)
        node_now = p.input(is_node)
        old_total = p.input(mine.data.total)
        other_total = p.input(Mux(is_node, theirs.data.total, job.stats.total))
        fresh = p.input(~is_node & job.fresh)
        numbers = Array(Cat(self.sums[first:first + AT_ONCE])
                        for first in range(0, arch.beat_bytes, AT_ONCE))[at - start]
        results = []
        for lane in range(AT_ONCE):
            number = p.apply(lambda v: v.as_signed(), p.input(
                numbers[SUM_BITS * lane:SUM_BITS * (lane + 1)]))
            page = p.mul(fp.from_int(p, number), p.input(job.stats.back))
            # Values of the memory come a clock after their turn.
            old = p.input(read.data.word_select(lane, 32), stage=1)
            other = p.mux(node_now, p.input(held.word_select(lane, 32), stage=1), page)
            if lane == 0:
                old, other = p.mux(is_total, old_total, old), p.mux(is_total, other_total, other)
            results.append(p.add(rescale(p, p.mux(fresh, p.const(0), old), powers[0]),
                                 rescale(p, other, powers[1])))
        end = p.stage(*results)
        results = [p.at(result, end) for result in results]
        out, out_total = p.at(counts, end), p.at(is_total, end)
        m.d.comb += [
            write.addr.eq(p.at(place, end)), write.data.eq(Cat(results)),
            write.en.eq(out & ~out_total),
            renewed.addr.eq(mine.addr), renewed.data.peak.eq(new_peak.signal),
            renewed.data.total.eq(results[0]),
            renewed.en.eq(out & out_total),
        ]
        wait = Signal(range(end + 2))
        last_value = Signal(10)
        m.d.comb += last_value.eq(Mux(is_node | is_emit, size,
                                      start + ((1 << self.piece) >> _LOG)) - 1)
        next_query = Signal()
        with m.FSM():
            with m.State("idle"):
                m.d.comb += self.idle.eq(~self.jobs.valid)
                m.d.sync += [at.eq((job.chunk << self.piece) >> _LOG), query.eq(job.query),
                             second.eq(1)]
                with m.If(self.jobs.valid):
                    m.next = "page"
            with m.State("page"):
                m.d.comb += issue.eq(1)
                m.d.sync += at.eq(at + 1)
                with m.If(at == last_value):
                    m.next = "page total"
            with m.State("page total"):
                m.d.comb += [issue.eq(job.final), total_turn.eq(1)]
                m.d.sync += wait.eq(end + 1)
                m.next = "page drain"
            with m.State("page drain"):
                m.d.sync += [wait.eq(wait - 1), level.eq(0), node.eq(job.leaf)]
                with m.If(wait == 0):
                    with m.If(job.unit_end):
                        m.next = "resolve"
                    with m.Else():
                        m.d.comb += self.jobs.ready.eq(1)
                        m.next = "idle"
            with m.State("resolve"):
                m.d.sync += [at.eq(0), query.eq(0), row.eq(0), head.eq(0)]
                sibling = Signal(LEVELS)
                m.d.comb += sibling.eq(node ^ 1)
                first = Signal(LEVELS + 1)
                final = Signal(LEVELS + 1)
                m.d.comb += [first.eq(sibling << level),
                             final.eq((sibling << level) + (1 << level) - 1)]
                leaves = Cat((first <= leaf) & (final >= leaf) & (number <= self.top)
                             for leaf, number in enumerate(layout.CLASS_ORDER))
                below = waiting[(depth - 1)[:len(region)]]
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
                    m.next = "node"
                    m.d.sync += second.eq(0)
                with m.Elif(coming):
                    m.d.sync += [waiting[depth].level.eq(level), waiting[depth].node.eq(node),
                                 depth.eq(depth + 1)]
                    m.d.comb += self.jobs.ready.eq(1)
                    m.next = "idle"
                with m.Else():
                    m.next = "emit"
            with m.State("node"):
                m.d.comb += [is_node.eq(1), issue.eq(1)]
                m.d.sync += second.eq(~second)
                with m.If(second):
                    m.d.sync += at.eq(at + 1)
                    with m.If(at == last_value):
                        m.next = "node total"
            with m.State("node total"):
                m.d.comb += [is_node.eq(1), issue.eq(1), total_turn.eq(1)]
                m.d.sync += [wait.eq(end + 1)]
                # A total's turn has no first half.
                m.d.sync += second.eq(1)
                with m.If(second):
                    m.next = "node drain"
            with m.State("node drain"):
                m.d.comb += is_node.eq(1)
                m.d.sync += [wait.eq(wait - 1), at.eq(0)]
                with m.If(wait == 0):
                    m.d.comb += next_query.eq(1)
                    m.d.sync += second.eq(0)
                    m.next = "node"
                    with m.If((row + 1 == self.rows) & (head + 1 == self.ratio)):
                        m.d.sync += [depth.eq(depth - 1), level.eq(level + 1), node.eq(node >> 1)]
                        m.next = "resolve"
            self._emit(m, read, mine, is_emit, at, query, row, head, level, node, job, next_query)
        with m.If(next_query):
            m.d.sync += [query.eq(query + 1), head.eq(head + 1)]
            with m.If(head + 1 == self.ratio):
                m.d.sync += [head.eq(0), row.eq(row + 1)]
        return m

    def _emit(self, m, read, mine, is_emit, at, query, row, head, level, node, job, next_query):
        """Send each query's partial: a word with its peak and total, then its values."""
        width = self.arch.vector_width
        packet = self.packets.payload
        word = Signal(32 * width)
        ready = Signal()
        m.d.comb += [
            packet.row.eq(row), packet.head.eq(job.head * self.ratio + head),
            packet.level.eq(level), packet.node.eq(node),
        ]
        with m.State("emit"):
            m.d.comb += [
                is_emit.eq(1), self.packets.valid.eq(1), packet.first.eq(1),
                packet.values.eq(Cat(mine.data.peak, mine.data.peak[-1].replicate(32 - PEAK_BITS),
                                     mine.data.total)),
            ]
            m.d.sync += [at.eq(0), ready.eq(0)]
            with m.If(self.packets.ready):
                m.next = "emit read"
        with m.State("emit read"):
            m.d.comb += is_emit.eq(1)
            # `ready` lags `at` by the memory's clock.
            m.d.sync += [at.eq(at + 1), ready.eq(1)]
            with m.If(ready):
                m.d.sync += word.eq(Cat(word, read.data)[32 * AT_ONCE:])
            with m.If(ready & (at[:ceil_log2(width // AT_ONCE)] == 0)):
                m.d.sync += [at.eq(at), ready.eq(0)]
                m.next = "emit word"
        with m.State("emit word"):
            m.d.comb += [is_emit.eq(1), self.packets.valid.eq(1), packet.values.eq(word),
                         packet.last.eq(at == self.head_dim >> _LOG)]
            with m.If(self.packets.ready):
                m.next = "emit read"
                with m.If(packet.last):
                    m.d.comb += next_query.eq(1)
                    m.d.sync += at.eq(0)
                    m.next = "emit"
                    with m.If((row + 1 == self.rows) & (head + 1 == self.ratio)):
                        m.d.comb += self.jobs.ready.eq(1)
                        m.next = "idle"
