"""Recipes: how weights are to be stored, in a word such as ``w4g128+8:16``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from alula.hw.numerics import GROUPS, WEIGHT_BITS


class RecipeError(ValueError):
    """A recipe that cannot be read."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How linear layers are quantized and pruned.

    Parameters
    ----------
    bits, group
        Width of a code, and inputs that share a scale.
    average
        Most bits of a code on average, if layers have either ``bits`` or the next narrower width.
        Ref: :mod:`alula.compiler.mixed`.
    asymmetric
        Whether a group has a zero point of its own.
    kept
        Codes kept of 16 consecutive inputs (N of N:M, M = 16); 0 keeps all.
    dropped
        Share of each row's groups that are dropped whole, in percent.
    """

    bits: int
    group: int
    asymmetric: bool = False
    kept: int = 0
    dropped: int = 0
    average: float | None = None

    @property
    def narrower(self) -> int:
        """The next narrower width."""
        return max(bits for bits in WEIGHT_BITS if bits < self.bits)

    @property
    def mean_bits(self) -> float:
        """Bits of a code, on average of all layers."""
        return self.bits if self.average is None else self.average

    def __str__(self) -> str:
        return (f"w{self.mean_bits}g{self.group}" + ("a" if self.asymmetric else "")
                + (f"+{self.kept}:16" if self.kept else "")
                + (f"+drop{self.dropped}" if self.dropped else ""))


_FORM = re.compile(r"w(\d+(?:\.\d+)?)g(\d+)(a?)(?:\+(\d+):(\d+))?(?:\+drop(\d+))?")


def parse(text: str) -> Recipe:
    """Return the recipe a word names.

    For example ``w4g64``, ``w4g64a``, ``w4g128+8:16``, ``w3g128+drop50``, ``w3.5g128``.
    """
    found = _FORM.fullmatch(text)
    if not found:
        raise RecipeError(f"a recipe must look like w4g64, w4g64a (with zero points), w4g128+8:16, "
                          f"w4g128+drop50 or w3.5g128 (3 and 4 bits mixed), not {text!r}")
    bits, average = _widths(found[1])
    group = int(found[2])
    kept, of, dropped = (int(found[n] or 0) for n in (4, 5, 6))
    if group not in GROUPS:
        raise RecipeError(f"a recipe's group must be one of {GROUPS}, not {group}")
    if found[4]:
        if of not in (2, 4, 8, 16) or not 0 < kept < of:
            raise RecipeError(f"a recipe's sparsity must be N:M with M = 2, 4, 8 or 16 and "
                              f"0 < N < M, not {kept}:{of}")
        if of != 16:
            raise RecipeError(f"sparsity must be counted in windows of 16: {kept * 16 // of}:16 "
                              f"instead of {kept}:{of}")
    if dropped >= 100:
        raise RecipeError(f"a recipe must drop less than 100 % of the groups, not {dropped} %")
    return Recipe(bits=bits, group=group, asymmetric=bool(found[3]), kept=kept, dropped=dropped,
                  average=average)


def _widths(text: str) -> tuple[int, float | None]:
    """Return the widest code, and the average if narrower ones are mixed in."""
    if "." not in text:
        if int(text) not in WEIGHT_BITS:
            raise RecipeError(f"a recipe's bits must be one of {WEIGHT_BITS}, or an average of two "
                              f"such as 3.5, not {text}")
        return int(text), None
    average = float(text)
    if not min(WEIGHT_BITS) < average < max(WEIGHT_BITS):
        raise RecipeError(f"a recipe's average of bits must be between {min(WEIGHT_BITS)} and "
                          f"{max(WEIGHT_BITS)}, not {text}")
    return min(bits for bits in WEIGHT_BITS if bits > average), average
