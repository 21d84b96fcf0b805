"""The GPU as a device: memories are tensors, a step is a list of kernel launches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from alula.compiler.program import Program
from alula.host.gpu import attention, interpreted, linear, vector
from alula.host.gpu.plan import Encoder, Event, Key, Launch, Walk, joined, launches, round_up
from alula.host.gpu.weights import GpuMatrix, pack
from alula.hw import isa, layout, numerics
from alula.hw.isa import BLOCK, TOP_K
from alula.sim import streams
from alula.sim.attention import row_chain
from alula.sim.machine import MachineError, unit_places
from alula.sim.unpack import Strips


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Sizes of the kernels' work: they change how long it takes, and no bit.

    Parameters
    ----------
    columns, row_columns
        Rows of a matrix to a program, for steps of one row and of more.
    tile
        Elements of a vector that are taken together.
    fused_rows
        Most rows whose vector instructions run inside the launch that follows.
    warps
        Of a program.
    """

    columns: int = 16
    row_columns: int = 64
    tile: int = 1024
    fused_rows: int = 2
    warps: int = 4


INTERPRETED = Tuning(columns=1024, row_columns=1024, tile=8192, fused_rows=0)


class GpuDevice:
    """A GPU as a device; the processor, if Triton's kernels are interpreted.

    A step's launches depend on its number of rows, repeats and whether it has logits. On a GPU the
    first step of a kind runs them one by one, which compiles them; the second records them in a
    CUDA graph, which it and later ones replay.

    Parameters
    ----------
    matrix
        Returns the matrix of a product; by default that of the program's stream. Measurements
        bring matrices of their own.
    where
        Of the tensors, as torch names it: by default ``cpu`` if kernels are interpreted.
    """

    name = "cuda"
    counters = None

    def __init__(self, program: Program, tuning: Tuning | None = None,
                 matrix: Callable[[Event], GpuMatrix] | None = None,
                 where: str | None = None) -> None:
        self.program = program
        self._made = matrix or self._read_matrix
        self.where = where or ("cpu" if interpreted() else "cuda")
        self.tuning = tuning or (INTERPRETED if interpreted() else Tuning())
        self.plans: dict[Key, _Plan] = {}
        self.matrices: dict[tuple[int, ...], GpuMatrix] = {}
        arch, size = program.arch, program.memory.top.stop
        self.control = self._zeros(-(-size // 64) * 64, torch.uint8)
        image = torch.from_numpy(np.array(program.control))
        self.control[:image.numel()] = image.to(self.where)
        self.cache = self._zeros((arch.lanes, program.memory.cache.size), torch.uint8)
        self._first_host = program.memory.step.start
        self._host = np.zeros(program.memory.pages.stop - self._first_host, np.uint8)
        self._places: dict[int, int] = {}
        self._chains = b""  # that the device has
        events = list(Walk(program, 1, 1).events())
        self.memory = self._memory([e.instruction for e in events])
        for event in joined(events, program):
            if isinstance(event.instruction, isa.Linear):
                self.matrix(event)

    def _zeros(self, shape: Any, kind: Any) -> Any:
        return torch.zeros(shape, dtype=kind, device=self.where)

    def _memory(self, instructions: list[Any]) -> vector.Memory:
        arch, where = self.program.arch, self.where
        attends = [i for i in instructions if isinstance(i, isa.Attend)]
        heads = {i.kv_heads for i in instructions if hasattr(i, "kv_heads")}
        partial = max((_partial_elements(i) for i in attends), default=1)
        tables = np.concatenate([numerics.RECIPROCAL_TABLE, numerics.RSQRT_TABLE])
        codes = self._zeros((arch.rows, arch.activation_elements), torch.int8)
        return vector.Memory(
            vector=self._zeros((arch.rows, arch.vector_elements), torch.float32),
            codes=codes, code_words=codes.view(torch.int32),
            code_scales=self._zeros((arch.rows, arch.activation_elements // BLOCK), torch.float32),
            params=self._zeros(arch.param_elements, torch.float32),
            tables=torch.from_numpy(tables).to(where),
            control=self.control.view(torch.int32), cache=self.cache.view(torch.int8),
            cache_scales=self.cache.view(torch.float32), header=self._zeros(8, torch.int32),
            rows=self._zeros((arch.rows, 8), torch.int32),
            chains=self._zeros((arch.rows, arch.rows), torch.int32),
            lengths=self._zeros(arch.rows, torch.int32), places=self._place_table(sorted(heads)),
            top_values=self._zeros((arch.rows, TOP_K), torch.float32).fill_(-np.inf),
            top_tokens=self._zeros((arch.rows, TOP_K), torch.int32).fill_(-1),
            partial=self._zeros(arch.rows * partial, torch.float32),
            arrived=self._zeros(arch.rows * max(heads, default=1), torch.int32))

    def _place_table(self, heads: list[int]) -> Any:
        """Return lane and index of each (head, class), for each number of heads of keys."""
        tables = [np.zeros(1, np.int32)]
        for count in heads:
            self._places[count] = sum(table.size for table in tables)
            table = np.zeros((count, numerics.PAGE_CLASSES, 2), np.int32)
            for unit, place in unit_places(count, self.program.arch.lanes).items():
                table[unit] = place
            tables.append(table.reshape(-1))
        return torch.from_numpy(np.concatenate(tables)).to(self.where)

    def matrix(self, event: Event) -> GpuMatrix:
        """Return the matrix of a product, put in the kernels' order once."""
        key = tuple(address for address, _ in event.parts)
        found = self.matrices.get(key)
        if found is None:
            found = self.matrices[key] = self._made(event)
        return found

    def _read_matrix(self, event: Event) -> GpuMatrix:
        parts = [streams.read_strips(self.program, address, i) for address, i in event.parts]
        strips = Strips(*(np.concatenate(column) for column in zip(*parts, strict=True)))
        i, exponent = event.instruction, streams.exponent(self.program, event.parts[0][0])
        return pack(strips, i.outputs, 1 << i.group_log2, exponent, self.where)

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that a step with logits reads, scales included."""
        return sum(matrix.size for matrix in self.matrices.values())

    def write(self, start: int, data: bytes) -> None:
        self._check(start, len(data))
        raw = np.frombuffer(data, np.uint8)
        self.control[start:start + raw.size] = torch.from_numpy(raw.copy()).to(self.where)
        low = max(start, self._first_host)
        high = min(start + raw.size, self._first_host + self._host.size)
        if low < high:
            self._host[low - self._first_host:high - self._first_host] = raw[low - start:
                                                                             high - start]

    def read(self, start: int, size: int) -> NDArray[np.uint8]:
        self._check(start, size)
        found: NDArray[np.uint8] = self.control[start:start + size].cpu().numpy().copy()
        return found

    def _check(self, start: int, size: int) -> None:
        end = self.program.memory.top.stop
        if not 0 <= start <= start + size <= end:
            raise MachineError(f"a control address must be below {end}, not {start + size}")

    def step(self) -> None:
        table = _StepTable(self)
        key = table.key()
        if key not in self.plans:
            self.plans[key] = _Plan(self, key)
        plan = self.plans[key]
        table.check(plan)
        chains, lengths = table.chains()
        if chains.tobytes() != self._chains:
            rows, self._chains = len(lengths), chains.tobytes()
            self.memory.chains[:rows, :rows] = torch.from_numpy(chains).to(self.where)
            self.memory.lengths[:rows] = torch.from_numpy(lengths).to(self.where)
        plan.run()


class _StepTable:
    """The step table as a host wrote it, checked before kernels follow it."""

    def __init__(self, device: GpuDevice) -> None:
        self.device, self.program = device, device.program
        memory = self.program.memory
        data = device._host
        self.header = data[:layout.STEP_HEADER.itemsize].view(layout.STEP_HEADER)[0]
        count, most = int(self.header["rows"]), self.program.arch.rows
        if not 1 <= count <= most:
            raise MachineError(f"a step must have from 1 to {most} rows, not {count}")
        if not 1 <= self.header["repeats"] <= memory.repeats:
            raise MachineError(f"a run must have from 1 to {memory.repeats} repeats, "
                               f"not {self.header['repeats']}")
        start = layout.STEP_HEADER.itemsize
        self.rows = data[start:start + count * layout.STEP_ROW.itemsize].view(layout.STEP_ROW)

    def key(self) -> Key:
        placed = bool((self.rows["place"] != layout.PLACE_BY_POSITION).any())
        return Key(len(self.rows), int(self.header["repeats"]), int(self.header["head"]), placed)

    def chains(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return the rows that each row follows, itself last, and how many they are."""
        count = len(self.rows)
        found = [row_chain(self.rows, row) for row in range(count)]
        table = np.zeros((count, count), np.int32)
        for row, chain in enumerate(found):
            table[row, :len(chain)] = chain
        return table, np.array([len(chain) for chain in found], np.int32)

    def check(self, plan: _Plan) -> None:
        """Raise MachineError if a row would lead outside the memories."""
        end = self.program.memory.top.stop
        for start, stride, column in plan.lookups:
            last = start + (int(self.rows[column].max()) + 1) * stride
            if last > end:
                raise MachineError(f"a control address must be below {end}, not {last}")
        if plan.attends:
            self._check_slots()

    def _check_slots(self) -> None:
        memory, repeats = self.program.memory, int(self.header["repeats"])
        first = memory.pages.start - self.device._first_host
        stride = int(self.header["page_stride"]) * isa.WORD_BYTES
        placed = self.rows["place"] != layout.PLACE_BY_POSITION
        slots = [int(self.rows["place"][placed].max(initial=0)) // numerics.PAGE_TOKENS]
        for row, own in zip(self.rows, placed, strict=True):
            last = int(row["position"]) + (repeats - 1 if own else repeats)
            start, count = first + int(row["sequence"]) * stride, -(-last // numerics.PAGE_TOKENS)
            if start + 4 * count > self.device._host.size:
                raise MachineError(f"position {last - 1} of sequence {row['sequence']} must be in "
                                   "the page tables")
            slots.append(int(self.device._host[start:start + 4 * count].view("<u4").max(initial=0)))
        if max(slots) >= memory.slots:
            raise MachineError(f"cache slot must be below {memory.slots}, not {max(slots)}")


class _Plan:
    """The launches of a kind of step, and on a GPU their graph."""

    def __init__(self, device: GpuDevice, key: Key) -> None:
        self.device, self.key = device, key
        events = list(Walk(device.program, key.repeats, key.head).events())
        self.attends = any(isinstance(e.instruction, isa.Attend) for e in events)
        self.lookups = [(e.address, e.instruction.stride * isa.WORD_BYTES,
                         e.instruction.index.name.lower())
                        for e in events if isinstance(e.instruction, isa.LoadRow)]
        self.launches = launches(events, device.program, key, device.tuning.fused_rows)
        self.encoder = Encoder(device.program, device._places.__getitem__)
        memory = device.program.memory
        arch = device.program.arch
        self.sizes = vector.Sizes(arch.vector_elements, arch.activation_elements, arch.rows,
                                  memory.pages.start // 4, memory.cache.start, memory.cache.size)
        self.calls = [self._call(launch) for launch in self.launches]
        self.addresses = torch.tensor(self.encoder.addresses or [0], dtype=torch.int64,
                                      device=device.where)
        self.pointers = [self.addresses[call[2]:] for call in self.calls]
        self.graph: Any = None
        self.ran = False

    def _call(self, launch: Launch) -> tuple[Any, ...]:
        """Return a kernel, its grid, where its addresses begin, its arguments and choices."""
        start = self.encoder.begin()
        before = tuple(self.encoder.op(event) for event in launch.before)
        tuning = self.device.tuning
        common = dict(SIZES=tuple(self.sizes), TILE=tuning.tile, num_warps=tuning.warps,
                      enable_fp_fusion=False)
        if launch.work is None:
            return vector.vector_kernel, (self.key.rows,), start, (), common | {"OPS": before}
        if isinstance(launch.work.instruction, isa.Attend):
            return self._attend(launch.work, before, start, common)
        return self._linear(launch, before, start, common)

    def _linear(self, launch: Launch, before: tuple[Any, ...], start: int,
                common: dict[str, Any]) -> tuple[Any, ...]:
        assert launch.work is not None
        i, matrix = launch.work.instruction, self.device.matrix(launch.work)
        alone = self.key.rows == 1
        tuning = self.device.tuning
        columns = min(tuning.columns if alone else tuning.row_columns, round_up(i.outputs))
        columns = max(columns, isa.TILE_ROWS)
        choices = common | dict(
            FORMAT=tuple(matrix.format), TARGET=i.target, SOURCE=i.source, OUTPUTS=i.outputs,
            GROUPS=matrix.groups, BEFORE=before, AFTER=launch.after, COLUMNS=columns,
            ROWS=1 if alone else max(16, round_up(self.key.rows)),
            ASSEMBLY=self.device.where == "cuda")
        arguments = (matrix.words, matrix.high, matrix.scales, matrix.zeros, matrix.bitmaps,
                     matrix.masks, matrix.first, matrix.exponent, self.key.rows)
        return linear.linear_kernel, (-(-i.outputs // columns),), start, arguments, choices

    def _attend(self, event: Event, before: tuple[Any, ...], start: int,
                common: dict[str, Any]) -> tuple[Any, ...]:
        i = event.instruction
        heads, wide = _attend_shape(i)
        choices = common | dict(OP=self.encoder.attend(event), HEADS=heads, WIDE=wide,
                                BEFORE=before, ROWS=self.sizes.rows)
        grid = self.key.rows, i.kv_heads, numerics.PAGE_CLASSES
        return attention.attend_kernel, grid, start, (), choices

    def run(self) -> None:
        if self.device.where == "cpu":
            self._launch()
        elif not self.ran:
            self._launch()
            self.ran = True
        else:
            if self.graph is None:
                torch.cuda.synchronize()
                self.graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self.graph):
                    self._launch()
            self.graph.replay()

    def _launch(self) -> None:
        for (kernel, grid, _, arguments, choices), addresses in zip(self.calls, self.pointers,
                                                                    strict=True):
            kernel[grid](self.device.memory, addresses, *arguments, **choices)


def _attend_shape(i: isa.Attend) -> tuple[int, int]:
    """Return heads to a head of keys, and a head's elements, as tensor cores take them."""
    return max(16, round_up(i.heads // i.kv_heads)), max(32, round_up(i.head_dim))


def _partial_elements(i: isa.Attend) -> int:
    heads, wide = _attend_shape(i)
    return i.kv_heads * numerics.PAGE_CLASSES * heads * (wide + 2)



