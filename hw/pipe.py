"""A builder of pipelines whose code reads like :mod:`alula.hw.numerics`.

    p = Pipe(m)
    x, gate = p.input(self.x), p.input(self.gate)
    y = p.mul(functions.silu(p, x), gate)
    m.d.comb += self.y.eq(y.signal)  # y.stage clocks after x

Every value knows its stage, the clocks since the inputs of stage 0. An operation delays its
arguments to the latest one's stage; a value has one chain of delays, shared by all that need it.
Pipelines run freely: nothing stalls, and what belongs to an element, such as its validity, passes
through beside it.
"""

from amaranth.hdl import Const, Module, Mux, Signal, Value as Expression
from amaranth.lib import memory

from alula.hw import fp
from alula.hw.ram import Ram

# Delays longer and wider than these are memories, which simulate faster than registers.
RING = 12  # clocks
RING_BITS = 4


class Value:
    """A signal at a stage of a pipeline; a constant has stage ``None``, which is any.

    Members
    -------
    signal : the bits, valid ``stage`` clocks after the pipeline's inputs
    stage : ``int`` or ``None``
    reset : whether registers that delay it are reset, as a validity's must be
    """

    def __init__(self, signal, stage, reset=False):
        self.signal, self.stage, self.reset = signal, stage, reset
        self.delayed = {0: signal}  # by clocks


class Pipe:
    """Builder of one pipeline in a module; all registers are in the domain ``sync``."""

    def __init__(self, m):
        # A module of its own: within an `m.If`, a register made in `m` would be part of the branch.
        self.m = Module()
        m.submodules += self.m

    def input(self, signal, stage=0, *, reset=False):
        """Return a signal as a value; several inputs may come at different stages."""
        return Value(signal, stage, reset)

    def const(self, number):
        """Return an fp32 constant."""
        return Value(Const(fp.to_bits(number), 32), None)

    def literal(self, value, shape):
        """Return a constant of any shape."""
        return Value(Const(value, shape), None)

    def at(self, value, stage):
        """Return the signal of a value at a stage, not before its own."""
        if value.stage is None:
            return value.signal
        wait = stage - value.stage
        assert wait >= 0, f"a value of stage {value.stage} is not known at stage {stage}"
        near = max(clocks for clocks in value.delayed if clocks <= wait)
        if wait - near > RING and len(value.signal) > RING_BITS and not value.reset:
            value.delayed[wait] = self._ring(value.delayed[near], wait - near)
            near = wait
        for clocks in range(near, wait):
            value.delayed[clocks + 1] = self._register(value.delayed[clocks], value.reset)
        return value.delayed[wait]

    def delay(self, value, clocks):
        """Return a value some clocks later."""
        stage = value.stage + clocks
        return Value(self.at(value, stage), stage, value.reset)

    def together(self, *values):
        """Return the signals of values at the first stage at which all are known."""
        stage = self.stage(*values)
        return [self.at(value, stage) for value in values]

    def stage(self, *values):
        """Return the first stage at which all values are known; ``None`` for constants."""
        return max((v.stage for v in values if v.stage is not None), default=None)

    def wire(self, expression, name="wire"):
        """Return a signal equal to an expression, so that what uses it twice computes it once."""
        expression = Expression.cast(expression)
        signal = Signal(expression.shape(), name=name)
        self.m.d.comb += signal.eq(expression)
        return signal

    def apply(self, fn, *values, latency=1, shape=None):
        """Return ``fn`` of signals as a value, in a register unless ``latency`` is 0.

        A tuple of expressions gives a tuple of values. More latency is more registers behind,
        which synthesis may move into a multiplier. ``shape`` is the expression's if not given.
        """
        stage = self.stage(*values)
        result = fn(*self.together(*values))
        if isinstance(result, tuple):
            return tuple(self._value(part, stage, latency, None) for part in result)
        return self._value(result, stage, latency, shape)

    def _value(self, expression, stage, latency, shape):
        expression = Expression.cast(expression)
        if stage is None:
            return Value(expression, None)
        signal = Signal(expression.shape() if shape is None else shape,
                        name=f"stage_{stage + min(latency, 1)}", reset_less=True)
        domain = self.m.d.sync if latency else self.m.d.comb
        domain += signal.eq(expression)
        first = Value(signal, stage + min(latency, 1))
        return self.delay(first, latency - 1) if latency > 1 else first

    def _register(self, signal, reset):
        later = Signal.like(signal, name="delayed", reset_less=not reset)
        self.m.d.sync += later.eq(signal)
        return later

    def _ring(self, signal, clocks):
        """Return a signal some clocks later, by a memory that is read before it is written."""
        depth = clocks - 1
        ring = Ram(shape=len(signal), depth=depth)
        self.m.submodules += ring
        place = Signal(range(depth), name="place")
        self.m.d.sync += place.eq(Mux(place == depth - 1, 0, place + 1))
        read, write = ring.read_port(), ring.write_port()
        self.m.d.comb += [read.addr.eq(place), write.addr.eq(place), write.data.eq(signal),
                          write.en.eq(1)]
        later = Signal(signal.shape(), name="ring")
        self.m.d.comb += later.eq(read.data)
        return later

    def mux(self, select, a, b, latency=1):
        """Return ``a`` where ``select`` is not 0, else ``b``."""
        return self.apply(Mux, select, a, b, latency=latency)

    def lookup(self, table, width, index):
        """Return the entry of a table of unsigned integers, one clock later."""
        self.m.submodules += (rom := memory.Memory(shape=width, depth=len(table), init=table))
        port = rom.read_port()
        self.m.d.comb += port.addr.eq(self.at(index, index.stage))
        return Value(port.data, index.stage + 1)

    def mul(self, a, b):
        return fp.multiply(self, a, b)

    def add(self, a, b):
        return fp.add(self, a, b)

    def sub(self, a, b):
        return fp.add(self, a, self.negate(b))

    def div(self, a, b):
        return fp.divide(self, a, b)

    def scale_by_power(self, x, power):
        return fp.scale_by_power(self, x, power)

    def negate(self, x):
        """Return ``-x``, in the same clock."""
        return self.apply(fp.negated, x, latency=0)

    def absolute(self, x):
        """Return ``|x|``, in the same clock."""
        return self.apply(fp.magnitude, x, latency=0)
