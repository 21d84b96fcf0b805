"""Run an exported model in ONNX Runtime: its validation loss and samples of what it writes."""

import json
import math
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from alula.host.bundled.corpus import END
from alula.host.bundled.fit import EVAL_LENGTH

PROMPTS = ("Return the", "The module defines", "If the file", "A class")
TEMPERATURE = 0.7
SAMPLE_TOKENS = 80


class Session:
    """An exported model with its key and value caches; `feed` moves it on by some tokens."""

    def __init__(self, folder: Path) -> None:
        self.session = onnxruntime.InferenceSession(folder / "model.onnx",
                                                    providers=["CPUExecutionProvider"])
        decoder = json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]
        self.cache_shape = (1, decoder["num_key_value_heads"], 0, decoder["head_size"])
        self.reset()

    def reset(self) -> None:
        """Forget everything fed so far."""
        self.past = {i.name: np.zeros(self.cache_shape, np.float32)
                     for i in self.session.get_inputs() if i.name.startswith("past")}
        self.length = 0

    def feed(self, tokens: np.ndarray) -> np.ndarray:
        """Return the logits (length, vocab) of tokens (length,)."""
        self.length += len(tokens)
        logits, *present = self.session.run(None, self.past | {
            "input_ids": tokens[None].astype(np.int64),
            "attention_mask": np.ones((1, self.length), np.int64)})
        names = (o.name for o in self.session.get_outputs()[1:])
        self.past = {name.replace("present", "past_key_values"): value
                     for name, value in zip(names, present, strict=True)}
        return logits[0]


def evaluate(folder: Path, tokens: np.ndarray, length: int = EVAL_LENGTH) -> float:
    """Return the mean loss in nats a token over windows of `length` that do not overlap."""
    session = Session(folder)
    total = 0.0
    for start in range(0, len(tokens) - 1, length):
        session.reset()
        window = tokens[start:start + length + 1]
        logits = session.feed(window[:-1]).astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        chosen = np.take_along_axis(logits, window[1:, None], -1)[:, 0]
        total += float((np.log(np.exp(logits).sum(-1)) - chosen).sum())
    return total / (len(tokens) - 1)


def generate(folder: Path, tokenizer: Tokenizer, prompt: str, temperature: float = 0.0,
             count: int = SAMPLE_TOKENS, seed: int = 0) -> str:
    """Continue `prompt`, as the start of a document, by up to `count` tokens; greedily at 0."""
    session, random = Session(folder), np.random.default_rng(seed)
    end = tokenizer.token_to_id(END)
    tokens = [end, *tokenizer.encode(prompt).ids]
    fresh = tokens
    for _ in range(count):
        logits = session.feed(np.array(fresh))[-1].astype(np.float64)
        if temperature:
            weights = np.exp((logits - logits.max()) / temperature)
            token = int(random.choice(len(weights), p=weights / weights.sum()))
        else:
            token = int(logits.argmax())
        if token == end:
            break
        fresh = [token]
        tokens.append(token)
    return tokenizer.decode(tokens[1:])


def samples(folder: Path, tokenizer: Tokenizer) -> list[dict[str, str]]:
    """Return a greedy and a warmer continuation of each of `PROMPTS`."""
    return [{"prompt": prompt, "greedy": generate(folder, tokenizer, prompt),
             "sampled": generate(folder, tokenizer, prompt, TEMPERATURE)} for prompt in PROMPTS]


def bits_per_byte(loss: float, tokens: int, text: str) -> float:
    """Convert nats a token to bits a byte of the text; the marks between documents are no bytes."""
    return loss * tokens / math.log(2) / len(text.replace(END, "").encode())
