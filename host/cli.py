"""The command line: ``alula COMMAND``. Only this module reads the environment and exits."""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from alula.compiler.compile import Options, compile as compile_graph
from alula.compiler.graph import Graph, Linear
from alula.compiler.importer import Refused, import_model, read_coverage
from alula.compiler.program import Program, load, save
from alula.compiler.recipe import parse
from alula.compiler.shapes import SHAPES, shape_graph
from alula.compiler.verify import verify
from alula.host.boards_command import boards, build as build_board, selftest
from alula.host.cards.place import kind_of
from alula.host.choice import Devices, NoDevice
from alula.host.compared import Compared, Mismatch
from alula.host.deploy_command import deploy
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
from alula.host.engine import Engine
from alula.host.generate import generate, measure, session_logits
from alula.host.llm import LLM, beginning
from alula.host.model import STAGES, compile_directory
from alula.host.perf_command import explore, perf
from alula.host.rtl import figures
from alula.host.sampling import SamplingParams
from alula.host.screen import LOG, Screen
from alula.host.session import Session
from alula.host.text import Text, read_files
from alula.hw import isa
from alula.hw.arch import BUILDS, build
from alula.sim.memory import MemoryModel
from alula.sim.rtl.build import BuildError
from alula.sim.rtl.simulation import RunError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="Run large language models on FPGAs.")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"alula {installed_version('alula')}, instruction set {isa.isa_hash()}")
        raise typer.Exit


@app.callback()
def common(version: Annotated[bool, typer.Option(
        "--version", callback=_version, is_eager=True, help="Print the version.")] = False) -> None:
    """Options of no command."""


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


def main() -> None:
    """Run the command line; a mistake of the user ends in one line and a non-zero exit."""
    try:
        sys.exit(app(standalone_mode=False))  # a command's typer.Exit comes back as its code
    except typer.Abort:
        sys.exit(130)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except Refused as refusal:
        _fail(str(refusal), 2)
    except (ValueError, OSError, MemoryError, ImportError, BuildError, RunError, Mismatch,
            NoDevice) as error:
        LOG.error("%s", traceback.format_exc())
        _fail(str(error) or type(error).__name__, 1)
    except Exception as error:
        if hasattr(error, "exit_code") and hasattr(error, "format_message"):  # of click, or typer
            _fail(error.format_message(), error.exit_code)
        raise


def _fail(message: str, code: int) -> None:
    sys.stderr.write(f"alula: {message}\n")
    sys.exit(code)


@app.command()
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


@app.command()
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
            rounding=_choice("rounding", rounding, Rounding), score=_choice("score", score, Score),
            windows=_windows(directory, calibration, windows, window, graph.vocab))
        size = _linear_weights(graph)
        graph = quantize_graph(graph, wanted, method, steps.begin("quantize layers", size))
        write_compressed(directory, graph, output, steps.begin("write the model"))
        steps.finish()
    size_after = sum(path.stat().st_size for path in output.iterdir())
    facts = {"recipe": str(wanted), "rounding": rounding, "score": score,
             "bytes": size_after, "seconds": time.perf_counter() - begun, "output": str(output)}
    screen.table(f"{directory.name} compressed", ("", ""),
                 [(name, _figure(value)) for name, value in facts.items()])
    screen.result(facts)


def _choice(name: str, value: str, kind: Any) -> Any:
    if value not in list(kind):
        raise ValueError(f"{name} must be one of {', '.join(kind)}, not {value!r}")
    return kind(value) if isinstance(kind, type) else value


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


@app.command(name="compile")
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
    facts = _program_facts(program)
    screen.table(f"{program.model.name} for {arch}", ("", ""),
                 [(name.replace("_", " "), _figure(value)) for name, value in facts.items()])
    screen.result(facts)


def _program_facts(program: Program) -> dict[str, Any]:
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


# rtl: described, turned into C++, compiled, started; cpu: kernels, weights, started; cards: copied
_DEVICE_STEPS = {"golden": 1, "cpu": 3, "rtl": 4} | dict.fromkeys(CARDS, 2)


def _device_steps(name: str) -> int:
    """Return how many steps opening a device takes, before it is known what ``auto`` means."""
    return _DEVICE_STEPS.get(kind_of(name), _DEVICE_STEPS["rtl"])


@dataclass(frozen=True)
class _Simulated:
    """What a command was told about its device, checked before any work begins."""

    name: str
    check: bool = False
    memory: MemoryModel | None = None
    trace: Trace | None = None

    @classmethod
    def parse(cls, name: str, memory: str | None, *, check: bool = False,
              trace: Path | None = None, start: int = 0,
              clocks: int = Trace.clocks) -> _Simulated:
        _choice("device", kind_of(name), DEVICES)
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


def _figure(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


@app.command()
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


@app.command()
def run(file: Annotated[Path, typer.Argument(help="Program file.")], prompt: Prompt = "",
        max_new_tokens: NewTokens = 64, device: Device = "auto", check: Check = False,
        memory: Memory = None, trace: TraceFile = None, trace_start: TraceStart = 0,
        trace_clocks: TraceClocks = Trace.clocks,
        temperature: Temperature = 0.0, top_k: TopK = 0, top_p: TopP = 1.0, min_p: MinP = 0.0,
        repetition_penalty: RepetitionPenalty = 1.0, stop: Stop = None, seed: Seed = 0,
        ignore_eos: IgnoreEos = False, as_json: Json = False, quiet: Quiet = False) -> None:
    """Generate text with a program."""
    screen = Screen(as_json=as_json, quiet=quiet)
    simulated = _Simulated.parse(device, memory, check=check, trace=trace, start=trace_start,
                                 clocks=trace_clocks)
    params = SamplingParams(
        max_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
        repetition_penalty=repetition_penalty, stop=stop or (), seed=seed, ignore_eos=ignore_eos)
    with screen.steps(1 + _device_steps(device)) as steps:
        steps.begin("read the program")
        program = verify(load(file))
        opened = simulated.open(screen, steps, program)
        steps.finish()
    screen.result(_generate(screen, opened, prompt, params))


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
                     [(name.replace("_", " "), _figure(value)) for name, value in costs.items()])
        facts |= costs
    if isinstance(device, Compared):
        facts["compared_bytes"] = device.compared
        screen.note(f"{device.compared:,} bytes of logits, all equal to the golden model's")
    return facts


@app.command()
def chat(file: Annotated[Path, typer.Argument(help="Program file, or a model directory.")],
         system: Annotated[str | None, typer.Option(help="What to tell the model first.")] = None,
         template: Annotated[Path | None, typer.Option(
             help="Chat template, if not the tokenizer's own.")] = None,
         max_new_tokens: Annotated[int | None, typer.Option(
             min=1, help="Most tokens of an answer; what the context has room for if not given.")
             ] = None,
         device: ApiDevice = "auto",
         temperature: Temperature = 0.0, top_k: TopK = 0, top_p: TopP = 1.0, min_p: MinP = 0.0,
         repetition_penalty: RepetitionPenalty = 1.0, seed: Seed = 0,
         quiet: Quiet = False) -> None:
    """Talk with a model. /reset begins anew, /exit ends; lines may come from a pipe."""
    screen = Screen(quiet=quiet)
    params = SamplingParams(max_tokens=max_new_tokens, temperature=temperature, top_k=top_k,
                            top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty,
                            seed=seed)
    source = template.read_text(encoding="utf-8") if template else None
    with LLM(file, device=device, chat_template=source, progress=not quiet) as llm:
        talk = llm.conversation(system, params)
        for line in _lines("> "):
            if line == "/exit":
                return
            if line == "/reset":
                talk.reset()
                continue
            try:
                for chunk in talk.stream(line):
                    screen.text(chunk.text)
            except KeyboardInterrupt:  # ends the answer, not the conversation
                pass
            except ValueError as error:  # most likely the context is full
                screen.note(f"{error}; /reset begins anew")
            screen.text("\n")


@app.command()
def serve(file: Annotated[Path, typer.Argument(help="Program file, or a model directory.")],
          host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
          port: Annotated[int, typer.Option(min=0, max=65_535, help="Port to listen at.")] = 8000,
          name: Annotated[str | None, typer.Option(
              help="What clients call the model; the program's name if not given.")] = None,
          api_key: Annotated[str | None, typer.Option(
              envvar="ALULA_API_KEY", help="Bearer token that clients must send.")] = None,
          template: Annotated[Path | None, typer.Option(
              help="Chat template, if not the tokenizer's own.")] = None,
          device: ApiDevice = "auto", quiet: Quiet = False) -> None:
    """Serve a model over HTTP, as OpenAI's API does: /v1/completions, /v1/chat/completions."""
    from alula.host.serve import serve as serve_llm

    Screen(quiet=quiet)  # opens the log
    source = template.read_text(encoding="utf-8") if template else None
    with LLM(file, device=device, chat_template=source, progress=not quiet) as llm:
        serve_llm(llm, host, port, name=name, api_key=api_key)


def _lines(prompt: str) -> Iterator[str]:
    """Yield the lines of standard input that are not empty, asking for each at a terminal."""
    asked = prompt if sys.stdin.isatty() else ""
    with suppress(ImportError):  # lines can be edited where it exists
        import readline  # noqa: F401
    while True:
        try:
            line = input(asked)
        except EOFError:
            return
        if line.strip():
            yield line.strip()


@app.command(name="eval")
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
    simulated = _Simulated.parse(device, memory)
    content = text.read_text(encoding="utf-8")
    content = content[:limit] if limit else content
    program = verify(load(file))
    words = Text(program.tokenizer)
    found = {}
    with screen.steps(_device_steps(device) + (2 if reference else 1)) as steps:
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


@app.command()
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
    simulated = _Simulated.parse(device, memory, check=check, trace=trace, start=trace_start,
                                 clocks=trace_clocks)
    params = SamplingParams(max_tokens=max_new_tokens, temperature=temperature, top_k=top_k,
                            seed=seed, ignore_eos=ignore_eos)
    with screen.steps(len(STAGES) + 2 + _device_steps(device)) as steps:
        directory = Path(str(files("alula.host.bundled"))) / model
        program = compile_directory(directory, arch, Options(), None, steps.begin)
        opened = simulated.open(screen, steps, program)
        steps.finish()
    facts = _generate(screen, opened, prompt, params)
    screen.result({**facts, **{name: value for name, value in _program_facts(program).items()
                               if name not in facts}})


app.command()(perf)
app.command()(explore)
app.command()(boards)
app.command(name="build")(build_board)
app.command()(selftest)
app.command()(deploy)


@app.command()
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
    simulated = _Simulated.parse(device, None)
    threads = use_threads(threads)
    program = verify(load(file, check=False))
    tests = benches.parse_tests(prompt, generated, program.memory.context)
    with screen.steps(_device_steps(device) + len(tests) + 1 + against) as steps:
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


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this machine has and what it can run."""
    from alula.host.doctor import examine

    screen = Screen(as_json=as_json)
    found = examine()
    screen.table("This machine", ("what", "found", "needed for"),
                 [(check["name"], check["found"], check["purpose"]) for check in found])
    screen.result({"checks": found, "log": str(screen.log)})


if __name__ == "__main__":
    main()
