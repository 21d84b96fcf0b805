"""Compiled programs: loops, sizes, placement, tokens, and what the verifier catches."""

from dataclasses import replace

import numpy as np
import pytest
from models import program, random_decoder

from alula.compiler.compile import CompileError, Options, compile
from alula.compiler.fuse import fuse
from alula.compiler.graph import (
    Embed,
    FloatMatrix,
    Gate,
    GraphError,
    Linear,
    Node,
    verify as verify_graph,
)
from alula.compiler.place import PlaceError
from alula.compiler.program import Region
from alula.compiler.recipe import parse
from alula.compiler.schedule import BARRIER, LoopBlock, schedule
from alula.compiler.sections import sections
from alula.compiler.shapes import SHAPES, shape_graph
from alula.compiler.verify import VerifyError, verify
from alula.hw import isa
from alula.hw.arch import BUILDS, SIM

WIDE = replace(SIM, name="wide", vector_elements=65_536, activation_elements=49_152,
               param_elements=65_536)


def test_fuse_merges_and_gates():
    graph = fuse(random_decoder(layers=2))
    names = [type(node.op).__name__ for node in graph.nodes]
    assert names.count("Linear") == 2 * 4 + 1 and names.count("Gate") == 2
    gates = [node for node in graph.nodes if isinstance(node.op, Gate)]
    assert gates[0].inputs == ("0.mlp.gate", "0.mlp.up")
    verify_graph(graph)


@pytest.mark.parametrize("layers", [1, 2, 5, 32])
def test_layers_become_one_loop(layers):
    parts = sections(fuse(random_decoder(layers=layers, hidden=32, heads=2, ffn=32)))
    counts = [len(part.passes) for part in parts]
    assert counts == ([1] if layers == 1 else [1, layers, 1])


def test_unlike_layers_are_not_looped_together():
    graph = random_decoder(layers=4, hidden=32, heads=2, ffn=32)
    nodes = [replace(node, op=replace(node.op, eps=0.5))
             if node.name == "2.attention.norm" else node for node in graph.nodes]
    parts = sections(fuse(graph.with_nodes(nodes)))
    assert max(len(part.passes) for part in parts) == 2
    compile(graph.with_nodes(nodes), SIM, Options(context=64))


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_shape_program_bytes(name):
    """At most 64 KiB, whatever the layers; and padding at most 2 %."""
    made = compile(shape_graph(name, parse("w4g128")), BUILDS["u55c"],
                   Options(context=2048, sequences=1), images=False)
    assert made.program_bytes <= 8192
    held = made.statistics["bytes"]
    assert held["padding"] <= 0.02 * held["total"]
    print(f"{name}: {made.program_bytes} bytes of program, "
          f"{made.statistics['bits_per_weight']:.3f} bits a weight, "
          f"padding {held['padding'] / held['total']:.2%}")


def test_program_does_not_grow():
    def size(layers: int = 32, context: int = 1024, sequences: int = 1) -> int:
        graph = random_decoder(layers=layers, hidden=32, heads=2, ffn=32)
        return compile(graph, SIM, Options(context=context, sequences=sequences)).program_bytes

    assert size() == size(layers=4) == size(context=64) == size(sequences=16)


def test_float_weights_wrong():
    graph = random_decoder(layers=1)
    nodes = [Node(node.name, Linear(weight=FloatMatrix(
        name="f", rows=node.op.weight.rows, cols=node.op.weight.cols, read=lambda a, b: None)),
        node.inputs) if isinstance(node.op, Linear) else node for node in graph.nodes]
    with pytest.raises(CompileError, match=r"^0.attention.q: weights must be integer codes, not "
                                           r"floats \(8 such layers\); ask for quantization"):
        compile(graph.with_nodes(nodes), SIM)


def test_too_small_buffers_wrong():
    small = replace(SIM, vector_elements=256)
    with pytest.raises(PlaceError, match=r"the vector buffer must hold \d+ elements a row"):
        compile(random_decoder(), small)
    with pytest.raises(PlaceError, match=r"the activation buffer must hold"):
        compile(random_decoder(), replace(SIM, activation_elements=16))
    with pytest.raises(PlaceError, match=r"the parameter buffer must hold \d+ elements"):
        compile(random_decoder(), replace(SIM, param_elements=16))


def test_too_small_memory_wrong():
    with pytest.raises(CompileError, match=r"^zcu104: a lane's memory must hold \d+ bytes of "
                                           r"weights and at least \d+ of cache"):
        compile(shape_graph("llama2-7b", parse("w4g128")), BUILDS["zcu104"], images=False)


@pytest.mark.parametrize("change, message", [
    (lambda nodes: [*nodes, nodes[-1]], "value names must be unique, not two called 'logits'"),
    (lambda nodes: nodes[1:], "0.attention.norm: input 'embed' must be made by an earlier node"),
    (lambda nodes: [replace(n, op=replace(n.op, kv_heads=4)) if n.name == "0.attention.mix" else n
                    for n in nodes],
     "0.attention.mix: heads must be a multiple of kv_heads \\(4\\), not 6"),
    (lambda nodes: [replace(n, op=replace(n.op, cos=n.op.cos[:9], sin=n.op.sin[:9]))
                    if n.name == "0.attention.k_rope" else n for n in nodes],
     "0.attention.k_rope: rotary tables must have a row for each of the 1024 positions, not 9"),
])
def test_graph_wrong(change, message):
    graph = random_decoder(layers=1)
    with pytest.raises(GraphError, match=f"^{message}$"):
        verify_graph(graph.with_nodes(change(list(graph.nodes))))


def test_short_embedding_wrong():
    graph = random_decoder(layers=1)
    first = graph.nodes[0]
    short = replace(first, op=Embed(table=replace(first.op.table, rows=514)))
    with pytest.raises(CompileError, match="^embed: the table must have a row for each of the 515"):
        compile(graph.with_nodes([short, *graph.nodes[1:]]), SIM)


# Tokens and the verifier


def test_verify_image_wrong():
    made = program(SIM, layers=1, context=64, sequences=1)
    control = np.array(made.control)
    control[3] ^= 1
    with pytest.raises(VerifyError, match="^the control memory's image must begin with"):
        verify(replace(made, control=control))


def _quantize(target: int, source: int, **tokens: int) -> isa.Quantize:
    return isa.Quantize(target=target, source=source, size=32, group=32, scale=1.0, **tokens)


def _linear(target: int, source: int) -> isa.Linear:
    return isa.Linear(target=target, source=source, outputs=16, inputs=32, group_log2=5)


def test_schedule_orders_producer_and_consumer():
    code = schedule([_quantize(0, 0), _linear(4, 0)])
    assert code[0].release == 1 << isa.Queue.MM and code[1].wait == 1 << isa.Queue.MISC


def test_schedule_needs_no_token_within_a_queue():
    code = schedule([_quantize(0, 0), _quantize(0, 4)])
    assert not any(insn.wait or insn.release for insn in code)


def test_schedule_carries_a_token_round_a_loop():
    load = isa.LoadParams(register=0, offset=0, target=0, size=16)
    norm = isa.RmsNorm(target=0, source=4, gamma=0, size=16, parts=1, eps=0.0)
    code = schedule([LoopBlock([load, norm], count=4)])
    kinds = [type(insn).__name__ for insn in code]
    assert kinds == ["Sync", "Loop", "LoadParams", "RmsNorm", "EndLoop", "Sync"]
    assert code[2].wait == 1 << isa.Queue.MISC and code[3].release == 1 << isa.Queue.LD


def test_schedule_barrier():
    code = schedule([_quantize(0, 0), BARRIER, _linear(4, 0)])
    assert not code[0].release and not code[-1].wait and len(code) == 13


@pytest.fixture(scope="module")
def good():
    return program(SIM, layers=2, context=64, sequences=1)


def _without(made, at, **fields):
    code = list(made.instructions)
    code[at] = replace(code[at], **fields)
    return replace_code(made, code)


def replace_code(made, code):
    control = np.array(made.control)
    whole = isa.assemble(code)
    control[:len(whole)] = np.frombuffer(whole, np.uint8)
    return replace(made, instructions=code, control=control)


def test_verify_every_token_matters(good):
    """Take any wait or release away, and the verifier objects."""
    checked = 0
    for at, insn in enumerate(good.instructions):
        for name in ("wait", "release"):
            mask = getattr(insn, name)
            for queue in isa.Queue:
                if mask >> queue & 1:
                    with pytest.raises(VerifyError):
                        verify(_without(good, at, **{name: mask & ~(1 << queue)}))
                    checked += 1
    assert checked > 100


def test_verify_every_address_matters(good):
    """Move any memory operand far away, and the verifier objects."""
    for at, insn in enumerate(good.instructions):
        if "offset" in type(insn).operands() and not isinstance(insn, isa.SelectTop):
            with pytest.raises(VerifyError, match=r"must stay inside"):
                verify(_without(good, at, offset=insn.offset + (1 << 28)))


def test_verify_loop_reach(good):
    at = next(i for i, insn in enumerate(good.instructions)
              if isinstance(insn, isa.Loop) and insn.count == 2)
    with pytest.raises(VerifyError, match=r"must stay inside"):
        verify(_without(good, at, count=200_000))


@pytest.mark.parametrize("cls, fields, message", [
    (isa.Linear, {"target": 60_000}, "must stay in the vector buffer's"),
    (isa.Quantize, {"target": 16_000}, "must stay in the activation buffer's"),
    (isa.LoadParams, {"target": 60_000}, "must stay in the parameter buffer's"),
    (isa.Linear, {"group_log2": 9}, "group_log2 must be from 4 to 8, not 9"),
    (isa.Attend, {"head_dim": 24}, "head_dim must be a multiple of 16"),
    (isa.Quantize, {"group": 0}, "group must be a multiple of 16, at least 16, not 0"),
    (isa.Attend, {"window": 5}, "window must be 0 as in its LoadPages, not 5"),
    (isa.Attend, {"heads": 5}, "heads must be a multiple of kv_heads \\(2\\), not 5"),
    (isa.Rotate, {"rotary_dim": 32}, "must be even and at most head_dim \\(16\\), not 32"),
    (isa.Rotate, {"rotary_dim": 15}, "rotary_dim must be even and at most head_dim"),
    (isa.LoadRow, {"stride": 3}, "stride must be at least 8 words for a row of 32 elements"),
    (isa.LoadRow, {"format": isa.Format.Q4, "group_log2": 3, "stride": 99},
     "group_log2 must be at least 4, not 3"),
    (isa.RmsNorm, {"size": 20, "parts": 2}, "size must be a multiple of 16 if there are parts"),
    (isa.Combine, {"size": 0}, "size must be at least 1, not 0"),
    (isa.Activate, {"size": 0}, "size must be at least 1, not 0"),
    (isa.StoreRow, {"size": 24}, "size must be a multiple of 16, not 24"),
    (isa.SelectTop, {"limit": 516}, "limit must be at most the 515 tokens that there are, not 516"),
    (isa.Linear, {"outputs": 17}, r"lane 0's stream 0 must have 1 strips, not \d+"),
    (isa.SetAddress, {"wait": 1}, "must neither wait nor release"),
    (isa.Loop, {"release": 2}, "must neither wait nor release"),
])
def test_verify_operand_wrong(good, cls, fields, message):
    at = next(i for i, insn in enumerate(good.instructions) if isinstance(insn, cls))
    with pytest.raises(VerifyError, match=message):
        verify(_without(good, at, **fields))


def _first(code, cls):
    return next(insn for insn in code if isinstance(insn, cls))


@pytest.mark.parametrize("edit, message", [
    (lambda code: code[:-1], "a program must end with SYS.End"),
    (lambda code: [*code, isa.Loop(source=isa.Count.IMMEDIATE, count=1)], "every loop must end"),
    (lambda code: [isa.EndLoop(), *code], "must end a loop, but none is open"),
    (lambda code: [isa.Loop(source=isa.Count.IMMEDIATE)] * 9 + [isa.EndLoop()] * 9 + code,
     "loops must nest at most 8 deep"),
    (lambda code: [isa.LoadStream(register=0, offset=0), *code], "the next prefetched stream|used"),
    (lambda code: [isa.Combine(target=1, source=0, other=4, shared=0, size=32,
                               function=isa.Elementwise.ADD), *code],
     "the target, blocks 1 to 3, must be in an operand's place or apart from it, not over"),
    (lambda code: [isa.Advance(), *code], "must be in a loop of REPEATS"),
    (lambda code: [insn for before in code for insn in (
        [before, before] if isinstance(before, isa.Advance) else [before])],
     "a pass must advance at most once"),
    (lambda code: [*2 * [_first(code, isa.LoadStream)], *17 * [isa.Sync(target=isa.Queue.LD)],
                   *2 * [_first(code, isa.Linear)], *code],
     "at most 16 instructions of LD must come between the next stream's load and this use, not 18"),
])
def test_verify_structure_wrong(good, edit, message):
    with pytest.raises(VerifyError, match=message):
        verify(replace_code(good, edit(list(good.instructions))))


@pytest.mark.parametrize("fields, message", [
    ({"context": 5000}, "the context must be at most the model's 1024 positions, not 5000"),
    ({"context": 1024}, "page_stride must have 64 bytes, not"),
    ({"logits_stride": 1}, "logits_stride must have 2060 bytes, not 16"),
    ({"repeats": 100}, r"region top must have \d+ bytes, not \d+"),
    ({"program": Region(0, 64)}, "region program must have \\d+ bytes, not 64"),
])
def test_verify_host_tables_wrong(good, fields, message):
    memory = replace(good.memory, **{"page_stride": 1, **fields})
    with pytest.raises(VerifyError, match=message):
        verify(replace(good, memory=memory))


def _loop(*body, source=isa.Count.IMMEDIATE, count=0):
    return [isa.Loop(source=source, count=count), *body, isa.EndLoop()]


_FAR, _ZERO = (isa.SetAddress(register=9, value=value) for value in (1 << 20, 0))
_MORE = isa.AddAddress(register=9, value=1 << 16)
_LOAD = isa.LoadParams(register=9, offset=0, target=0, size=16)


@pytest.mark.parametrize("code, message", [
    ([_FAR, *_loop(_ZERO, source=isa.Count.HEAD), _LOAD], "must stay inside the parameters"),
    (_loop(*_loop(_ZERO, source=isa.Count.HEAD), _LOAD, _MORE, source=isa.Count.REPEATS),
     "address register 9 must be set in each pass, or only added to"),
    (_loop(*_loop(_ZERO), _LOAD, _MORE, count=5),
     "address register 9 must be set in each pass, or only added to"),
])
def test_verify_register_set_in_skipped_loop(good, code, message):
    """A body that may not run may not be what makes an address good."""
    at = next(i for i, insn in enumerate(good.instructions) if isinstance(insn, isa.LoadParams))
    code = [replace(insn, offset=good.instructions[at].offset) if insn is _LOAD else insn
            for insn in code]
    fence = list(schedule([BARRIER]))
    with pytest.raises(VerifyError, match=message):
        verify(replace_code(good, [*fence, *code, *fence, *good.instructions]))
