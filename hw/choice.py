"""Choices by an encoded select, made of choices of four: one 6-input LUT a bit each."""

from amaranth.hdl import Cat, Const, Mux


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
    """Return how many of some bits are 1.

    Sums of three bits, without carry chains, whose places a mapper cannot use for anything else.
    """
    columns = [list(bits)]
    for column in columns:  # it grows
        carries = []
        while len(column) > 1:
            a, b, c, *rest = [*column, Const(0, 1)] if len(column) == 2 else column
            carries.append((a & b) | (c & (a ^ b)))
            column[:] = [*rest, a ^ b ^ c]
        if carries:
            columns.append(carries)
    return Cat(column[0] for column in columns)


def added(a, b):
    """Return ``a + b`` of two short numbers, a LUT or two a bit instead of a carry chain."""
    total, carry = [], Const(0, 1)
    for at in range(max(len(a), len(b))):
        x, y = (number[at] if at < len(number) else Const(0, 1) for number in (a, b))
        total.append(x ^ y ^ carry)
        carry = (x & y) | (carry & (x ^ y))
    return Cat(*total, carry)
