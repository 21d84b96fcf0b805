"""From the scores of a page to its softmax weights: eight-bit codes, a peak, a sum and a scale."""

import numpy as np
from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from alula.hw import fp, numerics
from alula.hw.attention.exponent import Inverse, exp2
from alula.hw.attention.fetch import LAG
from alula.hw.numerics import PAGE_TOKENS, SOFTMAX_BITS, SOFTMAX_MAX
from alula.hw.pipe import Pipe
from alula.hw.ram import Ram

DOT_BITS = 24  # of a query with a key: below 511 * 127 * 127
PEAK_BITS = 26  # a peak is an integer from -2**24 to 2**24
PLACES = LAG + 1  # pages whose codes are kept
FLIGHT = 4  # queries under way
_TOKEN = ceil_log2(PAGE_TOKENS)
_BANK = ceil_log2(FLIGHT)
EMPTY = int(numerics.EMPTY_PAGE)


def count_bits(arch):
    """Return the bits that count queries, such that of two counts it is known which is ahead."""
    return ceil_log2(PLACES * arch.attention_queries + 1) + 1


def query_layout(arch):
    """A query's attention to one page."""
    return data.StructLayout({
        "place": range(PLACES),  # of the page, for its codes
        "query": range(arch.attention_queries),
        "scale": 32,  # of the query
        "count": range(PAGE_TOKENS + 1),  # scores that come
        "low": range(PAGE_TOKENS + 1), "high": range(PAGE_TOKENS + 1),  # tokens low..high-1 count
    })


SCORE = data.StructLayout({
    "valid": 1, "token": _TOKEN, "dot": signed(DOT_BITS), "key_scale": 32, "value_scale": 32})
STATS = data.StructLayout({"peak": signed(PEAK_BITS), "total": 32, "back": 32})


class TreeSum(wiring.Component):
    """Add ``PAGE_TOKENS`` numbers: those half the count apart, then half as far, down to 1.

    None is negative.

    Members
    -------
    number : ``In``
        Numbers in order, not one right after the other, when ``valid``.
    done, total
        A pulse after the last; ``total`` holds until the next.
    """

    def __init__(self):
        super().__init__({
            "number": In(data.StructLayout({"valid": 1, "token": _TOKEN, "value": 32})),
            "done": Out(1), "total": Out(32),
        })

    def elaborate(self, platform):
        m = Module()
        half = PAGE_TOKENS // 2
        # Sums of the next numbers come before the last ones are done: two sets of them.
        m.submodules.low = low = Ram(shape=32, depth=half, passive=True)
        m.submodules.sums = sums = Ram(shape=32, depth=2 * half, passive=True)
        early, kept = low.write_port(), sums.write_port()
        first = low.read_port(domain="comb")
        second, third = sums.read_port(domain="comb"), sums.read_port(domain="comb")
        number, upper = self.number, self.number.token[-1]
        distance = Signal(range(half))  # between the two numbers of a sum
        at, wait = Signal(range(half)), Signal(range(fp.ADD_LATENCY + 3))
        leaf, wanted, bank = Signal(), Signal(), Signal()
        m.d.comb += [
            early.addr.eq(number.token), early.data.eq(number.value),
            early.en.eq(number.valid & ~upper),
            leaf.eq(number.valid & upper),
            first.addr.eq(number.token), second.addr.eq(Cat(at, ~bank)),
            third.addr.eq(Cat((at + distance)[:len(at)], ~bank)),
        ]
        p = Pipe(m)
        left, right = (p.apply(Mux, p.input(leaf), p.input(fresh), p.input(old)) for fresh, old in (
            (first.data, second.data), (number.value, third.data)))
        total = fp.add(p, p.absolute(left), p.absolute(right), positive=True)
        place = Mux(leaf, Cat(number.token[:-1], bank), Cat(at, ~bank))
        m.d.comb += [
            kept.addr.eq(p.at(p.input(place), total.stage)), kept.data.eq(total.signal),
            kept.en.eq(p.at(p.input(leaf | wanted, reset=True), total.stage)),
        ]
        m.d.sync += self.done.eq(0)
        with m.If(leaf & number.token.all()):
            m.d.sync += bank.eq(~bank)
        with m.FSM():
            with m.State("leaves"):
                m.d.sync += [distance.eq(half // 2), at.eq(0), wait.eq(total.stage)]
                with m.If(leaf & number.token.all()):
                    m.next = "wait"
            with m.State("sums"):
                m.d.comb += wanted.eq(~leaf)
                with m.If(wanted):
                    m.d.sync += [at.eq(at + 1), wait.eq(total.stage)]
                    with m.If(at + 1 == distance):
                        m.d.sync += distance.eq(distance >> 1)
                        m.next = "wait"
            with m.State("wait"):
                m.d.sync += [wait.eq(wait - 1), at.eq(0)]
                with m.If(wait == 0):
                    m.next = "sums"
                    with m.If(distance == 0):
                        m.d.sync += [self.total.eq(second.data), self.done.eq(1)]
                        m.next = "leaves"
        return m


def _ceiling(p, x):
    """Return ``ceil(x)``, at most ``-EMPTY``, as a number and an integer; NaN stays, and gives 0.

    ``x`` is ``EMPTY`` or more, or NaN. Of what is below 1 no zero comes out negative.
    """
    bits = (-EMPTY).bit_length() - 1

    def split(x):
        view = fp.as_float(x)
        below = Const((1 << 23) - 1, 23) >> (view.exponent - fp.BIAS)[:5]  # the point
        return view.exponent < fp.BIAS, view.exponent >= fp.BIAS + bits, below
    small, large, below = p.apply(split, x)

    def up(x, small, large, below):
        view = fp.as_float(x)
        size = (x[:31] + Mux(view.sign, 0, below))[:31] & ~Cat(below, Const(0, 8))
        one = Mux(~view.sign & ~fp.is_zero(x), fp.constant(1), 0)
        size = Mux(large, fp.constant(-EMPTY), size)
        return Mux(fp.is_nan(x), fp.NAN, Mux(small, one, Cat(size[:31], view.sign)))
    number = p.apply(up, x, small, large, below, shape=32)

    def whole(number):
        view = fp.as_float(number)
        size = Cat(view.fraction, ~fp.is_zero(number)) >> (fp.BIAS + 23 - view.exponent)[:5]
        size = Mux(view.exponent >= fp.BIAS + bits, 1 << bits, size)
        return Mux(fp.is_nan(number), 0, Mux(view.sign, -size, size))
    return number, p.apply(whole, number, shape=signed(PEAK_BITS))


class Softmax(wiring.Component):
    """Turn scores into softmax weights, a page and a query at a time.

    Members
    -------
    queries : ``In(stream of query_layout)``
        Before its first score. Not ready while ``FLIGHT`` queries are under way.
    score : ``In(SCORE)``
        Scores of the queries in order. No backpressure.
    begun, finished : ``Out(count_bits)``
        Queries whose codes can be read, the first now and one more each clock, and those whose
        statistics can be read, too; since reset, modulo.
    code_place, code_query, token : ``In``; code : ``Out``
    place, query : ``In``; stats : ``Out``
        A clock after their address.
    """

    def __init__(self, arch):
        self.arch = arch
        super().__init__({
            "queries": In(stream.Signature(query_layout(arch))),
            "score": In(SCORE),
            "begun": Out(count_bits(arch)), "finished": Out(count_bits(arch)),
            "place": In(range(PLACES)), "query": In(range(arch.attention_queries)),
            "code_place": In(range(PLACES)), "code_query": In(range(arch.attention_queries)),
            "token": In(_TOKEN),
            "code": Out(SOFTMAX_BITS), "stats": Out(STATS),
        })

    def elaborate(self, platform):
        m = Module()
        layout = query_layout(self.arch)
        # Three stages in order, each with its own counter of queries; banks go by the counters.
        accepted, scored, weighed = (Signal.like(self.finished, name=name)
                                     for name in ("accepted", "scored", "weighed"))
        m.submodules.known = known = Ram(shape=layout, depth=FLIGHT)
        entering = known.write_port()
        m.d.comb += [
            self.queries.ready.eq((accepted - self.finished)[:len(accepted)] < FLIGHT),
            entering.addr.eq(accepted), entering.data.eq(self.queries.payload),
            entering.en.eq(self.queries.valid & self.queries.ready),
        ]
        m.d.sync += accepted.eq(accepted + entering.en)
        banks = {name: Ram(shape=32, depth=FLIGHT * PAGE_TOKENS, passive=True)
                 for name in ("scores", "value_scales", "scaled")}
        for name, bank in banks.items():
            m.submodules[name] = bank
        largest = self._score(m, known, accepted, scored, banks)
        peaks, tree = self._weigh(m, known, accepted, scored, weighed, banks, largest)
        self._quantize(m, known, weighed, banks, peaks, tree)
        return m

    def _score(self, m, known, accepted, scored, banks):
        """Scores in powers of two, and the largest that counts; return the largest by bank."""
        sender = known.read_port(domain="comb")
        arriving, come = Signal.like(self.finished), Signal(range(PAGE_TOKENS + 1))
        score, query = self.score, sender.data
        none, last, counts = Signal(), Signal(), Signal()
        m.d.comb += [
            sender.addr.eq(arriving),
            # A query without scores passes as an event without a score.
            none.eq((arriving != accepted) & (query.count == 0)),
            last.eq(none | (score.valid & (come + 1 == query.count))),
            counts.eq(score.valid & (score.token >= query.low) & (score.token < query.high)),
        ]
        with m.If(last):
            m.d.sync += [arriving.eq(arriving + 1), come.eq(0)]
        with m.Elif(score.valid):
            m.d.sync += come.eq(come + 1)
        p = Pipe(m)
        scaled = p.mul(fp.from_int(p, p.input(score.dot)), p.input(query.scale))
        value = p.mul(scaled, p.input(score.key_scale))
        end = value.stage

        def late(signal, reset=False):
            return p.at(p.input(signal, reset=reset), end)

        bank = late(arriving[:_BANK])
        address = Cat(late(score.token), bank)
        for name, number in (("scores", value.signal), ("value_scales", late(score.value_scale))):
            port = banks[name].write_port()
            m.d.comb += [port.addr.eq(address), port.en.eq(late(score.valid, True)),
                         port.data.eq(number)]
        m.submodules.largest = largest = Ram(shape=32, depth=FLIGHT, passive=True)
        result = largest.write_port()
        best, so_far = Signal(32, init=fp.to_bits(EMPTY)), Signal(32)
        m.d.comb += [
            so_far.eq(best),
            result.addr.eq(bank), result.data.eq(so_far), result.en.eq(late(last, True)),
        ]
        with m.If(late(counts, True) & _exceeds(value.signal, best)):
            m.d.comb += so_far.eq(value.signal)
        m.d.sync += [best.eq(Mux(result.en, fp.to_bits(EMPTY), so_far)),
                     scored.eq(scored + result.en)]
        return largest

    def _weigh(self, m, known, accepted, scored, weighed, banks, largest):
        """Weights, and their product with the values' scales; return largest product and peaks.

        A token every other clock, counted from the first query's: so layers alike take as long.
        """
        query, top = known.read_port(domain="comb"), largest.read_port(domain="comb")
        scores, scales = banks["scores"].read_port(), banks["value_scales"].read_port()
        token, wait = Signal(_TOKEN), Signal(range(4))
        turn, running, issuing = Signal(), Signal(), Signal()
        issued = Signal.like(self.finished)
        bank = issued[:_BANK]
        m.d.sync += turn.eq(~turn & (accepted != self.finished))
        m.d.comb += [query.addr.eq(bank), top.addr.eq(bank), issuing.eq(running & ~turn),
                     scores.addr.eq(Cat(token, bank))]
        scalar = Pipe(m)
        peak, whole = _ceiling(scalar, scalar.input(top.data))
        number = Signal(32)
        with m.FSM():
            with m.State("idle"):
                m.d.sync += wait.eq(peak.stage)
                with m.If(issued != scored):
                    m.next = "peak"
            with m.State("peak"):
                m.d.sync += [wait.eq(wait - 1), token.eq(0), number.eq(peak.signal)]
                with m.If(wait == 0):
                    m.next = "issue"
            with m.State("issue"):
                m.d.comb += running.eq(1)
                with m.If(issuing):
                    m.d.sync += token.eq(token + 1)
                    with m.If(token == PAGE_TOKENS - 1):
                        m.d.sync += issued.eq(issued + 1)
                        m.next = "idle"
        p = Pipe(m)
        kept = p.input((token >= query.data.low) & (token < query.data.high))
        at, valid = p.input(Cat(token, bank)), p.input(issuing, reset=True)
        zero = p.const(0)
        x = p.sub(p.input(scores.data, stage=1), p.input(number, stage=1))
        weight = p.mux(kept, exp2(p, x, turn), zero)
        m.d.comb += scales.addr.eq(p.at(at, weight.stage - 1))
        scale = p.input(scales.data, stage=weight.stage)
        scaled = p.mux(kept, p.mul(weight, scale), zero)
        m.submodules.tree = tree = TreeSum()
        m.d.comb += [
            tree.number.valid.eq(p.at(valid, weight.stage)),
            tree.number.token.eq(p.at(at, weight.stage)[:_TOKEN]),
            tree.number.value.eq(weight.signal),
        ]
        port = banks["scaled"].write_port()
        end, out = p.at(at, scaled.stage), p.at(valid, scaled.stage)
        m.d.comb += [port.addr.eq(end), port.data.eq(scaled.signal), port.en.eq(out)]
        m.submodules.peaks = peaks = Ram(
            shape=data.StructLayout({"peak": signed(PEAK_BITS), "largest": 32}), depth=FLIGHT,
            passive=True)
        result = peaks.write_port()
        m.submodules.whole = wholes = Ram(
            shape=PEAK_BITS, depth=FLIGHT, passive=True)
        held, recalled = wholes.write_port(), wholes.read_port(domain="comb")
        best, so_far = Signal(32), Signal(32)
        last = out & (end[:_TOKEN] == PAGE_TOKENS - 1)
        m.d.comb += [
            held.addr.eq(bank), held.data.eq(whole.signal), held.en.eq(running),
            recalled.addr.eq(end[_TOKEN:]),
            so_far.eq(Mux(end[:_TOKEN] == 0, fp.to_bits(-np.inf), best)),
            result.addr.eq(end[_TOKEN:]), result.en.eq(last),
            result.data.peak.eq(recalled.data),
            result.data.largest.eq(Mux(_exceeds(scaled.signal, so_far), scaled.signal, so_far)),
        ]
        with m.If(out):
            m.d.sync += best.eq(result.data.largest)
        m.d.sync += weighed.eq(weighed + last)
        return peaks, tree

    def _quantize(self, m, known, weighed, banks, peaks, tree):
        """Codes and statistics, to where the values' stage reads them."""
        arch = self.arch
        query, peak = known.read_port(domain="comb"), peaks.read_port(domain="comb")
        products = banks["scaled"].read_port()
        depth = PLACES * arch.attention_queries
        m.submodules.codes = codes = Ram(
            shape=SOFTMAX_BITS, depth=depth * PAGE_TOKENS, passive=True)
        m.submodules.stats = stats = Ram(shape=STATS, depth=depth, passive=True)
        code, stat = codes.write_port(), stats.write_port()
        read_code, read_stats = codes.read_port(), stats.read_port()
        # Past its last place a memory of a size that is no power of two has none: never addressed.
        bank = self.finished[:_BANK]
        token, issuing, wait = Signal(_TOKEN), Signal(), Signal(range(16))
        summed = Signal()
        m.d.comb += [
            query.addr.eq(bank), peak.addr.eq(bank), products.addr.eq(Cat(token, bank)),
            read_code.addr.eq(self._address(self.code_place, self.code_query) * PAGE_TOKENS
                              + self.token),
            read_stats.addr.eq(self._address(self.place, self.query)),
            self.code.eq(read_code.data), self.stats.eq(read_stats.data),
        ]
        m.submodules.inverse = inverse = Inverse()
        m.d.comb += inverse.x.eq(peak.data.largest)
        p = Pipe(m)
        at, valid = p.input(token), p.input(issuing, reset=True)
        product = p.mul(p.input(products.data, stage=1), p.input(inverse.inverse, stage=1))
        result = fp.to_int(p, product, 0, SOFTMAX_MAX)
        m.d.comb += [
            code.addr.eq(self._address(query.data.place, query.data.query) * PAGE_TOKENS
                         + p.at(at, result.stage)),
            code.data.eq(result.signal), code.en.eq(p.at(valid, result.stage)),
            stat.addr.eq(self._address(query.data.place, query.data.query)),
            stat.data.peak.eq(peak.data.peak), stat.data.total.eq(tree.total),
            stat.data.back.eq(inverse.back),
        ]
        with m.If(tree.done):
            m.d.sync += summed.eq(1)
        with m.FSM():
            with m.State("idle"):
                m.d.sync += [token.eq(0), summed.eq(0)]
                with m.If(self.finished != weighed):
                    m.d.comb += inverse.start.eq(1)
                    m.next = "scale"
            with m.State("scale"), m.If(inverse.done):
                m.next = "issue"
            with m.State("issue"):
                m.d.comb += issuing.eq(1)
                m.d.sync += [token.eq(token + 1), wait.eq(result.stage)]
                with m.If(token == result.stage):  # the first code is being written
                    m.d.sync += self.begun.eq(self.begun + 1)
                with m.If(token == PAGE_TOKENS - 1):
                    m.next = "drain"
            with m.State("drain"):
                with m.If(wait != 0):
                    m.d.sync += wait.eq(wait - 1)
                with m.Elif(summed):
                    m.d.comb += stat.en.eq(1)
                    m.d.sync += self.finished.eq(self.finished + 1)
                    m.next = "idle"

    def _address(self, place, query):
        return place * self.arch.attention_queries + query


def _exceeds(x, best):
    """Return whether ``x`` takes ``best``'s place in a maximum: a NaN does, and keeps it."""
    return ~fp.is_nan(best) & (fp.is_nan(x) | fp.greater(x, best))
