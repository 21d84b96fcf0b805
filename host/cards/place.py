"""Which card, and which bundle on it: the part of a device's name after the kind."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ALVEO, PYNQ = "alveo", "pynq"  # the kinds


@dataclass(frozen=True)
class Place:
    """Of several cards, one; of several bundles, one. None: any that fits.

    ``alveo:1`` is the second card; ``alveo:1@DIR`` the second card with the bundle in DIR.
    """

    index: int | None = None
    bundle: Path | None = None

    @classmethod
    def parse(cls, text: str) -> Place:
        """Return what follows the kind in a name: ``:INDEX``, ``@DIR``, both, or nothing."""
        match = re.fullmatch(r"(?::(\d+))?(?:@(.+))?", text, re.DOTALL)
        if not match:
            raise ValueError(f"a card must be named by KIND, KIND:NUMBER, KIND@BUNDLE or "
                             f"KIND:NUMBER@BUNDLE, not by KIND{text}")
        return cls(int(match[1]) if match[1] else None, Path(match[2]) if match[2] else None)


def kind_of(name: str) -> str:
    """Return the kind that a device's name begins with."""
    return re.split("[:@]", name, maxsplit=1)[0]


def parse(name: str) -> tuple[str, Place]:
    """Return the kind and the place that a device's name has."""
    kind = kind_of(name)
    return kind, Place.parse(name[len(kind):])
