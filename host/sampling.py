"""How a next token is chosen: the same one for the same seed, on every device and machine.

Devices give the same logits to the bit, so a choice need only be made of operations that every
processor rounds alike: additions, products and divisions of float64, one at a time. Exponentials of
numpy and of C libraries differ between processors, and so do the orders of their sums. Here an
exponential is a polynomial, and becomes a whole number of ``2**-40``; sums of those are exact in
any order. The draw is a hash of the seed and of the token's number, so a choice depends on nothing
that happens beside its sequence, and is made again alike after a failure.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

WEIGHT_BITS = 40  # a weight of e**0 is 2**40: a sum of 2**22 of them is still exact
LN2 = float.fromhex("0x1.62e42fefa39efp-1")
TAYLOR = [1 / math.factorial(power) for power in range(12, -1, -1)]  # of e**x; 2e-16 for |x| < 0.35
LOGPROBS_LIMIT = 64  # more than anyone reads


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen and when a text ends. Names and meanings are vLLM's.

    Parameters
    ----------
    max_tokens
        Most tokens to make. None: until the text ends or the context is full.
    min_tokens
        Before so many, neither the end of text nor a stop is chosen or looked for.
    temperature
        0 takes the best token each time; a tie goes to the lower token.
    top_k
        Choose among the best ``top_k`` tokens; 0 or -1 for all.
    top_p
        Choose among the fewest best tokens whose probabilities reach ``top_p``, of what
        ``min_p`` and ``top_k`` left.
    min_p
        Leave out tokens less probable than ``min_p`` times the best.
    repetition_penalty
        Divide positive logits of tokens in the prompt or the text so far by it, multiply others.
    presence_penalty, frequency_penalty
        Subtract from the logits of tokens in the text so far: once, and for each occurrence.
    logit_bias
        Token number to what is added to its logit.
    stop
        Texts that end the generation; they need not end where a token does.
    stop_token_ids
        Tokens that end the generation, as the model's end of text does.
    include_stop_str_in_output
        Keep the stop in the text.
    ignore_eos
        Go on after the end of text.
    skip_special_tokens
        Leave special tokens out of the text.
    seed
        Of the choice. None: a new one each time, which the result tells.
    n
        Texts to make of each prompt. Those after the first have seeds of their own.
    logprobs
        Natural logarithms of the probabilities of the chosen token and of so many best ones, as the
        model gave them, before penalties and temperature. None: not computed.
    """

    max_tokens: int | None = 64
    min_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    seed: int | None = None
    n: int = 1
    logprobs: int | None = None

    def __post_init__(self) -> None:
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stops)
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        object.__setattr__(self, "logit_bias", dict(self.logit_bias or {}))
        self._whole("max_tokens", 1, none=True)
        self._whole("min_tokens", 0)
        self._whole("top_k", -1)
        self._whole("n", 1)
        self._whole("seed", 0, none=True)
        self._whole("logprobs", 0, none=True, highest=LOGPROBS_LIMIT)
        self._number("temperature", 0 <= self.temperature < math.inf, "at least 0")
        self._number("top_p", 0 < self.top_p <= 1, "above 0 and at most 1")
        self._number("min_p", 0 <= self.min_p <= 1, "from 0 to 1")
        self._number("repetition_penalty", 0 < self.repetition_penalty < math.inf, "above 0")
        self._number("presence_penalty", -2 <= self.presence_penalty <= 2, "from -2 to 2")
        self._number("frequency_penalty", -2 <= self.frequency_penalty <= 2, "from -2 to 2")
        if not all(isinstance(stop, str) and stop for stop in stops):
            raise ValueError(f"stop must be texts of at least one character, not {stops!r}")
        if not all(_whole(token) and token >= 0 for token in self.stop_token_ids):
            raise ValueError(f"stop_token_ids must be whole numbers from 0, not "
                             f"{self.stop_token_ids!r}")
        for token, bias in self.biases.items():
            if not (_whole(token) and token >= 0 and math.isfinite(bias)):
                raise ValueError("logit_bias must give finite numbers for tokens from 0, not "
                                 f"{bias} for {token!r}")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens must be at most max_tokens, {self.max_tokens}, not "
                             f"{self.min_tokens}")

    def _number(self, name: str, legal: bool, wanted: str) -> None:
        if not legal:
            raise ValueError(f"{name} must be {wanted}, not {getattr(self, name)}")

    def _whole(self, name: str, lowest: int, *, none: bool = False,
               highest: int | None = None) -> None:
        value = getattr(self, name)
        if none and value is None:
            return
        if not _whole(value) or value < lowest or (highest is not None and value > highest):
            limit = f"from {lowest} to {highest}" if highest is not None else f"at least {lowest}"
            raise ValueError(f"{name} must be {limit}, not {value!r}")

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end a generation."""
        return tuple(self.stop)

    @property
    def biases(self) -> dict[int, float]:
        """What is added to logits, by token."""
        return dict(self.logit_bias or {})

    @property
    def is_plain(self) -> bool:
        """Whether the choice is always the best token of the logits as they are."""
        return (self.temperature == 0 and self.repetition_penalty == 1
                and not self.presence_penalty and not self.frequency_penalty
                and not self.logit_bias and self.logprobs is None and not self.min_tokens)


def _whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


@dataclass(frozen=True)
class TokenLogprob:
    """A chosen token's logarithm of its probability, and those of the best tokens."""

    token: int
    logprob: float
    top: Mapping[int, float] = field(default_factory=dict)


def choose(logits: NDArray[np.float32], params: SamplingParams, seed: int, prompt: Sequence[int],
           made: Sequence[int], barred: Sequence[int] = ()) -> int:
    """Return the next token of a sequence.

    Parameters
    ----------
    logits
        ``(vocab,)`` float32. A NaN counts as minus infinity.
    prompt, made
        The sequence's tokens so far; ``len(made)`` numbers the draw.
    barred
        Tokens that must not be chosen.
    """
    values = _penalized(logits, params, prompt, made)
    values[list(barred)] = -np.inf
    best = int(np.argmax(values))
    if params.temperature == 0 or not math.isfinite(values[best]):
        return best
    tokens, weights = _candidates(values, best, params)
    sums = np.cumsum(weights)
    at = np.searchsorted(sums, draw(seed, len(made), int(sums[-1])), side="right")
    return int(tokens[at])


def _penalized(logits: NDArray[np.float32], params: SamplingParams, prompt: Sequence[int],
               made: Sequence[int]) -> F64:
    """Return logits in float64, their penalties and biases applied, in the order of parameters."""
    values = logits.astype(np.float64)
    values[np.isnan(values)] = -np.inf
    if params.repetition_penalty != 1:
        seen = np.unique(np.array([*prompt, *made], np.int64))
        old = values[seen]
        values[seen] = np.where(old > 0, old / params.repetition_penalty,
                                old * params.repetition_penalty)
    if made and (params.presence_penalty or params.frequency_penalty):
        seen, counts = np.unique(np.array(made, np.int64), return_counts=True)
        values[seen] -= params.presence_penalty
        values[seen] -= counts * params.frequency_penalty
    for token, bias in params.biases.items():
        values[token] += bias
    return values


def _candidates(values: F64, best: int, params: SamplingParams) -> tuple[I64, I64]:
    """Return the tokens to choose among and their weights; the best first, if any were left out."""
    with np.errstate(over="ignore"):
        scaled = (values - values[best]) / params.temperature
    tokens = np.flatnonzero(scaled > -LN2 * WEIGHT_BITS)  # less than a unit is no weight
    if 0 < params.top_k < len(tokens):
        tokens = tokens[_best(values[tokens], params.top_k)]
    weights = _weights(scaled[tokens])
    if params.min_p > 0:
        kept = weights >= math.ceil(Fraction(params.min_p) * (1 << WEIGHT_BITS))
        tokens, weights = tokens[kept], weights[kept]
    if params.top_p < 1:
        wanted = math.ceil(Fraction(params.top_p) * int(weights.sum()))
        order = _fewest(values[tokens], weights, wanted)
        tokens, weights = tokens[order], weights[order]
    return tokens, weights


def _best(values: F64, count: int) -> I64:
    """Return the places of the ``count`` largest values, in their order; of equals the first."""
    if 0 < count < len(values):
        least = np.partition(values, len(values) - count)[len(values) - count]
        places = np.flatnonzero(values >= least)
    else:
        places = np.arange(len(values))
    return places[np.argsort(-values[places], kind="stable")][:count]


def _fewest(values: F64, weights: I64, wanted: int) -> I64:
    """Return the places of the fewest best values whose weights reach a sum."""
    count = 64
    while True:
        order = _best(values, count)
        sums = np.cumsum(weights[order])
        if sums[-1] >= wanted or count >= len(values):
            return order[:int(np.searchsorted(sums, wanted)) + 1]
        count *= 8


def _weights(exponents: F64) -> I64:
    """Return ``e**x`` for ``x`` of at most 0, as whole numbers of ``2**-WEIGHT_BITS``."""
    inside = np.maximum(exponents, -100.0)
    power = np.rint(inside * (1 / LN2))
    rest = inside - power * LN2
    value = np.full_like(rest, TAYLOR[0])
    for coefficient in TAYLOR[1:]:
        value *= rest
        value += coefficient
    scale = (power.astype(np.int64) + (1023 + WEIGHT_BITS) << 52).view(np.float64)
    return np.floor(value * scale).astype(np.int64)


def draw(seed: int, number: int, limit: int) -> int:
    """Return a whole number from 0 to below ``limit``, of a seed and the number of the draw."""
    digest = hashlib.sha256(f"alula {seed} {number}".encode()).digest()
    return int.from_bytes(digest[:16], "little") * limit >> 128


def sample_seed(seed: int, sample: int) -> int:
    """Return the seed of a prompt's text number ``sample``; the first has the prompt's own."""
    return seed if sample == 0 else draw(seed, -sample, 1 << 63)


def logprobs(logits: NDArray[np.float32], token: int, count: int) -> TokenLogprob:
    """Return a token's logarithm of probability, and those of the ``count`` best, to six places."""
    values = logits.astype(np.float64)
    values[np.isnan(values)] = -np.inf
    peak = float(values.max())
    if not math.isfinite(peak):
        return TokenLogprob(token, math.nan)
    relative = np.maximum(values - peak, -1000.0)
    total = math.log(int(_weights(relative).sum())) - WEIGHT_BITS * math.log(2)
    best = _best(values, count)

    def of(at: int) -> float:
        return round(float(values[at]) - peak - total, 6)
    return TokenLogprob(token, of(token), {int(at): of(int(at)) for at in best})
