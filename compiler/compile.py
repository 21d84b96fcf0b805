"""Compile a graph to a program: the list of steps, in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alula.compiler.emit import Draft, emit, relocate
from alula.compiler.fuse import fuse
from alula.compiler.graph import (
    Attention,
    Embed,
    FloatMatrix,
    Graph,
    Linear,
    verify as verify_graph,
)
from alula.compiler.image import LaneImages, Report, control_image, work_folder
from alula.compiler.place import place
from alula.compiler.program import MemoryMap, ModelInfo, Program, Region
from alula.compiler.schedule import schedule
from alula.compiler.sections import sections
from alula.compiler.verify import verify
from alula.hw import isa, layout, numerics
from alula.hw.arch import ArchConfig

PROGRAM_LIMIT = 1 << 16  # bytes of control memory kept for instructions


class CompileError(ValueError):
    """A legal graph cannot be compiled for the build."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How much a program can hold at once; its instructions hardly depend on it.

    ``context`` is the longest sequence, at most what the model supports; ``sequences`` how many
    may be held; ``repeats`` how many greedy steps may run without the host.
    """

    context: int | None = None
    sequences: int = 8
    repeats: int = 64

    def __post_init__(self) -> None:
        for name in ("context", "sequences", "repeats"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= 1 << 20:
                raise CompileError(f"{name} must be from 1 to 1048576, not {value}")


Stage = Callable[[str, int], Report]  # called with a stage's name and its bytes, if known


def _quiet(stage: str, total: int) -> Report:
    return lambda made: None


def compile(graph: Graph, arch: ArchConfig, options: Options = Options(), *, name: str = "model",
            tokenizer: dict[str, bytes] | None = None, stage: Stage = _quiet,
            near: Path | None = None, images: bool = True) -> Program:
    """Lower a quantized graph to a program for one build.

    Parameters
    ----------
    stage
        Called as each stage begins, with its name and expected bytes (0 if unknown); what it
        returns is called with the bytes made.
    near
        Folder on whose disk the images are made.
    images
        If false, only the structure is compiled: the program holds no weights.
    """
    stage("check", 0)
    _check_tables(quantized(verify_graph(graph)))
    stage("fuse", 0)
    fused = verify_graph(fuse(graph))
    stage("place", 0)
    parts = sections(fused)
    placement = place(fused, parts, arch)
    stage("emit", 0)
    draft = emit(fused, parts, placement, arch)
    code = schedule(draft.items)
    if len(code) * isa.INSTRUCTION_BYTES > PROGRAM_LIMIT:
        raise CompileError(f"a program must be at most {PROGRAM_LIMIT} bytes, not "
                           f"{len(code) * isa.INSTRUCTION_BYTES}: the layers do not repeat")
    folder = work_folder(near)
    lanes = LaneImages(arch, len(draft.streams), Path(folder.name))
    report = stage("pack", sum(m.rows * m.cols * m.bits // 8 for m in draft.streams))
    for index, matrix in enumerate(draft.streams):
        if images:
            lanes.add(index, matrix, report)
        else:
            lanes.plan(index, matrix)
    lane_images = lanes.finish()
    lane_bytes = max(image.size + planned
                     for image, planned in zip(lane_images, lanes.planned, strict=True))
    memory = memory_map(draft, arch, graph, options, lane_bytes)
    code = relocated(code, memory)
    control = control_image(draft if images else Draft(), isa.assemble(code), memory.params.start,
                            memory.tables.start, memory.tables.stop if images else PROGRAM_LIMIT,
                            Path(folder.name), stage("tables", memory.tables.size))
    stage("verify", 0)
    program = Program(arch=arch, instructions=code, memory=memory,
                      model=_model_info(graph, name), lanes=lane_images, control=control,
                      tokenizer=tokenizer or {}, statistics=_statistics(lanes), folder=folder)
    return verify(program)


def quantized(graph: Graph) -> Graph:
    """Return ``graph`` if every linear layer is quantized, else raise :class:`CompileError`."""
    floats = [node for node in graph.of(Linear)
              if isinstance(node.op, Linear) and isinstance(node.op.weight, FloatMatrix)]
    if floats:
        raise CompileError(f"{floats[0].name}: weights must be integer codes, not floats "
                           f"({len(floats)} such layers); ask for quantization, for example "
                           "--quantize w4g64")
    return graph


def _check_tables(graph: Graph) -> None:
    """Raise :class:`CompileError` if a token could have no embedding."""
    for node in graph.of(Embed):
        assert isinstance(node.op, Embed)
        if node.op.table.rows < graph.vocab:
            raise CompileError(f"{node.name}: the table must have a row for each of the "
                               f"{graph.vocab} tokens, not {node.op.table.rows}")


def memory_map(draft: Draft, arch: ArchConfig, graph: Graph, options: Options,
               lane_bytes: int) -> MemoryMap:
    """Lay out both kinds of memory; the cache gets as many slots as needed, or as fit."""
    context = min(options.context or 4096, graph.positions)
    pages = -(-context // numerics.PAGE_TOKENS)
    per_sequence = -(-pages // numerics.PAGE_CLASSES)
    slot_bytes = draft.slot_words * isa.WORD_BYTES
    weights = _region(0, lane_bytes)
    room = (arch.channel_bytes - weights.stop) // slot_bytes
    if room < per_sequence:
        raise CompileError(
            f"{arch.name}: a lane's memory must hold {weights.size} bytes of weights and at least "
            f"{per_sequence * slot_bytes} of cache for a context of {context}, but it has "
            f"{arch.channel_bytes}; choose a larger board or a smaller --context")
    slots = min(options.sequences * per_sequence, room)
    regions = {}
    at = 0
    page_stride = -(-pages * 4 // 64) * 64
    for region, size in (
            ("program", PROGRAM_LIMIT),
            ("params", draft.param_words * isa.WORD_BYTES),
            ("tables", draft.table_words * isa.WORD_BYTES),
            ("step", layout.STEP_HEADER.itemsize + arch.rows * layout.STEP_ROW.itemsize),
            ("pages", options.sequences * page_stride),
            ("logits", arch.rows * draft.logits_stride * isa.WORD_BYTES),
            ("top", options.repeats * arch.rows * layout.TOP_ROW.itemsize)):
        regions[region] = _region(at, size)
        at = regions[region].stop
    return MemoryMap(
        streams=len(draft.streams), weights=weights,
        cache=_region(weights.stop, slots * slot_bytes), slots=slots, slot_words=draft.slot_words,
        page_stride=page_stride // isa.WORD_BYTES, sequences=options.sequences, context=context,
        logits_stride=draft.logits_stride, repeats=options.repeats, **regions)


def _region(start: int, size: int) -> Region:
    return Region(start, -(-size // 64) * 64)


def relocated(code: list[isa.Instruction], memory: MemoryMap) -> list[isa.Instruction]:
    """Return a program whose offsets, relative to their regions, are addresses."""
    starts = {
        isa.LoadStream: memory.weights.start, isa.LoadPages: memory.cache.start,
        isa.StoreKeyValue: memory.cache.start, isa.LoadParams: memory.params.start,
        isa.LoadRow: memory.tables.start, isa.StoreRow: memory.logits.start,
        isa.StoreTop: memory.top.start, isa.ReadStep: memory.step.start}
    return [relocate(instruction, starts) for instruction in code]


def _model_info(graph: Graph, name: str) -> ModelInfo:
    attention = [node.op for node in graph.nodes if isinstance(node.op, Attention)]
    matrices = [node.op.weight for node in graph.nodes if isinstance(node.op, Linear)]
    tables = [node.op.table for node in graph.nodes if isinstance(node.op, Embed)]
    return ModelInfo(
        name=name, architecture=graph.architecture, vocab=graph.vocab, positions=graph.positions,
        eos_tokens=graph.eos_tokens, bos_token=graph.bos_token,
        parameters=sum(m.rows * m.cols for m in [*matrices, *tables]), layers=len(attention),
        kv_heads=attention[0].kv_heads if attention else 0,
        head_dim=attention[0].head_dim if attention else 0)


def _statistics(lanes: LaneImages) -> dict[str, Any]:
    packed = lanes.stats.packed
    return {
        "bytes": {**asdict(packed), "total": packed.total},
        "by_matrix": {name: {**asdict(stats), "total": stats.total}
                      for name, stats in lanes.stats.by_matrix.items()},
        "bits_per_weight": 8 * packed.total / max(packed.weights, 1),
        "scale_error": lanes.stats.scale_error,
    }
