"""How busy one lane of an Alveo build keeps its memory channel: simulated RTL, ideal memory.

Run ``python tests/bench/lane_rates.py``. Linear work is what lane 0 of 32 does for a layer of
LLaMA2-7B, random weights: its rows of each matrix, at full width. Attention is one head of 128
elements over a cache. Cycles are from the first instruction's start to the last one's end, less
those of a program without them; a cycle is busy if it takes a beat.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from alula.compiler.compile import Options, compile as compile_graph
from alula.compiler.graph import Codes, QuantMatrix
from alula.compiler.program import Program
from alula.compiler.recipe import parse
from alula.compiler.shapes import SHAPES, Shape, Zeros, decoder
from alula.host.device import Counters
from alula.host.rtl import RtlDevice
from alula.host.session import Row, Session
from alula.hw import isa
from alula.hw.arch import U55C
from alula.hw.layout import WINDOW

SPARSITIES = ("dense", "8:16", "drop50")
CONTEXTS = (512, 2048)
ONE = replace(U55C, name="u55c-lane", lanes=1)


class Random(Zeros):
    """Random codes; what is pruned has the code that stands for zero."""

    def __init__(self, sparsity: str) -> None:
        super().__init__(parse("w4g128"))
        self.sparsity = sparsity

    def matrix(self, rows: int, cols: int, source: str) -> QuantMatrix:
        def read(start: int, stop: int) -> Codes:
            random = np.random.default_rng([rows, cols, start])
            count, groups, zero = stop - start, cols // self.group, 8
            codes = random.integers(0, 16, (count, cols), np.uint8)
            codes[codes == zero] = 7
            if self.sparsity == "8:16":
                order = np.argsort(random.random((count * cols // WINDOW, WINDOW)), axis=1)
                np.put_along_axis(codes.reshape(-1, WINDOW), order[:, :WINDOW // 2], zero, axis=1)
            elif self.sparsity == "drop50":
                codes.reshape(-1, self.group)[random.random(count * groups) < 0.5] = zero
            return Codes(codes, np.full((count, groups), 0.01, np.float32),
                         np.full((count, groups), zero, np.uint8))

        return QuantMatrix(name="random", rows=rows, cols=cols, bits=4, group=self.group, read=read)


def _only(program: Program, *kinds: type[isa.Instruction]) -> Program:
    """Return a program of one step with the instructions of some kinds, in order, unordered."""
    kept = [replace(instruction, wait=0, release=0) for instruction in program.instructions
            if isinstance(instruction, kinds)]
    begin = next(i for i in program.instructions if isinstance(i, isa.ReadStep))
    return replace(program, instructions=[begin, *kept, isa.End()])


def _cycles(program: Program, position: int, *kinds: type[isa.Instruction]) -> tuple[int, int]:
    """Return the clocks and beats of one token's step with only some kinds of instructions.

    The step is the second: after reset the merger clears its marks once, thousands of clocks.
    """
    device = RtlDevice(_only(program, *kinds))
    session = Session(device)
    session.open()
    spent = Counters()
    for _ in range(2):
        session.lengths[0], before = position, device.counters
        session.step([Row(0, 1, position)])
        spent = device.counters - before
    return spent.cycles, spent.lane_beats


def _measure(program: Program, position: int, *kinds: type[isa.Instruction]) -> dict[str, Any]:
    nothing, _ = _cycles(program, position)
    cycles, beats = _cycles(program, position, *kinds)
    return {"beats": beats, "cycles": cycles - nothing, "busy": beats / (cycles - nothing)}


def linear(sparsity: str) -> dict[str, Any]:
    """One layer of LLaMA2-7B, on lane 0 of 32."""
    shape = replace(SHAPES["llama2-7b"], layers=1, vocab=16)
    whole = compile_graph(decoder(shape, Random(sparsity), 256), U55C, Options(context=256))
    inside = whole.instructions[:next(
        at for at, instruction in enumerate(whole.instructions)
        if isinstance(instruction, isa.EndLoop))]  # without the head
    return _measure(replace(whole, arch=ONE, lanes=whole.lanes[:1], instructions=inside), 0,
                    isa.LoadStream, isa.Linear)


def attention(context: int) -> dict[str, Any]:
    """One head of 128 elements over a full cache."""
    shape = Shape(layers=1, hidden=128, heads=1, kv_heads=1, head_dim=128, ffn=128, vocab=16,
                  positions=4096)
    program = compile_graph(decoder(shape, Zeros(parse("w4g128")), 4096), ONE,
                            Options(context=context + 1))
    return _measure(program, context, isa.LoadPages, isa.Attend)


def main(as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Measure and print."""
    found = {f"linear layers, {sparsity}": linear(sparsity) for sparsity in SPARSITIES}
    found |= {f"attention, context {context}": attention(context) for context in CONTEXTS}
    if as_json:
        print(json.dumps(found, indent=2))
        return
    table = Table("work", "beats", "cycles", "busy", title="A u55c lane, simulated RTL")
    for name, facts in found.items():
        table.add_row(name, f"{facts['beats']:,}", f"{facts['cycles']:,}", f"{facts['busy']:.3f}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
