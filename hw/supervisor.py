"""Start a run, watch over it, and write down how it ended."""

from amaranth.hdl import Array, Const, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from alula.hw.axi import ADDRESS_BITS, REQUEST
from alula.hw.csr import STATUS, STATUS_MAGIC, Error, State
from alula.hw.formats import record_layout
from alula.hw.isa import WORD_BYTES
from alula.hw.queues import INDEX_BITS
from alula.hw.store import BEAT

RECORD = record_layout(STATUS)
_WORDS = STATUS.itemsize // WORD_BYTES


CLEAR_CLOCKS = 4  # of reset: a clock behind two gates takes two to wake


class Supervisor(wiring.Component):
    """Run the core once for each start.

    After an error nothing more is asked of the buses; when they have answered what was asked, the
    core is reset. Either way the status record is written, and the run is finished.

    Members
    -------
    start, watchdog, status, finished, state, error, index, cycles
        To and from the control registers.
    go : ``Out(1)``
        A pulse that starts the core; ended : ``In(1)``, a pulse when it is done.
    failed, failed_index
        An error of the core, if not ``NONE``, and its instruction; the latest instruction if it
        is ``NONE``.
    drain : ``Out(1)``, idle : ``In(1)``
        Of all buses.
    clear : ``Out(1)``
        Resets the core.
    beats : ``In``
        Beats of all lanes since reset.
    requests, words : to the writer of the control memory
    """

    def __init__(self):
        super().__init__({
            "start": In(1), "watchdog": In(32), "status": In(ADDRESS_BITS), "finished": Out(1),
            "state": Out(State), "error": Out(Error), "index": Out(INDEX_BITS), "cycles": Out(64),
            "go": Out(1), "ended": In(1), "failed": In(Error), "failed_index": In(INDEX_BITS),
            "drain": Out(1), "idle": In(1), "clear": Out(1), "beats": In(64),
            "requests": Out(stream.Signature(REQUEST)), "words": Out(stream.Signature(BEAT)),
        })

    def elaborate(self, platform):
        m = Module()
        runs, at = Signal(32), Signal(range(_WORDS + 1))
        record = Signal(RECORD)
        expired = (self.watchdog != 0) & (self.cycles >= self.watchdog)
        m.d.comb += [
            record.magic.eq(STATUS_MAGIC), record.error.eq(self.error),
            record.index.eq(self.index), record.runs.eq(runs), record.cycles.eq(self.cycles),
            record.beats.eq(self.beats),
            self.requests.payload.address.eq(self.status),
            self.requests.payload.beats.eq(_WORDS),
            self.words.payload.data.eq(Array(
                record.as_value().word_select(word, 8 * WORD_BYTES)
                for word in range(_WORDS))[at[:ceil_log2(_WORDS)]]),
            self.words.payload.strobe.eq(Const(-1, WORD_BYTES)),
        ]
        with m.FSM():
            with m.State("idle"):
                m.d.comb += self.state.eq(State.IDLE)
                with m.If(self.start):
                    m.d.comb += self.go.eq(1)
                    m.d.sync += [self.cycles.eq(0), self.error.eq(Error.NONE), runs.eq(runs + 1)]
                    m.next = "run"
            with m.State("run"):
                m.d.comb += self.state.eq(State.RUNNING)
                m.d.sync += [self.cycles.eq(self.cycles + 1), self.index.eq(self.failed_index)]
                with m.If((self.failed != Error.NONE) | expired):
                    m.d.sync += self.error.eq(Mux(self.failed != Error.NONE, self.failed,
                                                  Error.WATCHDOG))
                    m.next = "drain"
                with m.Elif(self.ended):
                    m.next = "ask"
            with m.State("drain"):
                m.d.comb += [self.state.eq(State.DRAINING), self.drain.eq(1)]
                m.d.sync += at.eq(0)
                with m.If(self.idle):
                    m.next = "clear"
            with m.State("clear"):
                m.d.comb += [self.state.eq(State.DRAINING), self.clear.eq(1), self.drain.eq(1)]
                m.d.sync += at.eq(at + 1)
                with m.If(at == CLEAR_CLOCKS - 1):
                    m.next = "ask"
            with m.State("ask"):
                m.d.comb += [self.state.eq(State.RUNNING), self.requests.valid.eq(1)]
                m.d.sync += at.eq(0)
                with m.If(self.requests.ready):
                    m.next = "write"
            with m.State("write"):
                m.d.comb += [self.state.eq(State.RUNNING), self.words.valid.eq(1)]
                with m.If(self.words.ready):
                    m.d.sync += at.eq(at + 1)
                    with m.If(at == _WORDS - 1):
                        m.next = "wait"
            with m.State("wait"):
                m.d.comb += self.state.eq(State.RUNNING)
                with m.If(self.idle):
                    m.d.comb += self.finished.eq(1)
                    m.next = "idle"
        return m
