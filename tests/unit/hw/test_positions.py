"""Every position code is decoded as the format's tables say."""

import pytest
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


@pytest.mark.parametrize("kept", sorted(layout.KEPT_PATTERNS))
def test_every_position_code(kept):
    bitmaps = layout.pattern_tables(kept)[1]
    codes = [code for code, bitmap in enumerate(bitmaps) if bitmap]
    wanted = [[i for i in range(16) if int(bitmaps[code]) >> i & 1] for code in codes]
    decoder, got = PositionDecoder(), []

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

    simulator = Simulator(decoder)
    simulator.add_clock(1e-8)
    simulator.add_testbench(bench)
    simulator.run()
    assert got == wanted
