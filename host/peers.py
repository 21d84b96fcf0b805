"""Other software that runs the same shapes on this machine, to measure beside Alula.

Each is there only if its package is; :class:`Absent` says why it is not. ONNX Runtime runs the
whole model of a directory, llama.cpp a whole model of a GGUF file. torch runs a model's products
alone, with random weights of the same shapes: no attention, no norms, and so a little less work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from alula.compiler.importer.model import model_path
from alula.compiler.program import Program
from alula.host.bench import Runner


class Absent(Exception):
    """A peer that cannot run here; its text says why."""


class OnnxRuntime:
    """The ONNX model of a directory in ONNX Runtime, its cache kept in its own memory."""

    def __init__(self, directory: Path, head_dim: int, threads: int) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.name = "onnxruntime"
        try:
            self.session = ort.InferenceSession(str(model_path(directory)), options,
                                                providers=["CPUExecutionProvider"])
        except Exception as error:  # the library raises its own kinds
            raise Absent(f"ONNX Runtime cannot load {directory}: {error}") from None
        self.value = ort.OrtValue.ortvalue_from_numpy
        self.inputs = {given.name: given for given in self.session.get_inputs()}
        self.outputs = [given.name for given in self.session.get_outputs()]
        self.caches = [name for name in self.inputs if name.startswith("past")]
        if not self.caches:
            raise Absent(f"{directory} must have a cache among its inputs to be run token by token")
        self.head_dim = head_dim
        self.empty()

    def empty(self) -> None:
        self.length, self.cache = 0, {}
        for name in self.caches:
            given = self.inputs[name]
            kind = np.float16 if "float16" in given.type else np.float32
            self.cache[name] = self.value(np.zeros((1, given.shape[1], 0, self.head_dim), kind))

    def prompt(self, tokens: Sequence[int]) -> None:
        total = self.length + len(tokens)
        feeds = {"input_ids": np.array([tokens], np.int64),
                 "attention_mask": np.ones((1, total), np.int64),
                 "position_ids": np.arange(self.length, total)[None]}
        found = self.session.run_with_ort_values(self.outputs, self.cache | {
            name: self.value(array) for name, array in feeds.items() if name in self.inputs})
        named = dict(zip(self.outputs, found, strict=True))
        self.cache = {name: named[name.replace("past_key_values", "present")]
                      for name in self.caches}
        self.length = total

    def token(self, token: int) -> None:
        self.prompt([token])


class Products:
    """A model's products in torch, one after the other; activations are of no model.

    Parameters
    ----------
    layers
        A layer and one row of input for each product.
    compiled
        Run them through ``torch.compile``.
    """

    def __init__(self, name: str, layers: Sequence[tuple[Any, Any]], *, compiled: bool) -> None:
        import torch

        self.name, self.layers, self.torch = name, layers, torch
        self.run = torch.compile(self._run, dynamic=False) if compiled else self._run

    def _run(self, inputs: list[Any]) -> list[Any]:
        return [layer(x) for (layer, _), x in zip(self.layers, inputs, strict=True)]

    def empty(self) -> None:
        """Products have no context."""

    def prompt(self, tokens: Sequence[int]) -> None:
        inputs = [x.expand(len(tokens), -1).contiguous() for _, x in self.layers]
        with self.torch.inference_mode():
            self.run(inputs)

    def token(self, token: int) -> None:
        self.prompt([token])


def _linears(program: Program) -> list[tuple[Any, Any]]:
    """Return torch's layers of a program's shapes in bfloat16, and an input for each.

    What the program computes in pieces is one product here.
    """
    import torch

    from alula.host.cpu.machine import streams

    layers = []
    for (_, inputs), pieces in groupby((i for _, i in streams(program)),
                                       lambda i: (i.source, i.inputs)):
        outputs = sum(i.outputs for i in pieces)
        layer = torch.nn.Linear(inputs, outputs, bias=False, dtype=torch.bfloat16,
                                device="meta").to_empty(device="cpu")
        torch.nn.init.normal_(layer.weight, std=0.02)
        layers.append((layer.eval(), torch.randn(1, inputs, dtype=torch.bfloat16)))
    return layers


def torch_bf16(program: Program, threads: int) -> Runner:
    import torch

    torch.set_num_threads(threads)
    return Products("torch bf16, products", _linears(program), compiled=False)


def torchao_int4(program: Program, threads: int) -> Runner:
    import torch
    from torchao.quantization import quantize_

    try:  # where newer versions have the format of processors
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig as Config
    except ImportError:
        from torchao.quantization import Int4WeightOnlyConfig as Config

    torch.set_num_threads(threads)
    layers = [(torch.nn.Sequential(layer), x) for layer, x in _linears(program)]
    for layer, _ in layers:
        quantize_(layer, Config(group_size=32))
    return Products("torchao int4, products", layers, compiled=True)


class LlamaCpp:
    """A GGUF file in llama.cpp."""

    def __init__(self, file: Path, context: int, threads: int) -> None:
        import llama_cpp

        self.name = "llama.cpp"
        self.model = llama_cpp.Llama(str(file), n_ctx=context, n_threads=threads,
                                     n_threads_batch=threads, verbose=False)

    def empty(self) -> None:
        self.model.reset()

    def prompt(self, tokens: Sequence[int]) -> None:
        self.model.eval(list(tokens))

    def token(self, token: int) -> None:
        self.model.eval([token])


def peers(program: Program, threads: int, directory: Path | None,
          gguf: Path | None) -> list[tuple[str, Callable[[], Runner]]]:
    """Return each peer's name and what makes it, which raises :class:`Absent` or ImportError."""
    def onnx() -> Runner:
        if directory is None:
            raise Absent("the model's directory must be given with --model")
        return OnnxRuntime(directory, program.model.head_dim, threads)

    def llama() -> Runner:
        import llama_cpp  # noqa: F401  (its absence is said first)

        if gguf is None:
            raise Absent("a GGUF file of the same model must be given with --gguf")
        return LlamaCpp(gguf, program.memory.context, threads)

    return [("onnxruntime", onnx), ("torch bf16", lambda: torch_bf16(program, threads)),
            ("torchao int4", lambda: torchao_int4(program, threads)), ("llama.cpp", llama)]


def open_peer(make: Callable[[], Runner]) -> Runner:
    """Return a peer; raise :class:`Absent` with the reason, whatever kept it away."""
    try:
        return make()
    except Absent:
        raise
    except ImportError as error:
        raise Absent(f"{error.name or error} is not installed") from None
    except Exception as error:  # a library's own kind, on a machine that it does not suit
        text = str(error).strip() or type(error).__name__
        raise Absent(text.splitlines()[0]) from None
