"""The pages that a lane attends to, in the order that they are fetched and used."""

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from alula.hw import isa, layout
from alula.hw.choice import choose
from alula.hw.numerics import PAGE_CLASSES, PAGE_TOKENS
from alula.hw.step import POSITION_BITS, row_bits, row_layout

PAGE_BITS = POSITION_BITS - ceil_log2(PAGE_TOKENS)
HEAD_BITS = 8
UNIT_BITS = HEAD_BITS + ceil_log2(PAGE_CLASSES)
_CLASS = ceil_log2(PAGE_CLASSES)
_TOKENS = ceil_log2(PAGE_TOKENS)


def item_layout(arch):
    """A page of one head for the rows of one root."""
    return data.StructLayout({
        "head": HEAD_BITS,
        "leaf": _CLASS,  # the page's class is CLASS_ORDER[leaf]
        "low": _CLASS, "high": _CLASS,  # first and last leaf of this head in this lane
        "index": UNIT_BITS,  # of (head, class) among the lane's
        "root": row_bits(arch),
        "page": PAGE_BITS,
        "tokens": range(PAGE_TOKENS + 1),  # in the cache
        "first": 1,  # page of its class for this root
        "last": 1,
        "unit_end": 1,  # the last item of this head and class
        "end": 1,  # no item: there are no more
    })


def first_units(arch, lane, kv_heads):
    """Return a lane's first unit and the next lane's, ``ceil(lane * units / lanes)``."""
    number = lane * layout.units(kv_heads) + arch.lanes - 1
    return [_by_lanes(arch, total) for total in (number, number + layout.units(kv_heads))]


def _by_lanes(arch, number):
    """Return a number divided by the lanes, by a multiplication."""
    shift = len(number) + ceil_log2(arch.lanes)
    return (number * -(-(1 << shift) // arch.lanes)) >> shift


def tokens_before(position, page):
    """Return how many of a page's tokens are before a position."""
    its_page, offset = position[_TOKENS:], position[:_TOKENS]
    return Mux(its_page > page, PAGE_TOKENS, Mux(its_page == page, offset, 0))


class PageWalk(wiring.Component):
    """List the pages of each (head, class) of a lane and each root: classes in their tree's order.

    A class that no row of the step has a page of is passed over. If a row has one, each root has
    an item of it, which may have no token. The last item only says that it is the last.

    Members
    -------
    start : ``In(1)``
        Begin again; ``kv_heads`` is read then.
    lane, rows, part, table
        Steady until the end. Items are of roots that have a member in ``part`` of the rows.
    top : ``Out``
        The last page of any row, from the first item until the next start.
    items : ``Out(stream of item_layout)``
    """

    def __init__(self, arch):
        self.arch = arch
        super().__init__({
            "start": In(1),
            "kv_heads": In(HEAD_BITS),
            "lane": In(range(arch.lanes)),
            "rows": In(range(arch.rows + 1)),
            "part": In(isa.HEADER_BITS["rows"]),
            "table": In(row_layout(arch)).array(arch.rows),
            "top": Out(PAGE_BITS),
            "items": Out(stream.Signature(item_layout(arch))),
        })

    def elaborate(self, platform):
        m = Module()
        arch = self.arch
        unit, stop, first = Signal(UNIT_BITS + 1), Signal(UNIT_BITS + 1), Signal(UNIT_BITS + 1)
        row, page = Signal(range(arch.rows + 1)), Signal(PAGE_BITS + 1)
        leaf, head = unit[:_CLASS], unit[_CLASS:]
        page_class = Array(Const(number, _CLASS) for number in layout.CLASS_ORDER)[leaf]
        here = Signal(row_layout(arch))
        later_root = Signal()  # some later row is a root
        half = (1 << isa.half(arch.rows)) - 1
        wanted = Signal(arch.rows)  # rows
        m.d.comb += wanted.eq(Mux(self.part == isa.Rows.FIRST, half,
                                  Mux(self.part == isa.Rows.SECOND, ~half, -1)))
        top = self.top
        item = self.items.payload
        first_leaf, last_leaf = head << _CLASS, (head << _CLASS) + PAGE_CLASSES - 1
        offers, end = Signal(), Signal()  # registers: who takes items decides by them at once
        m.d.comb += [self.items.valid.eq(offers), item.end.eq(end)]
        m.d.sync += here.eq(choose(row, [entry.as_value() for entry in self.table]))
        m.d.comb += [
            later_root.eq(Cat((entry.root == at) & (at > row) & (at < self.rows)
                              & (entry.members & wanted).any()
                              for at, entry in enumerate(self.table)).any()),
            item.head.eq(head), item.leaf.eq(leaf),
            item.low.eq(Mux(first > first_leaf, first - first_leaf, 0)),
            item.high.eq(Mux(stop <= last_leaf, stop - 1 - first_leaf, PAGE_CLASSES - 1)),
            item.index.eq(unit - first),
            item.root.eq(row), item.page.eq(page),
            item.tokens.eq(tokens_before(here.base, page)),
            item.first.eq(page < PAGE_CLASSES),
            item.last.eq(page + PAGE_CLASSES > here.last >> _TOKENS),
            item.unit_end.eq(item.last & ~later_root),
        ]
        begins, stops = first_units(arch, self.lane, self.kv_heads)
        with m.FSM():
            with m.State("idle"):
                m.d.sync += [unit.eq(begins), stop.eq(stops), row.eq(0)]
                with m.If(self.start):
                    m.d.sync += top.eq(0)
                    m.next = "top"
            with m.State("top"):
                m.d.sync += [row.eq(row + 1), first.eq(unit)]
                with m.If((row != 0) & (here.last >> _TOKENS > top)):  # of the row before
                    m.d.sync += top.eq(here.last >> _TOKENS)
                with m.If(row == self.rows):
                    m.next = "unit"
            with m.State("unit"):
                m.d.sync += [row.eq(0), page.eq(page_class)]
                with m.If(unit == stop):
                    m.next = "last"
                with m.Elif(page_class > top):
                    m.d.sync += unit.eq(unit + 1)
                with m.Else():
                    m.next = "look up"
            with m.State("look up"):
                m.next = "judge"
            with m.State("judge"):  # whether the row is a root with a member
                m.d.sync += offers.eq((here.root == row) & (here.members & wanted).any())
                m.next = "item"
            with m.State("item"):
                with m.If(~offers):
                    m.d.sync += row.eq(row + 1)
                    m.next = "look up"
                with m.Elif(self.items.ready):
                    m.d.sync += page.eq(page + PAGE_CLASSES)
                    with m.If(item.last):
                        m.d.sync += [row.eq(row + 1), page.eq(page_class), offers.eq(0)]
                        m.next = "look up"
                    with m.If(item.unit_end):
                        m.d.sync += unit.eq(unit + 1)
                        m.next = "unit"
            with m.State("last"):  # until what is offered stays
                m.d.sync += [offers.eq(1), end.eq(1)]
                m.next = "end"
            with m.State("end"):
                with m.If(self.items.ready):
                    m.d.sync += [offers.eq(0), end.eq(0)]
                    m.next = "idle"
        return m
