"""Choices by an encoded select, made of choices of four: one 6-input LUT a bit each."""

from amaranth.hdl import Mux


def choose(select, values):
    """Return ``values[select]``; what a select beyond the last value gives is undefined."""
    if len(values) == 1:
        return values[0]
    if len(values) == 2:
        return Mux(select[0], values[1], values[0])
    if len(values) > 4:
        return choose(select[2:], [choose(select[:2], values[at:at + 4])
                                   for at in range(0, len(values), 4)])
    return Mux(select[1], choose(select, values[2:]),
               Mux(select[0], values[1], values[0]))


def ones(bits):
    """Return how many of some bits are 1, by a tree of adders."""
    parts = list(bits)
    while len(parts) > 1:
        pairs = zip(parts[::2], parts[1::2], strict=False)
        parts = [a + b for a, b in pairs] + parts[len(parts) & ~1:]
    return parts[0]
