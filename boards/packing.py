"""How many places of a device the LUTs of a netlist take, once those that may share one do.

A LUT of UltraScale+ is one function of six inputs or two of together at most five; or two shift
registers of up to sixteen places with the same clock, enable and address. Ref: AMD UG574,
UltraScale Architecture CLB, "Look-Up Table" and "Shift Registers".

It is an estimate, from the netlist alone, and guarded: two functions share a LUT only if they have
an input in common, so that it is no detour to bring them together; what drives a carry chain or the
multiplexers F7 to F9 keeps its place for itself, and memories do too. A placer may join what shares
nothing, and may leave apart what it wants apart.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

INPUTS = 5  # that two functions may have together
_FAR = 400  # of a net with more sinks, only so many are looked at as partners
_MAY_SHARE = {"INV", *(f"LUT{count}" for count in range(1, INPUTS + 1))}
_TAKES_ALONE = {"CARRY4": "S", "CARRY8": "S", "MUXF7": "I0 I1", "MUXF8": "I0 I1", "MUXF9": "I0 I1"}


@dataclass
class _Function:
    """A LUT that may share its place."""

    name: str
    inputs: frozenset[int]
    partner: _Function | None = field(default=None, repr=False)


def shared(netlist: dict[str, Any]) -> dict[str, float]:
    """Return what of a place each cell takes that shares one: a half."""
    functions = _functions(netlist)
    _pair(functions)
    halves = {one.name: 0.5 for one in functions if one.partner}
    return halves | _shift_registers(netlist)


def _functions(netlist: dict[str, Any]) -> list[_Function]:
    """Return the LUTs of at most five inputs whose outputs go anywhere."""
    alone: set[int] = set()
    for cell in netlist["cells"].values():
        for port in _TAKES_ALONE.get(cell["type"], "").split():
            alone.update(_nets(cell, port))
    found = []
    for name, cell in netlist["cells"].items():
        if cell["type"] in _MAY_SHARE and not alone.intersection(_nets(cell, "O")):
            inputs = (net for port in cell["connections"] if port != "O"
                      for net in _nets(cell, port))
            found.append(_Function(name, frozenset(inputs)))
    return found


def _nets(cell: dict[str, Any], port: str) -> list[int]:
    return [net for net in cell["connections"][port] if isinstance(net, int)]


def _pair(functions: list[_Function]) -> None:
    """Give functions partners: those with most inputs in common first, and of them the largest."""
    sinks: dict[int, list[_Function]] = defaultdict(list)
    for one in functions:
        for net in one.inputs:
            sinks[net].append(one)
    largest_first = sorted(functions, key=lambda one: -len(one.inputs))
    for common in range(INPUTS, 0, -1):
        for one in largest_first:
            if one.partner is None and len(one.inputs) >= common:
                other = _best(one, common, sinks)
                if other is not None:
                    one.partner, other.partner = other, one


def _best(one: _Function, common: int, sinks: dict[int, list[_Function]]) -> _Function | None:
    """Return the largest function that fits beside one, with at least so many common inputs."""
    counts: Counter[int] = Counter()
    others: dict[int, _Function] = {}
    for net in one.inputs:
        for other in sinks[net][:_FAR]:
            if other.partner is None and other is not one:
                counts[id(other)] += 1
                others[id(other)] = other
    fits = [(same, len(others[key].inputs), key) for key, same in counts.items()
            if same >= common and len(one.inputs) + len(others[key].inputs) - same <= INPUTS]
    return others[max(fits, key=lambda fit: fit[:2])[2]] if fits else None


def _shift_registers(netlist: dict[str, Any]) -> dict[str, float]:
    """Return halves for shift registers of which two have the same clock, enable and address."""
    alike: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name, cell in netlist["cells"].items():
        if cell["type"] == "SRL16E":
            alike[tuple(str(cell["connections"][port])
                        for port in ("A0", "A1", "A2", "A3", "CE", "CLK"))].append(name)
    return {name: 0.5 for names in alike.values() for name in names[:len(names) & ~1]}
