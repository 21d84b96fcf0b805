"""The CPU device and ONNX Runtime on the same model, in turns: tokens a second, and their ratio.

Run ``python tests/bench/cpu_decode.py``. The model has a named shape and random int4 weights, as
MatMulNBits of accuracy level 4; it is removed at the end.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from compile_speed import Shape, write_model

from alula.compiler.compile import Options, compile
from alula.compiler.importer import import_model
from alula.compiler.program import load, save
from alula.compiler.shapes import SHAPES
from alula.host.bench import DeviceRunner, Result, bytes_read, measure, parse_tests
from alula.host.cpu.device import CpuDevice
from alula.host.cpu.memory import read_bandwidth
from alula.host.cpu.threads import use_threads
from alula.host.peers import OnnxRuntime
from alula.hw.arch import build


def main(shape: Annotated[str, typer.Option(help=", ".join(SHAPES))] = "llama-3.2-1b",
         layers: Annotated[int, typer.Option(help="Layers; 0 for all of the shape's.")] = 0,
         block: Annotated[int, typer.Option(help="Weights that share a scale.")] = 32,
         sparsity: Annotated[str, typer.Option(help="none, 8:16, drop50")] = "none",
         prompt: Annotated[str, typer.Option("-p")] = "128",
         generated: Annotated[str, typer.Option("-n")] = "32",
         repetitions: Annotated[int, typer.Option("-r")] = 7,
         threads: Annotated[int | None, typer.Option("-t")] = None, arch: str = "u55c",
         folder: Annotated[Path | None, typer.Option(help="Where the files go.")] = None,
         as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Measure a model of a known shape; first its weights are made and compiled."""
    sizes, count = SHAPES[shape], use_threads(threads)
    with TemporaryDirectory(dir=folder) as name:
        directory, file = Path(name) / shape, Path(name) / "model.alula"
        directory.mkdir()
        write_model(directory, Shape(
            layers=layers or sizes.layers, hidden=sizes.hidden, ffn=sizes.ffn, vocab=sizes.vocab,
            heads=sizes.heads, kv_heads=sizes.kv_heads, sparsity=sparsity, context=1024,
            block=block, accuracy_level=4))
        graph, _ = import_model(directory)
        save(compile(graph, build(arch), Options(context=1024, sequences=1), name=shape,
                     near=file.parent), file)
        program = load(file, check=False)
        begun = time.perf_counter()
        device = CpuDevice(program)
        opened = time.perf_counter() - begun
        reference = OnnxRuntime(directory, program.model.head_dim, count)
        roof = read_bandwidth() / 1e9
        tests = parse_tests(prompt, generated, program.memory.context)
        taken = measure([DeviceRunner(device), reference], tests, repetitions, program.model.vocab,
                        lambda stage, amount: lambda made: None)
    results = [Result(system, test, seconds, bytes_read(program, device.weight_bytes, test))
               for system, test, seconds in taken]
    print(json.dumps({"shape": shape, "layers": program.model.layers, "block": block,
                      "sparsity": sparsity, "threads": count, "open_s": opened,
                      "weight_bytes": device.weight_bytes, "memory_gb_per_s": roof,
                      "median_tokens_per_s": {f"{r.test} {r.system}": r.median for r in results}})
          if as_json else _text(results, count, opened, device.weight_bytes, roof))


def _text(results: list[Result], threads: int, opened: float, size: int, roof: float) -> str:
    lines = [f"{threads} threads, {size / 1e6:,.0f} MB of weights read in {opened:.1f} s, memory "
             f"{roof:.1f} GB/s"]
    for mine, other in zip(results[::2], results[1::2], strict=True):
        lines.append(f"{mine.test}: {mine.system} {mine.median:.2f} tokens/s "
                     f"({mine.gb_per_s:.1f} GB/s), {other.system} {other.median:.2f} tokens/s, "
                     f"ratio {mine.median / other.median:.2f}")
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
