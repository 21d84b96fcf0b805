"""What batching, the prefix cache and sampling cost or save, on the bundled model.

    python tests/bench/batching.py --device auto

Prints one JSON object: new tokens a second alone and eight at a time, seconds to the first token of
a prompt of 500 tokens that the cache has not and has, and milliseconds of a choice on the host.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import numpy as np

import alula
from alula.host.sampling import choose

BUNDLED = Path(str(files("alula.host.bundled")))
TOKENS = 64
PROMPTS = ["If the", "Note that", "Return", "The module", "A window", "This is", "Raises", "See"]


def seconds(action: Callable[[], object], times: int = 3) -> float:
    """Return the least time that an action takes."""
    found = []
    for _ in range(times):
        begun = time.perf_counter()
        action()
        found.append(time.perf_counter() - begun)
    return min(found)


def measure(device: str) -> dict[str, object]:
    text = (BUNDLED / "validation.txt").read_text("utf-8")
    greedy = alula.SamplingParams(max_tokens=TOKENS, ignore_eos=True)
    sampled = alula.SamplingParams(max_tokens=TOKENS, ignore_eos=True, temperature=0.8, top_p=0.95,
                                   seed=1)
    first = alula.SamplingParams(max_tokens=1)
    facts: dict[str, object] = {}
    with alula.LLM(BUNDLED / "dense", device=device) as llm:
        long = llm.text.encode(text)[:500]
        llm.generate(PROMPTS, greedy)
        facts["device"] = llm.device
        facts["alone_tokens_per_s"] = TOKENS / seconds(lambda: llm.generate(PROMPTS[0], greedy))
        for name, params in (("greedy", greedy), ("sampled", sampled)):
            taken = seconds(lambda params=params: llm.generate(PROMPTS, params))
            facts[f"eight_{name}_tokens_per_s"] = len(PROMPTS) * TOKENS / taken
        begun = time.perf_counter()
        llm.generate(long, first)
        facts["first_token_s"] = time.perf_counter() - begun
        facts["first_token_cached_s"] = seconds(lambda: llm.generate(long, first))
    random = np.random.default_rng(0)
    for vocab in (2048, 32_000, 128_256):
        logits = random.standard_normal(vocab).astype(np.float32) * 3
        for name, params in (("all", sampled), ("top_k", alula.SamplingParams(
                temperature=0.8, top_p=0.95, top_k=50, repetition_penalty=1.1))):
            facts[f"choice_{name}_{vocab}_ms"] = 1e3 * seconds(
                lambda logits=logits, params=params: choose(logits, params, 1, long, []), 10)
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    print(json.dumps(measure(**vars(parser.parse_args())), indent=2))


if __name__ == "__main__":
    main()
