"""Sequences on a device: cache pages, step tables, logits back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alula.host.device import Device
from alula.host.pages import Key, Pages, page_key
from alula.hw import layout
from alula.hw.isa import WORD_BYTES
from alula.hw.numerics import PAGE_TOKENS


class SessionError(ValueError):
    """A request that the program has no room for."""


class Row(NamedTuple):
    """One token of a step. ``parent`` is an earlier row of the step that it follows, or -1."""

    sequence: int
    token: int
    position: int
    parent: int = -1
    wants_logits: bool = False
    place: int = layout.PLACE_BY_POSITION


@dataclass
class Session:
    """A device and the sequences whose keys and values it holds.

    ``lengths`` has, for each sequence, the positions that are in the cache; ``context`` is the
    most that one can have; ``pages`` has each sequence's slots, in the order of its pages.
    """

    device: Device
    lengths: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        memory = self.device.program.memory
        self.cache = Pages(memory.slots)
        self.pages: dict[int, list[int]] = {}
        self.keys: dict[int, list[Key]] = {}  # of each sequence's first pages, full and known
        self.context = memory.context

    def open(self) -> int:
        """Return a new, empty sequence."""
        used = set(self.lengths)
        limit = self.device.program.memory.sequences
        for sequence in range(limit):
            if sequence not in used:
                self.lengths[sequence], self.pages[sequence] = 0, []
                self.keys[sequence] = []
                return sequence
        raise SessionError(f"at most {limit} sequences must be open at a time; close one, or "
                           "compile with a larger --sequences")

    def close(self, sequence: int) -> None:
        """Forget a sequence and free its pages; published ones can be found until overwritten."""
        del self.lengths[sequence], self.keys[sequence]
        # The last first: what is free longest is overwritten first, and no page is of use without
        # those before it.
        for page, slot in reversed(list(enumerate(self.pages.pop(sequence)))):
            self.cache.release(page, slot)

    def adopt(self, sequence: int, tokens: Sequence[int]) -> int:
        """Share pages that already hold what a sequence would compute next.

        Parameters
        ----------
        tokens
            The sequence's tokens from its first on. One at least is left to compute.

        Returns
        -------
        The positions that are in the cache now.
        """
        pages, keys = self.pages[sequence], self.keys[sequence]
        first = len(keys)
        if self.lengths[sequence] != first * PAGE_TOKENS:
            return self.lengths[sequence]  # inside a page, or after one that nobody else knows
        while (len(keys) + 1) * PAGE_TOKENS < len(tokens):
            page = len(keys)
            key = page_key(tokens, page, keys)
            slot = self.cache.find(page, key)
            if slot is None:
                break
            keys.append(key)
            if page < len(pages):
                self.cache.release(page, pages[page])
                pages[page] = slot
            else:
                pages.append(slot)
        if len(keys) > first:
            self._write_pages(sequence, first)
            self.lengths[sequence] = len(keys) * PAGE_TOKENS
        return self.lengths[sequence]

    def publish(self, sequence: int, tokens: Sequence[int]) -> None:
        """Let other sequences find a sequence's full pages.

        ``tokens`` are what the sequence was computed from, from its first on.
        """
        keys = self.keys[sequence]
        for page in range(len(keys), min(self.lengths[sequence], len(tokens)) // PAGE_TOKENS):
            keys.append(page_key(tokens, page, keys))
            self.cache.publish(page, self.pages[sequence][page], keys[page])

    def reserve(self, sequence: int, length: int) -> None:
        """Make sure that positions below ``length`` have cache pages; raise CacheFull if not."""
        if length > self.context:
            raise SessionError(f"a sequence must have at most {self.context} tokens, not {length}; "
                               "compile with a larger --context")
        pages = self.pages[sequence]
        first, last = len(pages), -(-length // PAGE_TOKENS)
        if last > first:
            pages += self.cache.take(range(first, last))
            self._write_pages(sequence, first)

    def _write_pages(self, sequence: int, first: int) -> None:
        memory = self.device.program.memory
        start = memory.pages.start + sequence * memory.page_stride * WORD_BYTES + 4 * first
        self.device.write(start, np.array(self.pages[sequence][first:], "<u4").tobytes())

    def _own(self, sequence: int, position: int) -> None:
        """Make sure that a position to write is in no page that another sequence can see."""
        page = position // PAGE_TOKENS
        if page >= len(self.keys[sequence]):
            return
        for number in range(page, len(self.keys[sequence])):
            slot = self.pages[sequence][number]
            if self.cache.holders(number, slot) > 1:
                raise SessionError(f"position {position} of sequence {sequence} must not be "
                                   "written: other sequences share its page")
            self.cache.forget(number, slot)
        del self.keys[sequence][page:]

    def step(self, rows: Sequence[Row], repeats: int = 1) -> None:
        """Run one step over some rows; raise if a sequence's row would have no place."""
        program = self.device.program
        if not 1 <= len(rows) <= program.arch.rows:
            raise SessionError(f"a step must have from 1 to {program.arch.rows} rows, "
                               f"not {len(rows)}")
        if not 1 <= repeats <= program.memory.repeats:
            raise SessionError(f"repeats must be from 1 to {program.memory.repeats}, "
                               f"not {repeats}")
        if repeats > 1 and len({row.sequence for row in rows}) < len(rows):
            raise SessionError("with repeats, a step must have one row of each sequence")
        roots: dict[int, int] = {}
        for row in rows:
            if not 0 <= row.token < program.model.vocab:
                raise SessionError(f"a token must be below {program.model.vocab}, not {row.token}")
            if row.sequence not in self.pages:
                raise SessionError(f"sequence {row.sequence} must be open")
            if row.position < 0:
                raise SessionError(f"a position must be at least 0, not {row.position}")
            self.reserve(row.sequence, row.position + repeats)
            if row.parent < 0 and row.position > self.lengths[row.sequence]:
                raise SessionError(f"a row without a parent must follow the "
                                   f"{self.lengths[row.sequence]} cached tokens of its sequence, "
                                   f"not be at position {row.position}")
            if row.parent < 0 and roots.setdefault(row.sequence, row.position) != row.position:
                raise SessionError(f"a sequence's rows without a parent must have one position in "
                                   f"a step, not {roots[row.sequence]} and {row.position}")
        for row in rows:
            if row.place == layout.PLACE_BY_POSITION:
                self._own(row.sequence, row.position)
        self.device.write(program.memory.step.start, self._table(rows, repeats))
        self.device.step()
        for row in rows:
            if row.place == layout.PLACE_BY_POSITION:
                self.lengths[row.sequence] = max(self.lengths[row.sequence],
                                                 row.position + repeats)

    def _table(self, rows: Sequence[Row], repeats: int) -> bytes:
        memory = self.device.program.memory
        header = np.zeros((), layout.STEP_HEADER)
        header["rows"], header["repeats"] = len(rows), repeats
        header["head"] = any(row.wants_logits for row in rows) or repeats > 1
        header["page_stride"], header["slot_words"] = memory.page_stride, memory.slot_words
        header["slots"], header["pages"] = memory.slots, memory.pages.start // WORD_BYTES
        table = np.zeros(len(rows), layout.STEP_ROW)
        for at, row in enumerate(rows):
            flags = layout.WANTS_LOGITS if row.wants_logits else 0
            table[at] = (row.token, row.position, row.sequence, row.parent, row.place, flags, 0)
        return header.tobytes() + table.tobytes()

    def logits(self, row: int) -> NDArray[np.float32]:
        """Return a row's logits, ``(vocab,)``, of the last step; it must have wanted them."""
        program = self.device.program
        start = program.memory.logits.start + row * program.memory.logits_stride * WORD_BYTES
        return self.device.read(start, 4 * program.model.vocab).view("<f4")

    def best(self, row: int, repeat: int = 0) -> NDArray[np.uint32]:
        """Return a row's best tokens of the last step, the best first."""
        program = self.device.program
        size = layout.TOP_ROW.itemsize
        start = program.memory.top.start + (repeat * program.arch.rows + row) * size
        tokens: NDArray[np.uint32] = self.device.read(start, size).view(layout.TOP_ROW)["tokens"][0]
        return tokens

    def feed(self, sequence: int, tokens: Iterable[int], *, chunk: int | None = None,
             all_logits: bool = False) -> NDArray[np.float32]:
        """Append tokens to a sequence, as many to a step as the build takes.

        Returns
        -------
        Logits after the last token, ``(1, vocab)``, or after each with ``all_logits``.
        """
        tokens, rows = list(tokens), self.device.program.arch.rows
        if not tokens:
            raise SessionError("at least one token must be fed")
        chunk, start, out = min(chunk or rows, rows), self.lengths[sequence], []
        for first in range(0, len(tokens), chunk):
            part = tokens[first:first + chunk]
            last = first + len(part) == len(tokens)
            wanted = [all_logits or (last and at == len(part) - 1) for at in range(len(part))]
            self.step([Row(sequence, token, start + first + at, at - 1, want)
                       for at, (token, want) in enumerate(zip(part, wanted, strict=True))])
            out += [self.logits(at) for at, want in enumerate(wanted) if want]
        return np.stack(out)
