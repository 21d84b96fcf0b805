"""Write a trained model as the int4 ONNX of ONNX Runtime GenAI's model builder; check every bit.

The Hugging Face checkpoint handed to the builder holds codes times scales. The builder quantizes it
again and must find the very same codes and scales; the export fails if one differs.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from alula.host.bundled.corpus import END
from alula.host.bundled.model import Llama
from alula.host.bundled.quantize import BLOCK, scales_and_codes

SHIPPED = ("model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json",
           "tokenizer_config.json")
KEPT_TOKENIZER_KEYS = ("bos_token", "eos_token", "clean_up_tokenization_spaces", "model_max_length")


def export(model: Llama, tokenizer: Tokenizer, out: Path) -> None:
    """Write the quantized `model` to the folder `out` and verify it.

    The embedding table and the norms are rounded to fp16 in place first: the model in memory is
    then the one in the file.

    Raises
    ------
    ValueError
        If the file's codes or scales are not the ones trained.
    """
    logging.disable_progress_bar()
    round_to_fp16(model)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, built = Path(folder, "checkpoint"), Path(folder, "built")
        save_checkpoint(model, tokenizer, checkpoint)
        build(checkpoint, built)
        strip(built / "model.onnx")
        verify(model, built / "model.onnx")
        out.mkdir(parents=True, exist_ok=True)
        for name in SHIPPED:
            shutil.copyfile(built / name, out / name)


@torch.no_grad()
def round_to_fp16(model: Llama) -> None:
    """Round the parameters that are not int4 in the file to values fp16 holds exactly."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 or name == "embedding":
            parameter.copy_(parameter.half().float())


def save_checkpoint(model: Llama, tokenizer: Tokenizer, folder: Path) -> None:
    """Write `model` and its tokenizer as a Hugging Face checkpoint, with a head of its own."""
    s = model.sizes
    config = LlamaConfig(
        vocab_size=s.vocab, hidden_size=s.hidden, intermediate_size=s.ffn,
        num_hidden_layers=s.layers, num_attention_heads=s.heads, num_key_value_heads=s.kv_heads,
        head_dim=s.head_dim, max_position_embeddings=s.positions, rms_norm_eps=s.eps,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": s.rope_theta},
        bos_token_id=tokenizer.token_to_id(END), eos_token_id=tokenizer.token_to_id(END))
    checkpoint = LlamaForCausalLM(config)
    checkpoint.load_state_dict(hugging_face_weights(model))
    checkpoint.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END,
                            clean_up_tokenization_spaces=False,
                            model_max_length=s.positions).save_pretrained(folder)


@torch.no_grad()
def hugging_face_weights(model: Llama) -> dict[str, Tensor]:
    """Return the weights under the names of `LlamaForCausalLM`, with Q, K, V and gate, up split."""
    s = model.sizes
    weights = {"model.embed_tokens.weight": model.embedding, "model.norm.weight": model.norm.weight,
               "lm_head.weight": model.head()}
    for i, block in enumerate(model.blocks):
        q, k, v = block.qkv.effective_weight().split(
            (s.heads * s.head_dim, s.kv_heads * s.head_dim, s.kv_heads * s.head_dim))
        gate, up = block.gate_up.effective_weight().chunk(2)
        weights |= {f"model.layers.{i}.{name}.weight": weight for name, weight in {
            "input_layernorm": block.attention_norm.weight,
            "post_attention_layernorm": block.ffn_norm.weight,
            "self_attn.q_proj": q, "self_attn.k_proj": k, "self_attn.v_proj": v,
            "self_attn.o_proj": block.out.effective_weight(),
            "mlp.gate_proj": gate, "mlp.up_proj": up,
            "mlp.down_proj": block.down.effective_weight()}.items()}
    return {name: weight.clone() for name, weight in weights.items()}


def build(checkpoint: Path, out: Path) -> None:
    """Run the model builder, offline; what it prints is shown only if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", checkpoint, "-o", out,
         "-p", "int4", "-e", "cpu", "-c", out / "cache", "--extra_options",
         f"int4_block_size={BLOCK}", "int4_is_symmetric=true", "int4_accuracy_level=4"],
        check=False, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    if done.returncode:
        raise RuntimeError(f"model builder failed:\n{done.stderr}")
    config_path = out / "tokenizer_config.json"
    config = json.loads(config_path.read_text())
    kept = {key: config[key] for key in KEPT_TOKENIZER_KEYS}
    kept["tokenizer_class"] = "PreTrainedTokenizerFast"     # transformers 4 knows it too
    config_path.write_text(json.dumps(kept, indent=2) + "\n")


def strip(path: Path) -> None:
    """Remove everything from the model file that tells of the machine it was made on."""
    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    model.doc_string = graph.doc_string = ""
    for part in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output,
                 *graph.value_info):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    onnx.save(model, path)


@torch.no_grad()
def verify(model: Llama, path: Path) -> None:
    """Raise ValueError unless the file holds exactly the codes and scales of `model`."""
    stored = quantized_weights(path)
    expected = {"lm_head": model.head()}
    for i, block in enumerate(model.blocks):
        gate, up = block.gate_up.effective_weight().chunk(2)
        expected |= {f"layers.{i}.attn.qkv_proj": block.qkv.effective_weight(),
                     f"layers.{i}.attn.o_proj": block.out.effective_weight(),
                     f"layers.{i}.mlp.gate_proj": gate, f"layers.{i}.mlp.up_proj": up,
                     f"layers.{i}.mlp.down_proj": block.down.effective_weight()}
    if stored.keys() != expected.keys():
        raise ValueError(f"{path.name} must hold {sorted(expected)}, not {sorted(stored)}")
    for name, weight in expected.items():
        scales, codes = (t.detach().numpy() for t in scales_and_codes(weight))
        file_scales, file_codes = stored[name]
        used = codes.any(-1)
        if not np.array_equal(file_codes, codes):
            raise ValueError(f"codes of {name} must be the ones trained, not the builder's own")
        if not np.array_equal(file_scales[used], scales[..., 0][used]):
            raise ValueError(f"scales of {name} must be the ones trained, not the builder's own")


def quantized_weights(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Read each MatMulNBits of a file: scales (rows, blocks), codes (rows, blocks, 32) in -8..7."""
    model = onnx.load(path)
    arrays = {tensor.name: tensor for tensor in model.graph.initializer}
    weights = {}
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            packed, scales = (numpy_helper.to_array(arrays[name]) for name in node.input[1:3])
            codes = np.stack((packed & 15, packed >> 4), axis=-1).reshape(*packed.shape[:2], -1)
            name = node.name.split("/MatMul")[0].removeprefix("/").removeprefix("model/")
            weights[name.replace("/", ".")] = (scales.reshape(codes.shape[:2]),
                                               codes.astype(np.int32) - 8)
    return weights
