"""Two halves of a step's rows in turn, so that the lanes multiply while the vector unit works.

With many rows products take longer than their weights: of a step of eight rows on ``u55c`` a beat
of weights is loaded in a clock and multiplied for four. So a layer's work is done for half of the
rows and then for the others, phase by phase, and weights are read twice: the vector unit works on
one half while the lanes have the other.

A phase is an attention, or products that follow one another, with what is made of their results.
What comes before a layer's first product is done in the last phase of the layer before. Where a
phase has many products, those between the first and the last are for all rows: their weights are
read once.
"""

from __future__ import annotations

from dataclasses import replace

from alula.compiler.graph import Attention, Graph, Linear, QuantMatrix, Slice
from alula.compiler.schedule import Item
from alula.compiler.sections import Section
from alula.hw import isa
from alula.hw.arch import ArchConfig

CLOCKS = 1.25  # of products for a beat of weights, with half of the rows, from which it pays


def worth(graph: Graph, parts: list[Section], arch: ArchConfig) -> bool:
    """Return whether a program should have layers in two halves."""
    bits = [node.op.weight.bits for node in graph.of(Linear)
            if isinstance(node.op, Linear) and isinstance(node.op.weight, QuantMatrix)]
    loops = [part for part in parts if len(part.passes) > 1]
    if arch.rows < 2 or not bits or not loops:
        return False
    pairs = -(-isa.half(arch.rows) // 2)
    clocks = 8 * arch.beat_bytes / max(bits) / arch.lane_dsps * pairs
    return clocks >= CLOCKS and all(max(phases(part)) > 1 for part in loops)


def phases(part: Section) -> list[int]:
    """Return the phase of each node; those before the first product are in phase 0."""
    found: list[int] = []
    phase, ended = 0, True
    for node in part.nodes:
        if isinstance(node.op, Attention) or (isinstance(node.op, Linear) and ended):
            phase += 1
        ended = not isinstance(node.op, Linear | Slice) or (
            ended and isinstance(node.op, Slice))
        found.append(phase)
    return found


def join(whole: list[Item], first: list[Item], second: list[Item],
         before: list[Item]) -> tuple[list[Item], list[Item]] | None:
    """Do the products of a phase for all rows, but for the first and the last.

    Parameters
    ----------
    whole, first, second
        The phase's instructions for all rows and for each half.
    before
        The phase before, of the second half: it makes the inputs.

    Returns
    -------
    ``before`` and the phase, or None if that cannot be done.
    """
    products = [_products(items) for items in (whole, first, second)]
    pieces = [_pieces(items) for items in (first, second)]
    count = len(products[0])
    if count < 4 or any(len(found) != count for found in pieces):
        return None
    packed, plain = products[2][0].source, products[0][0].source
    made = [at for at, item in enumerate(before)
            if isinstance(item, isa.Quantize) and item.packed and item.target == packed]
    if len(made) != 1 or any((a.source, b.source) != (plain, packed)
                             for a, b in zip(products[0], products[2], strict=True)):
        return None
    quantize = before[made[0]]
    assert isinstance(quantize, isa.Quantize)
    again = replace(quantize, target=plain, packed=0)
    loads = [item for item in first if isinstance(item, isa.LoadStream)]
    phase: list[Item] = []
    for at, (load, *row) in enumerate(zip(loads, *products, strict=True)):
        for product in row[1:] if at in (0, count - 1) else row[:1]:
            phase += [load, product]
    for a, b in zip(*(found[:-2] for found in pieces), strict=True):
        phase += a + b
    for found in pieces:  # the first half's last product is what the next phase waits for
        phase += found[-2] + found[-1]
    return [*before[:made[0] + 1], again, *before[made[0] + 1:]], phase


def _products(items: list[Item]) -> list[isa.Linear]:
    return [item for item in items if isinstance(item, isa.Linear)]


def _pieces(items: list[Item]) -> list[list[Item]]:
    """Return what is made of each product of a phase; each begins with an ``Activate``."""
    found: list[list[Item]] = []
    for item in items:
        if isinstance(item, isa.Activate):
            found.append([item])
        elif not isinstance(item, isa.LoadStream | isa.Linear):
            if not found:
                return []
            found[-1].append(item)
    return found
