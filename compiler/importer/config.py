"""The JSON files beside a model: its name, context length and special tokens."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Settings are a few kilobytes; a larger file is not one.
LARGEST_BYTES = 1 << 24
LARGEST_CONTEXT = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Config:
    """What the files beside a model say about it; ``None`` where they are silent."""

    filename: str | None = None
    logits: str = "logits"
    architecture: str = "unknown"
    context: int | None = None
    layers: int | None = None
    eos_tokens: tuple[int, ...] = ()
    bos_token: int | None = None


def read_config(directory: Path) -> Config:
    """Read genai_config.json if there is one, else config.json and generation_config.json."""
    if (directory / "genai_config.json").is_file():
        return _genai(_load(directory / "genai_config.json"))
    return _transformers(_load(directory / "config.json"),
                         _load(directory / "generation_config.json"))


def _genai(found: dict[str, Any]) -> Config:
    where = "genai_config.json"
    model = _get(found, "model", dict, where, {})
    decoder = _get(model, "decoder", dict, where, {})
    outputs = _get(decoder, "outputs", dict, where, {})
    return Config(
        filename=_get(decoder, "filename", str, where),
        logits=_get(outputs, "logits", str, where, "logits"),
        architecture=_get(model, "type", str, where, "unknown"),
        context=_count(model, "context_length", where, LARGEST_CONTEXT),
        layers=_count(decoder, "num_hidden_layers", where, LARGEST_CONTEXT),
        eos_tokens=_tokens(model.get("eos_token_id"), "eos_token_id", where),
        bos_token=_count(model, "bos_token_id", where, 1 << 31),
    )


def _transformers(config: dict[str, Any], generation: dict[str, Any]) -> Config:
    where = "config.json"
    eos = generation.get("eos_token_id", config.get("eos_token_id"))
    return Config(
        architecture=_get(config, "model_type", str, where, "unknown"),
        context=_count(config, "max_position_embeddings", where, LARGEST_CONTEXT),
        layers=_count(config, "num_hidden_layers", where, LARGEST_CONTEXT),
        eos_tokens=_tokens(eos, "eos_token_id", where),
        bos_token=_count(config, "bos_token_id", where, 1 << 31),
    )


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    if path.stat().st_size > LARGEST_BYTES:
        raise ValueError(f"{path.name} must be at most {LARGEST_BYTES} bytes, "
                         f"not {path.stat().st_size}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} must be JSON, not text that stops with: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} must be a JSON object, not {type(found).__name__}")
    return found


def _get(found: dict[str, Any], key: str, kind: type, where: str, default: Any = None) -> Any:
    value = found.get(key)
    if value is None:
        return default
    if not isinstance(value, kind):
        raise ValueError(f"{where}: {key} must be {kind.__name__}, not {value!r:.60}")
    return value


def _count(found: dict[str, Any], key: str, where: str, largest: int) -> int | None:
    value = found.get(key)
    if value is None:
        return None
    if type(value) is not int or not 0 <= value <= largest:
        raise ValueError(f"{where}: {key} must be a number from 0 to {largest}, "
                         f"not {value!r:.60}")
    return value


def _tokens(value: Any, key: str, where: str) -> tuple[int, ...]:
    tokens = value if isinstance(value, list) else [] if value is None else [value]
    if any(type(token) is not int or token < 0 for token in tokens):
        raise ValueError(f"{where}: {key} must be a token or a list of tokens, "
                         f"not {value!r:.60}")
    return tuple(tokens)
