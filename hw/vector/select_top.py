"""SelectTop: keep each row's sixteen best logits."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, fifo, wiring
from amaranth.lib.wiring import In, Out

from alula.hw import fp, isa
from alula.hw.formats import COMMAND_BITS, instruction_layout
from alula.hw.isa import TOP_K
from alula.hw.layout import NO_TOKEN
from alula.hw.pipe import Pipe
from alula.hw.ram import Ram
from alula.hw.vector.buffers import (
    READ_LATENCY,
    address_bits,
    first_word,
    log2,
    row_words,
    tail_mask,
    words_of,
)

_DEPTH = 16  # words with candidates that wait
_ON_THE_WAY = 6  # words from asking to waiting
ENTRY = data.StructLayout({"value": 32, "token": 32})
NOTHING = fp.to_bits(float("-inf")) | NO_TOKEN << 32


class Best(wiring.Component):
    """One row's best entries in order: value descending, then token ascending.

    Members
    -------
    shift : ``In(1)``
        Drop the best entry and append ``entry``; sixteen of them load a list, or read it out.
    insert : ``In(1)``
        Put ``entry`` in its place, if it has one.
    entry : ``In(ENTRY)``
    best, worst : ``Out(ENTRY)``
        The first and the last.
    """

    shift: In(1)
    insert: In(1)
    entry: In(ENTRY)
    best: Out(ENTRY)
    worst: Out(ENTRY)

    def elaborate(self, platform):
        m = Module()
        entries = [Signal(ENTRY, name=f"entry_{i}") for i in range(TOP_K)]
        beats = Signal(TOP_K)  # entry comes before the one kept; ones from some place on
        key = Signal(32)
        m.d.comb += key.eq(fp.order(self.entry.value))
        for i, kept in enumerate(entries):
            order = Signal(32, name=f"order_{i}")
            m.d.comb += [order.eq(fp.order(kept.value)),
                         beats[i].eq(Cat(~self.entry.token, key[:31], ~key[31])
                                     > Cat(~kept.token, order[:31], ~order[31]))]
        for i, kept in enumerate(entries):
            with m.If(self.shift):
                m.d.sync += kept.eq(entries[i + 1] if i + 1 < TOP_K else self.entry)
            with m.Elif(self.insert & beats[i]):
                if i:
                    m.d.sync += kept.eq(Mux(beats[i - 1], entries[i - 1].as_value(),
                                            self.entry.as_value()))
                else:
                    m.d.sync += kept.eq(self.entry)
        m.d.comb += [self.best.eq(entries[0]), self.worst.eq(entries[-1])]
        return m


class SelectTop(wiring.Component):
    """A word a clock, more where there are candidates, and about 50 clocks for each row.

    Members
    -------
    start : ``In(1)``
        One clock; ``command`` and ``rows`` hold from then until ``finished``.
    read_address, read_data : of the vector buffer
    top_row, top_index, top_value, top_token : the lists
        Data ``READ_LATENCY`` clocks after the address, while no command runs.
    finished : ``Out(1)``
        One clock; the lists are complete.
    """

    def __init__(self, arch):
        self.arch = arch
        super().__init__({
            "start": In(1), "command": In(COMMAND_BITS), "rows": In(range(arch.rows + 1)),
            "read_address": Out(address_bits(arch)), "read_data": In(32 * arch.vector_width),
            "top_row": In(range(arch.rows)), "top_index": In(range(TOP_K)),
            "top_value": Out(32), "top_token": Out(32), "finished": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        arch = self.arch
        insn = data.View(instruction_layout(isa.SelectTop), self.command)
        row, base = Signal(range(arch.rows)), Signal(address_bits(arch))
        index, wait = Signal(range(TOP_K)), Signal(range(2 * TOP_K))
        m.submodules.best = best = Best()
        loading, storing, clear = Signal(), Signal(), Signal()
        idle = Signal()
        self._lists(m, best, idle, row, index, storing, clear)
        scan, scanned, quiet = Signal(), Signal(), Signal()
        count, first = Signal(20), Signal(32)
        self._scan(m, insn, best, base, count, first, scan, scanned, quiet)
        loads = Pipe(m)
        loaded = loads.at(loads.input(loading, reset=True), READ_LATENCY)
        m.d.comb += best.shift.eq(loaded | storing)
        with m.If(loaded):
            m.d.comb += [best.entry.value.eq(self.top_value), best.entry.token.eq(self.top_token)]
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += idle.eq(1)
                m.d.sync += [row.eq(0), base.eq(0), index.eq(0), first.eq(insn.offset)]
                with m.If(self.start):
                    m.next = "COUNT"
            with m.State("COUNT"):
                room = Signal(33)
                m.d.comb += [clear.eq(insn.clear), room.eq(insn.limit - insn.offset)]
                m.d.sync += [first.eq(insn.offset), count.eq(Mux(
                    insn.offset >= insn.limit, 0, Mux(room < insn.size, room, insn.size)))]
                m.next = "BEGIN"
            with m.State("BEGIN"):
                m.next = "LOAD"
                with m.If(count == 0):
                    m.d.comb += self.finished.eq(1)
                    m.next = "IDLE"
            with m.State("LOAD"):
                m.d.comb += loading.eq(1)
                m.d.sync += [index.eq(index + 1), wait.eq(0)]
                with m.If(index == TOP_K - 1):
                    m.next = "LOADED"
            with m.State("LOADED"):
                m.d.sync += wait.eq(wait + 1)
                with m.If(wait == READ_LATENCY):
                    m.next = "SCAN"
            with m.State("SCAN"):
                m.d.comb += scan.eq(1)
                m.d.sync += wait.eq(0)
                with m.If(scanned):
                    m.next = "DRAIN"
            with m.State("DRAIN"):
                with m.If(wait != _ON_THE_WAY + 2):
                    m.d.sync += wait.eq(wait + 1)
                with m.Elif(quiet):
                    m.next = "STORE"
            with m.State("STORE"):
                m.d.comb += storing.eq(1)
                m.d.sync += index.eq(index + 1)
                with m.If(index == TOP_K - 1):
                    m.d.sync += [row.eq(row + 1), base.eq(base + row_words(arch))]
                    m.next = "LOAD"
                    with m.If(row + 1 == self.rows):
                        m.d.comb += self.finished.eq(1)
                        m.next = "IDLE"
        return m

    def _lists(self, m, best, idle, row, index, storing, clear):
        """Keep all rows' lists in a memory; what was cleared reads as nothing."""
        arch = self.arch
        depth = TOP_K << (arch.rows - 1).bit_length()
        m.submodules.lists = lists = Ram(shape=64, depth=depth, passive=True)
        read, write = lists.read_port(), lists.write_port()
        fresh, was_fresh = Signal(arch.rows, init=~0), Signal()
        wanted = Signal(range(arch.rows))
        entry = Signal(64)
        m.d.comb += [
            wanted.eq(Mux(idle, self.top_row, row)),
            read.addr.eq(Cat(Mux(idle, self.top_index, index), wanted)),
            write.addr.eq(Cat(index, row)),
            write.data.eq(best.best.as_value()),
            write.en.eq(storing),
            self.top_value.eq(entry[:32]), self.top_token.eq(entry[32:]),
        ]
        m.d.sync += [was_fresh.eq(fresh.bit_select(wanted, 1)),
                     entry.eq(Mux(was_fresh, NOTHING, read.data))]
        with m.If(clear):
            m.d.sync += fresh.eq(~0)
        with m.If(storing):
            m.d.sync += fresh.bit_select(row, 1).eq(0)

    def _scan(self, m, insn, best, base, count, first, scan, scanned, quiet):
        """Ask for a row's words, and insert those that may be among the best."""
        arch, width = self.arch, self.arch.vector_width
        m.submodules.waiting = waiting = fifo.SyncFIFO(width=32 + 33 * width, depth=_DEPTH)
        word, words, asks, last = Signal(20), Signal(20), Signal(), Signal()
        m.d.comb += [
            words.eq(words_of(arch, count)),
            last.eq(word + 1 == words),
            asks.eq(scan & (waiting.level < _DEPTH - _ON_THE_WAY)),
            scanned.eq(asks & last),
            self.read_address.eq(base + word + first_word(arch, insn.source)),
        ]
        with m.If(asks):
            m.d.sync += word.eq(Mux(last, 0, word + 1))
        p = Pipe(m)
        x = p.input(self.read_data, READ_LATENCY)
        mask = p.input(Mux(last, tail_mask(arch, count), ~0)[:width])
        token = p.apply(lambda word: first + (word << log2(width)), p.input(word), shape=32)
        worst = p.input(best.worst.as_value(), READ_LATENCY + 1)
        earlier = p.apply(lambda token, worst: token < worst[32:], token, worst, latency=0)
        hits = []
        for i in range(width):
            value = p.apply(lambda x, i=i: x.word_select(i, 32), x, latency=0)
            key = p.apply(fp.order, value)
            number = p.apply(lambda x: ~fp.is_nan(x), value)
            hits.append(p.apply(
                lambda key, number, mask, worst, earlier, i=i: mask[i] & number & (
                    (key > fp.order(worst[:32])) | ((key == fp.order(worst[:32])) & earlier)),
                key, number, mask, worst, earlier))
        asked, token, x, *hits = p.together(p.input(asks, reset=True), token, x, *hits)
        hit = Signal(width)
        m.d.comb += [hit.eq(Cat(*hits)), waiting.w_en.eq(asked & hit.any()),
                     waiting.w_data.eq(Cat(token, hit, x))]
        self._insert(m, best, waiting, quiet)

    def _insert(self, m, best, waiting, quiet):
        """Take a candidate each clock from the words that wait."""
        width = self.arch.vector_width
        token, hit, x = Signal(32), Signal(width), Signal(32 * width)
        place, rest = Signal(range(width)), Signal(width)
        valid, value, number = Signal(), Signal(32), Signal(32)
        for i in reversed(range(width)):
            with m.If(hit[i]):
                m.d.comb += place.eq(i)
        m.d.comb += [rest.eq(hit & (hit - 1)), waiting.r_en.eq(rest == 0),
                     quiet.eq((hit == 0) & ~valid & ~waiting.r_rdy)]
        m.d.sync += [valid.eq(hit != 0), value.eq(x.word_select(place, 32)),
                     number.eq(token + place), hit.eq(rest)]
        with m.If(waiting.r_en):
            m.d.sync += [token.eq(waiting.r_data[:32]), x.eq(waiting.r_data[32 + width:]),
                         hit.eq(Mux(waiting.r_rdy, waiting.r_data[32:32 + width], 0))]
        with m.If(valid):
            m.d.comb += [best.insert.eq(1), best.entry.value.eq(value),
                         best.entry.token.eq(number)]
