"""A run of any length from the front of a stream of words, each clock."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from alula.hw.choice import added
from alula.hw.ram import Ram

SHORT = 8  # units of a word, up to which sizes are added without a carry chain


class Gear(wiring.Component):
    """Hold the next two words of a stream, and give up as much of them as is taken.

    Parameters
    ----------
    bits
        Of a word.
    unit
        Bits that sizes are counted in.
    every_clock
        Take a word in every clock; else in every other one, which needs no path through here.
    foreseen
        What ``rest`` will be is known a clock before, so that whether it ``fits`` is soon known.

    Members
    -------
    words : ``In(stream of bits)``
    front : ``Out(2 * bits)``
        The two words; what is next begins ``offset`` units in.
    size, rest : ``In``
        What would be taken, from 1 to a word, and what it would leave of a word, so that there is
        nothing to be added before it is known whether it ``fits``: is there.
    take : ``In(1)``
        It is taken in this clock; only if it ``fits``, or nothing if ``size`` is 0.
    after, first : ``In``, begins : ``In(1)``; if ``foreseen``
        The next clock's ``rest``: ``first`` if ``begins``, else ``after`` a take, else this one's.
    drop : ``In(1)``
        The rest of the first word is given up. Only while ``offset`` is not 0, without ``take``.
    ready : ``Out(1)``
        The first word is there.
    """

    def __init__(self, bits, unit, *, every_clock=True, foreseen=False):
        self.bits, self.units, self.every_clock = bits, bits // unit, every_clock
        self.foreseen = foreseen
        rest = In(range(self.units + 1))
        super().__init__({
            **({"after": rest, "first": rest, "begins": In(1)} if foreseen else {}),
            "words": In(stream.Signature(bits)), "front": Out(2 * bits),
            "offset": Out(range(self.units)), "size": In(range(self.units + 1)),
            "rest": In(range(self.units + 1)), "fits": Out(1),
            "take": In(1), "drop": In(1), "ready": Out(1)})

    def elaborate(self, platform):
        m = Module()
        first, second = (Signal(self.bits, name=name, reset_less=True)
                         for name in ("first", "second"))
        has_first, has_second, shift = Signal(), Signal(), Signal()
        end = Signal(range(2 * self.units))  # of what would be taken, less than two words
        over, beyond = Signal(), Signal()  # it takes all of the first word, some of the second
        m.d.comb += [
            self.front.eq(Cat(first, second)), self.ready.eq(has_first),
            end.eq(added(self.offset, self.size) if self.units <= SHORT
                   else self.offset + self.size),
            over.eq(self.offset >= self.rest),
            self.fits.eq(has_first & (has_second | ~beyond)),
            shift.eq(~has_first | self.drop | (self.take & over)),
            self.words.ready.eq(~has_second | (shift if self.every_clock else 0)),
        ]
        if self.foreseen:
            ends = end[:len(self.offset)]  # the next offset, after a take
            m.d.sync += beyond.eq(~self.drop & Mux(
                self.begins, Mux(self.take, ends > self.first, self.offset > self.first),
                Mux(self.take, ends > self.after, beyond)))
        else:
            m.d.comb += beyond.eq(self.offset > self.rest)
        with m.If(self.take):
            m.d.sync += self.offset.eq(end)
        with m.Elif(self.drop):
            m.d.sync += self.offset.eq(0)
        with m.If(shift):
            m.d.sync += [first.eq(second), has_first.eq(has_second), has_second.eq(0)]
        with m.If(self.words.ready):
            m.d.sync += [second.eq(self.words.payload), has_second.eq(self.words.valid)]
        return m


class WordQueue(wiring.Component):
    """Words that wait, in a memory; a word may be read some clocks after it is written.

    Nothing is written to a full queue.

    Members
    -------
    write : ``In(1)``, data : ``In(bits)``
    words : ``Out(stream of bits)``
    """

    def __init__(self, bits, depth):
        self.bits, self.depth = bits, depth
        super().__init__({"write": In(1), "data": In(bits),
                          "words": Out(stream.Signature(bits))})

    def elaborate(self, platform):
        m = Module()
        m.submodules.held = held = Ram(shape=self.bits, depth=self.depth, passive=True)
        write, read = held.write_port(), held.read_port()
        begin, end = Signal(range(self.depth)), Signal(range(self.depth))
        look = Signal()
        m.d.comb += [
            write.addr.eq(end), write.data.eq(self.data), write.en.eq(self.write),
            look.eq((begin != end) & (~self.words.valid | self.words.ready)),
            read.addr.eq(begin), read.en.eq(look), self.words.payload.eq(read.data),
        ]
        with m.If(self.write):
            m.d.sync += end.eq(end + 1)
        with m.If(look):
            m.d.sync += [begin.eq(begin + 1), self.words.valid.eq(1)]
        with m.Elif(self.words.ready):
            m.d.sync += self.words.valid.eq(0)
        return m
