"""Generate text on a device, greedily or by seeded sampling, and measure loss on a text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alula.host.session import Row, Session, SessionError
from alula.host.text import Text


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen, and when to stop; ``temperature`` 0 takes the best."""

    temperature: float = 0.0
    top_k: int = 0
    seed: int = 0
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be at least 0, not {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be at least 0, not {self.top_k}")


def choose(logits: NDArray[np.float32], sampling: Sampling,
           random: np.random.Generator) -> int:
    """Return the next token; a tie goes to the lower one."""
    if sampling.temperature == 0:
        return int(np.argmax(logits))
    scaled = logits.astype(np.float64) / sampling.temperature
    order = np.argsort(-scaled, kind="stable")[:sampling.top_k or None]
    weights = np.exp(scaled[order] - scaled[order[0]])
    at = np.searchsorted(np.cumsum(weights), random.random() * weights.sum(), side="right")
    return int(order[min(int(at), len(order) - 1)])


def generate(session: Session, prompt: Sequence[int], count: int,
             sampling: Sampling = Sampling()) -> Iterator[int]:
    """Yield up to ``count`` tokens that follow ``prompt``.

    An end-of-text token is the last, unless ``sampling.ignore_eos``.
    The sequence is closed when the iterator ends or is dropped.
    """
    program = session.device.program
    if len(prompt) + count > session.context:
        raise SessionError(f"prompt and new tokens must be at most {session.context} tokens, not "
                           f"{len(prompt)} + {count}; compile with a larger --context")
    random = np.random.default_rng(sampling.seed)
    sequence = session.open()
    try:
        logits = session.feed(sequence, prompt)
        for made in range(count):
            token = choose(logits[0], sampling, random)
            yield token
            ended = token in program.model.eos_tokens and not sampling.ignore_eos
            if ended or made == count - 1:
                return
            logits = session.feed(sequence, [token])
    finally:
        session.close(sequence)


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
