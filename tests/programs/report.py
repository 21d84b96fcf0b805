"""Count what the random programs have covered: ``python -m programs.report FILE``.

While ``ALULA_COVERAGE`` names a file, every run that was found equal is added to it.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path

from programs.generate import Rows
from programs.pair import Pair
from programs.tags import DIMENSIONS, FAULTS, TILE, Tag, pairs_of

_runs = 0
_tags: Counter[Tag] = Counter()
_pairs: Counter[frozenset[Tag]] = Counter()


def covered(pair: Pair, step: Rows, *, error: str = "none", culprit: int | None = None) -> None:
    """Count a run that did what it should."""
    global _runs
    path = os.environ.get("ALULA_COVERAGE")
    if not path:
        return
    tags, pairs = pairs_of(pair.case, step, pair.memory, error=error, culprit=culprit)
    _runs += 1
    _tags.update(tags)
    _pairs.update(pairs)
    _write(Path(path))


def _write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"runs": _runs, "tags": [[*tag, count] for tag, count in sorted(_tags.items())],
               "pairs": [[*sorted(pair), count] for pair, count in _pairs.items()]}
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(content))
    temporary.replace(path)


# Why a pair cannot be, by a rule on its two tags.
_AT_FAULT = {
    "LOAD": {"ReadStep", "LoadParams", "LoadRow"}, "STORE": {"StoreRow", "StoreTop"},
    "LANE read": {"LoadStream", "LoadPages"}, "LANE write": {"StoreKeyValue"},
    "STEP": {"ReadStep"}, "PROGRAM": set(),
}


def unreachable(a: Tag, b: Tag) -> str:
    """Return why no run has both tags, or nothing."""
    values = dict((a, b))
    instruction, error = values.get("instruction"), values.get("error")
    if instruction and error in _AT_FAULT and instruction not in _AT_FAULT[error]:
        return f"{error}: {'no instruction' if error == 'PROGRAM' else 'another instruction'} " \
               "is at fault"
    if values.get("sparsity") == "no weights" and values.get("presence", "no rows") != "no rows" \
            or values.get("presence") == "no rows" and values.get("sparsity", "no weights") \
            != "no weights":
        return "a tile without rows has no weights"
    if values.get("zeros") == "zero points" and (values.get("presence") == "no rows"
                                                 or values.get("sparsity") == "no weights"):
        return "a tile without rows has no zero points"
    if values.get("bits") in ("W2", "W3") and values.get("sparsity") == "12:16":
        return "12 of 16 is for codes of 4 and 8 bits"
    if values.get("rows") == "T 9-16" and values.get("build") in ("1 lane x 64", "4 lanes x 16"):
        return "these builds take at most 8 rows"
    return ""


def summary(path: Path) -> str:
    """Return the report as text."""
    content = json.loads(path.read_text())
    tags = {(dimension, value): count for dimension, value, count in content["tags"]}
    pairs = {frozenset((tuple(a), tuple(b))): count for a, b, count in content["pairs"]}
    lines = [f"{content['runs']} runs, each equal to the golden model's in every byte of memory, "
             "or ended by the error", "it was given.", ""]
    for dimension, values in DIMENSIONS.items():
        counts = ", ".join(f"{value} {tags.get((dimension, value), 0)}" for value in values)
        lines.append(f"- {dimension}: {counts}")
    for dimension in ("variant", "token"):
        found = sorted((value, count) for (kind, value), count in tags.items()
                       if kind == dimension)
        lines.append(f"- {dimension}: " + ", ".join(f"{value} {count}" for value, count in found))
    lines += ["", *_pair_lines(pairs)]
    return "\n".join(lines)


def _pair_lines(pairs: dict[frozenset[Tag], int]) -> list[str]:
    hit, missed, reasons = 0, [], Counter()
    table = []
    for first, second in combinations(DIMENSIONS, 2):
        wanted = [(a, b) for a in _values(first) for b in _values(second)]
        here = 0
        for a, b in wanted:
            if frozenset((a, b)) in pairs:
                here += 1
            elif reason := unreachable(a, b):
                reasons[reason] += 1
            else:
                missed.append(f"{a[1]} with {b[1]}")
        hit += here
        table.append(f"{first} x {second} {here}/{len(wanted)}")
    return [f"Pairs hit: {hit}. " + "; ".join(table) + ".", "",
            f"Unreachable: {sum(reasons.values())}.", "",
            *(f"- {count}: {reason}" for reason, count in reasons.items()), "",
            f"Reachable and not hit: {len(missed)}.", *(f"- {pair}" for pair in missed)]


def _values(dimension: str) -> list[Tag]:
    return [(dimension, value) for value in DIMENSIONS[dimension]]


assert set(TILE) <= set(DIMENSIONS) and set(FAULTS) < set(DIMENSIONS["error"])

if __name__ == "__main__":
    print(summary(Path(sys.argv[1])))
