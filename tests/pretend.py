"""A device that pretends: its logits are a hash of the tokens that it finds in its cache.

It follows the step table and the page tables as a real one does, and a page that is not what it
should be changes everything after it; but a step takes microseconds.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from alula.compiler.program import Program
from alula.host.sampling import SamplingParams, choose
from alula.hw import layout
from alula.hw.isa import TOP_K, WORD_BYTES
from alula.hw.numerics import PAGE_CLASSES, PAGE_TOKENS


class Pretend:
    """See the module. Unwritten cache holds what no token is."""

    name = "pretend"
    counters = None

    def __init__(self, program: Program) -> None:
        self.program = program
        memory = program.memory
        self.control = np.zeros(memory.top.stop, np.uint8)
        self.cache = np.full((PAGE_CLASSES, memory.slots, PAGE_TOKENS), 0xDEAD_BEEF, np.uint32)
        self.steps = 0

    def write(self, start: int, data: bytes) -> None:
        self.control[start:start + len(data)] = np.frombuffer(data, np.uint8)

    def read(self, start: int, size: int) -> NDArray[np.uint8]:
        return self.control[start:start + size].copy()

    def step(self) -> None:
        self.steps += 1
        memory, size = self.program.memory, layout.STEP_HEADER.itemsize
        header = self.read(memory.step.start, size).view(layout.STEP_HEADER)[0]
        count = int(header["rows"])
        rows = self.read(memory.step.start + size,
                         count * layout.STEP_ROW.itemsize).view(layout.STEP_ROW).copy()
        assert 1 <= count <= self.program.arch.rows
        for repeat in range(int(header["repeats"])):
            self._once(rows, repeat)

    def _once(self, rows: NDArray[np.void], repeat: int) -> None:
        memory, vocab = self.program.memory, self.program.model.vocab
        chosen = []
        for at, row in enumerate(rows):
            position = int(row["position"])
            if row["parent"] >= 0:
                parent = rows[row["parent"]]
                assert parent["sequence"] == row["sequence"]
                assert parent["position"] == position - 1
            self._page(row, position)[position % PAGE_TOKENS] = row["token"]
            values = logits_of(self._seen(row, position), vocab)
            best = np.lexsort((np.arange(vocab), -values))[:TOP_K]
            if row["flags"] & layout.WANTS_LOGITS:
                start = memory.logits.start + at * memory.logits_stride * WORD_BYTES
                self.write(start, values.tobytes())
            top = np.zeros((), layout.TOP_ROW)
            top["values"], top["tokens"] = values[best], best
            place = repeat * self.program.arch.rows + at
            self.write(memory.top.start + place * layout.TOP_ROW.itemsize, top.tobytes())
            chosen.append(best[0])
        rows["token"] = chosen
        rows["position"] += 1

    def _page(self, row: np.void, position: int) -> NDArray[np.uint32]:
        memory, page = self.program.memory, position // PAGE_TOKENS
        start = (memory.pages.start + int(row["sequence"]) * memory.page_stride * WORD_BYTES
                 + 4 * page)
        return self.cache[page % PAGE_CLASSES, int(self.read(start, 4).view("<u4")[0])]

    def _seen(self, row: np.void, position: int) -> NDArray[np.uint32]:
        pages = [self._page(row, at) for at in range(0, position + 1, PAGE_TOKENS)]
        return np.concatenate(pages)[:position + 1]


def logits_of(tokens: Sequence[int] | NDArray[np.uint32], vocab: int) -> NDArray[np.float32]:
    """Return the logits after some tokens, ``(vocab,)``; some of them are equal."""
    digest = hashlib.sha256(np.array(tokens, "<u4").tobytes()).digest()
    shades = np.frombuffer(hashlib.shake_128(digest).digest(vocab), np.uint8)
    return (shades / 8).astype(np.float32)


def solo(program: Program, prompt: Sequence[int], params: SamplingParams,
         seed: int = 0) -> list[int]:
    """Return the tokens that follow a prompt, without a device or an engine."""
    made: list[int] = []
    while len(made) < (params.max_tokens or 0):
        values = logits_of([*prompt, *made], program.model.vocab)
        barred = program.model.eos_tokens if len(made) < params.min_tokens else ()
        made.append(choose(values, params, seed, prompt, made, barred))
        if made[-1] in program.model.eos_tokens and not params.ignore_eos:
            break
    return made


class Faulty(Pretend):
    """Fails for good at some call, with or without having done what it was asked for."""

    name = "faulty"

    def __init__(self, program: Program, calls: int, seed: int = 0) -> None:
        super().__init__(program)
        self.calls, self.random = calls, random.Random(seed)

    def _may_fail(self) -> bool:
        """Return whether this call fails after it was carried out."""
        self.calls -= 1
        if self.calls > 0:
            return False
        if self.calls < 0 or self.random.random() < 0.5:
            raise OSError("the link is down")
        return True

    def write(self, start: int, data: bytes) -> None:
        late = self._host and self._may_fail()
        super().write(start, data)
        if late:
            raise OSError("the link is down")

    def read(self, start: int, size: int) -> NDArray[np.uint8]:
        late = self._host and self._may_fail()
        found = super().read(start, size)
        if late:
            raise OSError("the link is down")
        return found

    def step(self) -> None:
        late = self._may_fail()
        self._host = False
        super().step()
        self._host = True
        if late:
            raise OSError("the link is down")

    _host = True  # whether it is the host that writes and reads


def resized(program: Program, *, rows: int | None = None, slots: int | None = None,
            sequences: int | None = None) -> Program:
    """Return a program for a pretended device of another size."""
    memory = replace(program.memory, slots=slots or program.memory.slots,
                     sequences=sequences or program.memory.sequences)
    return replace(program, arch=replace(program.arch, rows=rows or program.arch.rows),
                   memory=memory)
