"""Tiny random models through real exporters, and what ONNX Runtime says of the result."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
import transformers
from numpy.typing import NDArray
from tokenizers import Tokenizer, models
from transformers.cache_utils import DynamicCache

VOCAB = 160  # differs from every other width: the GenAI builder finds the head by its width
POSITIONS = 128
LLAMA3_ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
               "rope_theta": 10000.0}

SIZES = {"vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 112,
         "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "max_position_embeddings": POSITIONS, "bos_token_id": 1, "eos_token_id": 2,
         "tie_word_embeddings": False}


def causal_lm(kind: str, **sizes: Any) -> transformers.PreTrainedModel:
    """Return a random model ("Llama", "Qwen3", ...) whose norms and biases are random too."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **sizes})
    model = getattr(transformers, f"{kind}ForCausalLM")(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.mul_(4)
    return model


def save(model: transformers.PreTrainedModel, directory: Path) -> Path:
    """Write a checkpoint with a tokenizer, as the GenAI builder wants it."""
    model.save_pretrained(directory)
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(VOCAB)}, unk_token="t0"))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="t1", eos_token="t2", unk_token="t0",
    ).save_pretrained(directory)
    return directory


def genai(checkpoint: Path, directory: Path, precision: str, *options: str,
          provider: str = "cpu") -> Path:
    """Export with the ONNX Runtime GenAI builder, quietly."""
    from onnxruntime_genai.models.builder import create_model, parse_extra_options
    given = (None, str(checkpoint), str(directory), precision, provider, str(directory / "cache"))
    logging.getLogger("onnxruntime.quantization").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        create_model(*given, **parse_extra_options(*given, list(options)))
    return directory


class WithCache(torch.nn.Module):
    """A model whose key-value cache is flat inputs and outputs, as exporters arrange it."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Any, attention_mask: Any, position_ids: Any,
                *past: Any) -> tuple[Any, ...]:
        cache = DynamicCache(config=self.model.config)
        for at in range(0, len(past), 2):
            cache.update(past[at], past[at + 1], at // 2)
        found = self.model(input_ids=input_ids, attention_mask=attention_mask,
                           position_ids=position_ids, past_key_values=cache, use_cache=True)
        pairs = [(layer.keys, layer.values) for layer in found.past_key_values.layers]
        return (found.logits, *(tensor for pair in pairs for tensor in pair))


class WithoutCache(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Any) -> Any:
        return self.model(input_ids=input_ids, use_cache=False).logits


def torch_export(model: transformers.PreTrainedModel, directory: Path, *, opset: int | None,
                 cache: bool, dynamo: bool = True) -> Path:
    """Export with torch.onnx, beside the model's config.json."""
    directory.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(directory)
    config = model.config
    names, outputs = ["input_ids"], ["logits"]
    args: tuple[Any, ...] = (torch.randint(3, VOCAB, (2, 7)),)
    axes: dict[str, Any] = {"input_ids": {0: "batch", 1: "tokens"}}
    wrapped: torch.nn.Module = WithoutCache(model)
    if cache:
        pairs = [f"{layer}.{kind}" for layer in range(config.num_hidden_layers)
                 for kind in ("key", "value")]
        head = getattr(config, "head_dim", None) or (
            config.hidden_size // config.num_attention_heads)
        past = [torch.randn(2, config.num_key_value_heads, 5, head, dtype=model.dtype)
                for _ in pairs]
        args = (torch.randint(3, VOCAB, (2, 3)), torch.ones(2, 8, dtype=torch.long),
                torch.arange(5, 8)[None].repeat(2, 1), *past)
        names += ["attention_mask", "position_ids", *(f"past_key_values.{pair}" for pair in pairs)]
        outputs += [f"present.{pair}" for pair in pairs]
        axes = {name: {0: "batch", 2: "past"} if "past" in name else {0: "batch", 1: "tokens"}
                for name in names}
        axes["attention_mask"] = {0: "batch", 1: "total"}
        wrapped = WithCache(model)
    _export(wrapped, args, directory / "model.onnx", opset, names, outputs, axes, dynamo)
    return directory


def _export(wrapped: torch.nn.Module, args: tuple[Any, ...], path: Path, opset: int | None,
            names: list[str], outputs: list[str], axes: dict[str, Any], dynamo: bool) -> None:
    with warnings.catch_warnings(), torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        if not dynamo:
            torch.onnx.export(wrapped, args, path, dynamo=False, opset_version=opset,
                              input_names=names, output_names=outputs, dynamic_axes=axes)
            return
        dynamic = [dict.fromkeys(axes[name], torch.export.Dim.DYNAMIC) for name in names]
        shapes = (*dynamic[:3], tuple(dynamic[3:])) if len(names) > 3 else tuple(dynamic)
        torch.onnx.export(wrapped, args, path, dynamo=True, opset_version=opset,
                          input_names=names, output_names=outputs, dynamic_shapes=shapes,
                          verbose=False)


def ort_logits(path: Path, tokens: list[int]) -> NDArray[Any]:
    """Return the logits ``(tokens, vocab)`` by ONNX Runtime with an empty cache, unoptimized.

    Accuracy levels are set to 0 so that weights are dequantized to fp32 and nothing else rounded.
    """
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 0
    plain = path.with_name("plain.onnx")
    plain.write_bytes(model.SerializeToString())
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(plain, options)
    plain.unlink()
    feeds = {given.name: _feed(given, len(tokens), tokens, path) for given in session.get_inputs()}
    outputs = [output.name for output in session.get_outputs()]
    wanted = next(name for name in outputs if not name.startswith("present"))
    found: NDArray[Any] = session.run([wanted], feeds)[0]
    return found.reshape(len(tokens), -1)


def _feed(given: Any, count: int, tokens: list[int], path: Path) -> NDArray[Any]:
    if given.name == "input_ids":
        return np.array([tokens], np.int64)
    if given.name == "attention_mask":
        return np.ones((1, count), np.int64)
    if given.name == "position_ids":
        return np.arange(count)[None]
    heads, width = given.shape[1], given.shape[3]
    if not isinstance(width, int):
        config = json.loads((path.parent / "genai_config.json").read_text())
        width = config["model"]["decoder"]["head_size"]
    return np.zeros((1, heads, 0, width), np.float16 if "16" in given.type else np.float32)
