"""Sizes of a lane and the constants of each weight format, derived from the build."""

from itertools import product

from amaranth.lib import data

from alula.hw import layout, numerics
from alula.hw.layout import CASCADE

GROUPS_LOG2 = tuple(group.bit_length() - 1 for group in numerics.GROUPS)
KEPT = (0, 4, 8, 12)
SELECT_BITS = 4  # an input's distance from the slot's number, 0 to 8
CHUNK_BITS = 3
GROUPS_BITS = 15  # of the number of tiles in a strip
STRIPS_BITS = 24


class LaneShape:
    """Sizes of a lane.

    A *bundle* is what the chain takes in a clock: ``slots`` weights in half-windows of eight. It
    holds up to ``rows`` rows of one tile, each in a region of as many half-windows as it needs, or
    one *chunk* of a row that is too long. Half-window ``j`` multiplies inputs of window
    ``j % windows`` of the chunk; the inputs of a group that is shorter are repeated.

    Attributes
    ----------
    slots, half_windows
        DSP slices, and cascades of eight slices.
    windows
        Windows of inputs that a bundle multiplies.
    rows, rows_log2
        Most rows in a bundle.
    parts
        Codes of a bundle are put together in so many parts of ``beat_bytes`` slots.
    pair, pairs
        Whether two tokens share a weight: in builds of several rows; and pairs of tokens.
    chunks
        Most chunks of a row.
    regions_bits
        Bits of log2 of the regions of a bundle.
    """

    def __init__(self, arch):
        self.arch = arch
        self.beat_bytes, self.slots = arch.beat_bytes, arch.lane_dsps
        self.half_windows = self.slots // CASCADE
        self.windows = self.slots // layout.WINDOW
        self.rows = layout.rows_at_once(arch)
        self.rows_log2 = self.rows.bit_length() - 1
        self.parts = self.slots // self.beat_bytes
        self.pair = arch.rows > 1
        self.pairs = -(-arch.rows // 2)
        self.chunks = max(1, max(numerics.GROUPS) // self.slots)
        self.regions_bits = (self.half_windows.bit_length() - 1).bit_length()

    def dense_slot(self, place):
        """Return the slot of a dense row's code, or of a byte of a key or value, by its place.

        The first halves of all windows come first, then the second ones.
        """
        window, inside = divmod(place, layout.WINDOW)
        half, k = divmod(inside, CASCADE)
        return CASCADE * (half * self.windows + window) + k

    def bundle_layout(self):
        """Return the layout of a bundle.

        ``weights`` are codes minus zero points, 0 in slots that hold none; ``selects`` tell which
        input of its window a slot multiplies: the slot's number in its half-window more. ``count``
        rows are there; ``rows`` and ``scales`` are theirs, and ``mask`` has a bit for each of
        them. ``regions_log2`` is log2 of the regions.
        """
        return data.StructLayout({
            "weights": 9 * self.slots, "selects": SELECT_BITS * self.slots,
            "regions_log2": self.regions_bits, "count": 3, "rows": 4 * self.rows, "mask": 16,
            "scales": 16 * self.rows, "chunk": CHUNK_BITS, "last_chunk": 1,
            "last_of_tile": 1, "end_of_strip": 1})

    def parts_together(self, bits, kept):
        """Return the parts of a bundle whose codes come together, at some bits a code.

        Each part takes ``beat_bytes`` codes, of 4 of 16 half as many: they have two slots each.
        """
        at_once = 1 << (8 // bits).bit_length() - 1
        return min(self.parts, 2 * at_once if kept == 4 else at_once)


def format_keys():
    """Return ``(group_log2, kept, width_bits)`` of every format."""
    return list(product(GROUPS_LOG2, KEPT, numerics.WEIGHT_BITS))


class TileFormat:
    """How the rows of a tile of one format are cut into bundles.

    Attributes
    ----------
    regions_log2
        log2 of the regions of a bundle.
    rows
        Most rows in a bundle; 1 if they have chunks.
    chunks
        Bundles of a row.
    codes_units, position_bytes
        Of a bundle (one chunk) of each number of rows up to ``rows``, from none on.
    step_units
        Most units of codes that are taken at once.
    used
        Mask of the half-windows with codes, if all regions hold a row.
    """

    def __init__(self, shape, group_log2, kept, bits):
        windows = (1 << group_log2) // layout.WINDOW
        here = min(windows, shape.windows)  # of a chunk
        self.chunks = windows // here
        half_windows = here * (2 if layout.window_codes(kept) > CASCADE else 1)
        regions = 1 if self.chunks > 1 or kept == 12 else shape.half_windows // half_windows
        self.regions_log2 = regions.bit_length() - 1
        self.rows = layout.bundle_rows(1 << group_log2, kept, shape.arch)
        unit = layout.unit_bytes(shape.arch)
        codes = here * layout.window_codes(kept)
        counts = range(self.rows + 1)
        self.codes_units = [-(-rows * codes * bits // (8 * unit)) for rows in counts]
        self.position_bytes = [-(-rows * here * layout.position_bits(kept) // 8)
                               for rows in counts]
        together = shape.parts_together(bits, kept) * shape.beat_bytes * bits // 8
        self.step_units = (together // 2 if kept == 4 else together) // unit
        low = (1 << here) - 1
        if kept == 12:
            self.used = low | low << shape.windows
        else:
            self.used = (1 << (half_windows if self.chunks > 1 else shape.half_windows)) - 1
