"""Formats in memory: weight tiles, stream directory, key-value pages, step table, results.

Everything is little-endian. Addresses are in words of ``isa.WORD_BYTES`` bytes.

A weight stream holds one lane's share of a matrix. The matrix is cut into *strips* of sixteen
rows, dealt to the lanes in turn; a strip into *tiles* of one group of inputs; sixteen tiles (fewer
at the end of a strip) make a *segment*, which is, each part padded to a whole unit and all to a
whole beat:

1. a ``TileHeader`` for each tile, and others of 0 up to four; their last bits are the segment's
   totals: scales, zero points, and the low and the high bits of the bytes of position codes,
2. an fp16 scale for each present row of each tile,
3. a zero point, one byte, for each present row of each tile whose header says so,
4. for each bundle of each sparse tile, a little-endian bit string, padded to a byte, of the
   position codes of its rows, window by window of 16 inputs,
5. for each bundle of each tile, such a bit string of the codes of its rows, padded to a unit.

A unit is an eighth of a beat. A bundle is what a lane multiplies in a clock: as many of a tile's
present rows as it has DSP slices for, or as it can take (``bundle_rows``), in their order; the
last one of a tile may have fewer. Of a row that is longer than the slices each block is one.

A row whose codes in the group all equal the zero point is absent and costs nothing but its bit.
A sparse tile keeps 4, 8 or (if codes have 4 or 8 bits) 12 codes of each window, and a pattern code
tells their positions. Zero points are ``2**(bits - 1)`` where none are stored.

Codes are in the order of the DSP slices that multiply them, which come in cascades of eight: of
windows with more than eight codes (dense, 12 of 16), first the first eight of each, then the rest,
in each block of as many inputs as a lane has slices, or a group if that is less.
"""

from __future__ import annotations

import hashlib
from functools import cache
from itertools import combinations, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alula.hw import isa, numerics
from alula.hw.arch import ArchConfig

UNITS = 8  # of a beat: places where something may begin
SECTIONS = ("headers", "scales", "zero_points", "positions", "codes")  # of a segment, in order
WINDOW = 16  # inputs over which N of 16 is counted
CASCADE = 8  # DSP slices that add up along a chain
KEPT_PATTERNS = {4: 11, 8: 14, 12: 11}  # kept codes of a window -> bits of its pattern code

# TileHeader, 32 bits: mask of present rows, kept codes of a window (0: dense), width, zero points;
# then a total of the segment.
HEADER_FIELDS = {"present": 16, "kept": 4, "width": 2, "zero_points": 1}
TOTAL_BITS = 32 - sum(HEADER_FIELDS.values())
TOTALS = 4
HEADER_BYTES = 4
SCALE_BYTES = 2
ZERO_POINT_BYTES = 1


def kept_formats(width_bits: int) -> tuple[int, ...]:
    """Return the numbers of codes that a sparse tile's windows may keep.

    12 of 16 would save nothing of narrow codes, and not leave whole bytes.
    """
    return tuple(kept for kept in KEPT_PATTERNS if kept < 12 or width_bits >= 4)


def header(present: Any, kept: Any, width_bits: int, zero_points: Any) -> Any:
    """Return a tile header as an unsigned integer; numbers may be arrays of whole numbers."""
    return (present | kept << 16 | numerics.WEIGHT_BITS.index(width_bits) << 20
            | zero_points * (1 << 22))


def parse_header(word: int) -> tuple[int, int, int, bool]:
    """Return ``present, kept, width_bits, zero_points``; raise ValueError if it is none."""
    width, kept = numerics.WEIGHT_BITS[word >> 20 & 3], word >> 16 & 15
    if kept and kept not in kept_formats(width):
        raise ValueError(f"a tile of {width}-bit codes must keep 0, "
                         f"{', '.join(map(str, kept_formats(width)))} codes of a window, "
                         f"not {kept}")
    return word & 0xFFFF, kept, width, bool(word >> 22 & 1)


def header_words(tiles: int) -> int:
    """Return the headers of a segment of so many tiles."""
    return max(tiles, TOTALS)


def totals(scales: Any, zero_points: Any, positions: Any) -> tuple[Any, ...]:
    """Return the totals in a segment's first headers; numbers may be arrays of whole numbers."""
    low = positions & ((1 << TOTAL_BITS) - 1)
    return scales, zero_points, low, positions >> TOTAL_BITS


def position_bits(kept: int) -> int:
    """Return the bits that the positions of a window's ``kept`` codes take; 0 if dense."""
    return KEPT_PATTERNS.get(kept, 0)


def window_codes(kept: int) -> int:
    """Return the codes of a window."""
    return kept or WINDOW


def block_windows(group: int, arch: ArchConfig) -> int:
    """Return the windows of a block of a row, in which codes are ordered."""
    return min(group, arch.lane_dsps) // WINDOW


def row_blocks(group: int, arch: ArchConfig) -> int:
    """Return the blocks of a row."""
    return max(1, group // arch.lane_dsps)


def bundle_rows(group: int, kept: int, arch: ArchConfig) -> int:
    """Return the most rows in a bundle."""
    if kept == 12 or group > arch.lane_dsps:
        return 1
    half_windows = block_windows(group, arch) * (2 if window_codes(kept) > CASCADE else 1)
    return min(rows_at_once(arch), arch.lane_dsps // (CASCADE * half_windows))


def rows_at_once(arch: ArchConfig) -> int:
    """Return the most rows that a lane takes in a clock."""
    return max(2, arch.beat_bytes // 16)


def unit_bytes(arch: ArchConfig) -> int:
    """Return the bytes of a unit."""
    return arch.beat_bytes // UNITS


def padding(size: Any, arch: ArchConfig) -> Any:
    """Return the bytes between what has some bytes and the next unit; may be an array."""
    return -size % unit_bytes(arch)


def positions_bytes(rows: Any, group: int, kept: int, arch: ArchConfig) -> Any:
    """Return the bytes of the position codes of a tile's present rows; may be an array."""
    bits = block_windows(group, arch) * position_bits(kept)
    return row_blocks(group, arch) * _bundles(rows, bundle_rows(group, kept, arch), bits, 1)


def codes_bytes(rows: Any, group: int, kept: int, width_bits: int, arch: ArchConfig) -> Any:
    """Return the bytes of the codes of a tile's present rows; may be an array."""
    bits = block_windows(group, arch) * window_codes(kept) * width_bits
    return row_blocks(group, arch) * _bundles(rows, bundle_rows(group, kept, arch), bits,
                                              unit_bytes(arch))


def _bundles(rows: Any, most: int, bits: int, unit: int) -> Any:
    """Return the bytes of bundles of rows, at most ``most`` each, each of them whole units."""
    def whole(bits: Any) -> Any:
        return -(-bits // (8 * unit)) * unit
    return rows // most * whole(most * bits) + whole(rows % most * bits)


# Of 70 bytes with four ones some ranks do not fit in 6 bits: 64 to 69 have places of their own.
_SPLIT = 64


def pattern_code(kept: int, ones: int, low: int, high: int) -> int:
    """Return the code of a window's pattern, which a decoder takes apart by its bits alone.

    Parameters
    ----------
    kept
        Codes that the window keeps: 4, 8 or 12.
    ones
        Of those in the window's low byte.
    low, high
        Ranks of the low and of the high byte of the pattern, among bytes with as many ones.
    """
    if kept == 8:
        return _half_code(ones, low, high)
    # Of 12 of 16 the missing ones are counted: there are as many bytes.
    ones = ones if kept == 4 else 8 - ones
    if ones == 4:
        return 1984 + low if low < _SPLIT else 968 + low - _SPLIT
    first, stride = {0: (896, 0), 1: (1024, 64), 2: (0, 32), 3: (1536, 8)}[ones]
    return first + stride * low + high


def _half_code(ones: int, low: int, high: int) -> int:
    if ones == 4:
        first, stride = {(0, 0): (8192, 64), (1, 0): (12288, 64), (0, 1): (12800, 8),
                         (1, 1): (13312, 8)}[low // _SPLIT, high // _SPLIT]
        return first + stride * (low % _SPLIT) + high % _SPLIT
    first, stride = {0: (3712, 0), 1: (3584, 8), 2: (14336, 32), 3: (0, 64), 5: (4096, 64),
                     6: (15360, 32), 7: (3648, 8), 8: (3713, 0)}[ones]
    return first + stride * low + high


@cache
def bytes_by_ones() -> list[list[int]]:
    """Return the bytes with each number of ones, in ascending order."""
    return [sorted(sum(1 << i for i in ones) for ones in combinations(range(8), count))
            for count in range(9)]


@cache
def pattern_tables(kept: int) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Return ``bitmap -> code`` (65536 entries) and ``code -> bitmap``; 0 where there is none."""
    codes = np.zeros(1 << WINDOW, np.uint16)
    bitmaps = np.zeros(1 << KEPT_PATTERNS[kept], np.uint16)
    halves = bytes_by_ones()
    for ones in range(max(0, kept - 8), min(8, kept) + 1):
        for (low, a), (high, b) in product(enumerate(halves[ones]), enumerate(halves[kept - ones])):
            code = pattern_code(kept, ones, low, high)
            codes[a | b << 8], bitmaps[code] = code, a | b << 8
    return codes, bitmaps


# Stream directory entry, one word: first word of the stream, its beats, power of two of its scales.
DIRECTORY_ENTRY = np.dtype([("start", "<u4"), ("beats", "<u4"), ("exponent", "<i4"),
                            ("strips", "<u4")])

# Step table: a header, then a row for each token of the step.
STEP_HEADER = np.dtype([
    ("rows", "<u4"),  # rows in the step
    ("repeats", "<u4"),  # greedy steps to run; more than 1 only if every row ends its sequence
    ("head", "<u4"),  # 1 if any row wants logits
    ("page_stride", "<u4"),  # words from one sequence's page table to the next
    ("slot_words", "<u4"),  # words from one cache slot to the next, in each lane
    ("slots", "<u4"),  # cache slots
    ("pages", "<u4"),  # first word of the page tables
    ("reserved", "<u4"),
])
STEP_ROW = np.dtype([
    ("token", "<u4"),
    ("position", "<u4"),
    ("sequence", "<u4"),  # which page table
    ("parent", "<i4"),  # earlier row of this step that this row follows, or -1: the cached tokens
    ("place", "<u4"),  # slot * PAGE_TOKENS + offset for its key and value, or PLACE_BY_POSITION
    ("flags", "<u4"),  # bit 0: wants logits
    ("reserved", "<u4", (2,)),
])
PLACE_BY_POSITION = 0xFFFF_FFFF
WANTS_LOGITS = 1

NO_TOKEN = 0xFFFF_FFFF  # in a best token's place, if there are not so many numbers
TOP_ROW = np.dtype([("values", "<f4", (isa.TOP_K,)), ("tokens", "<u4", (isa.TOP_K,))])

CLASS_ORDER = (0, 4, 2, 6, 1, 5, 3, 7)  # classes that share a lane differ by one page, not two


PAGE = ("key_scale value_scale", "keys", "values")  # parts of a page, each token by token


def units(kv_heads: int) -> int:
    """Return the (head, class) units that the cache of a layer is dealt out in."""
    return kv_heads * numerics.PAGE_CLASSES


def lane_units(lane: int, lanes: int, kv_heads: int) -> list[tuple[int, int]]:
    """Return the (head, class) units of a lane, in the order of their pages in a slot."""
    total = units(kv_heads)
    return [(unit // numerics.PAGE_CLASSES, CLASS_ORDER[unit % numerics.PAGE_CLASSES])
            for unit in range(total) if unit * lanes // total == lane]


def page_words(head_dim: int) -> int:
    """Return the words of a page. Ref: ``PAGE``."""
    return 2 * numerics.PAGE_TOKENS * (4 + head_dim) // isa.WORD_BYTES


def layer_words(lanes: int, kv_heads: int, head_dim: int) -> int:
    """Return the words that one layer takes of a cache slot in a lane (the fullest lane's)."""
    return -(-units(kv_heads) // lanes) * page_words(head_dim)


def describe() -> str:
    """Return every fact of the formats as text."""
    patterns = [hashlib.sha256(pattern_tables(kept)[1].astype("<u2").tobytes()).hexdigest()
                for kept in KEPT_PATTERNS]
    kept = [kept_formats(bits) for bits in numerics.WEIGHT_BITS]
    return repr((UNITS, SECTIONS, WINDOW, CASCADE, patterns, kept, KEPT_PATTERNS, HEADER_FIELDS,
                 TOTALS, DIRECTORY_ENTRY.descr, STEP_HEADER.descr, STEP_ROW.descr, TOP_ROW.descr,
                 CLASS_ORDER, PAGE, SCALE_BYTES, ZERO_POINT_BYTES))
