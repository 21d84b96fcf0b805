"""Sizes of a lane and the constants of each weight format, derived from the build."""

from itertools import product

from amaranth.lib import data

from alula.hw import layout, numerics

GROUPS_LOG2 = tuple(group.bit_length() - 1 for group in numerics.GROUPS)
KEPT = (0, 4, 8, 12)
CHUNK_BITS = 3
GROUPS_BITS = 15  # of the number of tiles in a strip
STRIPS_BITS = 24


class LaneShape:
    """Sizes of a lane.

    A *bundle* is what the chain takes in a clock: ``slots`` weights in half-windows of eight. It
    holds up to ``rows`` rows of one tile, each in a region of ``half_windows >> rows_log2``
    half-windows, or one *chunk* of a row that is too long.

    Attributes
    ----------
    slots, half_windows
        DSP slices, and cascades of eight slices.
    rows, rows_log2
        Most rows in a bundle.
    part_slots, part_half_windows
        The unpacker works in ``rows`` equal parts.
    pairs
        Pairs of tokens: two tokens share a weight.
    buffer_beats
        Beats in the unpacker's buffer.
    """

    def __init__(self, arch):
        self.arch = arch
        self.beat_bytes, self.slots = arch.beat_bytes, arch.lane_dsps
        self.half_windows = self.slots // 8
        self.rows = max(2, arch.beat_bytes // 16)
        self.rows_log2 = self.rows.bit_length() - 1
        self.part_slots = self.slots // self.rows
        self.part_half_windows = self.half_windows // self.rows
        self.pairs = -(-arch.rows // 2)
        need = max([self.slots, *(max(tile.need, tile.positions_bytes) for tile in
                                  (TileFormat(self, *key) for key in format_keys()))])
        self.buffer_beats = 4
        while self.buffer_beats * self.beat_bytes < need + self.beat_bytes - 1:
            self.buffer_beats *= 2

    def bundle_layout(self):
        """Return the layout of a bundle.

        ``weights`` are codes minus zero points, 0 in slots that hold none; ``selects`` the input
        of each slot inside its 16-wide window. ``shared`` tells how half-windows go to windows of
        the chunk's ``slots`` inputs: half-window ``j`` reads window ``j // 2`` if it is 1 (dense
        and 12 of 16), else ``j % (half_windows / 2)``; a group shorter than ``slots`` repeats.
        ``count`` rows are there; ``rows`` and ``scales`` are theirs, and ``mask`` has a bit for
        each of them. ``rows_log2`` is log2 of the regions.
        """
        return data.StructLayout({
            "weights": 9 * self.slots, "selects": 4 * self.slots, "shared": 1,
            "rows_log2": 2, "count": 3, "rows": 4 * self.rows, "mask": 16,
            "scales": 16 * self.rows, "chunk": CHUNK_BITS, "last_chunk": 1,
            "last_of_tile": 1, "end_of_strip": 1})


def format_keys():
    """Return ``(group_log2, kept, width_bits)`` of every format."""
    return list(product(GROUPS_LOG2, KEPT, numerics.WEIGHT_BITS))


class TileFormat:
    """How the rows of a tile of one format are cut into bundles.

    Attributes
    ----------
    rows_log2
        log2 of the rows in a bundle.
    chunks
        Bundles of a row; more than 1 only if ``rows_log2`` is 0.
    payload
        Bytes of a row.
    entries
        A row's position codes come in so many takes, the first with the codes of the first chunk.
        A take is for two chunks of rows that keep 4 or 8 of 16, and for one of 12 of 16.
    entry_bits
        From one take's position codes to the next one's.
    positions_bytes
        Whole bytes that the position codes of a row need.
    chunk_bytes, chunk_need
        What a chunk before the last advances by and needs.
    last_bytes
        What the last chunk advances by and needs.
    used
        Mask of the half-windows with codes, if all rows are there.
    code_bits, position_bits
        Of each part: where its first code, and its first position code, are.
    """

    def __init__(self, shape, group_log2, kept, bits):
        half_windows, group = shape.half_windows, 1 << group_log2
        windows, coded = group // layout.WINDOW, layout.position_bits(kept)
        per_window = 2 if kept in (0, 12) else 1
        length = windows * per_window
        most = half_windows * per_window // 2  # half-windows whose inputs are ``slots`` in all
        self.chunks = max(1, length // most)
        rows = 1 if self.chunks > 1 else min(shape.rows, half_windows // length)
        self.rows_log2 = rows.bit_length() - 1
        self.payload = layout.payload_bytes(group, kept, bits)
        codes = {0: 8, 4: 4, 8: 8, 12: 6}[kept]  # of a half-window, on average
        positions = windows * coded
        chunked = self.chunks > 1
        self.positions_bytes = -(-positions // 8)
        taken = half_windows // per_window  # windows whose positions are taken together
        self.entries = max(1, windows // taken) if kept else 1
        self.entry_bits = positions // self.entries
        self.chunk_bytes = most * codes * bits // 8 if chunked else 0
        self.chunk_need = -(-(positions + most * codes * bits) // 8)
        self.last_bytes = self.payload - (self.chunks - 1) * self.chunk_bytes
        self.need = (max(self.chunk_need, self.last_bytes) if chunked else rows * self.payload)
        region, used = half_windows // rows, min(length, most)
        self.used = sum(((1 << used) - 1) << (row * region) for row in range(rows))
        self.code_bits, self.position_bits = [], []
        for part in range(shape.rows):
            row, inside = divmod(part, shape.rows // rows)
            start, ahead = 8 * row * self.payload, inside * shape.part_half_windows
            self.code_bits.append(start + positions + ahead * codes * bits)
            self.position_bits.append(start + ahead // per_window * coded)
