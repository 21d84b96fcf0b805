"""The commands that run a program here: to generate text, and to measure it on one."""

from __future__ import annotations

import time
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer

from alula.compiler.compile import Options
from alula.compiler.program import load
from alula.compiler.verify import verify
from alula.host.choice import Devices
from alula.host.compared import Compared
from alula.host.device import Device as AnyDevice, Trace
from alula.host.engine import Engine
from alula.host.generate import generate, measure, session_logits
from alula.host.llm import beginning
from alula.host.model import STAGES, compile_directory
from alula.host.model_command import program_facts
from alula.host.options import (
    Arch,
    Check,
    Device,
    IgnoreEos,
    Json,
    Memory,
    MinP,
    NewTokens,
    Prompt,
    Quiet,
    RepetitionPenalty,
    Seed,
    Simulated,
    Stop,
    Temperature,
    TopK,
    TopP,
    TraceClocks,
    TraceFile,
    TraceStart,
    device_steps,
    figure,
)
from alula.host.rtl import figures
from alula.host.sampling import SamplingParams
from alula.host.screen import Screen
from alula.host.session import Session
from alula.host.text import Text


def run(file: Annotated[Path, typer.Argument(help="Program file.")], prompt: Prompt = "",
        max_new_tokens: NewTokens = 64, device: Device = "auto", check: Check = False,
        memory: Memory = None, trace: TraceFile = None, trace_start: TraceStart = 0,
        trace_clocks: TraceClocks = Trace.clocks,
        temperature: Temperature = 0.0, top_k: TopK = 0, top_p: TopP = 1.0, min_p: MinP = 0.0,
        repetition_penalty: RepetitionPenalty = 1.0, stop: Stop = None, seed: Seed = 0,
        ignore_eos: IgnoreEos = False, as_json: Json = False, quiet: Quiet = False) -> None:
    """Generate text with a program."""
    screen = Screen(as_json=as_json, quiet=quiet)
    simulated = Simulated.parse(device, memory, check=check, trace=trace, start=trace_start,
                                 clocks=trace_clocks)
    params = SamplingParams(
        max_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
        repetition_penalty=repetition_penalty, stop=stop or (), seed=seed, ignore_eos=ignore_eos)
    with screen.steps(1 + device_steps(device)) as steps:
        steps.begin("read the program")
        program = verify(load(file))
        opened = simulated.open(screen, steps, program)
        steps.finish()
    screen.result(_generate(screen, opened, prompt, params))


def demo(prompt: Prompt = "The following example shows", max_new_tokens: NewTokens = 64,
         device: Device = "auto", arch: Arch = "sim", check: Check = True,
         model: Annotated[str, typer.Option(help="Bundled model: dense or sparse.")] = "sparse",
         memory: Memory = None, trace: TraceFile = None, trace_start: TraceStart = 0,
         trace_clocks: TraceClocks = Trace.clocks,
         temperature: Temperature = 0.0, top_k: TopK = 0, seed: Seed = 0,
         ignore_eos: IgnoreEos = False, as_json: Json = False, quiet: Quiet = False) -> None:
    """Compile the bundled model and generate text with it, on the simulated hardware.

    The golden model runs beside it: every logit is compared, to the bit.
    """
    if model not in ("dense", "sparse"):
        raise ValueError(f"model must be dense or sparse, not {model!r}")
    screen = Screen(as_json=as_json, quiet=quiet)
    simulated = Simulated.parse(device, memory, check=check, trace=trace, start=trace_start,
                                 clocks=trace_clocks)
    params = SamplingParams(max_tokens=max_new_tokens, temperature=temperature, top_k=top_k,
                            seed=seed, ignore_eos=ignore_eos)
    with screen.steps(len(STAGES) + 2 + device_steps(device)) as steps:
        directory = Path(str(files("alula.host.bundled"))) / model
        program = compile_directory(directory, arch, Options(), None, steps.begin)
        opened = simulated.open(screen, steps, program)
        steps.finish()
    facts = _generate(screen, opened, prompt, params)
    screen.result({**facts, **{name: value for name, value in program_facts(program).items()
                               if name not in facts}})


def _generate(screen: Screen, device: AnyDevice, prompt: str,
              params: SamplingParams) -> dict[str, Any]:
    """Generate, printing text as it comes; return the facts of the run."""
    program = device.program
    text = Text(program.tokenizer)
    given = text.encode(prompt) or [beginning(program)]
    engine = Engine(Devices(program, device), every_logit=isinstance(device, Compared))
    tokens: list[int] = []
    made = ""
    screen.text(prompt)
    begun = time.perf_counter()
    first, before = begun, device.counters
    for chunk in generate(engine, given, params, text=text):
        if not tokens:
            first, before = time.perf_counter(), device.counters
        tokens += chunk.token_ids
        made += chunk.text
        screen.text(chunk.text)
    ended = time.perf_counter()
    screen.text("\n")
    rate = (len(tokens) - 1) / (ended - first) if len(tokens) > 1 else 0.0
    facts = {
        "device": device.name, "model": program.model.name, "arch": program.arch.name,
        "prompt_tokens": len(given), "new_tokens": len(tokens), "tokens_per_s": rate,
        "time_to_first_token_s": first - begun, "tokens": tokens, "text": made,
        "finish_reason": chunk.finish_reason,
    }
    screen.note(f"{len(tokens)} tokens on {facts['device']}, {rate:.1f} tokens/s")
    if device.counters and before and len(tokens) > 1:
        costs = figures(program, device.counters - before, len(tokens) - 1)
        screen.table("The hardware, a token at a time", ("", ""),
                     [(name.replace("_", " "), figure(value)) for name, value in costs.items()])
        facts |= costs
    if isinstance(device, Compared):
        facts["compared_bytes"] = device.compared
        screen.note(f"{device.compared:,} bytes of logits, all equal to the golden model's")
    return facts


def evaluate(file: Annotated[Path, typer.Argument(help="Program file.")],
             text: Annotated[Path, typer.Option("--text", help="Text file.")],
             reference: Annotated[Path | None, typer.Option(
                 help="Model directory, to measure with ONNX Runtime too.")] = None,
             device: Device = "golden", memory: Memory = None,
             window: Annotated[int, typer.Option(min=2, help="Tokens of context.")] = 256,
             limit: Annotated[int, typer.Option(help="Characters of text to use; 0 for all.")] = 0,
             as_json: Json = False, quiet: Quiet = False) -> None:
    """Measure loss, perplexity and bits per byte on a text."""
    screen = Screen(as_json=as_json, quiet=quiet)
    simulated = Simulated.parse(device, memory)
    content = text.read_text(encoding="utf-8")
    content = content[:limit] if limit else content
    program = verify(load(file))
    words = Text(program.tokenizer)
    found = {}
    with screen.steps(device_steps(device) + (2 if reference else 1)) as steps:
        session = Session(simulated.open(screen, steps, program))
        window = min(window, session.context)
        found[device] = _measure(steps, f"measure on {device}", session_logits(session), words,
                                 content, window)
        if reference:
            from alula.host.reference import onnx_logits

            logits = onnx_logits(reference, program.model.head_dim)
            found["onnxruntime"] = _measure(steps, "measure on ONNX Runtime", logits, words,
                                            content, window)
        steps.finish()
    rows = [(name, f"{loss.loss:.4f}", f"{loss.perplexity:.3f}", f"{loss.bits_per_byte:.4f}",
             f"{loss.tokens:,}") for name, loss in found.items()]
    screen.table(f"{program.model.name} on {text.name}, windows of {window}",
                 ("", "loss", "perplexity", "bits per byte", "tokens"), rows)
    facts = {name: {"loss": loss.loss, "perplexity": loss.perplexity,
                    "bits_per_byte": loss.bits_per_byte, "tokens": loss.tokens,
                    "bytes": loss.bytes} for name, loss in found.items()}
    screen.result({**facts[device], "device": device, "window": window,
                   "reference": facts.get("onnxruntime")})


def _measure(steps: Any, name: str, logits: Any, text: Text, content: str, window: int) -> Any:
    advance = steps.begin(name, 1.0)
    done = 0.0

    def report(count: int, total: int) -> None:
        nonlocal done
        advance(count / total - done)
        done = count / total
    return measure(logits, text, content, window, report)
