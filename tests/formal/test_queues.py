"""Queues, their tokens, and whatever passes on streams: nothing is lost, doubled or reordered."""

from dataclasses import replace

import pytest
from amaranth.hdl import Cat, Const, Module, Signal
from amaranth.lib import data, fifo, stream, wiring
from amaranth.lib.wiring import In, Out
from prove import Bench, Followed, all_of

from alula.hw import isa
from alula.hw.arch import build
from alula.hw.core import fork
from alula.hw.gather import Choice
from alula.hw.isa import WORD_BYTES
from alula.hw.lane.prefetch import RING_LATENCY, BeatQueue
from alula.hw.queues import HEADER, QUEUES, IssueQueue, Tokens
from alula.hw.share import ReadShare
from alula.hw.store import VectorReader


def moves(port):
    return port.valid & port.ready


def _fifo(queue):
    bench = Bench()
    bench.add(queue)
    for port in (queue.w_en, queue.r_en):
        bench.m.d.comb += port.eq(bench.free(1))
    bench.m.d.comb += queue.w_data.eq(bench.free(len(queue.w_data)))
    entered, left = queue.w_en & queue.w_rdy, queue.r_en & queue.r_rdy
    followed = Followed(bench, entered, queue.w_data, left, queue.r_data, queue.depth)
    bench.must(bench.holds(queue.r_rdy, queue.r_en, queue.r_data))
    bench.must(queue.w_rdy | (followed.inside + 1 >= queue.depth))
    bench.cover(followed.leaves & (followed.entry == 3))
    bench.cover(~queue.w_rdy & bench.past(followed.gone))
    return bench


@pytest.mark.parametrize("kind", [fifo.SyncFIFO, fifo.SyncFIFOBuffered])
def test_fifo_keeps_order(kind):
    bench = _fifo(kind(width=2, depth=3))
    bench.check(9)
    bench.reach(9)


class _Overruns(fifo.SyncFIFO):
    """Takes one more than it can hold."""

    def elaborate(self, platform):
        m = super().elaborate(platform)
        m.d.comb += self.w_rdy.eq(1)
        return m


def test_fifo_overrun_wrong():
    _fifo(_Overruns(width=4, depth=3)).refute(8)


def _tokens(component):
    """Any queues that take only what is there, and never let more than the limit lie."""
    bench = Bench()
    dut = bench.add(component)
    bench.surround(dut)
    counts = [[Signal(8, name=f"expected_{a}_{b}") for b in range(QUEUES)] for a in range(QUEUES)]
    for taker, port in enumerate(dut.queues):
        there = [counts[giver][taker] != 0 for giver in range(QUEUES)]
        bench.must(port.present == all_of(
            ~port.wait[giver] | there[giver] for giver in range(QUEUES)))
        bench.assume(~port.take | all_of(
            ~port.wait[giver] | there[giver] for giver in range(QUEUES)))
    for giver, row in enumerate(counts):
        for taker, count in enumerate(row):
            given = dut.queues[giver].give & dut.queues[giver].release[taker]
            taken = dut.queues[taker].take & dut.queues[taker].wait[giver]
            bench.assume(~given | (count < isa.TOKEN_LIMIT))
            bench.m.d.sync += count.eq(count + given - taken)
            bench.must(count <= isa.TOKEN_LIMIT)
            bench.must(bench.inside(dut, f"from{giver}_to{taker}") == count)  # for induction
    bench.must(dut.none == all_of(count == 0 for row in counts for count in row))
    bench.cover((counts[1][2] == 2) & (counts[2][1] == 1))
    bench.cover(dut.none & bench.past(dut.queues[3].take & dut.queues[3].wait[4]))
    return bench


def test_tokens_are_counted():
    bench = _tokens(Tokens())
    bench.prove(1)
    bench.reach(5)


class _PresentEarly(Tokens):
    """Says that there is a token where there is none."""

    def elaborate(self, platform):
        m = super().elaborate(platform)
        m.d.comb += self.queues[2].present.eq(~self.queues[2].wait[1])
        return m


class _NoneEarly(Tokens):
    """Says that no token lies, unless one is just given."""

    def elaborate(self, platform):
        m = super().elaborate(platform)
        m.d.comb += self.none.eq(~self.queues[1].give)
        return m


@pytest.mark.parametrize("broken", [_PresentEarly, _NoneEarly])
def test_tokens_wrong(broken):
    _tokens(broken()).refute(4)


def _issue(component):
    """A unit that works as units do, and tokens that come whenever and then stay."""
    bench = Bench()
    m = bench.m
    dut = bench.add(component)
    bench.surround(dut, but=("done", "tokens"))
    tokens, unit = dut.tokens, dut.unit
    m.d.comb += tokens.present.eq(bench.free(1, "present"))
    busy, ended = Signal(), Signal()  # until a clock after its word
    m.d.comb += dut.done.eq(bench.free(1, "ends") & busy & ~ended)
    m.d.sync += [busy.eq(moves(unit) | (busy & ~ended)), ended.eq(dut.done)]
    taken, sync = Signal(), Signal()  # the head's tokens; it is a Sync
    header = data.View(HEADER, unit.payload)
    m.d.comb += sync.eq(header.opcode == isa.Sync.opcode)
    # Tokens that are there stay until taken, and the head is shown for as long as it waits.
    waits = bench.past(tokens.present & ~tokens.take & ~dut.idle & ~taken)
    bench.assume(~waits | tokens.present)
    m.d.sync += taken.eq((taken | tokens.take) & ~tokens.give)
    # Each command takes its tokens once, before it starts, and gives its own once, as it ends.
    bench.must(~tokens.take | (tokens.present & ~taken & ~dut.idle))
    bench.must(~tokens.give | (sync & tokens.take) | (taken & ended))
    bench.must(~unit.valid | (~busy & ~sync & taken))
    bench.must(~taken | busy | unit.valid)
    bench.must(~(bench.past(taken & ~tokens.give)) | (bench.past(unit.payload) == unit.payload))
    bench.must((tokens.wait == header.wait) & (tokens.release == header.release))
    followed = Followed(bench, moves(dut.commands), dut.commands.payload, tokens.give,
                        Cat(unit.payload, dut.index), component.depth)
    bench.must(dut.idle | (followed.inside != 0))
    bench.cover(followed.leaves & sync)
    bench.cover(followed.leaves & ~sync)
    return bench


def test_issue_queue():
    bench = _issue(IssueQueue(3))
    bench.check(9)
    bench.reach(8)


class _GivesAtStart(IssueQueue):
    """Gives a command's tokens as the unit takes it."""

    def elaborate(self, platform):
        m = super().elaborate(platform)
        m.d.comb += self.tokens.give.eq(self.tokens.take)
        return m


class _TakesLate(IssueQueue):
    """Takes tokens when the unit has been offered the command."""

    def elaborate(self, platform):
        m = super().elaborate(platform)
        m.d.comb += self.tokens.take.eq(self.unit.valid)
        return m


@pytest.mark.parametrize("broken", [_GivesAtStart, _TakesLate])
def test_issue_queue_wrong(broken):
    _issue(broken(3)).refute(8)


def test_waiting_command_starts_after_the_one_it_waits_for():
    """Two queues and the tokens between them, for all time."""
    bench = Bench()
    m = bench.m
    tokens = bench.add(Tokens())
    queues = []
    for at in (1, 2):
        dut = bench.add(IssueQueue(2))
        bench.surround(dut, but=("done", "tokens"))
        wiring.connect(m, dut.tokens, tokens.queues[at])
        busy, ended = Signal(name=f"busy_{at}"), Signal(name=f"ended_{at}")
        m.d.comb += dut.done.eq(bench.free(1, f"ends_{at}") & busy & ~ended)
        m.d.sync += [busy.eq(moves(dut.unit) | (busy & ~ended)), ended.eq(dut.done)]
        queues.append(dut)
    first, second = queues
    bench.assume(~first.commands.valid | (_header(first).release == 1 << 2))
    bench.assume(~second.commands.valid | (_header(second).wait == 1 << 1))
    bench.assume(~second.commands.valid | (_header(second).release == 0))
    lie = bench.inside(tokens, "from1_to2")
    bench.assume(lie < isa.TOKEN_LIMIT)
    given, allowed, started = Signal(8), Signal(8), Signal(8)
    m.d.sync += [given.eq(given + first.tokens.give), allowed.eq(allowed + second.tokens.take),
                 started.eq(started + moves(second.unit))]
    bench.assume(given < 255)
    bench.must(allowed <= given)
    bench.must(~moves(second.unit) | (started < given))
    bench.cover(started == 2)
    bench.check(10)
    bench.reach(12)


def _header(queue):
    return data.View(HEADER, queue.commands.payload.word)


class Fork(wiring.Component):
    """A source for three sinks, of which some take part."""

    source: In(stream.Signature(8))
    wanted: In(3)
    sinks: Out(stream.Signature(8)).array(3)

    def elaborate(self, platform):
        m = Module()
        fork(m, self.source, self.sinks, self.wanted)
        m.d.comb += [sink.payload.eq(self.source.payload) for sink in self.sinks]
        return m


def _fork(component):
    bench = Bench()
    dut = bench.add(component)
    bench.surround(dut)
    wait = bench.past(dut.source.valid & ~dut.source.ready)
    bench.assume(~wait | (bench.past(dut.wanted) == dut.wanted))
    bench.assume(dut.wanted != 0)
    for at, sink in enumerate(dut.sinks):
        got = Signal(name=f"got_{at}")
        bench.m.d.sync += got.eq((got | moves(sink)) & ~moves(dut.source))
        bench.must(~moves(sink) | (~got & dut.wanted[at]))
        bench.must(~moves(dut.source) | ~dut.wanted[at] | got | moves(sink))
        bench.must(bench.inside(dut, "taken")[at] == got)  # for induction, as is the next
        bench.must(~got | (dut.source.valid & dut.wanted[at]))
    bench.cover(moves(dut.source) & (dut.wanted == 7) & bench.past(dut.sinks[2].ready))
    return bench


def test_fork_gives_each_sink_each_once():
    bench = _fork(Fork())
    bench.prove(2)
    bench.reach(5)


class _Twice(Fork):
    """Offers to a sink again until all have taken."""

    def elaborate(self, platform):
        m = super().elaborate(platform)
        m.d.comb += self.sinks[1].valid.eq(self.source.valid & self.wanted[1])
        return m


def test_fork_twice_wrong():
    _fork(_Twice()).refute(4)


WORD = data.StructLayout({"last": 1, "source": 2, "content": 4})


def _choice(component):
    bench = Bench()
    dut = bench.add(component)
    bench.surround(dut)
    output = dut.output
    for at, port in enumerate(dut.inputs):
        bench.assume(~port.valid | (port.payload.source == at))
        followed = Followed(bench, moves(port), port.payload,
                            moves(output) & (output.payload.source == at), output.payload, 1)
        bench.cover(followed.leaves)
    inside, source = Signal(), Signal(2)  # of a packet
    with bench.m.If(moves(output)):
        bench.m.d.sync += [inside.eq(~output.payload.last), source.eq(output.payload.source)]
    bench.must(~(output.valid & inside) | (output.payload.source == source))
    # An offer is not kept waiting for any other side's second packet.
    first, *others = dut.inputs
    waits = first.valid & ~first.ready
    for other in others:
        passed = Signal(2)
        ends = moves(other) & other.payload.last
        bench.m.d.sync += passed.eq(Cat(waits & (passed[0] | ends),
                                        waits & passed[0] & (passed[1] | ends)))
        bench.must(~passed[1])
    return bench


@pytest.mark.parametrize("count", [2, 3, 4])
def test_choice_keeps_packets_together_and_takes_turns(count):
    bench = _choice(Choice(WORD, count))
    bench.check(12)
    bench.reach(8)


class _Unlocked(Choice):
    """Changes sides inside a packet."""

    def elaborate(self, platform):
        m = super().elaborate(platform)
        for port, chosen in zip(self.inputs, (self.inputs[0].valid, ~self.inputs[0].valid),
                                strict=True):
            m.d.comb += port.ready.eq(chosen & (~self.output.valid | self.output.ready))
        with m.If(~self.output.valid | self.output.ready):
            m.d.sync += [self.output.valid.eq(self.inputs[0].valid | self.inputs[1].valid),
                         self.output.payload.eq(self.inputs[0].payload)]
            with m.If(~self.inputs[0].valid):
                m.d.sync += self.output.payload.eq(self.inputs[1].payload)
        return m


def test_choice_unlocked_wrong():
    _choice(_Unlocked(WORD, 2)).refute(8)


def _share(component):
    """Clients whose addresses say whose they are, and a reader that answers in order."""
    bench = Bench()
    m = bench.m
    dut = bench.add(component)
    bench.surround(dut, but=("beats",))
    order = bench.add(fifo.SyncFIFOBuffered(width=6, depth=3))
    request, head = dut.requests.payload, order.r_data
    bench.assume(~dut.requests.valid | (order.level < 2) | ~dut.requests.ready)
    seen = Signal(4)
    m.d.comb += [
        order.w_data.eq(Cat(request.address[:2], request.beats[:4])),
        order.w_en.eq(moves(dut.requests)),
        dut.beats.valid.eq(bench.free(1, "comes") & order.r_rdy),
        dut.beats.payload.eq(head[:2]),
        order.r_en.eq(moves(dut.beats) & (seen + 1 == head[2:])),
    ]
    bench.assume(bench.holds(dut.beats.valid, dut.beats.ready))
    with m.If(moves(dut.beats)):
        m.d.sync += seen.eq(seen + 1)
        with m.If(order.r_en):
            m.d.sync += seen.eq(0)
    for at, client in enumerate(dut.clients):
        wanted = client.requests.payload
        bench.assume(~client.requests.valid | ((wanted.address[:2] == at) & (wanted.beats != 0)
                                               & (wanted.beats < 3)))
        left = Signal(8, name=f"left_{at}")
        m.d.sync += left.eq(left + (wanted.beats[:2] & moves(client.requests).replicate(2))
                            - moves(client.beats))
        bench.must(~client.beats.valid | ((client.beats.payload == at) & (left != 0)))
        bench.cover((left == 0) & bench.past((left == 1) & (client.beats.payload == at))
                    & bench.past(bench.past(left == 2)))
    return bench


def test_share_gives_each_client_its_own():
    bench = _share(ReadShare(2, 8))
    bench.check(8)
    bench.reach(10)


class _ChangesItsMind(ReadShare):
    """Offers what the first client asks, even if another's request is on offer."""

    def elaborate(self, platform):
        m = super().elaborate(platform)
        first = self.clients[0].requests
        with m.If(first.valid):
            m.d.sync += self.requests.payload.eq(first.payload)
        return m


def test_share_changes_its_mind_wrong():
    _share(_ChangesItsMind(2, 8)).refute(6)


SMALL = replace(build("sim"), beat_bytes=16, lane_dsps=32, vector_width=4, prefetch_beats=32,
                lanes=1)


def _beat_queue(component):
    """A ring whose beats say where they lie, filled at any pace."""
    bench = Bench()
    m = bench.m
    dut = bench.add(component)
    bench.surround(dut, but=("data", "available"))
    ring = SMALL.prefetch_beats
    here = dut.read_pointer
    for _ in range(RING_LATENCY):
        here = bench.past(here)
    fill = Signal.like(dut.available, name="fill")
    m.d.comb += [dut.data.eq(here), dut.available.eq(fill)]
    fetch = dut.fetch.payload
    distance = Signal.like(dut.available)
    m.d.comb += distance.eq(dut.available - dut.read_pointer)
    more = bench.free(1, "more")
    m.d.sync += fill.eq(fill + (more & (distance < ring)))
    ahead = (dut.available - fetch.first)[:len(dut.available)]
    bench.assume(~dut.fetch.valid | ((ahead <= ring) & (fetch.beats != 0)))
    # Beats come in the order of the ring, from the first asked for, as many as asked for.
    wanted, left = Signal.like(dut.available), Signal(24)
    with m.If(moves(dut.fetch)):
        bench.assume(left == 0)  # a reader that asks when it has all it asked for
        m.d.sync += [wanted.eq(fetch.first), left.eq(fetch.beats)]
    with m.Elif(moves(dut.beats)):
        m.d.sync += [wanted.eq(wanted + 1), left.eq(left - 1)]
    bench.must(~dut.beats.valid | ((dut.beats.payload == wanted) & (left != 0)))
    bench.cover((left == 0) & bench.past((left == 1) & (wanted == 3)))
    return bench


def test_beat_queue_reads_the_ring_in_order():
    bench = _beat_queue(BeatQueue(SMALL))
    bench.check(11)
    bench.reach(16)


class _Skips(BeatQueue):
    """Reads on while its queue is not taken from, as if it had room for all."""

    def elaborate(self, platform):
        m = super().elaborate(platform)
        with m.If(self.beats.valid & ~self.beats.ready):
            m.d.sync += self.read_pointer.eq(self.read_pointer + 1)
        return m


def test_beat_queue_skips_wrong():
    _beat_queue(_Skips(SMALL)).refute(10)


def _vector_reader(component):
    """A buffer whose words say where they lie."""
    bench = Bench()
    m = bench.m
    dut = bench.add(component)
    bench.surround(dut, but=("start", "data"))
    left, wanted = Signal(8), Signal(7)
    m.d.comb += dut.start.eq(bench.free(1, "begins") & (left == 0))
    bench.assume((dut.beats != 0) & (dut.beats < 8) & ~dut.beats[0])
    at = bench.past(bench.past(dut.address.payload))
    words = [Signal(8 * WORD_BYTES, name=f"word_{part}") for part in range(2)]
    m.d.comb += [word.eq(Cat(Const(part, 1), at)) for part, word in enumerate(words)]
    m.d.comb += dut.data.eq(Cat(words))
    with m.If(dut.start):
        m.d.sync += [left.eq(dut.beats), wanted.eq(dut.first << 1)]
    with m.Elif(moves(dut.words)):
        m.d.sync += [left.eq(left - 1), wanted.eq(wanted + 1)]
    bench.must(~dut.words.valid | ((dut.words.payload[:7] == wanted) & (left != 0)))
    bench.cover((left == 0) & bench.past((left == 1) & (wanted == 11)))
    return bench


def test_vector_reader_reads_in_order():
    bench = _vector_reader(VectorReader(6, 8))
    bench.check(11)
    bench.reach(14)


class _Overtakes(VectorReader):
    """Gives the second half of a word first."""

    def elaborate(self, platform):
        m = super().elaborate(platform)
        m.d.comb += self.words.payload[0].eq(self.words.ready)
        return m


def test_vector_reader_wrong():
    _vector_reader(_Overtakes(6, 8)).refute(10)
