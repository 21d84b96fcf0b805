"""Find repeated layers: cut the graph into straight runs of nodes and loops over like runs."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from alula.compiler.graph import (
    Attention,
    Embed,
    FloatMatrix,
    Graph,
    Node,
    Op,
    QuantMatrix,
    Slice,
)


@dataclass(frozen=True)
class Section:
    """Consecutive nodes that run ``len(passes)`` times, each time with other weights.

    Attributes
    ----------
    passes
        The nodes of each pass; they differ in names and weights only.
    carried
        ``(outside, inside)`` names: a pass uses ``outside`` in the first pass and, in later ones,
        the previous pass's value of ``inside`` (both by their names in the first pass).
    """

    passes: tuple[tuple[Node, ...], ...]
    carried: tuple[tuple[str, str], ...] = ()

    @property
    def nodes(self) -> tuple[Node, ...]:
        return self.passes[0]


def sections(graph: Graph) -> list[Section]:
    """Return the graph's nodes as sections in order; loops cover as many nodes as they can."""
    nodes = graph.nodes
    # The output is computed apart from the rest, in chunks, so it is like no other node.
    keys = [("output",) if node.name == graph.output else _key(node.op) for node in nodes]
    found: list[Section] = []
    straight: list[Node] = []
    at = 0
    while at < len(nodes):
        loop = _best_loop(nodes, keys, at)
        if loop is None:
            straight.append(nodes[at])
            at += 1
            continue
        if straight:
            found.append(Section((tuple(straight),)))
            straight = []
        found.append(loop)
        at += len(loop.nodes) * len(loop.passes)
    if straight:
        found.append(Section((tuple(straight),)))
    return found


def _key(op: Op) -> tuple[object, ...]:
    """Return what must be equal for two nodes to be passes of one loop's instruction."""
    facts: list[object] = [type(op).__name__]
    for item in fields(op):
        value = getattr(op, item.name)
        if isinstance(op, Embed):
            facts.append(id(value))  # a table has one address for all passes
        elif isinstance(value, QuantMatrix):
            facts.append(("quantized", value.rows, value.cols, value.group))
        elif isinstance(value, FloatMatrix):
            facts.append(("float", value.rows, value.cols))
        elif isinstance(value, np.ndarray):
            # Tables stay in place for all passes, so they must be the same; parameters may differ.
            shared = item.name in ("cos", "sin")
            facts.append((value.shape, value.tobytes() if shared else b""))
        elif not (isinstance(op, Attention) and item.name == "layer"):
            facts.append(value)
    return tuple(facts)


def _best_loop(nodes: tuple[Node, ...], keys: list[tuple[object, ...]], at: int) -> Section | None:
    """Return the loop that starts at ``at`` and covers most nodes, the shortest body first."""
    best: Section | None = None
    covered = 0
    index = {node.name: position for position, node in enumerate(nodes)}
    for period in range(1, (len(nodes) - at) // 2 + 1):
        passes = 1
        while (at + (passes + 1) * period <= len(nodes)
               and all(keys[at + j] == keys[at + passes * period + j] for j in range(period))):
            passes += 1
        if passes < 2 or passes * period <= covered:
            continue
        section = _loop(nodes, index, at, period, passes)
        if section is not None and len(section.passes) * period > covered:
            best, covered = section, len(section.passes) * period
    return best


def _loop(nodes: tuple[Node, ...], index: dict[str, int], at: int, period: int,
          passes: int) -> Section | None:
    """Return the longest loop with this body whose passes are wired alike, or None."""
    carried: dict[str, str] = {}
    invariant: set[str] = set()
    good = 1
    for turn in range(1, passes):
        start = at + turn * period
        wiring = [_wire(nodes, index, at, start, period, j) for j in range(period)]
        if any(wire is None for wire in wiring):
            break
        for pairs in wiring:
            for outside, inside in pairs or ():
                if inside is None:
                    invariant.add(outside)
                elif carried.setdefault(outside, inside) != inside:
                    return None
        good = turn + 1
    roots = _roots(nodes)
    while good > 1 and not _private(nodes, roots, at, period, good, carried, invariant):
        good -= 1
    if good < 2:
        return None
    return Section(tuple(nodes[at + turn * period:at + (turn + 1) * period]
                         for turn in range(good)), tuple(carried.items()))


def _roots(nodes: tuple[Node, ...]) -> dict[str, str]:
    """Return the value whose place each value shares: what a slice is cut from, or itself."""
    roots: dict[str, str] = {}
    for node in nodes:
        roots[node.name] = roots[node.inputs[0]] if isinstance(node.op, Slice) else node.name
    return roots


def _private(nodes: tuple[Node, ...], roots: dict[str, str], at: int, period: int, passes: int,
             carried: dict[str, str], invariant: set[str]) -> bool:
    """Return whether nothing else needs what a later pass writes over.

    That is the values of all passes but the last, and the outside values that carried ones replace.
    """
    end = at + passes * period
    replaced = {roots[outside] for outside in carried}
    lost = replaced | {node.name for node in nodes[at:end - period]}
    own = {node.name for node in nodes[at:at + period]}
    return (len(replaced) == len(carried)
            and all(roots[inside] in own for inside in carried.values())
            and not any(roots[name] in replaced for name in invariant)
            and not any(roots[name] in lost for node in nodes[end:] for name in node.inputs))


def _wire(nodes: tuple[Node, ...], index: dict[str, int], at: int, start: int, period: int,
          j: int) -> list[tuple[str, str | None]] | None:
    """Compare node ``j``'s inputs in the first pass and the one at ``start``; None if they differ.

    Returns ``(first pass's outside value, first pass's name of what replaces it)`` pairs; the
    replacement is None for a value from outside that every pass uses.
    """
    pairs: list[tuple[str, str | None]] = []
    for first, later in zip(nodes[at + j].inputs, nodes[start + j].inputs, strict=True):
        a, b = index[first], index[later]
        if a >= at:
            if b - start != a - at:
                return None
        elif b >= start - period and b < start:
            pairs.append((first, nodes[at + b - (start - period)].name))
        elif a == b:
            pairs.append((first, None))
        else:
            return None
    return pairs
