"""Who holds the pages of the cache, and what those that nobody holds still contain.

A page of a sequence is a slot of the cache, in the class of the page's number: page 9 takes any
slot of class 1. A page is held by any number of sequences, or free. One that is full and whose
tokens are known has a key, a hash of its tokens and of all before it, under which later sequences
find it; freed, it stays findable until its slot is needed. Those freed first are given up first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from alula.hw.numerics import PAGE_CLASSES, PAGE_TOKENS

Key = bytes


class CacheFull(ValueError):
    """No page can be had without taking it from a sequence."""

    def __init__(self) -> None:
        super().__init__("the cache is full; close a sequence, or compile with fewer --sequences "
                         "or a smaller --context")


def page_key(tokens: Sequence[int], page: int, before: Sequence[Key]) -> Key:
    """Return the key of a full page of a sequence, whose earlier pages have the keys ``before``."""
    own = np.array(tokens[page * PAGE_TOKENS:(page + 1) * PAGE_TOKENS], "<u4").tobytes()
    return hashlib.sha256((before[page - 1] if page else b"") + own).digest()[:16]


class Pages:
    """The slots of a cache, ``slots`` in each class.

    ``find`` and ``take`` give a page to one more holder, who gives it back with ``release``.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._empty = [list(range(slots))[::-1] for _ in range(PAGE_CLASSES)]
        self._kept: list[dict[int, None]] = [{} for _ in range(PAGE_CLASSES)]  # oldest first
        self._holders: dict[tuple[int, int], int] = {}
        self._keys: dict[tuple[int, int], Key] = {}
        self._places: dict[Key, tuple[int, int]] = {}

    def room(self, page_class: int) -> int:
        """Return how many pages of a class can be taken."""
        return len(self._empty[page_class]) + len(self._kept[page_class])

    def take(self, numbers: Iterable[int]) -> list[int]:
        """Return slots for pages of a sequence, by their numbers: all of them, or CacheFull."""
        classes = [number % PAGE_CLASSES for number in numbers]
        if any(classes.count(page_class) > self.room(page_class) for page_class in set(classes)):
            raise CacheFull
        return [self._take(page_class) for page_class in classes]

    def _take(self, page_class: int) -> int:
        if self._empty[page_class]:
            slot = self._empty[page_class].pop()
        else:
            slot = next(iter(self._kept[page_class]))
            del self._kept[page_class][slot]
            self.forget(page_class, slot)
        self._holders[page_class, slot] = 1
        return slot

    def release(self, number: int, slot: int) -> None:
        """Give a page back; the last holder frees it."""
        place = number % PAGE_CLASSES, slot
        self._holders[place] -= 1
        if self._holders[place]:
            return
        del self._holders[place]
        if place in self._keys:
            self._kept[place[0]][slot] = None
        else:
            self._empty[place[0]].append(slot)

    def holders(self, number: int, slot: int) -> int:
        """Return how many hold a page."""
        return self._holders.get((number % PAGE_CLASSES, slot), 0)

    def publish(self, number: int, slot: int, key: Key) -> None:
        """Make a held, full page findable, unless there is one like it already."""
        place = number % PAGE_CLASSES, slot
        if key not in self._places and place not in self._keys:
            self._places[key], self._keys[place] = place, key

    def forget(self, number: int, slot: int) -> None:
        """Make a page that someone may write not findable."""
        key = self._keys.pop((number % PAGE_CLASSES, slot), None)
        if key is not None:
            del self._places[key]

    def find(self, number: int, key: Key) -> int | None:
        """Return the slot of a page with a key, held once more; None if there is none."""
        place = self._places.get(key)
        if place is None or place[0] != number % PAGE_CLASSES:
            return None
        self._kept[place[0]].pop(place[1], None)
        self._holders[place] = self._holders.get(place, 0) + 1
        return place[1]

    @property
    def held(self) -> int:
        """Pages that someone holds."""
        return len(self._holders)

    @property
    def kept(self) -> int:
        """Pages that nobody holds, and that can be found."""
        return sum(map(len, self._kept))

    def clear(self) -> None:
        """Make no page findable."""
        for page_class, kept in enumerate(self._kept):
            self._empty[page_class] += kept
            kept.clear()
        self._keys.clear()
        self._places.clear()
