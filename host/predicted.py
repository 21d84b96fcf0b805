"""What boards do with known models, by the cycle model: simulated before, and kept.

``python -m alula.host.predicted BOARD ...`` simulates and keeps the figures anew: minutes a model.
"""

from __future__ import annotations

import json
import subprocess
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from alula.boards.catalogue import BOARDS, board as find
from alula.compiler.recipe import parse
from alula.compiler.shapes import SHAPES
from alula.host.fits import fitting
from alula.host.perf import Model, measure, memory_of, shape_program
from alula.hw.arch import ArchConfig
from alula.sim.rtl.limits import LimitError

RECIPE, CONTEXT = "w4g128", 512
KEPT = Path(__file__).with_suffix(".json")


def kept() -> dict[str, dict[str, Any]]:
    """Return by board the ``date`` and ``commit`` of its figures, and ``tokens_per_s`` by model.

    Those are of one sequence with ``CONTEXT`` tokens in its cache; ``None`` if a build's buffers
    are too small for the model.
    """
    found: dict[str, dict[str, Any]] = json.loads(KEPT.read_text())
    return found


def predict(arch: ArchConfig, name: str) -> float:
    """Simulate a token of a known model on a build; return tokens a second."""
    program = shape_program(name, parse(RECIPE), arch, CONTEXT + 1)
    model = Model(program, memory_of(arch), SHAPES[name].layers)
    return measure(model, CONTEXT).decode_tokens_per_s


def main(boards: Annotated[list[str], typer.Argument(help=f"Of {', '.join(BOARDS)}.")]) -> None:
    """Simulate each known model that each board holds, and keep the figures."""
    console = Console()
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=KEPT.parent,
                            capture_output=True, text=True, check=True).stdout.strip()
    for name in boards:
        arch = find(name).arch
        rates: dict[str, float | None] = {}
        for shape in fitting(arch, parse(RECIPE), CONTEXT):
            try:
                rates[shape] = round(predict(arch, shape), 1)
                console.print(f"{name} {shape}: {rates[shape]} tokens/s")
            except LimitError as error:
                rates[shape] = None
                console.print(f"{name} {shape}: {error}")
            entry = {"date": date.today().isoformat(), "commit": commit, "tokens_per_s": rates}
            KEPT.write_text(json.dumps(kept() | {name: entry}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
