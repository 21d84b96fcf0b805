"""The rows of a step: read from the step table, kept, advanced, and told to every lane."""

from amaranth.hdl import Array, Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from alula.hw import layout
from alula.hw.axi import ADDRESS_BITS, REQUEST
from alula.hw.formats import record_layout
from alula.hw.isa import WORD_BYTES
from alula.hw.numerics import PAGE_TOKENS

POSITION_BITS = 20
SLOT_BITS = 24
SEQUENCE_BITS = 16
TOKEN_BITS = 32
_PAGE = ceil_log2(PAGE_TOKENS)
_SLOTS_IN_WORD = WORD_BYTES // 4


def row_bits(arch):
    return ceil_log2(max(arch.rows, 2))


def row_layout(arch):
    """What units know of a row of the step."""
    return data.StructLayout({
        "token": TOKEN_BITS,
        "position": POSITION_BITS,
        "base": POSITION_BITS,  # position of its root; the cache holds what is before
        "last": POSITION_BITS,  # if it is a root: the largest position of its members
        "root": row_bits(arch),  # its first ancestor in the step, or itself
        "members": arch.rows,  # if it is a root: the rows whose root it is
        "chain": row_bits(arch) * arch.rows,  # its ancestors, the root first, then itself
        "placed": 1,  # key and value go to `place`, not to the place of its position
        "place": SLOT_BITS + _PAGE,  # slot, then token of the page
        "wants": 1,  # logits
        "sequence": SEQUENCE_BITS,
        "pages": ceil_log2(arch.page_entries),  # where the lanes keep the places of its pages
    })


def row_port(arch):
    """A row told to the lanes. No backpressure."""
    return data.StructLayout({
        "valid": 1, "index": row_bits(arch), "row": row_layout(arch)})


def slot_port(arch):
    """The cache slot of a page told to the lanes. No backpressure."""
    return data.StructLayout({
        "valid": 1, "entry": ceil_log2(arch.page_entries), "slot": SLOT_BITS})


HEADER = record_layout(layout.STEP_HEADER)
ROW = record_layout(layout.STEP_ROW)
_HEADER_WORDS = layout.STEP_HEADER.itemsize // WORD_BYTES
_ROW_WORDS = layout.STEP_ROW.itemsize // WORD_BYTES
assert _HEADER_WORDS == _ROW_WORDS == 2


class StepTable(wiring.Component):
    """Keep the step's header and rows.

    Members
    -------
    read : ``In(stream of address)``
        Read a step table, at this byte address of the control memory.
    advance : ``In(stream of nothing)``
        Give each row its best token and the next position.
    done : ``Out(1)``
        A pulse when either has ended, and the lanes know.
    error : ``Out(1)``
        A pulse instead of ``done``: the table breaks a rule.
    base : ``In(64)``
        Address of the control memory, which page tables are relative to.
    requests, words
        To and from the reader of the control memory.
    rows, repeats, head, slot_words
        The header's.
    top : ``Out``
        The last page of any row.
    table : the rows
    row, slot
        What is told to the lanes.
    top_row, top_token
        Best token of a row, three clocks after it is asked for.
    """

    def __init__(self, arch):
        self.arch = arch
        row = row_layout(arch)
        super().__init__({
            "read": In(stream.Signature(ADDRESS_BITS)),
            "advance": In(stream.Signature(0)),
            "done": Out(1),
            "error": Out(1),
            "base": In(ADDRESS_BITS),
            "requests": Out(stream.Signature(REQUEST)),
            "words": In(stream.Signature(8 * WORD_BYTES)),
            "rows": Out(range(arch.rows + 1)),
            "repeats": Out(20),
            "head": Out(1),
            "slot_words": Out(32),
            "top": Out(POSITION_BITS - _PAGE),
            "table": Out(row).array(arch.rows),
            "row": Out(row_port(arch)),
            "slot": Out(slot_port(arch)),
            "top_row": Out(row_bits(arch)),
            "top_token": In(TOKEN_BITS),
        })

    def elaborate(self, platform):
        m = Module()
        arch = self.arch
        header = Signal(HEADER)
        # A row's or the header's two words; the second is a row's.
        first, last_word = Signal(8 * WORD_BYTES), Signal(8 * WORD_BYTES)
        second = Signal()
        at = Signal(range(arch.rows + 1))
        bad, legal = Signal(), Signal()  # some row; the header
        crowded, follows = Signal(), Signal()  # too many pages; a row of another's group
        address = Signal(ADDRESS_BITS)
        table = Array(self.table)
        entry, entries = Signal(range(arch.page_entries + 1)), Signal(POSITION_BITS)
        slots, part = Signal(8 * WORD_BYTES), Signal(range(_SLOTS_IN_WORD))
        wait = Signal(2)
        is_last = Signal()
        m.d.comb += [
            is_last.eq(at + 1 == self.rows),
            self.rows.eq(header.rows), self.repeats.eq(header.repeats),
            self.head.eq(header.head), self.slot_words.eq(header.slot_words),
            self.top_row.eq(at),
        ]
        here, held = Signal(row_layout(arch)), Signal(row_layout(arch))  # row ``at``, and later
        m.d.comb += here.eq(table[at])
        m.d.sync += held.eq(here)
        record = data.View(ROW, Cat(first, last_word))
        fresh, sound = self._row(m, record, table, at)
        pages = Signal(POSITION_BITS)
        m.d.sync += [
            legal.eq((header.rows >= 1) & (header.rows <= arch.rows) & (header.repeats >= 1)
                     & (header.repeats < 1 << len(self.repeats))),
            crowded.eq(bad | (entry + pages > arch.page_entries)), follows.eq(held.root != at)]

        with m.FSM():
            with m.State("idle"):
                m.d.sync += [second.eq(0), at.eq(0), entry.eq(0), bad.eq(0), wait.eq(0)]
                m.d.comb += self.read.ready.eq(self.requests.ready)
                with m.If(self.read.valid):
                    m.d.comb += self._ask(self.read.payload, _HEADER_WORDS)
                    m.d.sync += address.eq(self.read.payload)
                    with m.If(self.requests.ready):
                        m.next = "header"
                with m.Elif(self.advance.valid):
                    m.d.comb += self.advance.ready.eq(1)
                    m.next = "advance"
            with m.State("header"):
                m.d.comb += self.words.ready.eq(1)
                with m.If(self.words.valid):
                    m.d.sync += [first.eq(self.words.payload), second.eq(1)]
                    with m.If(second):
                        m.d.sync += [header.eq(Cat(first, self.words.payload)), second.eq(0)]
                        m.next = "judge"
            with m.State("judge"):
                m.next = "check"
            with m.State("check"):
                m.d.comb += self._ask(address + layout.STEP_HEADER.itemsize,
                                      header.rows * _ROW_WORDS)
                m.d.comb += self.requests.valid.eq(legal)
                with m.If(~legal):
                    m.d.comb += self.error.eq(1)
                    m.next = "idle"
                with m.Elif(self.requests.ready):
                    m.next = "rows"
            with m.State("rows"):
                m.d.comb += self.words.ready.eq(1)
                with m.If(self.words.valid):
                    m.d.sync += second.eq(~second)
                    with m.If(second):
                        m.d.sync += last_word.eq(self.words.payload)
                        m.next = "parent"
                    with m.Else():
                        m.d.sync += first.eq(self.words.payload)
            with m.State("parent"):
                m.next = "row"
            with m.State("row"):
                m.d.sync += [table[at].eq(fresh), bad.eq(bad | ~sound),
                             at.eq(Mux(is_last, 0, at + 1))]
                with m.If(fresh.root != at):
                    m.d.sync += table[fresh.root].members.eq(
                        table[fresh.root].members | (1 << at))
                    with m.If(fresh.position > table[fresh.root].last):
                        m.d.sync += table[fresh.root].last.eq(fresh.position)
                m.next = "rows"
                with m.If(is_last):
                    m.next = "look up"
            with m.State("look up"):
                m.next = "size"
            with m.State("size"):
                m.d.sync += [
                    pages.eq(((held.last + self.repeats - 1) >> _PAGE) + 1),
                    address.eq(self.base + ((header.pages + held.sequence * header.page_stride)
                                            << ceil_log2(WORD_BYTES)))]
                m.next = "count"
            with m.State("count"):
                m.next = "group"
            with m.State("group"):
                m.d.sync += entries.eq(pages)
                with m.If(crowded):
                    m.d.comb += self.error.eq(1)
                    m.next = "idle"
                with m.Elif(follows):
                    m.d.sync += at.eq(Mux(is_last, 0, at + 1))
                    m.next = "look up"
                    with m.If(is_last):
                        m.next = "tell"
                with m.Else():
                    m.d.comb += self._ask(
                        address, (pages + _SLOTS_IN_WORD - 1) >> ceil_log2(_SLOTS_IN_WORD))
                    with m.If(self.requests.ready):
                        m.d.sync += table[at].pages.eq(entry)
                        m.next = "pages"
            with m.State("pages"):
                m.d.comb += self.words.ready.eq(1)
                m.d.sync += [slots.eq(self.words.payload), part.eq(0)]
                with m.If(self.words.valid):
                    m.next = "slots"
            with m.State("slots"):
                m.d.comb += [self.slot.valid.eq(1), self.slot.entry.eq(entry),
                             self.slot.slot.eq(slots[:32])]
                m.d.sync += [slots.eq(slots >> 32), part.eq(part + 1), entry.eq(entry + 1),
                             entries.eq(entries - 1)]
                with m.If(entries == 1):
                    m.d.sync += at.eq(Mux(is_last, 0, at + 1))
                    m.next = "look up"
                    with m.If(is_last):
                        m.next = "tell"
                with m.Elif(part == _SLOTS_IN_WORD - 1):
                    m.next = "pages"
            with m.State("advance"):
                m.d.sync += wait.eq(wait + 1)
                with m.If(wait == 3):
                    best = self.top_token
                    m.d.sync += [
                        table[at].token.eq(Mux(best == layout.NO_TOKEN, 0, best)),
                        table[at].position.eq(here.position + 1),
                        table[at].base.eq(here.position + 1),
                        table[at].last.eq(here.position + 1),
                        table[at].placed.eq(0),
                        at.eq(Mux(is_last, 0, at + 1)),
                    ]
                    with m.If(is_last):
                        m.next = "tell"
            with m.State("tell"):
                m.d.comb += [self.row.valid.eq(1), self.row.index.eq(at), self.row.row.eq(here)]
                # A row of a group uses its root's pages.
                m.d.comb += self.row.row.pages.eq(table[here.root].pages)
                m.d.sync += at.eq(at + 1)
                with m.If((at == 0) | ((here.last >> _PAGE) > self.top)):
                    m.d.sync += self.top.eq(here.last >> _PAGE)
                with m.If(is_last):
                    m.d.comb += self.done.eq(1)
                    m.next = "idle"
        return m

    def _ask(self, address, words):
        return [self.requests.valid.eq(1), self.requests.payload.address.eq(address),
                self.requests.payload.beats.eq(words)]

    def _row(self, m, record, table, at):
        """Return the row that a record describes, and whether it keeps the rules."""
        arch = self.arch
        bits = row_bits(arch)
        fresh, parent = Signal(row_layout(arch)), Signal(row_layout(arch))
        is_root, sound = Signal(), Signal()
        m.d.sync += parent.eq(table[record.parent[:bits]])
        depth = Signal(range(arch.rows + 1))
        m.d.comb += [
            is_root.eq(record.parent[-1]),
            depth.eq(record.position - fresh.base),
            fresh.token.eq(record.token),
            fresh.position.eq(record.position),
            fresh.last.eq(record.position),
            fresh.base.eq(Mux(is_root, record.position, parent.base)),
            fresh.root.eq(Mux(is_root, at, parent.root)),
            fresh.members.eq(Mux(is_root, 1 << at, 0)),
            fresh.placed.eq(record.place != layout.PLACE_BY_POSITION),
            fresh.place.eq(record.place),
            fresh.wants.eq(record.flags & layout.WANTS_LOGITS),
            fresh.sequence.eq(record.sequence),
            fresh.chain.eq(Mux(is_root, 0, parent.chain)),
            sound.eq((record.position < 1 << POSITION_BITS)
                     & (record.sequence < 1 << SEQUENCE_BITS) & (is_root | (
                (record.parent < at) & (record.position == parent.position + 1)))),
        ]
        chain = Array(fresh.chain[bits * place:bits * (place + 1)] for place in range(arch.rows))
        m.d.comb += chain[depth].eq(at)
        return fresh, sound
