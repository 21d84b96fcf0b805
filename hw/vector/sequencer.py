"""What the instructions that run on the shared lanes have in common."""

from amaranth.hdl import Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from alula.hw import rows as rows_of
from alula.hw.formats import COMMAND_BITS
from alula.hw.vector.buffers import address_bits, param_bits, row_words
from alula.hw.vector.lanes import step_layout


class Sequencer(wiring.Component):
    """Base of the instructions that are sequences of steps on the lanes.

    Members
    -------
    start : ``In(1)``
        One clock; ``command`` and ``rows``, the step's, hold from then until ``finished``.
    step, read_address, param_address : ``Out``
        This clock's step, and the words it reads.
    finished : ``Out(1)``
        One clock: the last step is this clock's or was earlier.
    """

    def __init__(self, arch):
        self.arch = arch
        super().__init__({
            "start": In(1), "command": In(COMMAND_BITS), "rows": In(range(arch.rows + 1)),
            "step": Out(step_layout(arch)),
            "read_address": Out(address_bits(arch)), "param_address": Out(param_bits(arch)),
            "finished": Out(1), **self.ports(arch),
        })

    def ports(self, arch):
        """Return further ports."""
        return {}

    def count_rows(self, m):
        """Return the first word of the current row, and the signal that goes on to the next.

        ``finished`` is high when there is none.
        """
        row, base, end = Signal(range(self.arch.rows)), Signal(address_bits(self.arch)), Signal()
        first = rows_of.first_row(self.arch, self.command)
        last = rows_of.end_row(self.arch, self.command, self.rows)
        with m.If(self.start):
            m.d.sync += [row.eq(first), base.eq(first * row_words(self.arch))]
        with m.Elif(end):
            m.d.sync += [row.eq(row + 1), base.eq(base + row_words(self.arch))]
        m.d.comb += self.finished.eq(end & (row + 1 == last))
        return base, end
