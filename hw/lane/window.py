"""Parts of long words, by choices of four that a 6-input LUT makes; the longest step first.

A shift written with ``>>`` becomes choices of two, the shortest step first, which need every bit of
the word at every step but the last: three times the logic of these.
"""

from amaranth.hdl import Cat, Mux, Signal


def choose(select, values):
    """Return one of one, two or four values."""
    if len(values) == 1:
        return values[0]
    if len(values) == 2:
        return Mux(select, values[1], values[0])
    return Mux(select[1], Mux(select[0], values[3], values[2]),
               Mux(select[0], values[1], values[0]))


def window(m, value, at, width, unit=1, ring=False):
    """Return ``width`` bits of a value from bit ``at * unit`` on.

    Bits after the value's last are undefined, or its first again if it is a ``ring``, which must
    have ``2**len(at)`` units.
    """
    left = len(at)
    while left:
        taken = 1 if left & 1 else 2
        left -= taken
        step = unit << left
        length = width + step - unit  # what the steps to come may reach
        if ring:
            value, ring = Cat(value, value[:length + (step << taken) - step - len(value)]), False
        part = Signal(length, name=f"from_{step}")
        choices = [value[choice * step:choice * step + length] for choice in range(1 << taken)]
        m.d.comb += part.eq(choose(at[left:left + taken], choices))
        value = part
    return value[:width]
