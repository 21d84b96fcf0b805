"""The commands that make a program of a model, and look into both."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from alula.compiler.compile import Options, compile as compile_graph
from alula.compiler.graph import Graph, Linear
from alula.compiler.importer import import_model, read_coverage
from alula.compiler.program import Program, load, save
from alula.compiler.recipe import parse
from alula.compiler.shapes import SHAPES, shape_graph
from alula.host.model import STAGES, compile_directory
from alula.host.options import Arch, Context, Json, Quantize, Quiet, Sequences, choice, figure
from alula.host.screen import Screen
from alula.host.text import Text, read_files
from alula.hw import isa
from alula.hw.arch import build


def inspect(directory: Annotated[Path, typer.Argument(help="Model directory.")],
            as_json: Json = False, quiet: Quiet = False) -> None:
    """Say what would become of every node of a model, and what its weights cost."""
    from alula.compiler.inspect import describe_weights

    screen = Screen(as_json=as_json, quiet=quiet)
    with screen.steps(2) as steps:
        steps.begin("read the model")
        coverage = read_coverage(directory)
        steps.begin("look at the weights")
        weights = describe_weights(directory) if not coverage.refusals else []
    if not as_json:
        screen.out.print(coverage.table())
        screen.table("Linear layers", ("matrix", "rows", "cols", "format", "zeros", "rows dropped",
                                       "bytes"), [tuple(weight.values()) for weight in weights])
        screen.out.print(coverage.summary())
    screen.result({"coverage": json.loads(coverage.to_json()), "weights": weights})
    if coverage.refusals:
        raise typer.Exit(2)


def compress(directory: Annotated[Path, typer.Argument(help="Model directory.")],
             output: Annotated[Path, typer.Option("--output", "-o", help="New directory.")],
             recipe: Annotated[str, typer.Option(
                 help="Format, for example w4g32, w4g64a, w4g128+8:16, w4g32+drop50.")] = "w4g32",
             rounding: Annotated[str, typer.Option(help="rtn or gptq.")] = "rtn",
             score: Annotated[str, typer.Option(help="magnitude or wanda.")] = "magnitude",
             calibration: Annotated[Path | None, typer.Option(
                 help="Text for gptq and wanda.")] = None,
             windows: Annotated[int, typer.Option(min=1, help="Calibration windows.")] = 16,
             window: Annotated[int, typer.Option(min=2, help="Tokens of a window.")] = 128,
             as_json: Json = False, quiet: Quiet = False) -> None:
    """Quantize and prune an ONNX model into an ONNX model that other tools can read."""
    from alula.compiler.compress import compress as write_compressed
    from alula.compiler.quantize import Method, Rounding, Score, quantize as quantize_graph

    screen = Screen(as_json=as_json, quiet=quiet)
    wanted = parse(recipe)
    begun = time.perf_counter()
    with screen.steps(4) as steps:
        steps.begin("read the model")
        graph, _ = import_model(directory)
        steps.begin("read the calibration text")
        method = Method(
            rounding=choice("rounding", rounding, Rounding), score=choice("score", score, Score),
            windows=_windows(directory, calibration, windows, window, graph.vocab))
        size = _linear_weights(graph)
        graph = quantize_graph(graph, wanted, method, steps.begin("quantize layers", size))
        write_compressed(directory, graph, output, steps.begin("write the model"))
        steps.finish()
    size_after = sum(path.stat().st_size for path in output.iterdir())
    facts = {"recipe": str(wanted), "rounding": rounding, "score": score,
             "bytes": size_after, "seconds": time.perf_counter() - begun, "output": str(output)}
    screen.table(f"{directory.name} compressed", ("", ""),
                 [(name, figure(value)) for name, value in facts.items()])
    screen.result(facts)


def _linear_weights(graph: Graph) -> int:
    return sum(node.op.weight.rows * node.op.weight.cols for node in graph.nodes
               if isinstance(node.op, Linear))


def _windows(directory: Path, text: Path | None, count: int, length: int,
             vocab: int) -> NDArray[np.int64] | None:
    """Return calibration windows of tokens, spread evenly over the text; None without a text."""
    if text is None:
        return None
    tokens = Text(read_files(directory)).encode(text.read_text(encoding="utf-8"))
    if len(tokens) < length:
        raise ValueError(f"the calibration text must have at least {length} tokens, "
                         f"not {len(tokens)}; use a longer text or a smaller --window")
    if max(tokens) >= vocab:
        raise ValueError(f"tokens must be below {vocab}, not {max(tokens)}; the tokenizer is not "
                         "the model's")
    starts = np.linspace(0, len(tokens) - length, count).astype(int)
    return np.array([tokens[start:start + length] for start in starts], np.int64)


def compile_command(
        directory: Annotated[Path | None, typer.Argument(help="Model directory.")] = None,
        output: Annotated[Path | None, typer.Option("--output", "-o",
                                                    help="Program file to write.")] = None,
        arch: Arch = "sim",
        shape: Annotated[str | None, typer.Option(
            help=f"Compile only the structure of a known model: {', '.join(SHAPES)}.")] = None,
        recipe: Annotated[str, typer.Option(help="Format of the shape's weights.")] = "w4g128",
        quantize: Quantize = None, context: Context = None, sequences: Sequences = 8,
        as_json: Json = False, quiet: Quiet = False) -> None:
    """Compile a model directory to a program file."""
    screen = Screen(as_json=as_json, quiet=quiet)
    if (directory is None) == (shape is None):
        raise ValueError("either a model directory or --shape must be given")
    if directory is not None and output is None:
        raise ValueError("-o FILE must be given with a model directory")
    options = Options(context=context, sequences=sequences)
    with screen.steps(len(STAGES) + (3 if directory else 0)) as steps:
        if directory is None:
            program = compile_graph(
                shape_graph(str(shape), parse(recipe)), build(arch), options, name=str(shape),
                images=False, stage=lambda name, total: steps.begin(STAGES[name], total))
        else:
            assert output is not None
            program = compile_directory(directory, arch, options, quantize, steps.begin,
                                         output.resolve().parent)
            steps.begin("write the file")
            save(program, output)
        steps.finish()
    facts = program_facts(program)
    screen.table(f"{program.model.name} for {arch}", ("", ""),
                 [(name.replace("_", " "), figure(value)) for name, value in facts.items()])
    screen.result(facts)


def program_facts(program: Program) -> dict[str, Any]:
    statistics = program.statistics
    return {
        "model": program.model.name, "arch": program.arch.name,
        "parameters": program.model.parameters,
        "program_bytes": program.program_bytes, "instructions": len(program.instructions),
        "weight_bytes": statistics["bytes"]["total"],
        "bits_per_weight": statistics["bits_per_weight"],
        "padding_share": statistics["bytes"]["padding"] / max(statistics["bytes"]["total"], 1),
        "scale_error": statistics["scale_error"],
        "context": program.memory.context,
        "cache_slots": program.memory.slots, "isa": isa.isa_hash(), "arch_hash": program.arch.hash,
    }


def disasm(file: Annotated[Path, typer.Argument(help="Program file.")],
           as_json: Json = False) -> None:
    """Print a program's instructions."""
    screen = Screen(as_json=as_json)
    program = load(file, check=False)
    lines = [isa.text(instruction) for instruction in program.instructions]
    if not as_json:
        depth = 0
        for at, (line, instruction) in enumerate(zip(lines, program.instructions, strict=True)):
            depth -= isinstance(instruction, isa.EndLoop)
            sys.stdout.write(f"{at:5}  {'  ' * depth}{line}\n")
            depth += isinstance(instruction, isa.Loop)
    screen.result({"instructions": lines})
