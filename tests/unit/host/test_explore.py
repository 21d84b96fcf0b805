"""Sweeps over builds: which, what they take, which are best; and the published figures."""

from pathlib import Path

import pytest

from alula.compiler.recipe import parse
from alula.host.explore import Point, candidates, explore, memory_bits, pareto
from alula.host.report import PEERS
from alula.hw.arch import SIM, U55C

ROOT = Path(__file__).parents[3]


def point(slices, bits, speed):
    return Point(SIM, slices, bits, speed, 0.5, None)


def test_candidates():
    found = candidates(U55C, lanes=[8, 16], rows=[4, 8], prefetch_beats=[])
    assert [(arch.lanes, arch.rows) for arch in found] == [(8, 4), (8, 8), (16, 4), (16, 8)]
    assert len({arch.name for arch in found}) == len({arch.hash for arch in found}) == 4
    assert candidates(U55C) == [U55C]


def test_candidates_wrong():
    with pytest.raises(ValueError, match="^lane_dsps must be a power of two from 128 to 65536"):
        candidates(U55C, lane_dsps=[100])


def test_pareto():
    cheap, fast, worse, equal = (point(10, 10, 1.0), point(20, 20, 2.0), point(20, 21, 1.9),
                                 point(10, 10, 1.0))
    assert pareto([cheap, fast, worse, equal]) == [cheap, fast, equal]


def test_memory_bits():
    def ram(depth, width):
        return (f"  alula_ram #(\n    .ADDRESS(32'd4),\n    .DEPTH(32'd{depth}),\n"
                f"    .STYLE(\"auto\"),\n    .WIDTH(32'd{width})\n  ) copy_0 (\n  );\n")
    text = (f"module \\alula_lane.x (clk);\n{ram(16, 8)}{ram(4, 2)}endmodule\n"
            f"module alula_kernel(clk);\n{ram(32, 3)}endmodule\n")
    assert memory_bits(text, 5) == 5 * (16 * 8 + 4 * 2) + 32 * 3


def test_builds_that_cannot_hold_the_model():
    points, refused = explore([SIM], "llama2-7b", parse("w4g128"), "ideal", 64, 0)
    assert not points and "the vector buffer must hold" in refused["sim"]


def test_explore_wrong():
    with pytest.raises(ValueError, match="^shape must be one of llama2-7b, .*, not 'gpt-9'$"):
        explore([SIM], "gpt-9", parse("w4g128"), "ideal", 64, 0)


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.system)
def test_peers_are_those_of_the_numbers(peer):
    """The published figures in docs/numbers.md are those that a report prints."""
    line = next(line for line in (ROOT / "docs/numbers.md").read_text().splitlines()
                if line.startswith(f"| {peer.system} ("))
    for fact in peer:
        assert fact in line
