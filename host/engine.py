"""Many sequences on one device: who gets the rows of a step, and who waits.

Continuous batching: a step's rows go first to sequences that only need their next token, then to
prompts, in chunks. A sequence that ends makes room for the next one at once. When the cache is full
the youngest sequence gives its pages up and is computed again later. When a device fails the next
one takes all sequences over. Nothing of this changes a bit: a row's result does not depend on the
rows beside it, and what a sequence is, is its tokens; keys and values can always be made again.
"""

from __future__ import annotations

import logging
from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

import numpy as np
from numpy.typing import NDArray

from alula.compiler.program import Program
from alula.host.choice import DeviceFailed, Devices, Guarded, NoDevice
from alula.host.pages import CacheFull
from alula.host.sampling import SamplingParams, TokenLogprob, choose, logprobs
from alula.host.session import Row, Session, SessionError
from alula.host.text import Writer
from alula.hw import layout

LOG = logging.getLogger("alula")


@dataclass(frozen=True)
class Chunk:
    """What a step adds to a text; ``index`` says which of a prompt's ``n`` texts.

    ``text`` may be empty while a character or a stop is not complete. The last chunk of a text has
    a ``finish_reason``: ``length``, ``stop``, ``eos`` or ``cancelled``.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    logprobs: tuple[TokenLogprob, ...] = ()

    def __str__(self) -> str:
        return self.text


def _ignore(what: Chunk | Exception) -> None:
    pass


@dataclass(eq=False)
class Job:
    """One text to make: what is asked, and how far it is.

    Parameters
    ----------
    prompt
        At least one token.
    limit
        Most tokens to make.
    writer
        Makes text of tokens; without one only tokens come out.
    tell
        Is given each chunk as it is made, or the error that ended everything.
    """

    prompt: tuple[int, ...]
    params: SamplingParams
    seed: int
    limit: int
    writer: Writer | None = None
    index: int = 0
    tell: Callable[[Chunk | Exception], None] = _ignore
    number: int = 0  # in order of arrival
    made: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    found: int = 0  # tokens of the prompt that others had computed
    fresh: bool = True  # whether it never had to start over
    sequence: int | None = None  # the session's number for it, while it runs
    served: int = 0  # the step that last worked on it

    def __post_init__(self) -> None:
        self.tokens = [*self.prompt, *self.made]

    def __lt__(self, other: Job) -> bool:
        return self.number < other.number

    @property
    def text(self) -> str:
        return self.writer.text if self.writer else ""

    def accept(self, token: int, logprob: TokenLogprob | None, eos: Sequence[int]) -> None:
        """Append a token and tell of it; see whether it is the last."""
        self.made.append(token)
        self.tokens.append(token)
        if logprob is not None:
            self.logprobs.append(logprob)
        early = len(self.made) <= self.params.min_tokens
        text = ""
        if token in eos and not self.params.ignore_eos:
            self.finish_reason = "eos"
        elif token in self.params.stop_token_ids:
            self.finish_reason, self.stop_reason = "stop", token
        elif self.writer is not None:
            text = self.writer.push(token, may_stop=not early)
            if self.writer.stop is not None:
                self.finish_reason, self.stop_reason = "stop", self.writer.stop
        if self.finish_reason is None and len(self.made) == self.limit:
            self.finish_reason = "length"
        self._tell(text, (token,), (logprob,) if logprob else ())

    def cancel(self) -> None:
        """End without another token."""
        if self.finish_reason is None:
            self.finish_reason = "cancelled"
            self._tell("", ())

    def _tell(self, text: str, tokens: tuple[int, ...],
              logprob: tuple[TokenLogprob, ...] = ()) -> None:
        if self.finish_reason is not None and self.writer is not None:
            text += self.writer.finish()
        self.tell(Chunk(self.index, text, tokens, self.finish_reason, self.stop_reason, logprob))


@dataclass(frozen=True)
class Statistics:
    """What an engine has done since it was made."""

    steps: int = 0
    rows: int = 0
    new_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    preemptions: int = 0
    handovers: int = 0


@dataclass(frozen=True)
class _Part:
    """Rows of a step that work on one job: its next ``count`` tokens."""

    job: Job
    count: int


class Engine:
    """Runs jobs on the first of some devices that works. For one thread.

    Parameters
    ----------
    every_logit
        Read all logits of a token even where the best token is all that is wanted, so that a
        device that is compared with another is compared in full.
    prefix_cache
        Let jobs share the pages of prompts that begin alike.
    repeats
        Most greedy tokens that a device chooses by itself in one run. More than one saves starts
        of the device; tokens then come in as many at a time, and a cancellation waits for them.
    """

    def __init__(self, devices: Devices, *, every_logit: bool = False, prefix_cache: bool = True,
                 repeats: int = 1) -> None:
        if repeats < 1:
            raise ValueError(f"repeats must be at least 1, not {repeats}")
        self.devices, self.every_logit, self.prefix_cache = devices, every_logit, prefix_cache
        self.repeats = repeats
        self.program: Program = devices.program
        self.waiting: list[Job] = []  # both in order of arrival
        self.running: list[Job] = []
        self.statistics = Statistics()
        self._numbers = count()
        self._room = True  # pages or a sequence were given back since a job found none
        self._guarded = Guarded(devices.open())
        self.session = Session(self._guarded)

    @property
    def device(self) -> str:
        """The name of the device at work."""
        return self.session.device.name

    def check(self, prompt: Sequence[int], params: SamplingParams) -> int:
        """Return how many tokens may be made at most; raise if a request makes no sense here."""
        vocab, context = self.program.model.vocab, self.program.memory.context
        for token in prompt:
            if not 0 <= token < vocab:
                raise SessionError(f"a token must be below {vocab}, not {token}")
        for token in [*params.biases, *params.stop_token_ids]:
            if token >= vocab:
                raise ValueError(f"logit_bias and stop_token_ids must be of tokens below {vocab}, "
                                 f"not {token}")
        if not prompt:
            raise SessionError("a prompt must have at least one token")
        wanted = params.max_tokens or 1
        if len(prompt) + wanted > context:
            raise SessionError(f"prompt and new tokens must be at most {context} tokens, not "
                               f"{len(prompt)} + {wanted}; compile with a larger --context")
        return params.max_tokens or context - len(prompt)

    def add(self, job: Job) -> None:
        """Put a job at the end of the queue."""
        job.number = next(self._numbers)
        self.waiting.append(job)
        self._count(prompt_tokens=len(job.prompt))

    def cancel(self, job: Job) -> None:
        """End a job where it is; one that has ended stays as it is."""
        if job in self.waiting:
            self.waiting.remove(job)
        elif job in self.running:
            self._leave(job)
        job.cancel()

    def step(self) -> bool:
        """Run the device once; return whether there is more to do.

        Raises
        ------
        Exception
            What the last device raised. Every job has been told, and the engine is empty.
        """
        try:
            self._admit()
            self._make_room()
            parts = self._plan()
            if parts:
                self._run(parts)
        except DeviceFailed as failure:
            self._hand_over(failure)
        except Exception as error:
            self._abandon(error)
            raise
        return bool(self.waiting or self.running)

    def forget(self) -> None:
        """Empty the prefix cache; jobs at work keep their pages."""
        self.session.cache.clear()

    def close(self) -> None:
        """Give up what the device holds; there is no step afterwards."""
        self._guarded.close()

    # Who runs.

    def _admit(self) -> None:
        """Let jobs that wait run, in order, while there is a sequence and room for their pages."""
        limit = self.program.memory.sequences
        while self.waiting and self._room and len(self.running) < limit:
            job = self.waiting[0]
            job.sequence = self.session.open()
            if job.fresh:
                job.found = 0
            self._adopt(job)
            try:
                self.session.reserve(job.sequence, len(job.tokens))
            except CacheFull:
                self._close(job)
                self._room = False
                return
            insort(self.running, self.waiting.pop(0))

    def _adopt(self, job: Job) -> None:
        """Share what others have computed of a job's next pages."""
        assert job.sequence is not None
        if self.prefix_cache:
            before = self.session.lengths[job.sequence]
            found = self.session.adopt(job.sequence, job.tokens) - before
            if job.fresh:
                job.found += found

    def _make_room(self) -> None:
        """Have pages for the next token of every job that runs; the youngest make room for others.

        The oldest never gives way, and alone has room for a whole context: so all come to an end.
        """
        for job in list(self.running):
            while job.sequence is not None:
                try:
                    self.session.reserve(job.sequence, len(job.tokens))
                    break
                except CacheFull:
                    self._preempt(self.running[-1])

    def _preempt(self, job: Job) -> None:
        self._leave(job)
        job.fresh = False
        self._room = False  # until somebody ends: what was given back is wanted by an older job
        insort(self.waiting, job)
        self._count(preemptions=1)

    def _leave(self, job: Job) -> None:
        self.running.remove(job)
        self._close(job)
        self._room = True

    def _close(self, job: Job) -> None:
        assert job.sequence is not None
        self.session.close(job.sequence)
        job.sequence = None

    # What a step is.

    def _todo(self, job: Job) -> int:
        """Return how many of a job's tokens are not in the cache, at least one."""
        assert job.sequence is not None
        return len(job.tokens) - self.session.lengths[job.sequence]

    def _plan(self) -> list[_Part]:
        """Deal a step's rows: to single tokens, those first that waited longest, then to prompts.

        While a prompt is at work one row at least is for it; with one row only, all take turns.
        """
        rows = self.program.arch.rows
        turns = sorted(self.running, key=lambda job: (job.served, job.number))
        prompts = [job for job in self.running if self._todo(job) > 1]
        if rows == 1:
            return [_Part(job, 1) for job in turns[:1]]
        singles = [job for job in turns if self._todo(job) == 1]
        parts = [_Part(job, 1) for job in singles[:rows - bool(prompts)]]
        left = rows - len(parts)
        for job in prompts:
            if left:
                self._adopt(job)
                parts.append(_Part(job, min(left, self._todo(job))))
                left -= parts[-1].count
        return parts

    def _repeats(self, parts: list[_Part]) -> int:
        """Return how many tokens the device may choose for itself before the host must look."""
        jobs = [part.job for part in parts]
        if self.every_logit or any(self._todo(job) > 1 or not job.params.is_plain
                                   or job.params.stops for job in jobs):
            return 1
        repeats = min(self.repeats, self.program.memory.repeats,
                      *(job.limit - len(job.made) for job in jobs))
        try:
            for job in jobs:
                assert job.sequence is not None
                self.session.reserve(job.sequence, len(job.tokens) - 1 + repeats)
        except CacheFull:
            return 1
        return repeats

    def _run(self, parts: list[_Part]) -> None:
        rows: list[Row] = []
        ends: list[tuple[Job, int]] = []  # jobs whose next token comes, and their rows
        repeats = self._repeats(parts)
        for part in parts:
            job = part.job
            assert job.sequence is not None
            first = self.session.lengths[job.sequence]
            for at in range(first, first + part.count):
                last = at == len(job.tokens) - 1
                if last:
                    ends.append((job, len(rows)))
                rows.append(Row(job.sequence, job.tokens[at], at,
                                len(rows) - 1 if at > first else -1, last))
        self.session.step(rows, repeats)
        # Everything is read before anything is kept: a device that fails here has done nothing.
        answers = [self._answer(job, row, repeats) for job, row in ends]
        self._count(steps=1, rows=len(rows))
        for part in parts:
            part.job.served = self.statistics.steps
        for (job, _), answer in zip(ends, answers, strict=True):
            if not job.made:
                self._count(cached_tokens=job.found)
            before = len(job.made)
            self._accept(job, answer)
            self._count(new_tokens=len(job.made) - before)
        if self.prefix_cache:
            for part in parts:
                if part.job.sequence is not None:
                    self.session.publish(part.job.sequence, part.job.tokens)
        for job, _ in ends:
            if job.finish_reason is not None:
                self._leave(job)

    def _answer(self, job: Job, row: int, repeats: int) -> NDArray[np.float32] | list[int]:
        """Return the tokens that the device chose, or the logits to choose one by."""
        if job.params.is_plain and not self.every_logit:
            best = [int(self.session.best(row, repeat)[0]) for repeat in range(repeats)]
            return [0 if token == layout.NO_TOKEN else token for token in best]
        return self.session.logits(row)

    def _accept(self, job: Job, answer: NDArray[np.float32] | list[int]) -> None:
        model, params = self.program.model, job.params
        if isinstance(answer, list):
            for token in answer:
                if job.finish_reason is None:
                    job.accept(token, None, model.eos_tokens)
            return
        barred: Sequence[int] = ()
        if len(job.made) < params.min_tokens:
            barred = [*model.eos_tokens, *params.stop_token_ids]
        token = choose(answer, params, job.seed, job.prompt, job.made, barred)
        likely = None if params.logprobs is None else logprobs(answer, token, params.logprobs)
        job.accept(token, likely, model.eos_tokens)

    def _count(self, **more: int) -> None:
        self.statistics = replace(self.statistics, **{
            name: getattr(self.statistics, name) + number for name, number in more.items()})

    # What goes wrong.

    def _hand_over(self, failure: DeviceFailed) -> None:
        """Go on with the next device: every job starts over from its tokens, in order."""
        self.close()  # before the next is opened: it may be the same card
        try:
            device = self.devices.open()
        except NoDevice:
            self._abandon(failure.error)
            raise failure.error from None
        LOG.warning("%s; %s goes on from the tokens so far", failure, device.name)
        self.devices.report.append(f"{failure}; {device.name} goes on")
        self.waiting = sorted([*self.running, *self.waiting])
        for job in self.waiting:
            job.sequence, job.fresh = None, False
        self.running = []
        self._guarded = Guarded(device)
        self.session, self._room = Session(self._guarded), True
        self._count(handovers=1)

    def _abandon(self, error: Exception) -> None:
        """Tell every job of an error that none of them can outlive."""
        jobs, self.running, self.waiting = [*self.running, *self.waiting], [], []
        self.session = Session(self.session.device)
        for job in jobs:
            job.tell(error)
