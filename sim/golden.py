"""The golden model: what every instruction means, in numpy.

:data:`EXECUTE` maps each instruction class to the function that is its meaning; those of attention
are in :mod:`alula.sim.attention`. A :class:`Machine` runs instructions in program order, which the
tokens of a verified program make indistinguishable from the hardware's order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from alula.hw import isa, layout, numerics
from alula.hw.isa import BLOCK, TOP_K, WORD_BYTES
from alula.sim import (
    attention,  # noqa: F401  (its functions enter EXECUTE)
    streams,
)
from alula.sim.machine import (
    EXACT_CHOICES,
    EXECUTE,
    F32,
    Machine,
    MachineError,
    Matrix,
    executes,
)

__all__ = ["EXACT_CHOICES", "EXECUTE", "Machine", "MachineError"]

# LD --------------------------------------------------------------------------------------------

@executes(isa.LoadStream)
def load_stream(machine: Machine, i: isa.LoadStream) -> None:
    machine.streams.append(machine.address(i))


@executes(isa.LoadParams)
def load_params(machine: Machine, i: isa.LoadParams) -> None:
    data = machine.control_bytes(machine.address(i), 4 * i.size)
    machine.shared(i.target, i.size)[:] = numerics.canonical(data.view("<f4"))


@executes(isa.LoadRow)
def load_row(machine: Machine, i: isa.LoadRow) -> None:
    out = machine.vectors(i.target, i.size)
    for row, entry in enumerate(machine.rows):
        index = int(entry["token"] if i.index is isa.Index.TOKEN else entry["position"])
        start = machine.address(i) + index * i.stride * WORD_BYTES
        out[row] = _decode_row(machine.control_bytes(start, i.stride * WORD_BYTES), i)


def _decode_row(data: NDArray[np.uint8], i: isa.LoadRow) -> F32:
    if i.format is isa.Format.F32:
        return numerics.canonical(data[:4 * i.size].view("<f4"))
    if i.format is isa.Format.F16:
        return numerics.canonical(data[:2 * i.size].view("<f2").astype(np.float32))
    group = 1 << i.group_log2
    groups = -(-i.size // group)
    scales = numerics.canonical(data[:4 * groups].view("<f4"))
    codes = data[-(-4 * groups // WORD_BYTES) * WORD_BYTES:]
    if i.format is isa.Format.Q8:
        signed = codes[:i.size].astype(np.int16) - 128
    else:
        pairs = codes[:-(-i.size // 2)]
        signed = np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(-1)[:i.size].astype(
            np.int16) - 8
    return numerics.mul(numerics.from_int(signed), np.repeat(scales, group)[:i.size])


# ST -------------------------------------------------------------------------------------------

@executes(isa.StoreRow)
def store_row(machine: Machine, i: isa.StoreRow) -> None:
    for row, entry in enumerate(machine.rows):
        if entry["flags"] & layout.WANTS_LOGITS:
            start = machine.address(i) + row * i.stride * WORD_BYTES
            machine.control_bytes(start, 4 * i.size).view("<f4")[:] = machine.vectors(
                i.source, i.size)[row]


@executes(isa.StoreTop)
def store_top(machine: Machine, i: isa.StoreTop) -> None:
    size = layout.TOP_ROW.itemsize
    for row in range(len(machine.rows)):
        data = machine.control_bytes(machine.address(i) + row * size, size)
        out = data.view(layout.TOP_ROW)
        out["values"], out["tokens"] = machine.top_values[row], machine.top_tokens[row]


# MM -------------------------------------------------------------------------------------------

@executes(isa.Linear)
def linear(machine: Machine, i: isa.Linear) -> None:
    stream = machine.streams.popleft()
    assert isinstance(stream, int)
    if stream not in machine.matrices:
        machine.matrices[stream] = _read_matrix(machine, stream, i)
    matrix = machine.matrices[stream]
    group = 1 << i.group_log2
    codes, scales = machine.quantized(i.source, -(-i.inputs // group), group)
    count = len(machine.span)
    machine.vectors(i.target, matrix.codes.shape[1])[:] = numerics.linear(
        matrix.codes, matrix.scales, codes[:count], scales[:count], matrix.exponent, matrix.present)


def _read_matrix(machine: Machine, address: int, i: isa.Linear) -> Matrix:
    """Return the matrix of a stream in the order that products take it."""
    _, groups, group = streams.shape(i)
    codes, scales, present = streams.read_strips(machine.program, address, i)
    return Matrix(
        np.ascontiguousarray(codes.reshape(-1, groups, group).transpose(1, 0, 2), np.float32),
        np.ascontiguousarray(scales.T), streams.exponent(machine.program, address),
        None if present.all() else present.T)


# MISC ------------------------------------------------------------------------------------------

@executes(isa.RmsNorm)
def rms_norm(machine: Machine, i: isa.RmsNorm) -> None:
    source = machine.vectors(i.source, i.size * i.parts).reshape(-1, i.parts, i.size)
    result = numerics.rms_norm(source, machine.shared(i.gamma, i.size), np.float32(i.eps))
    machine.vectors(i.target, i.size * i.parts)[:] = result.reshape(len(result), -1)


@executes(isa.Combine)
def combine(machine: Machine, i: isa.Combine) -> None:
    a = machine.vectors(i.source, i.size)
    b = machine.shared(i.other, i.size) if i.shared else machine.vectors(i.other, i.size)
    result = {isa.Elementwise.ADD: numerics.add, isa.Elementwise.MUL: numerics.mul,
              isa.Elementwise.COPY: lambda a, b: a}[i.function](a, b)
    machine.vectors(i.target, i.size)[:] = result


_FUNCTIONS = {isa.Function.SILU: numerics.silu, isa.Function.GELU: numerics.gelu,
              isa.Function.GELU_TANH: numerics.gelu_tanh, isa.Function.RELU: numerics.relu}


@executes(isa.Activate)
def activate(machine: Machine, i: isa.Activate) -> None:
    result = _FUNCTIONS[i.function](machine.vectors(i.source, i.size))
    if i.gated:
        result = numerics.mul(result, machine.vectors(i.other, i.size))
    machine.vectors(i.target, i.size)[:] = result


@executes(isa.Rotate)
def rotate(machine: Machine, i: isa.Rotate) -> None:
    half = i.rotary_dim // 2
    cos = machine.vectors(i.cos, half)[:, None]
    sin = machine.vectors(i.cos + -(-half // BLOCK), half)[:, None]
    source = machine.vectors(i.source, i.heads * i.head_dim).reshape(-1, i.heads, i.head_dim)
    result = numerics.rotate(source, cos, sin, bool(i.interleaved))
    machine.vectors(i.target, i.heads * i.head_dim)[:] = result.reshape(len(result), -1)


@executes(isa.Quantize)
def quantize(machine: Machine, i: isa.Quantize) -> None:
    rows, groups = len(machine.span), -(-i.size // i.group)
    source = np.zeros((rows, groups * i.group), np.float32)
    source[:, :i.size] = machine.vectors(i.source, i.size)
    codes, scales = numerics.quantize(source.reshape(rows, groups, i.group), np.float32(i.scale))
    start, stop = i.target * BLOCK, i.target * BLOCK + groups * i.group
    first = 0 if i.packed else machine.span.start
    to = slice(first, first + rows)
    machine.codes[to, start:stop] = codes.reshape(rows, -1)
    step = i.group // BLOCK
    machine.code_scales[to, i.target:i.target + groups * step:step] = scales
    if machine.code_values is not None:
        machine.code_values[to, start:stop] = source * np.float32(i.scale)


@executes(isa.SelectTop)
def select_top(machine: Machine, i: isa.SelectTop) -> None:
    if i.clear:
        machine.top_values[:], machine.top_tokens[:] = -np.inf, layout.NO_TOKEN
    first = machine.registers[i.register] + i.offset
    count = max(0, min(i.size, i.limit - first))
    for row, values in enumerate(machine.vectors(i.source, count)):
        machine.top_values[row], machine.top_tokens[row] = numerics.merge_top(
            machine.top_values[row], machine.top_tokens[row], values, first, TOP_K)


# SYS -------------------------------------------------------------------------------------------

@executes(isa.ReadStep)
def read_step(machine: Machine, i: isa.ReadStep) -> None:
    start = machine.address(i)
    machine.header = machine.control_bytes(start, layout.STEP_HEADER.itemsize).view(
        layout.STEP_HEADER)[0].copy()
    count = int(machine.header["rows"])
    if not 1 <= count <= machine.arch.rows:
        raise MachineError(f"a step must have from 1 to {machine.arch.rows} rows, not {count}")
    if not 1 <= machine.header["repeats"] <= machine.program.memory.repeats:
        raise MachineError(f"a run must have from 1 to {machine.program.memory.repeats} repeats, "
                           f"not {machine.header['repeats']}")
    start += layout.STEP_HEADER.itemsize
    machine.rows = machine.control_bytes(start, count * layout.STEP_ROW.itemsize).view(
        layout.STEP_ROW).copy()


@executes(isa.Advance)
def advance(machine: Machine, i: isa.Advance) -> None:
    best = machine.top_tokens[:len(machine.rows), 0]
    machine.rows["token"] = np.where(best == layout.NO_TOKEN, 0, best)
    machine.rows["position"] += 1
    machine.rows["place"] = layout.PLACE_BY_POSITION


@executes(isa.SetAddress)
def set_address(machine: Machine, i: isa.SetAddress) -> None:
    machine.registers[i.register] = i.value


@executes(isa.AddAddress)
def add_address(machine: Machine, i: isa.AddAddress) -> None:
    machine.registers[i.register] = (machine.registers[i.register] + i.value) & 0xFFFF_FFFF


@executes(isa.Sync)
def sync(machine: Machine, i: isa.Sync) -> None:
    """Order is program order here."""


@executes(isa.Loop)
def loop(machine: Machine, i: isa.Loop) -> None:
    count = {isa.Count.IMMEDIATE: i.count, isa.Count.REPEATS: int(machine.header["repeats"]),
             isa.Count.HEAD: int(machine.header["head"]),
             isa.Count.WHOLE: int(not machine.halves),
             isa.Count.HALVES: int(machine.halves)}[i.source]
    machine.loops.append((machine.next, count))
    if not count:
        _skip_body(machine)


def _skip_body(machine: Machine) -> None:
    depth = 1
    while depth:
        instruction = machine.program.instructions[machine.next]
        depth += isinstance(instruction, isa.Loop) - isinstance(instruction, isa.EndLoop)
        machine.next += 1
    machine.loops.pop()


@executes(isa.EndLoop)
def end_loop(machine: Machine, i: isa.EndLoop) -> None:
    start, left = machine.loops.pop()
    if left > 1:
        machine.loops.append((start, left - 1))
        machine.next = start


@executes(isa.End)
def end(machine: Machine, i: isa.End) -> None:
    machine.running = False
