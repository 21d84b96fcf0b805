"""Delay lines."""

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from alula.hw.ram import Ram

SHORT = 4  # up to here registers, beyond a ring in memory


def delayed(m, value, clocks, enable=1):
    """Return ``value`` as it was ``clocks`` enabled clocks ago; undefined at first."""
    for _ in range(clocks):
        later = Signal.like(value, name="later", reset_less=True)
        with m.If(enable):
            m.d.sync += later.eq(value)
        value = later
    return value


def staggered(m, value, clocks):
    """Return ``value`` as it was ``clocks`` clocks ago, 0 after reset.

    Registers with a reset: tools would make LUTs that shift of others, and a lane lacks those.
    """
    for _ in range(clocks):
        later = Signal.like(value, name="later")
        m.d.sync += later.eq(value)
        value = later
    return value


def delayed_flag(m, value, clocks, enable=1):
    """Return a bit as it was ``clocks`` enabled clocks ago; 0 after reset."""
    if not clocks:
        return value
    line = Signal(clocks)
    with m.If(enable):
        m.d.sync += line.eq(line << 1 | value)
    return line[-1]


class Delay(wiring.Component):
    """Delay wide or long lines.

    Members
    -------
    i, o : ``In(width)``, ``Out(width)``
        ``o`` is ``i`` of ``clocks`` clocks before; undefined for the first ``clocks``.
    """

    def __init__(self, width, clocks):
        self.width, self.clocks = width, clocks
        super().__init__({"i": In(width), "o": Out(width)})

    def elaborate(self, platform):
        m = Module()
        if self.clocks <= SHORT:
            m.d.comb += self.o.eq(delayed(m, self.i, self.clocks))
            return m
        m.submodules.ring = ring = Ram(shape=self.width, depth=self.clocks - 1)
        write, read = ring.write_port(), ring.read_port(domain="comb")
        at, out = Signal(range(self.clocks - 1)), Signal(self.width, reset_less=True)
        m.d.sync += [at.eq(at + 1), out.eq(read.data)]
        with m.If(at == self.clocks - 2):
            m.d.sync += at.eq(0)
        m.d.comb += [write.addr.eq(at), write.data.eq(self.i), write.en.eq(1), read.addr.eq(at),
                     self.o.eq(out)]
        return m
