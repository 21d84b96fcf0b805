"""Write memory images: each lane's weight streams, and the control memory's tables.

Images go to temporary files as they are made, so that memory holds only the rows in work.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from alula.compiler.emit import Draft, Table
from alula.compiler.graph import Codes, FloatMatrix, QuantMatrix, Rope, dequantize
from alula.compiler.pack import PackStats, dense_strip, pack_strips
from alula.hw import isa, layout, numerics
from alula.hw.arch import ArchConfig
from alula.hw.isa import TILE_ROWS, WORD_BYTES

Report = Callable[[int], None]  # called with the bytes of output made since the last call

_HALF_MAX, _HALF_NORMAL = 65504.0, 2.0**-14
_ROWS = 1 << 22  # weights read together


@dataclass
class ImageStats:
    """What the images hold, and what storing scales as fp16 cost."""

    packed: PackStats = field(default_factory=PackStats)
    by_matrix: dict[str, PackStats] = field(default_factory=dict)
    scale_error: float = 0.0  # worst relative error of a scale


class LaneImages:
    """Weight images of all lanes: a directory, then the streams, in the order they are added."""

    def __init__(self, arch: ArchConfig, entries: int, folder: Path) -> None:
        self.arch = arch
        self.stats = ImageStats()
        self.directory = np.zeros((arch.lanes, entries), layout.DIRECTORY_ENTRY)
        self.planned = [0] * arch.lanes  # bytes of streams that have no weights
        self.files: list[BinaryIO] = [(folder / f"lane{lane}").open("w+b")
                                      for lane in range(arch.lanes)]
        for file in self.files:
            file.write(bytes(-(-entries * WORD_BYTES // 64) * 64))

    def add(self, index: int, matrix: QuantMatrix, report: Report) -> None:
        """Append a matrix as stream ``index``."""
        starts = [file.tell() for file in self.files]
        exponent = 0
        stats, peak, error = self._append(matrix, exponent, report)
        if peak > _HALF_MAX or 0 < peak < _HALF_NORMAL:
            exponent = int(np.floor(np.log2(peak))) - 14
            for file, start in zip(self.files, starts, strict=True):
                file.seek(start)
                file.truncate()
            stats, _, error = self._append(matrix, exponent, report)
        self.stats.packed.add(stats)
        self.stats.by_matrix[matrix.name] = stats
        self.stats.scale_error = max(self.stats.scale_error, error)
        strips = -(-matrix.rows // TILE_ROWS)
        for lane, (file, start) in enumerate(zip(self.files, starts, strict=True)):
            size = file.tell() - start
            self.directory[lane, index] = (start // WORD_BYTES, size // self.arch.beat_bytes,
                                           exponent, -(-(strips - lane) // self.arch.lanes))
            file.write(bytes(-size % 64))

    def plan(self, index: int, matrix: QuantMatrix) -> None:
        """Enter a matrix as stream ``index`` without weights, as if all were dense."""
        strip = dense_strip(matrix.bits, matrix.group, matrix.groups, self.arch)
        strips = -(-matrix.rows // TILE_ROWS)
        whole = PackStats(**{kind: strips * size for kind, size in asdict(strip).items()})
        self.stats.packed.add(whole)
        self.stats.by_matrix[matrix.name] = whole
        for lane in range(self.arch.lanes):
            self.directory[lane, index]["strips"] = -(-(strips - lane) // self.arch.lanes)
            self.planned[lane] += -(-(-(-(strips - lane) // self.arch.lanes)
                                      * strip.total) // 64) * 64

    def _append(self, matrix: QuantMatrix, exponent: int,
                report: Report) -> tuple[PackStats, float, float]:
        """Pack every row; return what was packed, the largest scale, the worst scale's error."""
        stats, peak, error = PackStats(), 0.0, 0.0
        step = max(TILE_ROWS, _ROWS // matrix.cols // TILE_ROWS * TILE_ROWS)
        for start in range(0, matrix.rows, step):
            rows = matrix.read(start, min(start + step, matrix.rows))
            peak = max(peak, float(np.abs(rows.scales).max(initial=0)))
            error = max(error, _half_error(rows, exponent))
            made = 0
            for offset, strip in enumerate(pack_strips(rows, matrix.bits, matrix.group, exponent,
                                                       self.arch, stats)):
                self.files[(start // TILE_ROWS + offset) % self.arch.lanes].write(strip)
                made += len(strip)
            report(made)
        return stats, peak, error

    def finish(self) -> list[NDArray[np.uint8]]:
        """Write the directories; return the images, mapped."""
        images: list[NDArray[np.uint8]] = []
        for lane, file in enumerate(self.files):
            file.seek(0)
            file.write(self.directory[lane].tobytes())
            file.close()
            images.append(np.memmap(file.name, np.uint8, mode="r"))
        return images


def _half_error(rows: Codes, exponent: int) -> float:
    scales = rows.scales[rows.scales != 0]
    if not scales.size:
        return 0.0
    with np.errstate(over="ignore"):
        half = np.ldexp(np.ldexp(scales, -exponent).astype(np.float16).astype(np.float64), exponent)
    return float(np.abs(half / scales - 1).max())


def control_image(draft: Draft, code: bytes, params_start: int, tables_start: int, size: int,
                  folder: Path, report: Report) -> NDArray[np.uint8]:
    """Return the control memory's image: program, parameters, tables."""
    image = np.memmap(folder / "control", np.uint8, mode="w+", shape=(max(size, 64),))
    image[:len(code)] = np.frombuffer(code, np.uint8)
    at = params_start
    for vector in draft.params:
        data = numerics.canonical(vector).view(np.uint8)
        image[at:at + data.size] = data
        at += data.size
    for first, table in draft.tables:
        start = tables_start + first * WORD_BYTES
        stride = table.stride * WORD_BYTES
        rows = image[start:start + table.rows * stride].reshape(table.rows, stride)
        step = max(1, _ROWS // stride)
        for at in range(0, table.rows, step):
            stop = min(at + step, table.rows)
            data = _table_rows(table, at, stop)
            rows[at:stop, :data.shape[1]] = data
            report(data.size)
    return image


def _table_rows(table: Table, start: int, stop: int) -> NDArray[np.uint8]:
    """Return rows of a table as bytes, ``(rows, bytes)``."""
    source = table.source
    if isinstance(source, Rope):
        half = source.cos.shape[1]
        wide = -(-half // isa.BLOCK) * isa.BLOCK
        values = np.zeros((stop - start, 2 * wide), np.float32)
        values[:, :half] = source.cos[start:stop]
        values[:, wide:wide + half] = source.sin[start:stop]
        return numerics.canonical(values).view(np.uint8)
    if table.format in (isa.Format.Q4, isa.Format.Q8):
        assert isinstance(source, QuantMatrix)
        rows = source.read(start, stop)
        scales = np.zeros((stop - start, -(-rows.scales.shape[1] // 4) * 4), np.float32)
        scales[:, :rows.scales.shape[1]] = numerics.canonical(rows.scales)
        codes = rows.codes
        if table.format is isa.Format.Q4:
            codes = np.bitwise_or(codes[:, 0::2], codes[:, 1::2] << 4, dtype=np.uint8)
        return np.concatenate([scales.view(np.uint8), codes], axis=1)
    if isinstance(source, FloatMatrix):
        values = source.read(start, stop)
    else:
        values = dequantize(source.read(start, stop), source.group)
    values = numerics.canonical(values)
    if table.format is isa.Format.F16:
        return np.ascontiguousarray(values.astype("<f2")).view(np.uint8)
    return values.view(np.uint8)


def work_folder(near: Path | None) -> tempfile.TemporaryDirectory[str]:
    """Return a temporary folder, on the disk of ``near`` if given."""
    return tempfile.TemporaryDirectory(prefix=".alula-", dir=near)
