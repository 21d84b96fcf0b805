"""``alula perf``: how fast a board would be, by the cycle model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alula.compiler.program import load
from alula.compiler.recipe import parse
from alula.compiler.shapes import SHAPES
from alula.compiler.verify import verify
from alula.host import explore as exploring, report as reports
from alula.host.options import Json, Quiet
from alula.host.perf import (
    Model,
    Speed,
    check_request,
    measure,
    memory_of,
    shape_program,
    step_bytes,
)
from alula.host.screen import Screen
from alula.hw.arch import BUILDS, build
from alula.sim.memory import DRAMS, MemoryModel

RECIPES = {"8:16": "w4g128+8:16", "drop50": "w4g128+drop50", "mixed": "w3.5g128"}  # short names


def perf(file: Annotated[Path | None, typer.Argument(help="Program file.")] = None,
         shape: Annotated[str | None, typer.Option(
             help=f"A known model's shape instead: {', '.join(SHAPES)}.")] = None,
         recipe: Annotated[str, typer.Option(
             help="Format of the shape's weights, for example w4g128, w3g128, 8:16, drop50.")]
         = "w4g128",
         board: Annotated[str, typer.Option(
             help=f"Build: {', '.join(BUILDS)}; u55c:30 is 30 lanes of it.")] = "u55c",
         context: Annotated[int, typer.Option(min=0, help="Tokens in the cache.")] = 512,
         prompt: Annotated[int, typer.Option(
             min=0, help="Tokens of a prompt, to time its steps too; 0 leaves them out.")] = 0,
         batch: Annotated[int, typer.Option(min=1, help="Sequences in a step.")] = 1,
         memory: Annotated[str, typer.Option(
             help=f"Memory model: ideal, {', '.join(DRAMS)}, or as for --memory of `alula run`; "
                  "the board's if not given.")] = "",
         html: Annotated[Path | None, typer.Option(
             "--report", metavar="FILE.html", help="Write a report with pictures.")] = None,
         trace: Annotated[Path | None, typer.Option(
             "--trace", metavar="FILE.json", help="Write a trace of a step, for Perfetto.")] = None,
         as_json: Json = False,
         quiet: Quiet = False,
         ) -> None:
    """Say how fast a board would run a model: simulated, clock by clock, without its data."""
    if (file is None) == (shape is None):
        raise ValueError("either a program file or --shape must be given")
    _check_files(html, trace)
    MemoryModel.parse(memory or "ideal")
    screen = Screen(as_json=as_json, quiet=quiet)
    wanted = parse(RECIPES.get(recipe, recipe))
    with screen.steps(5 + (html is not None) + 1) as steps:
        steps.begin("read the program" if file else "compile the shape")
        layers = None
        if file is not None:
            program = verify(load(file))
        else:
            assert shape is not None
            arch = build(board)
            program = shape_program(shape, wanted, arch, max(context, prompt) + 1)
            layers = SHAPES[shape].layers
        check_request(program, context, batch, prompt)
        model = Model(program, memory or memory_of(program.arch), layers, steps.begin)
        speed = measure(model, context, batch=batch, prompt=prompt,
                        weights=step_bytes(program, layers),
                        advance=steps.begin("run steps", 1.0))
        if html is not None:
            longest = program.memory.context - 1
            points = reports.curves(
                model, sorted({min(c, longest) for c in (128, context, 2 * context, 4 * context)}),
                sorted({1, min(4, program.arch.rows), program.arch.rows}),
                steps.begin("run steps of other contexts and batches", 1.0))
            reports.write(html, speed, points)
        if trace is not None:
            reports.write_trace(trace, speed)
        steps.finish()
    _show(screen, model, speed)


def explore(shape: Annotated[str, typer.Option(help=f"One of {', '.join(SHAPES)}.")],
            board: Annotated[str, typer.Option(
                help=f"Build to vary: {', '.join(BUILDS)}.")] = "u55c",
            recipe: Annotated[str, typer.Option(help="Format of the weights.")] = "w4g128",
            lanes: Annotated[str, typer.Option(help="Numbers of lanes, such as 8,16,32.")] = "",
            dsps: Annotated[str, typer.Option(help="DSP slices of a lane.")] = "",
            rows: Annotated[str, typer.Option(help="Most rows of a step.")] = "",
            prefetch: Annotated[str, typer.Option(help="Beats fetched ahead.")] = "",
            context: Annotated[int, typer.Option(min=0, help="Tokens in the cache.")] = 512,
            prompt: Annotated[int, typer.Option(min=0, help="Tokens of a prompt; 0: none.")] = 0,
            picture: Annotated[Path | None, typer.Option(
                "--picture", metavar="FILE.svg", help="Draw speed against slices.")] = None,
            as_json: Json = False,
            quiet: Quiet = False,
            ) -> None:
    """Sweep sizes of a build: speed by the cycle model, against DSP slices and on-chip memory."""
    _check_files(picture)
    screen = Screen(as_json=as_json, quiet=quiet)
    base = build(board)
    builds = exploring.candidates(base, lanes=_numbers("lanes", lanes),
                                  lane_dsps=_numbers("dsps", dsps), rows=_numbers("rows", rows),
                                  prefetch_beats=_numbers("prefetch", prefetch))
    with screen.steps(1) as steps:
        points, refused = exploring.explore(
            builds, shape, parse(RECIPES.get(recipe, recipe)), memory_of(base), context, prompt,
            steps.begin(f"simulate {len(builds)} builds", len(builds)))
        steps.finish()
    for name, why in refused.items():
        screen.note(f"{name} is left out: {why}")
    if not points:
        raise ValueError(f"one build at least must hold {shape}, not none of {len(builds)}")
    best = exploring.pareto(points)
    rows_of = [tuple(point.facts().values()) + ("*" if point in best else "",) for point in points]
    screen.table(f"{shape}, {recipe}, on builds of {board}: simulated; * no other is as good",
                 ("lanes", "DSPs of a lane", "rows", "prefetch", "DSPs of chains", "memory bits",
                  "decode tokens/s", "bandwidth", "prefill tokens/s", ""),
                 [tuple(_text(value) if value is not None else "" for value in row)
                  for row in rows_of])
    if picture is not None:
        reports.write_pareto(picture, points, best)
    screen.result({"shape": shape, "recipe": recipe, "board": board,
                   "points": [point.facts() | {"pareto": point in best} for point in points],
                   "refused": refused})


def _check_files(*paths: Path | None) -> None:
    for path in paths:
        if path is not None and (not path.parent.is_dir() or path.is_dir()):
            raise ValueError(f"a file must be in a folder that exists, not {path}")


def _numbers(name: str, text: str) -> list[int]:
    """Return the numbers of an option such as ``8,16``."""
    try:
        return [int(part) for part in text.split(",") if part]
    except ValueError:
        raise ValueError(f"--{name} must be numbers such as 8,16, not {text!r}") from None


def _show(screen: Screen, model: Model, speed: Speed) -> None:
    facts = speed.facts()
    plain = {name: value for name, value in facts.items() if not isinstance(value, dict)}
    screen.table(f"{facts['model']} on {facts['board']}", ("", ""),
                 [(name.replace("_", " "), _text(value)) for name, value in plain.items()])
    screen.table("Clocks of a step's lanes", ("", "share"),
                 [("carry a beat", f"{speed.decode.beats / speed.decode.cycles:.2%}")]
                 + [(f"wait for {name}", f"{share:.2%}")
                    for name, share in facts["stalls"].items()])
    screen.table("Bytes of a step", ("", "bytes"),
                 [(name.replace("_", " "), f"{size:,.0f}") for name, size
                  in facts["bytes"].items()])
    layer = facts.get("layer_cycles_by_unit", {})
    screen.table("Clocks of the units", ("", "step", "a layer"),
                 [(name, f"{count:,}", f"{layer[name]:,}" if layer.get(name, 0) > 0 else "")
                  for name, count in facts["cycles_by_unit"].items()])
    screen.note(f"{model.clocks:,} clocks simulated, "
                f"{model.clocks / max(model.seconds, 1e-9):,.0f} a second")
    screen.result(facts | {"clocks_simulated": model.clocks, "seconds": model.seconds})


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e5 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
