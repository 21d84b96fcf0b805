"""Masks, judged by their numbers: causal, perhaps with a sliding window, and nothing else."""

from __future__ import annotations

import numpy as np

from alula.compiler.importer.lowering import Array, Lowering
from alula.compiler.importer.model import Op
from alula.compiler.importer.values import Setting

# Exporters write "never" as -inf, the type's lowest value or -10000.
NEVER = -1e4
UNSEEN_CONTEXT = 4096  # probed when nothing says how long a text may be
LARGEST_SQUARE = 4096  # tokens in a probe without a cache, whose mask is a square

Masks = tuple[tuple[str, str], ...]


def window(lowering: Lowering, op: Op, masks: Masks, *, causal: bool = False) -> int:
    """Return the number of latest positions that ``masks`` let a token see, 0 for all.

    Parameters
    ----------
    masks
        Plumbing values over (query, key) and how each acts: "add" to scores, "keep" or "drop"
        where true.
    causal
        Whether the operator masks later tokens by itself.

    Raises
    ------
    Refused
        If they do anything but hide later tokens, padding and tokens behind a window.
    """
    key = ("window", masks, causal)
    if key not in lowering.tables:
        found = _search(lowering, op, masks, causal)
        for setting in (lowering.layout, lowering.layout._replace(padded=3)):
            _check(op, _seen(lowering, op, masks, causal, setting), setting, found)
        kept = lowering.cropped
        if kept is not None and not 0 < found <= kept + 1:
            raise op.refuse("attention mask", f"a window of at most {kept + 1}, as the cache is "
                            f"cut to {kept} tokens", found or "none")
        lowering.tables[key] = np.array(found)
    return int(lowering.tables[key])


def _search(lowering: Lowering, op: Op, masks: Masks, causal: bool) -> int:
    """Return the window shown by long probes: the newest token of a full cache, if there is one."""
    limit = lowering.positions or UNSEEN_CONTEXT
    if lowering.cached and lowering.cropped is None:
        probes = [Setting(2, max(limit - 2, 1))]
    else:
        probes = [Setting(tokens, 0) for tokens in _squares(lowering, op, masks, limit)]
    for setting in probes:
        seen = _seen(lowering, op, masks, causal, setting)
        count = int(seen[-1].sum())
        found = 0 if count == seen.shape[1] else count
        _check(op, seen, setting, found)
        if found:
            return found
    return 0


def _squares(lowering: Lowering, op: Op, masks: Masks, limit: int) -> list[int]:
    """Return lengths to probe without a cache: a short one, and one past each number in the graph.

    A window must be written in the graph as a number, so only those can be one.
    """
    numbers: set[int] = set()
    for name, _ in masks:
        for value in lowering.constants_behind(name):
            if value.dtype.kind in "iu" and value.size == 1:
                numbers.add(abs(int(value.reshape(-1)[0])))
    windows = sorted(number for number in numbers if 60 < number < limit)
    if windows and windows[-1] > LARGEST_SQUARE:
        raise op.refuse("a sliding window seen without a whole cache", f"at most {LARGEST_SQUARE}",
                        windows[-1], "export with past key and value inputs")
    return [min(64, limit), *(number + 2 for number in windows)]


def _seen(lowering: Lowering, op: Op, masks: Masks, causal: bool, setting: Setting) -> Array:
    """Return ``(tokens, total)``: whether a token takes part in another's attention."""
    total = setting.tokens + setting.past
    spot = setting.past + np.arange(setting.tokens)[:, None]
    found = np.arange(total) <= spot if causal else np.ones((setting.tokens, total), bool)
    for name, use in masks:
        found &= _allowed(op, lowering.evaluate(name, setting, keep=False), use, found.shape)
    return found


def _allowed(op: Op, mask: Array, use: str, wanted: tuple[int, int]) -> Array:
    """Return where one mask lets scores pass, the same for every head."""
    if mask.dtype == np.bool_:
        allowed = mask if use != "drop" else ~mask
    elif use == "add":
        values = mask.astype(np.float32)
        allowed = values == 0
        other = values[~allowed & ~(values <= NEVER)]
        if other.size:
            raise op.refuse("an added mask", f"0, or below {NEVER:g} to hide a token",
                            other.flat[0], "position biases (ALiBi, T5) are not lowered")
    else:
        raise op.refuse("mask", "of bool", mask.dtype)
    if mask.ndim > 2 and mask.size != mask.shape[-1] * mask.shape[-2]:
        first = allowed.reshape(-1, *mask.shape[-2:])
        if not (first == first[0]).all():
            raise op.refuse("mask", "the same for every head", "one for each head")
        allowed = first[0]
    return np.broadcast_to(allowed.reshape(allowed.shape[-2:]), wanted)


def _check(op: Op, seen: Array, setting: Setting, found: int) -> None:
    """Refuse unless ``seen`` is causal with a window of ``found``, with or without the padding."""
    total = setting.tokens + setting.past
    behind = setting.past + np.arange(setting.tokens)[:, None] - np.arange(total)
    causal = (behind >= 0) & (behind < (found or total))
    real = np.arange(total) >= setting.padded
    rows = setting.past + np.arange(setting.tokens) >= setting.padded
    if not (np.array_equal(seen[rows], causal[rows])
            or np.array_equal(seen[rows], (causal & real)[rows])):
        raise op.refuse("attention mask", "causal, perhaps with padding and a sliding window",
                        f"another one (seen at {setting.tokens} tokens after {setting.past})")
