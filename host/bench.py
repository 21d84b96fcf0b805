"""How fast a device runs a program: llama-bench's tests, with the bytes that they read.

``ppN`` is a prompt of N tokens, ``tgN`` N tokens one at a time from an empty context. Tokens are
random: speed does not depend on them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from alula.compiler.program import Program
from alula.host.device import Device
from alula.host.session import Session

Advance = Callable[[float], None]


class Runner(Protocol):
    """A system under test."""

    name: str

    def prompt(self, tokens: Sequence[int]) -> None:
        """Start over with an empty context and read a prompt, up to the logits after it."""

    def token(self, token: int) -> None:
        """Read one more token, up to the logits after it."""

    def empty(self) -> None:
        """Start over with an empty context."""


class DeviceRunner:
    """A device of Alula's under test."""

    def __init__(self, device: Device) -> None:
        self.session = Session(device)
        self.name = f"alula {device.name}"
        self.sequence = self.session.open()

    def empty(self) -> None:
        self.session.close(self.sequence)
        self.sequence = self.session.open()

    def prompt(self, tokens: Sequence[int]) -> None:
        self.empty()
        self.session.feed(self.sequence, tokens)

    def token(self, token: int) -> None:
        self.session.feed(self.sequence, [token])


@dataclass(frozen=True)
class Test:
    """``pp`` or ``tg`` and its number of tokens."""

    kind: str
    tokens: int

    __test__ = False  # pytest: this is none of its tests

    def __str__(self) -> str:
        return f"{self.kind}{self.tokens}"

    def run(self, runner: Runner, random: np.random.Generator, vocab: int) -> float:
        """Return the seconds it takes."""
        tokens = random.integers(0, vocab, self.tokens).tolist()
        runner.empty()
        begun = time.perf_counter()
        if self.kind == "pp":
            runner.prompt(tokens)
        else:
            for token in tokens:
                runner.token(token)
        return time.perf_counter() - begun


@dataclass(frozen=True)
class Result:
    """What a test took, run by run."""

    system: str
    test: Test
    seconds: tuple[float, ...]
    bytes_read: float = 0.0  # by one run, of weights and cache; 0 if not known

    @property
    def rates(self) -> np.ndarray:
        """Tokens a second of each run."""
        return self.test.tokens / np.array(self.seconds)

    @property
    def rate(self) -> float:
        return float(self.rates.mean())

    @property
    def deviation(self) -> float:
        return float(self.rates.std(ddof=1)) if len(self.seconds) > 1 else 0.0

    @property
    def median(self) -> float:
        return float(np.median(self.rates))

    @property
    def gb_per_s(self) -> float:
        return self.bytes_read / float(np.median(self.seconds)) / 1e9


def parse_tests(prompts: str, generated: str, context: int) -> list[Test]:
    """Return the tests that comma-separated numbers of tokens ask for; 0 asks for none."""
    tests = []
    for kind, option, text in (("pp", "-p", prompts), ("tg", "-n", generated)):
        for word in text.split(","):
            if not word.strip().isdecimal():
                raise ValueError(f"{option} must be numbers of tokens with commas between them, "
                                 f"not {text!r}")
            if int(word) > context:
                raise ValueError(f"{option} must be at most the program's context of {context} "
                                 f"tokens, not {int(word)}; compile with a larger --context")
            if int(word):
                tests.append(Test(kind, int(word)))
    if not tests:
        raise ValueError("-p or -n must ask for some tokens, not none")
    return tests


def bytes_read(program: Program, weight_bytes: int, test: Test) -> float:
    """Return the bytes of weights and cache that one run of a test reads.

    A step reads every weight once, the head's too (unless it wants no logits, which is not
    counted apart), and the cache up to its first row's position.
    """
    model = program.model
    of_position = 2 * model.layers * model.kv_heads * (model.head_dim + 4)
    rows = program.arch.rows if test.kind == "pp" else 1
    starts = range(0, test.tokens, rows)
    return float(len(starts) * weight_bytes + of_position * sum(starts))


def measure(runners: Sequence[Runner], tests: Sequence[Test], repeats: int, vocab: int,
            begin: Callable[[str, float], Advance]) -> list[tuple[str, Test, tuple[float, ...]]]:
    """Run each test on all systems in turn, ``repeats`` times, after one run that does not count.

    Turns are taken because a shared machine's speed changes; medians of them compare.
    """
    random, found = np.random.default_rng(0), []
    for test in tests:
        advance = begin(f"{test}: {', '.join(runner.name for runner in runners)}",
                        (repeats + 1) * len(runners))
        seconds: dict[int, list[float]] = {at: [] for at in range(len(runners))}
        for turn in range(repeats + 1):
            for at, runner in enumerate(runners):
                took = test.run(runner, random, vocab)
                if turn:
                    seconds[at].append(took)
                advance(1)
        found += [(runner.name, test, tuple(seconds[at])) for at, runner in enumerate(runners)]
    return found


COLUMNS = ("system", "threads", "test", "t/s", "first token", "GB/s", "of memory's")


def rows_of(results: Sequence[Result], threads: int,
            roof: float | None) -> list[tuple[str, ...]]:
    """Return a table's rows; ``roof`` is the memory's measured GB/s."""
    rows: list[tuple[str, ...]] = []
    for result in results:
        known = result.bytes_read > 0
        rows.append((
            result.system, str(threads), str(result.test),
            f"{result.rate:.2f} ± {result.deviation:.2f}",
            f"{np.median(result.seconds):.3f} s" if result.test.kind == "pp" else "",
            f"{result.gb_per_s:.2f}" if known else "",
            f"{100 * result.gb_per_s / roof:.0f} %" if known and roof else ""))
    return rows


def parameters(program: Program) -> str:
    """Return a model's number of parameters as people say it."""
    count = program.model.parameters
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.2f} M"


def markdown(program: Program, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown, with llama-bench's columns of the model too."""
    size = f"{program.statistics['bytes']['total'] / 2**20:.1f} MiB"
    of_model = program.model.name, size, parameters(program)
    lines = [("model", "size", "params", *columns), ["---"] * (3 + len(columns)),
             *((*of_model, *row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def facts(result: Result, roof: float | None) -> dict[str, object]:
    """Return a result as a JSON object has it."""
    known = result.bytes_read > 0
    return {"system": result.system, "test": str(result.test), "tokens_per_s": result.rate,
            "stddev": result.deviation, "median_tokens_per_s": result.median,
            "seconds": list(result.seconds),
            "time_to_first_token_s": (float(np.median(result.seconds))
                                      if result.test.kind == "pp" else None),
            "gb_per_s": result.gb_per_s if known else None,
            "share_of_roof": result.gb_per_s / roof if known and roof else None}
