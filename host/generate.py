"""One text at a time: generate it in the caller's thread, or measure the loss on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alula.host.engine import Chunk, Engine, Job
from alula.host.sampling import SamplingParams
from alula.host.session import Row, Session
from alula.host.text import Stream, Text, Writer


def generate(engine: Engine, prompt: Sequence[int], params: SamplingParams, *,
             text: Text | None = None) -> Iterator[Chunk]:
    """Yield the chunks of one text as the caller's thread makes them, with nothing beside it.

    The job is cancelled when the iterator is dropped.
    """
    limit = engine.check(prompt, params)
    made: list[Chunk | Exception] = []
    job = Job(tuple(prompt), params, params.seed or 0, limit, tell=made.append,
              writer=writer(text, params) if text else None)
    engine.add(job)
    try:
        while job.finish_reason is None:
            engine.step()
            while made:
                chunk = made.pop(0)
                assert isinstance(chunk, Chunk)  # an error is raised by the step
                yield chunk
    finally:
        engine.cancel(job)


def generate_greedy(session: Session, prompt: Sequence[int], count: int) -> list[int]:
    """Return ``count`` greedy tokens with the device choosing them: the host only starts runs."""
    program = session.device.program
    sequence = session.open()
    try:
        session.feed(sequence, prompt)
        last = (len(prompt) - 1) % program.arch.rows  # row of the prompt's last token
        tokens = [int(session.best(last)[0])]
        while len(tokens) < count:
            repeats = min(count - len(tokens), program.memory.repeats)
            session.step([Row(sequence, tokens[-1], session.lengths[sequence],
                              wants_logits=True)], repeats)
            tokens += [int(session.best(0, repeat)[0]) for repeat in range(repeats)]
        return tokens[:count]
    finally:
        session.close(sequence)


def writer(text: Text, params: SamplingParams) -> Writer:
    """Return what makes text of a job's tokens."""
    return Writer(Stream(text, special=not params.skip_special_tokens), params.stops,
                  keep=params.include_stop_str_in_output)


class Loss(NamedTuple):
    """Mean loss in nats a token over ``tokens`` predicted tokens, which spell ``bytes`` bytes."""

    loss: float
    tokens: int
    bytes: int

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700))

    @property
    def bits_per_byte(self) -> float:
        return self.loss * self.tokens / math.log(2) / max(self.bytes, 1)


Logits = Callable[[list[int]], NDArray[np.float32]]


def measure(logits_of: Logits, text: Text, content: str, window: int,
            report: Callable[[int, int], None] = lambda done, total: None) -> Loss:
    """Return the loss on a text, cut into windows that each predict all but their first token.

    Parameters
    ----------
    logits_of
        Gives ``(tokens, vocab)`` logits for a window of tokens, starting from an empty context.
    report
        Called with the tokens done and in all.
    """
    tokens = text.encode(content)
    if len(tokens) < 2:
        raise ValueError("the text must have at least two tokens")
    total, count, size = 0.0, 0, 0
    for start in range(0, len(tokens) - 1, window):
        part = tokens[start:start + window + 1]
        total += float(-_log_probability(logits_of(part[:-1]), part[1:]).sum())
        count += len(part) - 1
        size += len(text.decode(part[1:]).encode())
        report(count, len(tokens) - 1)
    return Loss(total / count, count, size)


def _log_probability(logits: NDArray[np.float32], tokens: list[int]) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    chosen: NDArray[np.float64] = wide[np.arange(len(tokens)), tokens]
    return chosen - np.log(np.exp(wide).sum(axis=-1))


def session_logits(session: Session) -> Logits:
    """Return :data:`Logits` that a device computes."""
    def logits_of(tokens: list[int]) -> NDArray[np.float32]:
        sequence = session.open()
        try:
            return session.feed(sequence, tokens, all_logits=True)
        finally:
            session.close(sequence)
    return logits_of
