"""Two models, many requests of random lengths, some cancelled: is each text as if alone?

    python tests/bench/soak.py --requests 1000 --device auto

Requests are drawn from a third as many kinds, so each comes in several surroundings. The solo run
of each kind is made afterwards, one at a time, without a prefix cache. Prints one JSON object; exit
code 1 if a text differs or memory grew by more than 2 % after the first third.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import time
from collections import deque
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import alula

BUNDLED = Path(str(files("alula.host.bundled")))
MODELS = ("dense", "sparse")
AT_ONCE = 24  # requests before the two devices: more than they have sequences
SLOTS = 4  # of the cache in each class: fewer than sequences, so that pages run out
GROWTH = 0.02  # of memory, at most


@dataclass(frozen=True)
class Kind:
    """A request that may be made many times."""

    model: str
    prompt: tuple[int, ...]
    params: alula.SamplingParams


@dataclass(frozen=True)
class Ended:
    """What became of a request, and the tokens that its reader saw."""

    kind: int
    tokens: NDArray[np.int32]
    text: str
    reason: str


def kinds(source: random.Random, count: int, tokens: list[int]) -> list[Kind]:
    """Return random requests on a text; some begin alike, a few are long."""
    stems = [tokens[at:at + 200] for at in range(0, 2000, 500)]
    found = []
    for number in range(count):
        length = source.randrange(1, 60)
        at = source.randrange(len(tokens) - 1000)
        prompt = tokens[at:at + length]
        if source.random() < 0.4:
            prompt = source.choice(stems)[:source.randrange(1, 200)] + prompt
        if number % 20 == 7:
            prompt = tokens[at:at + source.randrange(480, 520)]
        sampled = source.random() < 0.5
        found.append(Kind(source.choice(MODELS), tuple(prompt), alula.SamplingParams(
            max_tokens=source.randrange(1, 40), temperature=source.choice([0.7, 1.2]) * sampled,
            top_p=source.choice([0.9, 1.0]), min_p=source.choice([0.0, 0.02]),
            repetition_penalty=source.choice([1.0, 1.0, 1.1]), seed=source.randrange(1 << 30),
            stop=source.choice([(), ("the", ".\n")]), ignore_eos=source.random() < 0.5)))
    return found


def memory_bytes() -> int:
    """Return what this process has in memory; 0 where that cannot be told."""
    gc.collect()
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    except OSError:
        return 0


def read(request: alula.Request, kind: int) -> Ended:
    """Read a request to its end."""
    tokens: list[int] = []
    text = ""
    for chunk in request:
        tokens += chunk.token_ids
        text += chunk.text
    found = request.result().outputs[0]
    assert (list(found.token_ids), found.text) == (tokens, text)
    return Ended(kind, np.array(tokens, np.int32), text, found.finish_reason)


def soak(requests: int, device: str, seed: int = 0) -> dict[str, object]:
    """Return what happened: see the module."""
    source = random.Random(seed)
    programs = {name: alula.compile(BUNDLED / name) for name in MODELS}
    programs = {name: replace(program, memory=replace(program.memory, slots=SLOTS))
                for name, program in programs.items()}
    models = {name: alula.LLM(program, device=device) for name, program in programs.items()}
    tokens = models["dense"].text.encode((BUNDLED / "validation.txt").read_text("utf-8"))
    drawn = kinds(source, max(requests // 3, 1), tokens)
    going: deque[tuple[alula.Request, int]] = deque()
    ended: list[Ended] = []
    sizes: list[int] = []
    begun = time.perf_counter()
    for _ in range(requests):
        if len(going) == AT_ONCE:
            going.rotate(source.randrange(AT_ONCE))
            ended.append(read(*going.popleft()))
            if len(ended) % max(requests // 50, 1) == 0:
                sizes.append(memory_bytes())
        number = source.randrange(len(drawn))
        going.append((models[drawn[number].model].submit(drawn[number].prompt,
                                                         drawn[number].params), number))
        if source.random() < 0.3:  # waiting, at work, or ended already
            source.choice(going)[0].cancel()
    ended += [read(*one) for one in going]
    sizes.append(memory_bytes())
    seconds = time.perf_counter() - begun
    statistics = {name: vars(llm.statistics) for name, llm in models.items()}
    used = models["dense"].device
    for llm in models.values():
        llm.close()
    held = {name: llm._engine.session.cache.held for name, llm in models.items()}
    wrong = differing(drawn, ended, programs, device)
    third = len(sizes) // 3
    return {
        "device": used, "requests": len(ended), "kinds": len({one.kind for one in ended}),
        "cancelled": sum(one.reason == "cancelled" for one in ended),
        "seconds": seconds, "new_tokens": sum(len(one.tokens) for one in ended),
        "wrong": wrong, "pages_held": held, "statistics": statistics,
        "memory_bytes": sizes[third:],
        "growth": max(sizes[-3:]) / max(max(sizes[third:third + 3]), 1) - 1,
    }


def differing(drawn: list[Kind], ended: list[Ended], programs: dict[str, alula.Program],
              device: str) -> int:
    """Return how many requests' texts are not what their kind gives alone."""
    alone = {name: alula.LLM(program, device=device, prefix_cache=False)
             for name, program in programs.items()}
    solo = {}
    for kind in {one.kind for one in ended}:
        wanted = drawn[kind]
        solo[kind] = alone[wanted.model].generate([wanted.prompt], wanted.params)[0].outputs[0]
    for llm in alone.values():
        llm.close()
    wrong = 0
    for one in ended:
        expected = solo[one.kind]
        count = len(one.tokens)
        if one.reason == "cancelled":
            right = (tuple(one.tokens) == expected.token_ids[:count]
                     and expected.text.startswith(one.text.rstrip("\ufffd")))
        else:
            right = (tuple(one.tokens) == expected.token_ids and one.text == expected.text
                     and one.reason == expected.finish_reason)
        wrong += not right
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    found = soak(**vars(parser.parse_args()))
    print(json.dumps(found, indent=2, default=str))
    growth = found["growth"]
    assert isinstance(growth, float)
    raise SystemExit(bool(found["wrong"]) or growth > GROWTH)


if __name__ == "__main__":
    main()
