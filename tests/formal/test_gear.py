"""What leaves the front of a weight stream is what came: nothing is lost, doubled or moved."""

import pytest
from amaranth.hdl import Cat, Mux, Signal
from amaranth.lib import data
from prove import Bench, Followed

from alula.hw.lane.codequeue import CodeQueue
from alula.hw.lane.gear import Gear, WordQueue

UNITS = 4  # of a word


def _gear(gear):
    """Follow any one unit of any word from where it comes in to where it is taken."""
    bench = Bench()
    m = bench.m
    bench.add(gear)
    units = gear.units
    valid, word = bench.free(1), bench.free(gear.bits)
    take, drop, size = bench.free(1), bench.free(1), bench.free(len(gear.size))
    if gear.foreseen:  # sizes are as foretold
        after, first = (bench.free(len(size), name) for name in ("after", "first"))
        begins, rest = bench.free(1, "begins"), Signal.like(gear.rest, init=units - 1)
        bench.assume((after < units) & (first < units) & (size == units - rest))
        m.d.comb += [gear.after.eq(after), gear.first.eq(first), gear.begins.eq(begins)]
        m.d.sync += rest.eq(Mux(begins, first, Mux(take, after, rest)))
    m.d.comb += [gear.words.valid.eq(valid), gear.words.payload.eq(word), gear.take.eq(take),
                 gear.drop.eq(drop), gear.size.eq(size), gear.rest.eq(units - size)]
    bench.assume((size != 0) & (size <= units))
    bench.assume(~take | gear.fits)
    bench.assume(~drop | ((gear.offset != 0) & ~take))
    entered = valid & gear.words.ready
    gone, inside = Signal(range(2 * units)), Signal(range(3 * units + 1))
    m.d.comb += gone.eq(Mux(take, size, Mux(drop, units - gear.offset, 0)))
    m.d.sync += inside.eq(inside + Mux(entered, units, 0) - gone)
    bench.must(gone <= inside)
    bench.must(inside <= 2 * units)
    bench.must(~gear.fits | (size <= inside))
    bench.must(gear.fits | (inside <= units) | (size == 0))

    mark, place = bench.free(1), bench.free(len(gear.offset))
    followed, ahead, unit = Signal(), Signal(range(3 * units)), Signal()
    here = gear.front.bit_select(gear.offset + ahead, 1)
    bench.must(~(followed & take & (ahead < size)) | (here == unit))
    with m.If(followed):
        m.d.sync += ahead.eq(ahead - gone)
        with m.If(ahead < gone):
            m.d.sync += followed.eq(0)
    with m.Elif(mark & entered):
        m.d.sync += [followed.eq(1), ahead.eq(inside - gone + place),
                     unit.eq(word.bit_select(place, 1))]
    bench.cover(followed & take & (ahead + 1 == size) & (gear.offset == 3) & (size == 3))
    bench.cover(followed & drop & bench.past(take))
    return bench


@pytest.mark.parametrize("every_clock, foreseen", [(False, False), (True, False), (False, True)])
def test_gear_gives_what_came(every_clock, foreseen):
    bench = _gear(Gear(UNITS, 1, every_clock=every_clock, foreseen=foreseen))
    bench.check(9)
    bench.reach(9)


class _TakesOneMore(Gear):
    """Goes on to the next word a unit late."""

    def elaborate(self, platform):
        m = super().elaborate(platform)
        m.d.comb += self.fits.eq(self.ready)
        return m


def test_gear_wrong():
    _gear(_TakesOneMore(UNITS, 1)).refute(10)


def _queue(queue):
    """Words come out as they went in, if no more than it can hold are inside."""
    bench = Bench()
    m = bench.m
    bench.add(queue)
    write, data, ready = bench.free(1), bench.free(queue.bits), bench.free(1)
    m.d.comb += [queue.write.eq(write), queue.data.eq(data), queue.words.ready.eq(ready)]
    followed = Followed(bench, write, data, queue.words.valid & ready, queue.words.payload,
                        queue.depth)
    bench.assume(~write | (followed.inside < queue.depth - 1))
    bench.cover(followed.leaves & (followed.entry == 1))
    return bench


def test_words_keep_order():
    bench = _queue(WordQueue(2, 4))
    bench.check(9)
    bench.reach(9)


class _Overwrites(WordQueue):
    """Writes where it reads."""

    def elaborate(self, platform):
        m = super().elaborate(platform)
        m.d.comb += m.submodules.held._write.addr.eq(0)
        return m


def test_words_wrong():
    _queue(_Overwrites(2, 4)).refute(10)


def _codes(queue):
    """Codes and how they are to be read come out together, as they went in."""
    bench = Bench()
    m = bench.m
    bench.add(queue)
    write, both, read = bench.free(1), bench.free(2 * queue.bits), bench.free(1)
    m.d.comb += [queue.write.eq(write), Cat(queue.step_in, queue.data_in).eq(both),
                 queue.read.eq(read)]
    bench.assume(~write | queue.room)
    followed = Followed(bench, write, both, queue.valid & read,
                        Cat(queue.step_out, queue.data_out), queue.depth)
    bench.must(queue.room == (followed.inside != queue.depth))
    bench.must(queue.valid == (followed.inside != 0))
    bench.cover(followed.leaves & (followed.entry == 1))
    bench.cover(~queue.room)
    return bench


def _code_queue(kind=CodeQueue):
    return kind(data.StructLayout({"step": 1}), 1, depth=4)


def test_codes_keep_order():
    bench = _codes(_code_queue())
    bench.check(9)
    bench.reach(9)


class _Forgets(CodeQueue):
    """Does not see what is written while the last is read."""

    def elaborate(self, platform):
        m = super().elaborate(platform)
        m.d.sync += self.valid.eq(self.valid & ~self.read)
        return m


def test_codes_wrong():
    _codes(_code_queue(_Forgets)).refute(10)
