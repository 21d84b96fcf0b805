"""Every position code is decoded as the format's tables say."""

import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

from alula.hw import layout
from alula.hw.lane.positions import LATENCY, PositionDecoder


def _slots(kept, low):
    """Return the half-window and the slot of each of a window's codes."""
    if kept == 4:
        return [(0, k if low >> k & 1 else k + 4) for k in range(4)]
    return [(0, k) for k in range(min(kept, 8))] + [(1, 4 + k) for k in range(kept - 8)]


def _inputs(decoded, kept, low):
    """Return the inputs of a window's codes, in order."""
    return [slot + (decoded[half] >> 4 * slot & 15) for half, slot in _slots(kept, low)]


class Decoders(wiring.Component):
    """Those of a window's two half-windows, with the same inputs."""

    def __init__(self):
        signature = PositionDecoder().signature
        self.names = [name for name, member in signature.members.items() if member.flow is In]
        super().__init__({**{name: signature.members[name] for name in self.names},
                          "first": Out(32), "second": Out(32), "low": Out(4)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.first, m.submodules.second = both = [
            PositionDecoder(second) for second in (False, True)]
        for decoder in both:
            m.d.comb += [getattr(decoder, name).eq(getattr(self, name)) for name in self.names]
        m.d.comb += [self.first.eq(both[0].distances), self.second.eq(both[1].distances),
                     self.low.eq(both[0].low)]
        return m


def _simulate(decoder, bench):
    simulator = Simulator(decoder)
    simulator.add_clock(1e-8)
    simulator.add_testbench(bench)
    simulator.run()


@pytest.mark.parametrize("kept", sorted(layout.KEPT_PATTERNS))
def test_every_position_code(kept):
    bitmaps = layout.pattern_tables(kept)[1]
    codes = [code for code, bitmap in enumerate(bitmaps) if bitmap]
    wanted = [[i for i in range(16) if int(bitmaps[code]) >> i & 1] for code in codes]
    decoder, got = Decoders(), []

    async def bench(ctx):
        low = 0
        ctx.set(decoder.enable, 1)
        ctx.set(decoder.kept, kept // 4)
        for at in range(len(wanted) + LATENCY):
            ctx.set(decoder.code, codes[min(at, len(codes) - 1)])
            if at >= LATENCY:
                got.append(_inputs((ctx.get(decoder.first), ctx.get(decoder.second)), kept,
                                   low))
            low = ctx.get(decoder.low)
            await ctx.tick()

    _simulate(decoder, bench)
    assert got == wanted


def test_dense_positions():
    """Whatever the code says, inputs are the slots' own, or the last eight."""
    decoder, got = Decoders(), []
    asked = [(code, further) for code in (0, 1, 0x1FFF, 0x3FFF) for further in (0, 1)]

    async def bench(ctx):
        ctx.set(decoder.enable, 1)
        for at in range(len(asked) + LATENCY):
            code, further = asked[min(at, len(asked) - 1)]
            ctx.set(decoder.code, code)
            ctx.set(decoder.further, further)
            if at >= LATENCY:
                got.append((ctx.get(decoder.first), ctx.get(decoder.second)))
            await ctx.tick()

    _simulate(decoder, bench)
    assert got == [(0x8888_8888 * further,) * 2 for _, further in asked]
