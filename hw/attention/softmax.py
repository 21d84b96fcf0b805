"""From the scores of a page to its softmax weights: eight-bit codes, a peak, a sum and a scale."""

import numpy as np
from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from alula.hw import fp, functions, numerics
from alula.hw.attention.fetch import LAG
from alula.hw.numerics import PAGE_TOKENS, SOFTMAX_BITS, SOFTMAX_MAX
from alula.hw.pipe import Pipe
from alula.hw.ram import Ram

DOT_BITS = 26  # of a query with a key: below 511 * 127 * 127
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

    Members
    -------
    number : ``In``
        A number of a bank, when ``valid``.
    start, bank
        Add up a bank, all whose numbers were written in clocks before.
    done, total
        ``total`` holds until the next.
    """

    def __init__(self):
        super().__init__({
            "number": In(data.StructLayout({
                "valid": 1, "bank": _BANK, "token": _TOKEN, "value": 32})),
            "start": In(1), "bank": In(_BANK),
            "done": Out(1), "total": Out(32),
        })

    def elaborate(self, platform):
        m = Module()
        half = PAGE_TOKENS // 2
        m.submodules.low = low = Ram(shape=32, depth=FLIGHT * half)
        m.submodules.high = high = Ram(shape=32, depth=FLIGHT * half)
        m.submodules.sums = sums = Ram(shape=32, depth=half)
        for store, upper in ((low, 0), (high, 1)):
            port = store.write_port()
            m.d.comb += [port.addr.eq(Cat(self.number.token[:-1], self.number.bank)),
                         port.data.eq(self.number.value),
                         port.en.eq(self.number.valid & (self.number.token[-1] == upper))]
        first, second = low.read_port(domain="comb"), high.read_port(domain="comb")
        third, fourth = sums.read_port(domain="comb"), sums.read_port(domain="comb")
        kept = sums.write_port()
        distance = Signal(range(half + 1))  # between the two numbers of a sum
        at, wait = Signal(range(half)), Signal(range(fp.ADD_LATENCY + 2))
        bank, leaf, issued = Signal(_BANK), Signal(), Signal()
        m.d.comb += [
            leaf.eq(distance == half),
            first.addr.eq(Cat(at, bank)), second.addr.eq(Cat(at, bank)),
            third.addr.eq(at), fourth.addr.eq(at + distance),
        ]
        p = Pipe(m)
        left = p.apply(lambda *v: Mux(v[0], v[1], v[2]), p.input(leaf), p.input(first.data),
                       p.input(third.data))
        right = p.apply(lambda *v: Mux(v[0], v[1], v[2]), p.input(leaf), p.input(second.data),
                        p.input(fourth.data))
        total = p.add(left, right)
        m.d.comb += [
            kept.addr.eq(p.at(p.input(at), total.stage)),
            kept.data.eq(total.signal),
            kept.en.eq(p.at(p.input(issued, reset=True), total.stage)),
        ]
        with m.FSM():
            with m.State("idle"):
                m.d.sync += [at.eq(0), distance.eq(half), bank.eq(self.bank)]
                with m.If(self.start):
                    m.next = "issue"
            with m.State("issue"):
                m.d.comb += issued.eq(1)
                m.d.sync += [at.eq(at + 1), wait.eq(total.stage)]
                with m.If(at + 1 == distance):
                    m.next = "wait"
            with m.State("wait"):
                m.d.sync += [wait.eq(wait - 1), at.eq(0)]
                with m.If(wait == 0):
                    m.d.sync += distance.eq(distance >> 1)
                    m.next = "issue"
                    with m.If(distance == 1):
                        m.d.sync += self.total.eq(third.data)
                        m.d.sync += self.done.eq(1)
                        m.next = "idle"
        with m.If(self.done):
            m.d.sync += self.done.eq(0)
        return m


def _ceiling(p, x):
    """Return ``ceil(x)`` within ``EMPTY`` and ``-EMPTY`` as an integer; NaN gives 0."""
    bits = (-EMPTY).bit_length() - 1  # magnitudes from 2**bits on are clipped

    def split(x):
        view = fp.as_float(x)
        small = view.exponent < fp.BIAS
        large = view.exponent >= fp.BIAS + bits
        shift = (fp.BIAS + bits - 1 - view.exponent)[:5]
        significand = Cat(view.fraction, ~fp.is_zero(x))
        whole = Signal(24)
        p.m.d.comb += whole.eq(significand >> shift)
        rest = (significand & ~(((1 << 24) - 1) << shift)[:24]).any()
        return (Mux(small, 0, whole), Mux(small, ~fp.is_zero(x), rest), large, view.sign,
                fp.is_nan(x))

    parts = p.apply(split, x)

    def join(whole, rest, large, sign, nan):
        size = Mux(large, 1 << bits, whole)
        result = Mux(sign, -size, size + (rest & ~large))
        return Mux(nan, 0, result)

    return p.apply(join, *parts, shape=signed(PEAK_BITS))


class Softmax(wiring.Component):
    """Turn scores into softmax weights, a page and a query at a time.

    Members
    -------
    queries : ``In(stream of query_layout)``
        Before its first score. Not ready while ``FLIGHT`` queries are under way.
    score : ``In(SCORE)``
        Scores of the queries in order. No backpressure.
    finished : ``Out(count_bits)``
        Queries whose codes and statistics can be read, since reset, modulo.
    place, code_query, token : ``In``; code : ``Out``
    place, query : ``In``; stats : ``Out``
        A clock after their address.
    """

    def __init__(self, arch):
        self.arch = arch
        super().__init__({
            "queries": In(stream.Signature(query_layout(arch))),
            "score": In(SCORE),
            "finished": Out(count_bits(arch)),
            "place": In(range(PLACES)), "query": In(range(arch.attention_queries)),
            "code_query": In(range(arch.attention_queries)), "token": In(_TOKEN),
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
        banks = {name: Ram(shape=32, depth=FLIGHT * PAGE_TOKENS)
                 for name in ("scores", "value_scales", "scaled")}
        for name, bank in banks.items():
            m.submodules[name] = bank
        largest = self._score(m, known, accepted, scored, banks)
        peaks, tree = self._weigh(m, known, scored, weighed, banks, largest)
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
        m.submodules.largest = largest = Ram(shape=32, depth=FLIGHT)
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

    def _weigh(self, m, known, scored, weighed, banks, largest):
        """Weights, and their product with the values' scales; return largest product and peaks."""
        query, top = known.read_port(domain="comb"), largest.read_port(domain="comb")
        scores = banks["scores"].read_port(domain="comb")
        scales = banks["value_scales"].read_port(domain="comb")
        token, issuing, wait = Signal(_TOKEN), Signal(), Signal(range(16))
        bank = weighing = Signal(_BANK)
        m.d.comb += [query.addr.eq(bank), top.addr.eq(bank),
                     scores.addr.eq(Cat(token, bank)), scales.addr.eq(Cat(token, bank))]
        scalar = Pipe(m)
        peak = _ceiling(scalar, scalar.input(top.data))
        as_number = scalar.mux(scalar.input(fp.is_nan(top.data)), scalar.input(top.data),
                               fp.from_int(scalar, peak))
        peak_now, number = Signal(signed(PEAK_BITS)), Signal(32)
        issued = Signal.like(self.finished)
        m.d.comb += weighing.eq(issued)
        with m.FSM():
            with m.State("idle"):
                m.d.sync += wait.eq(as_number.stage)
                with m.If(issued != scored):
                    m.next = "peak"
            with m.State("peak"):
                m.d.sync += [wait.eq(wait - 1), token.eq(0), peak_now.eq(peak.signal),
                             number.eq(as_number.signal)]
                with m.If(wait == 0):
                    m.next = "issue"
            with m.State("issue"):
                m.d.comb += issuing.eq(1)
                m.d.sync += token.eq(token + 1)
                with m.If(token == PAGE_TOKENS - 1):
                    m.d.sync += issued.eq(issued + 1)
                    m.next = "idle"
        p = Pipe(m)
        # One register before the arithmetic: what comes is from memories.
        kept, x, peak_in, scale, at, valid = p.apply(
            lambda *v: v, *(p.input(v) for v in (
                (token >= query.data.low) & (token < query.data.high), scores.data, number,
                scales.data, Cat(token, bank), issuing)))
        valid.reset = True
        zero = p.const(0)
        weight = p.mux(kept, functions.exp2(p, p.sub(x, peak_in)), zero)
        scaled = p.mux(kept, p.mul(weight, scale), zero)
        m.submodules.tree = tree = TreeSum()
        place = p.at(at, weight.stage)
        m.d.comb += [
            tree.number.valid.eq(p.at(valid, weight.stage)),
            tree.number.token.eq(place[:_TOKEN]), tree.number.bank.eq(place[_TOKEN:]),
            tree.number.value.eq(weight.signal),
        ]
        port = banks["scaled"].write_port()
        end, out = p.at(at, scaled.stage), p.at(valid, scaled.stage)
        m.d.comb += [port.addr.eq(end), port.data.eq(scaled.signal), port.en.eq(out)]
        m.submodules.peaks = peaks = Ram(
            shape=data.StructLayout({"peak": signed(PEAK_BITS), "largest": 32}), depth=FLIGHT)
        result = peaks.write_port()
        m.submodules.whole = whole = Ram(shape=PEAK_BITS, depth=FLIGHT)
        held, recalled = whole.write_port(), whole.read_port(domain="comb")
        best, so_far = Signal(32), Signal(32)
        last = out & (end[:_TOKEN] == PAGE_TOKENS - 1)
        m.d.comb += [
            held.addr.eq(bank), held.data.eq(peak_now), held.en.eq(issuing),
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
        products = banks["scaled"].read_port(domain="comb")
        depth = PLACES * arch.attention_queries
        m.submodules.codes = codes = Ram(
            shape=SOFTMAX_BITS, depth=depth * PAGE_TOKENS)
        m.submodules.stats = stats = Ram(shape=STATS, depth=depth)
        code, stat = codes.write_port(), stats.write_port()
        read_code, read_stats = codes.read_port(), stats.read_port()
        # Past its last place a memory of a size that is no power of two has none: never addressed.
        bank = self.finished[:_BANK]
        token, issuing, wait = Signal(_TOKEN), Signal(), Signal(range(128))
        summed = Signal()
        m.d.comb += [
            query.addr.eq(bank), peak.addr.eq(bank), products.addr.eq(Cat(token, bank)),
            read_code.addr.eq(self._address(self.place, self.code_query) * PAGE_TOKENS
                              + self.token),
            read_stats.addr.eq(self._address(self.place, self.query)),
            self.code.eq(read_code.data), self.stats.eq(read_stats.data),
            tree.bank.eq(bank),
        ]
        scalar = Pipe(m)
        largest = scalar.input(peak.data.largest)
        raw = scalar.mul(functions.reciprocal(scalar, largest), scalar.const(SOFTMAX_MAX))
        inverse = scalar.mux(scalar.apply(fp.is_zero, largest), scalar.const(0), raw)
        back = scalar.mul(largest, scalar.const(np.float32(1 / SOFTMAX_MAX)))
        factor, kept_back = Signal(32), Signal(32)
        p = Pipe(m)
        product, at, valid = p.apply(lambda *v: v, p.input(products.data), p.input(token),
                                     p.input(issuing))
        valid.reset = True
        result = fp.to_int(p, p.mul(product, p.input(factor)), 0, SOFTMAX_MAX)
        m.d.comb += [
            code.addr.eq(self._address(query.data.place, query.data.query) * PAGE_TOKENS
                         + p.at(at, result.stage)),
            code.data.eq(result.signal), code.en.eq(p.at(valid, result.stage)),
            stat.addr.eq(self._address(query.data.place, query.data.query)),
            stat.data.peak.eq(peak.data.peak), stat.data.total.eq(tree.total),
            stat.data.back.eq(kept_back),
        ]
        with m.If(tree.done):
            m.d.sync += summed.eq(1)
        with m.FSM():
            with m.State("idle"):
                m.d.sync += [wait.eq(inverse.stage), token.eq(0), summed.eq(0)]
                with m.If(self.finished != weighed):
                    m.d.comb += tree.start.eq(1)
                    m.next = "scale"
            with m.State("scale"):
                m.d.sync += [wait.eq(wait - 1), factor.eq(inverse.signal),
                             kept_back.eq(back.signal)]
                with m.If(wait == 0):
                    m.next = "issue"
            with m.State("issue"):
                m.d.comb += issuing.eq(1)
                m.d.sync += [token.eq(token + 1), wait.eq(result.stage)]
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
