"""Check the GPU device on a GPU, bit for bit, and measure it; prints tables for docs/numbers.md.

    python tests/bench/gpu.py [--seeds 40] [--steps 200] [--context 512] [--skip-check]

First random programs and the bundled models, on the GPU and on the golden model. Then whole steps
of one token at the shapes of Llama 2 7B, weights random: dense, and half the groups of every row
dropped. Beside them the same products in torch, bf16 and torchao's int4. Without a GPU it says so.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # models, programs, gpu_pair

from alula.compiler.compile import Options, compile
from alula.compiler.importer import import_model
from alula.compiler.recipe import parse
from alula.compiler.shapes import SHAPES, shape_graph
from alula.hw import isa
from alula.hw.arch import SIM, U55C

RECIPES = {"W4g128": "w4g128", "W4g128, half the groups dropped": "w4g128"}


def check_all(seeds: int) -> None:
    """Compare with the golden model; raise AssertionError at the first difference."""
    from gpu_pair import check
    from programs.archs import ARCHS
    from programs.generate import case

    from alula.host.device import GoldenDevice
    from alula.host.gpu.device import GpuDevice, Tuning
    from alula.host.session import Session

    for seed in range(seeds):
        check(case(seed, ARCHS["sim"]), tuning=Tuning(fused_rows=seed % 3))
    print(f"{seeds} random programs: control memory and caches equal")
    for name in ("dense", "sparse"):
        graph, _ = import_model(Path(str(files("alula.host.bundled"))) / name)
        program = compile(graph, SIM)
        for chunk in (1, 4, 16):
            tokens = np.random.default_rng(chunk).integers(0, program.model.vocab, 80).tolist()
            want, got = (session.feed(session.open(), tokens, chunk=chunk, all_logits=True)
                         for session in (Session(GoldenDevice(program)),
                                         Session(GpuDevice(program))))
            np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))
            print(f"bundled {name}, {chunk} rows a step: {got.size} logits equal")


def random_matrix(event: Any, dropped: bool) -> Any:
    """Return a matrix of random 4-bit codes for a product."""
    import torch

    from alula.host.gpu.weights import Format, GpuMatrix

    i, group = event.instruction, 1 << event.instruction.group_log2
    groups, strips = -(-i.inputs // group), -(-i.outputs // isa.TILE_ROWS)
    place = dict(device="cuda")
    present = torch.rand(strips, groups, isa.TILE_ROWS, **place) >= 0.5 * dropped
    counts = present.sum(-1).reshape(-1)
    masks = (present << torch.arange(isa.TILE_ROWS, **place)).sum(-1).reshape(-1)
    pieces = int(counts.sum())
    none = torch.zeros(1, dtype=torch.int32, **place)
    return GpuMatrix(
        Format(group, 4, 16, not dropped, False), groups, 0,
        torch.randint(-2**31, 2**31, (pieces, group // 8), dtype=torch.int32, **place), none,
        torch.full((pieces,), 0.01, dtype=torch.float16, **place), none.to(torch.int16),
        none.to(torch.int16), masks.to(torch.int32), (counts.cumsum(0) - counts).to(torch.int32))


def whole_step(dropped: bool, steps: int, context: int, **tuning: int) -> dict[str, float]:
    """Return milliseconds of a step, launches, launches of a layer and bytes of weights."""
    import torch

    from alula.host.gpu.device import GpuDevice, Tuning
    from alula.host.session import Row, Session

    program = compile(shape_graph("llama2-7b", parse("w4g128")), U55C,
                      Options(context=context + 64, sequences=1), images=False)
    device = GpuDevice(program, Tuning(**tuning),
                       matrix=lambda event: random_matrix(event, dropped))
    memory = program.memory
    device.control[memory.params.start:memory.tables.stop].view(torch.float32).fill_(1.0)
    session = Session(device)
    session.lengths[session.open()] = context
    row = Row(0, 1, context, wants_logits=True)
    for _ in range(3):  # compile, record, replay
        session.step([row])
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(steps):
        device.step()
    torch.cuda.synchronize()
    took = (time.perf_counter() - begun) / steps
    (plan,) = device.plans.values()
    layers = program.model.layers
    work = sum(launch.work is not None for launch in plan.launches)
    return dict(ms=took * 1e3, launches=len(plan.launches), layer=(work - 1) / layers,
                bytes=device.weight_bytes)


def products() -> list[tuple[int, int]]:
    """Return (outputs, inputs) of a layer's products."""
    shape = SHAPES["llama2-7b"]
    attention = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    return [(attention, shape.hidden), (shape.hidden, shape.hidden),
            (2 * shape.ffn, shape.hidden), (shape.hidden, shape.ffn)]


def torch_step(steps: int, int4: bool) -> dict[str, float]:
    """Return milliseconds of a step's products alone in torch, in one CUDA graph."""
    import torch

    shape = SHAPES["llama2-7b"]
    sizes = products() * shape.layers + [(shape.vocab, shape.hidden)]
    layers = torch.nn.ModuleList(torch.nn.Linear(k, n, bias=False, dtype=torch.bfloat16,
                                                 device="cuda") for n, k in sizes)
    if int4:
        from torchao.quantization import Int4WeightOnlyConfig, quantize_

        quantize_(layers, Int4WeightOnlyConfig(group_size=128))
    inputs = {k: torch.randn(1, k, dtype=torch.bfloat16, device="cuda") for _, k in sizes}

    def run() -> None:
        for layer, (_, k) in zip(layers, sizes, strict=True):
            layer(inputs[k])

    with torch.no_grad():
        for _ in range(3):
            run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
    graph.replay()
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(steps):
        graph.replay()
    torch.cuda.synchronize()
    weights = sum(n * k for n, k in sizes)
    return dict(ms=(time.perf_counter() - begun) / steps * 1e3,
                bytes=weights * (2 if not int4 else 0.5 + 4 / 128))


def copy_bandwidth() -> float:
    """Return the bytes a second that a copy reads and writes."""
    import torch

    source = torch.zeros(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    target.copy_(source)
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(20):
        target.copy_(source)
    torch.cuda.synchronize()
    return 2 * 20 * source.numel() / (time.perf_counter() - begun)


def measure(steps: int, context: int) -> None:
    """Print the table."""
    import torch
    import triton

    peak = copy_bandwidth()
    print(f"\n{torch.cuda.get_device_name()}, torch {torch.__version__}, triton "
          f"{triton.__version__}; a copy moves {peak / 1e12:.2f} TB/s. Llama 2 7B's shapes, batch "
          f"1, context {context}; torch: products alone.\n")
    print("| what | ms a token | tokens/s | weights, GB | of a copy's rate | launches a layer |")
    print("|---|---|---|---|---|---|")
    for name in RECIPES:
        _print(name, whole_step("dropped" in name, steps, context), peak)
    for name, int4 in (("torch bf16", False), ("torchao int4 g128", True)):
        try:
            _print(name, torch_step(steps, int4), peak)
        except Exception as error:  # a library that is absent, or of another version
            print(f"| {name} | not measured: {type(error).__name__}: {error} | | | | |")


def _print(name: str, found: dict[str, float], peak: float) -> None:
    ms, size = found["ms"], found["bytes"]
    layer = f"{found['layer']:g}" if "layer" in found else ""
    print(f"| {name} | {ms:.3f} | {1e3 / ms:.0f} | {size / 1e9:.2f} | "
          f"{size / ms * 1e3 / peak:.0%} | {layer} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--skip-check", action="store_true")
    arguments = parser.parse_args()
    from alula.host import gpu

    if gpu.interpreted():
        sys.exit("TRITON_INTERPRET must not be set, as it is: this measures a GPU")
    if why := gpu.probe(None):  # type: ignore[arg-type]
        sys.exit(why)
    os.environ.setdefault("CUDA_MODULE_LOADING", "LAZY")
    if not arguments.skip_check:
        check_all(arguments.seeds)
    measure(arguments.steps, arguments.context)


if __name__ == "__main__":
    main()
