"""Programs put together instruction by instruction, with the memory that they use."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray

from alula.compiler.compile import Options, memory_map, relocated
from alula.compiler.emit import Draft
from alula.compiler.graph import QuantMatrix
from alula.compiler.image import LaneImages, work_folder
from alula.compiler.program import ModelInfo, Program
from alula.compiler.schedule import Item, schedule
from alula.compiler.verify import verify
from alula.hw import isa, layout
from alula.hw.arch import ArchConfig
from alula.hw.isa import WORD_BYTES
from alula.sim.rtl.limits import check


@dataclass
class Assembly:
    """Instructions without tokens, and the contents of memory; offsets are relative to regions.

    ``context`` is the most positions of a sequence; ``row_words`` the words of each row in the
    region of the logits.
    """

    arch: ArchConfig
    vocab: int
    context: int
    sequences: int
    repeats: int
    row_words: int
    items: list[Item] = field(default_factory=list)
    streams: list[QuantMatrix] = field(default_factory=list)
    params: bytearray = field(default_factory=bytearray)
    tables: bytearray = field(default_factory=bytearray)
    layers: list[tuple[int, int]] = field(default_factory=list)  # heads of keys, their size
    slot_words: int = 0

    def param(self, values: NDArray[np.uint32]) -> int:
        """Add fp32 values by their bits; return their first word."""
        return _append(self.params, values.tobytes(), WORD_BYTES)

    def table(self, rows: NDArray[np.uint8]) -> int:
        """Add a table, ``(rows, bytes)``, a whole number of words a row; return its first word."""
        return _append(self.tables, rows.tobytes(), 64)

    def layer(self, kv_heads: int, head_dim: int) -> int:
        """Add a layer to the cache; return its first word in a slot."""
        start = self.slot_words
        self.layers.append((kv_heads, head_dim))
        self.slot_words += layout.layer_words(self.arch.lanes, kv_heads, head_dim)
        return start

    def program(self) -> Program:
        """Return the program, proven safe."""
        arch, folder = self.arch, work_folder(None)
        code = schedule(self.items)
        lanes = LaneImages(arch, len(self.streams), Path(folder.name))
        for index, matrix in enumerate(self.streams):
            lanes.add(index, matrix, lambda made: None)
        images = [np.array(image) for image in lanes.finish()]
        draft = Draft(streams=self.streams, param_words=len(self.params) // WORD_BYTES,
                      table_words=len(self.tables) // WORD_BYTES,
                      slot_words=max(self.slot_words, 1), logits_stride=self.row_words)
        memory = memory_map(
            draft, arch, SimpleNamespace(positions=self.context),  # type: ignore[arg-type]
            Options(context=self.context, sequences=self.sequences, repeats=self.repeats),
            max(image.size for image in images))
        code = relocated(code, memory)
        control = np.zeros(memory.tables.stop, np.uint8)
        for start, data in ((0, isa.assemble(code)), (memory.params.start, self.params),
                            (memory.tables.start, self.tables)):
            control[start:start + len(data)] = np.frombuffer(bytes(data), np.uint8)
        heads = self.layers[0] if self.layers else (0, 0)
        model = ModelInfo(name="random", architecture="random", vocab=self.vocab,
                          positions=self.context, eos_tokens=(), bos_token=None, parameters=0,
                          layers=len(self.layers), kv_heads=heads[0], head_dim=heads[1])
        program = verify(Program(arch=arch, instructions=code, memory=memory, model=model,
                                 lanes=images, control=control))
        check(program)
        return program


def _append(data: bytearray, more: bytes, unit: int) -> int:
    data += bytes(-len(data) % unit)
    start = len(data) // WORD_BYTES
    data += more
    data += bytes(-len(data) % WORD_BYTES)
    return start
