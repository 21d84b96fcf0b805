"""What became of every node of an ONNX file, and the refusal of what cannot run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum

from rich.table import Table


class Disposition(StrEnum):
    """Where the work of an ONNX node happens."""

    ACCELERATOR = "accelerator"  # an operation of the canonical graph, or a part of one
    FOLDED = "folded"  # computed once by the importer, or built into another operation
    HOST = "host"  # left to the computer that drives the accelerator
    REFUSED = "refused"  # has no lowering; the model cannot run


@dataclass(frozen=True)
class Entry:
    """One ONNX node: what it is, where its work happens and why."""

    name: str
    op: str
    domain: str
    opset: int
    disposition: Disposition
    why: str


class Refused(ValueError):
    """A node has no lowering. The message names node, reason, accepted form and remedy."""


@dataclass(frozen=True)
class Coverage:
    """Every node of an ONNX file in file order, with where its work happens."""

    entries: tuple[Entry, ...]

    @property
    def refusals(self) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries
                     if entry.disposition is Disposition.REFUSED)

    def summary(self) -> str:
        """Return one line: how many nodes there are of each disposition."""
        counts = Counter(entry.disposition for entry in self.entries)
        parts = [f"{counts[kind]} {_PHRASES[kind]}" for kind in Disposition if counts[kind]]
        return f"{len(self.entries)} nodes: {', '.join(parts) or 'nothing to do'}"

    def to_json(self) -> str:
        return json.dumps([asdict(entry) for entry in self.entries], indent=1)

    def table(self) -> Table:
        """Return a table where nodes of one operator, disposition and reason share a row."""
        table = Table("nodes", "operator", "opset", "where", "why", title=self.summary())
        for (op, domain, opset, kind, why), count in _grouped(self.entries):
            label = f"{domain}.{op}" if domain else op
            table.add_row(str(count), label, str(opset), f"[{_STYLES[kind]}]{kind}", why)
        return table


_PHRASES = {Disposition.ACCELERATOR: "on the accelerator", Disposition.FOLDED: "folded away",
            Disposition.HOST: "on the host", Disposition.REFUSED: "refused"}
_STYLES = {Disposition.ACCELERATOR: "green", Disposition.FOLDED: "dim",
           Disposition.HOST: "yellow", Disposition.REFUSED: "bold red"}

_Group = tuple[str, str, int, Disposition, str]


def _grouped(entries: Iterable[Entry]) -> list[tuple[_Group, int]]:
    counts = Counter((entry.op, entry.domain, entry.opset, entry.disposition, entry.why)
                     for entry in entries)
    return sorted(counts.items(), key=lambda item: (list(Disposition).index(item[0][3]), item[0]))
