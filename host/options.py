"""Options that several commands have, and how a command opens the device it was told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from alula.compiler.program import Program
from alula.host.cards.place import kind_of
from alula.host.compared import Compared
from alula.host.device import (
    CARDS,
    DEVICES,
    Device as AnyDevice,
    GoldenDevice,
    Trace,
    check_simulated,
    open_device,
    resolve,
)
from alula.host.screen import Screen
from alula.hw.arch import BUILDS
from alula.sim.memory import MemoryModel

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
Arch = Annotated[str, typer.Option(help=f"Build: {', '.join(BUILDS)}; u55c:30 is 30 lanes of it.")]
Device = Annotated[str, typer.Option(
    help="What runs the program: rtl (the hardware, simulated), golden (the software model that "
         "defines every bit), cpu (the same bits, fast), alveo, pynq (boards; alveo:1@BUNDLE names "
         "one), or auto: rtl where it can be built.")]
Check = Annotated[bool, typer.Option(
    help="Run the golden model beside it and compare every logit, to the bit.")]
Memory = Annotated[str | None, typer.Option(
    metavar="MODEL", help="How simulated memories answer, for example "
    "latency=80,bandwidth=0.9,stall=0.05,seed=1; ideal if not given.")]
TraceFile = Annotated[Path | None, typer.Option(
    "--trace", metavar="FILE.fst", help="Write waveforms of some clocks of the simulation.")]
TraceStart = Annotated[int, typer.Option(min=0, help="First clock of the trace.")]
TraceClocks = Annotated[int, typer.Option(min=1, help="Clocks of the trace.")]
Prompt = Annotated[str, typer.Option(help="Text to continue.")]
NewTokens = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Most tokens to make.")]
Temperature = Annotated[float, typer.Option(help="0 takes the best token each time.")]
TopK = Annotated[int, typer.Option(help="Choose among the best N tokens; 0 for all.")]
TopP = Annotated[float, typer.Option(
    help="Choose among the fewest best tokens that have this share of the probability.")]
MinP = Annotated[float, typer.Option(
    help="Leave out tokens less probable than this share of the best.")]
RepetitionPenalty = Annotated[float, typer.Option(help="Above 1: repeat less.")]
Stop = Annotated[list[str] | None, typer.Option(help="Text to stop before; may be repeated.")]
Seed = Annotated[int, typer.Option(help="Seed of the choice.")]
IgnoreEos = Annotated[bool, typer.Option("--ignore-eos", help="Go on after the text's end.")]
ApiDevice = Annotated[str, typer.Option(
    "--device", help="What runs the program: alveo, pynq (alveo:1@BUNDLE names one of several), "
                     "cuda, cpu, rtl, golden; auto: the first of a board, a GPU and the CPU that "
                     "answers.")]
Context = Annotated[int | None, typer.Option(min=1, help="Longest sequence in tokens.")]
Sequences = Annotated[int, typer.Option(min=1, help="Sequences held at a time.")]
Quantize = Annotated[str | None, typer.Option(
    help="Quantize float weights, for example w4g64 or w4g128+8:16.")]

# rtl: described, turned into C++, compiled, started; cpu: kernels, weights, started; cards: copied
_STEPS = {"golden": 1, "cpu": 3, "rtl": 4} | dict.fromkeys(CARDS, 2)


def device_steps(name: str) -> int:
    """Return how many steps opening a device takes, before it is known what ``auto`` means."""
    return _STEPS.get(kind_of(name), _STEPS["rtl"])


def choice(name: str, value: str, kind: Any) -> Any:
    if value not in list(kind):
        raise ValueError(f"{name} must be one of {', '.join(kind)}, not {value!r}")
    return kind(value) if isinstance(kind, type) else value


def figure(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


@dataclass(frozen=True)
class Simulated:
    """What a command was told about its device, checked before any work begins."""

    name: str
    check: bool = False
    memory: MemoryModel | None = None
    trace: Trace | None = None

    @classmethod
    def parse(cls, name: str, memory: str | None, *, check: bool = False,
              trace: Path | None = None, start: int = 0,
              clocks: int = Trace.clocks) -> Simulated:
        choice("device", kind_of(name), DEVICES)
        found = cls(name, check, MemoryModel.parse(memory) if memory else None,
                    Trace(trace, start, clocks) if trace else None)
        check_simulated(name, found.memory, found.trace)
        return found

    def open(self, screen: Screen, steps: Any, program: Program) -> AnyDevice:
        """Return the device, beside the golden model if it is to be checked."""
        name, why = resolve(self.name, program)
        if why:
            screen.note(why)
        device = open_device(name, program, steps.begin, memory=self.memory, trace=self.trace)
        steps.begin(f"start the device: {name}")
        return (Compared(device, GoldenDevice(program)) if self.check and name != "golden"
                else device)
