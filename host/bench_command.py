"""The command that measures tokens a second, as llama-bench does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from alula.compiler.program import Program, load
from alula.compiler.verify import verify
from alula.host.options import Device, Json, Quiet, Simulated, device_steps
from alula.host.screen import Screen


def bench(file: Annotated[Path, typer.Argument(help="Program file.")],
          device: Device = "cpu",
          prompt: Annotated[str, typer.Option(
              "-p", "--n-prompt", help="Tokens of prompts, with commas; 0 for none.")] = "512",
          generated: Annotated[str, typer.Option(
              "-n", "--n-gen", help="Tokens to generate, with commas; 0 for none.")] = "128",
          repetitions: Annotated[int, typer.Option(
              "-r", "--repetitions", min=1, help="Runs of each test.")] = 5,
          threads: Annotated[int | None, typer.Option(
              "-t", "--threads", min=1, help="Threads; all cores if not given.")] = None,
          against: Annotated[bool, typer.Option(
              "--against", help="Measure what else this machine has, in turns: ONNX Runtime, "
              "torch, torchao, llama.cpp.")] = False,
          model: Annotated[Path | None, typer.Option(
              help="Model directory that the program was compiled from, for ONNX Runtime.")] = None,
          gguf: Annotated[Path | None, typer.Option(
              help="The same model as a GGUF file, for llama.cpp.")] = None,
          as_markdown: Annotated[bool, typer.Option(
              "--markdown", help="Print the table as Markdown.")] = False,
          as_json: Json = False, quiet: Quiet = False) -> None:
    """Measure tokens a second on a device: a prompt's, and those made one at a time."""
    from alula.host import bench as benches
    from alula.host.cpu.threads import use_threads

    screen = Screen(as_json=as_json, quiet=quiet)
    simulated = Simulated.parse(device, None)
    threads = use_threads(threads)
    program = verify(load(file, check=False))
    tests = benches.parse_tests(prompt, generated, program.memory.context)
    with screen.steps(device_steps(device) + len(tests) + 1 + against) as steps:
        opened = simulated.open(screen, steps, program)
        steps.begin("measure the memory")
        roof = _roof(opened.name)
        runners: list[Any] = [benches.DeviceRunner(opened)]
        skipped: dict[str, str] = {}
        if against:
            found, skipped = _open_peers(steps, program, threads, model, gguf)
            runners += found
        taken = benches.measure(runners, tests, repetitions, program.model.vocab, steps.begin)
        steps.finish()
    size = getattr(opened, "weight_bytes", program.statistics["bytes"]["total"])
    results = [benches.Result(
        name, test, seconds,
        benches.bytes_read(program, size, test) if name == runners[0].name else 0.0)
        for name, test, seconds in taken]
    _show_bench(screen, results, program, threads, roof, as_markdown)
    for name, why in skipped.items():
        screen.note(f"{name} is not measured: {why}")
    screen.result({"model": program.model.name, "arch": program.arch.name, "threads": threads,
                   "weight_bytes": size, "memory_gb_per_s": roof, "skipped": skipped,
                   "results": [benches.facts(result, roof) for result in results]})


def _roof(device: str) -> float | None:
    """Return the GB/s that this machine's memory is read with, if the device reads that."""
    if device != "cpu":
        return None
    from alula.host.cpu.memory import read_bandwidth

    return read_bandwidth() / 1e9


def _open_peers(steps: Any, program: Program, threads: int, model: Path | None,
                gguf: Path | None) -> tuple[list[Any], dict[str, str]]:
    from alula.host.peers import Absent, open_peer, peers

    wanted = peers(program, threads, model, gguf)
    advance = steps.begin("open what else is here", len(wanted))
    found, skipped = [], {}
    for name, make in wanted:
        try:
            found.append(open_peer(make))
        except Absent as absent:
            skipped[name] = str(absent)
        advance(1)
    return found, skipped


def _show_bench(screen: Screen, results: list[Any], program: Program, threads: int,
                roof: float | None, as_markdown: bool) -> None:
    from alula.host.bench import COLUMNS, markdown, parameters, rows_of

    rows = rows_of(results, threads, roof)
    if as_markdown:
        screen.text(markdown(program, COLUMNS, rows) + "\n")
    else:
        size = program.statistics["bytes"]["total"]
        screen.table(f"{program.model.name} for {program.arch.name}: {parameters(program)} "
                     f"parameters, {size / 2**20:.1f} MiB of weights", COLUMNS, rows)
    if roof:
        screen.note(f"memory is read with {roof:.1f} GB/s here, measured with {threads} threads")
    first = results[0].system
    mine = {str(result.test): result.median for result in results if result.system == first}
    for result in results:
        if result.system != first:
            screen.note(f"{result.test}: {mine[str(result.test)] / result.median:.2f} times the "
                        f"tokens a second of {result.system}, by medians")
