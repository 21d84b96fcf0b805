"""A report of the cycle model's findings: one HTML file with pictures, and a trace of a step."""

from __future__ import annotations

import html
import importlib.util
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from alula.host.explore import Point
from alula.host.perf import Model, Speed
from alula.hw import isa
from alula.hw.isa import Queue
from alula.sim.cycles import Work

COLORS = {"beat": "#4c78a8", "memory": "#e45756", "control": "#bab0ac", "load": "#72b7b2",
          "store": "#54a24b", "products": "#f58518", "attention": "#b279a2", "vector": "#eeca3b"}


class Peer(NamedTuple):
    """A published figure: decode of one sequence."""

    system: str
    board: str
    model: str
    tokens_per_s: str
    bandwidth: str
    basis: str
    source: str


PEERS = (
    Peer("FlightLLM", "U280, 460 GB/s", "LLaMA2-7B, 4.1 bits", "52.7 at context 512", "41 %",
         "measured on a board, of the released binary", "arXiv 2401.03868"),
    Peer("EdgeLLM", "VCU128, 460 GB/s", "Qwen-7B, W4 sparse", "69.4", "61 %",
         "measured on a board", "arXiv 2407.21325"),
    Peer("Hummingbird", "KV260, 19.2 GB/s", "LLaMA3-8B, W4", "4.8", "93 %",
         "measured on a board", "arXiv 2507.03308"),
    Peer("llama-fpga", "U250, 77 GB/s", "LLaMA2-7B, W4", "18 to 19", "84 %",
         "measured on a board", "its repository"),
    Peer("AccLLM", "U280, 460 GB/s", "LLaMA2-7B, W2 2:4, KV4", "164", "59 %",
         "simulated by its authors", "arXiv 2505.03745"),
)


def peers_rows(speed: Speed) -> list[tuple[str, ...]]:
    """Return the published figures and ours, each with its basis."""
    facts = speed.facts()
    ours = Peer("Alula", f"{speed.arch.name}, {speed.peak / 1e9:.0f} GB/s", facts["model"],
                f"{facts['decode_tokens_per_s']:.1f} at context {speed.context}",
                f"{100 * facts['bandwidth_share']:.0f} %", "simulated: the RTL's cycles, "
                f"{speed.memory} memory model; never on a board", "alula perf")
    return [tuple(peer) for peer in (*PEERS, ours)]


def trace_events(speed: Speed) -> dict[str, Any]:
    """Return a step's work as Chrome's trace format, which Perfetto opens; times in microseconds.

    Of a repeated layer it has the first few passes.
    """
    scale = 1e6 / speed.arch.clock_hz
    names = [{"ph": "M", "pid": 0, "tid": queue.value, "name": "thread_name",
              "args": {"name": queue.name}} for queue in Queue]
    events = [{"ph": "X", "pid": 0, "tid": work.queue.value, "ts": scale * work.begin,
               "dur": scale * (work.end - work.begin), "name": _name(speed, work),
               "args": {"instruction": isa.text(speed.program.instructions[work.index]),
                        "index": work.index, "cycles": work.end - work.begin}}
              for work in speed.decode.works]
    return {"traceEvents": [*names, *events], "displayTimeUnit": "ns"}


def _name(speed: Speed, work: Work) -> str:
    return type(speed.program.instructions[work.index]).__name__


def curves(model: Model, contexts: Sequence[int], batches: Sequence[int],
           report: Any = lambda share: None) -> list[tuple[int, int, float]]:
    """Return ``(context, batch, tokens a second)`` of decode steps."""
    found = []
    for batch in batches:
        for context in contexts:
            cycles = model.step(batch, 1, context).cycles
            found.append((context, batch, batch * model.program.arch.clock_hz / cycles))
            report(1 / (len(contexts) * len(batches)))
    return found


def write(path: Path, speed: Speed, points: list[tuple[int, int, float]],
          others: Sequence[Speed] = ()) -> None:
    """Write the report; raise ValueError if pictures cannot be drawn here."""
    _require_pictures()
    pictures = [("Where the clocks go", _stack(speed)), ("Roofline, by layer", _roofline(speed)),
                ("One layer's work", _timeline(speed))]
    if points:
        pictures.append(("Context and batch", _curves(points)))
    if others:
        pictures.append(("Boards", _boards([speed, *others])))
    facts = speed.facts()
    title = f"{facts['model']} on {facts['board']}"
    body = [f"<h1>{html.escape(title)}</h1>", f"<p>{html.escape(facts['basis'])}; memory "
            f"{html.escape(speed.memory)}. No figure here was measured on a board.</p>",
            _table(("", ""), [(name.replace("_", " "), _value(value))
                              for name, value in facts.items() if not isinstance(value, dict)])]
    body += [f"<h2>{html.escape(name)}</h2>\n{picture}" for name, picture in pictures]
    body += ["<h2>Published systems</h2>", _table(Peer._fields, peers_rows(speed))]
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(
        "<!doctype html><meta charset='utf-8'>"
        f"<title>{html.escape(title)}</title><style>body{{font:15px sans-serif;max-width:60em;"
        "margin:2em auto}}table{{border-collapse:collapse}}td,th{{border:1px solid #ccc;"
        "padding:.2em .6em;text-align:left}}svg{{max-width:100%;height:auto}}</style>"
        .replace("{{", "{").replace("}}", "}") + "\n".join(body), encoding="utf-8")
    temporary.replace(path)


def write_trace(path: Path, speed: Speed) -> None:
    """Write a step's trace."""
    path.write_text(json.dumps(trace_events(speed)), encoding="utf-8")


def _require_pictures() -> None:
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("pictures need matplotlib; install it with `pip install alula[report]`")


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e5 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(name.replace('_', ' '))}</th>" for name in columns)
    lines = ["<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>"
             for row in rows]
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _figure(width: float = 8, height: float = 3.6) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="tight")
    return figure, figure.subplots()


def _svg(figure: Any) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg"):]


def _stack(speed: Speed) -> str:
    """Bars of a lane's clocks by what its port does: decode, and prefill."""
    figure, axes = _figure(height=2.4)
    profiles = {"decode": speed.decode} | ({"prefill": speed.prefill} if speed.prefill else {})
    for at, profile in enumerate(profiles.values()):
        left = 0.0
        for name, count in profile.reasons.items():
            share = count / profile.cycles
            axes.barh(at, share, left=left, color=COLORS[name],
                      label=name if at == 0 else "_")
            left += share
    axes.set_yticks(range(len(profiles)), list(profiles))
    axes.set_xlabel("share of clocks, mean of the lanes")
    axes.legend(ncol=4, loc="upper center", bbox_to_anchor=(0.5, 1.5), frameon=False)
    return _svg(figure)


def layer_points(speed: Speed) -> list[tuple[str, float, float]]:
    """Return ``(name, operations, seconds)`` of the last layer's products and attention."""
    code = speed.program.instructions
    last: dict[int, Work] = {work.index: work for work in speed.decode.works}
    found = []
    for index in sorted(last):
        instruction, work = code[index], last[index]
        seconds = (work.end - work.begin) / speed.arch.clock_hz
        if isinstance(instruction, isa.Linear):
            operations = 2 * instruction.outputs * instruction.inputs * speed.batch
            found.append((f"{instruction.outputs} x {instruction.inputs}", float(operations),
                          seconds))
        elif isinstance(instruction, isa.Attend):
            size = instruction.heads * instruction.head_dim
            found.append(("attention", 4.0 * size * (speed.context + 1) * speed.batch, seconds))
    return found


def _roofline(speed: Speed) -> str:
    """A point for each product: operations a byte against operations a second."""
    figure, axes = _figure()
    arch = speed.arch
    compute = 2 * arch.lanes * arch.lane_dsps * min(2, max(1, speed.batch)) * arch.clock_hz
    held = speed.program.statistics["bits_per_weight"] / 8
    points = layer_points(speed)
    for name, operations, seconds in points:
        # A weight is used once for each sequence; of a sequence's cache each byte once.
        size = operations / 2 if name == "attention" else operations / 2 / speed.batch * held
        axes.loglog(operations / size, operations / seconds / 1e9, "o", label=name)
    edges = [0.5, 1, 2, 4, 8, 16, 32, 64]
    axes.loglog(edges, [min(compute, edge * speed.peak) / 1e9 for edge in edges], "k-")
    axes.set_xlabel("operations a byte")
    axes.set_ylabel("GOP/s")
    axes.legend(fontsize="small", frameon=False)
    return _svg(figure)


def _timeline(speed: Speed) -> str:
    """The work of each queue in the last simulated pass over a layer."""
    figure, axes = _figure(width=10)
    code = speed.program.instructions
    attends = [work for work in speed.decode.works if work.queue is Queue.MV]
    works = list(speed.decode.works)
    if len(attends) > 1:
        span = attends[1].begin - attends[0].begin
        works = [work for work in works if attends[1].begin - span / 2 <= work.begin
                 < attends[1].begin + span / 2]
    names = sorted({type(code[work.index]).__name__ for work in works})
    for at, name in enumerate(names):
        for queue in Queue:
            bars = [(work.begin, work.end - work.begin) for work in works
                    if work.queue is queue and type(code[work.index]).__name__ == name]
            axes.broken_barh(bars, (queue.value - 0.4, 0.8), facecolors=f"C{at}",
                             label=name if bars else "_")
    axes.set_yticks([queue.value for queue in Queue], [queue.name for queue in Queue])
    axes.set_xlabel("clocks")
    axes.legend(fontsize="small", ncol=4, loc="upper center", bbox_to_anchor=(0.5, 1.35),
                frameon=False)
    return _svg(figure)


def _curves(points: list[tuple[int, int, float]]) -> str:
    figure, axes = _figure()
    for batch in sorted({batch for _, batch, _ in points}):
        line = [(context, rate) for context, other, rate in points if other == batch]
        axes.plot(*zip(*line, strict=True), "o-", label=f"batch {batch}")
    axes.set_xlabel("context")
    axes.set_ylabel("tokens/s, all sequences")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return _svg(figure)


def write_pareto(path: Path, points: Sequence[Point], best: Sequence[Point]) -> None:
    """Draw builds' decode speed against their DSP slices; what no other beats is joined."""
    _require_pictures()
    figure, axes = _figure()
    for point in points:
        axes.plot(point.slices, point.decode_tokens_per_s, "o", color="C0")
        axes.annotate(point.arch.name.partition("-")[2] or point.arch.name,
                      (point.slices, point.decode_tokens_per_s), fontsize="x-small")
    line = sorted((point.slices, point.decode_tokens_per_s) for point in best)
    axes.plot(*zip(*line, strict=True), "-", color="C1")
    axes.set_xlabel("DSP slices of the chains")
    axes.set_ylabel("decode, tokens/s")
    path.write_text(_svg(figure), encoding="utf-8")


def _boards(speeds: Sequence[Speed]) -> str:
    figure, axes = _figure(height=2.8)
    axes.barh([speed.arch.name for speed in speeds],
              [speed.decode_tokens_per_s for speed in speeds])
    axes.set_xlabel("decode, tokens/s")
    return _svg(figure)
