"""The load unit: streams for the lanes, parameters, and rows of tables."""

from amaranth.hdl import Array, Cat, Module, Mux, Signal, signed
from amaranth.lib import data, fifo, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from alula.hw import fp, isa
from alula.hw.axi import ADDRESS_BITS, BEATS_BITS, REQUEST
from alula.hw.buffers import write_layout
from alula.hw.formats import COMMAND_BITS, instruction_layout
from alula.hw.isa import BLOCK, WORD_BYTES, Format, Index
from alula.hw.pipe import Pipe
from alula.hw.ram import Ram
from alula.hw.step import row_layout

_WORD = ceil_log2(WORD_BYTES)
_IN_WORD = WORD_BYTES // 4  # fp32 values of a memory word, and values converted in a clock
_QUEUED = 32  # pieces converted or on their way
_PIECE = data.StructLayout({"values": 32 * _IN_WORD, "element": 20, "mask": _IN_WORD})


class LoadUnit(wiring.Component):
    """Run the LD instructions. Tables and parameters come at four values a clock.

    Members
    -------
    commands : ``In(stream of COMMAND_BITS)``
    done : ``Out(1)``
        A pulse when the buffers have what the command loads, or the lanes know of their stream.
    lanes : ``Out(stream of COMMAND_BITS)``
    base, rows, table : of the step
    requests, words : to and from the reader of the control memory
    writes : ``Out(stream of write_layout)``
        To the vector buffer.
    params : ``Out``
        To the parameter buffer.
    """

    def __init__(self, arch):
        self.arch = arch
        width = arch.vector_width
        super().__init__({
            "commands": In(stream.Signature(COMMAND_BITS)),
            "done": Out(1),
            "lanes": Out(stream.Signature(COMMAND_BITS)),
            "base": In(ADDRESS_BITS),
            "rows": In(range(arch.rows + 1)),
            "table": In(row_layout(arch)).array(arch.rows),
            "requests": Out(stream.Signature(REQUEST)),
            "words": In(stream.Signature(8 * WORD_BYTES)),
            "writes": Out(stream.Signature(write_layout(arch))),
            "params": Out(data.StructLayout({
                "address": ceil_log2(arch.param_elements // width), "data": 32 * width,
                "mask": width})),
        })

    def elaborate(self, platform):
        m = Module()
        arch = self.arch
        word, row = Signal(COMMAND_BITS), Signal(range(arch.rows + 1))
        load, params = (instruction_layout(cls)(word) for cls in (isa.LoadRow, isa.LoadParams))
        is_params = word[:8] == isa.LoadParams.opcode
        here = Signal(row_layout(arch))
        m.d.comb += here.eq(Array(self.table)[row])
        size, groups = Signal(20), Signal(16)
        scale_words, code_words, words = (Signal(BEATS_BITS, name=name) for name in
                                          ("scale_words", "code_words", "words"))
        kind = Signal(Format)
        quantized = (kind == Format.Q4) | (kind == Format.Q8)

        def up(value, log2):
            return (value + ((1 << log2) - 1)) >> log2

        m.d.comb += [
            kind.eq(Mux(is_params, Format.F32, load.format)),
            size.eq(Mux(is_params, params.size, load.size)),
            words.eq(scale_words + code_words),
            self.lanes.payload.eq(word),
        ]
        m.d.sync += [  # known when a request is made, two clocks after the command
            groups.eq((load.size + ((1 << load.group_log2) - 1)) >> load.group_log2),
            scale_words.eq(Mux(quantized, up(groups, ceil_log2(_IN_WORD)), 0)),
            code_words.eq(Array([up(size, 2), up(size, 3), up(size, 5), up(size, 4)])[kind]),
        ]
        m.submodules.scales = scales = Ram(
            shape=32, depth=arch.vector_elements // BLOCK, passive=True)
        keep, scale = scales.write_port(), scales.read_port()
        address, offset = Signal(ADDRESS_BITS), Signal(ADDRESS_BITS)
        taken, part = Signal(BEATS_BITS), Signal(3)
        element = Signal(20)
        held, holding = Signal(8 * WORD_BYTES), Signal()
        issue = Signal()
        last_part = Signal(3)  # of a memory word
        inside, complete = Signal(), Signal()  # elements are left; all words are taken
        m.d.sync += last_part.eq(Array([0, 1, 7, 3])[kind])
        m.d.comb += [
            self.requests.payload.address.eq(address),
            self.requests.payload.beats.eq(words),
            keep.addr.eq(Cat(part[:2], taken)), keep.data.eq(held.word_select(part[:2], 32)),
        ]
        m.submodules.out = out = fifo.SyncFIFOBuffered(width=_PIECE.size, depth=_QUEUED)
        m.d.comb += scale.addr.eq(element >> load.group_log2)
        flight = self._convert(m, held, part, kind, element, size, scale.data, issue, out)
        room = Signal()
        m.d.sync += room.eq(out.level + flight < _QUEUED - 2)  # a clock late: one may come more
        self._write(m, out, is_params, row, load, params)
        with m.FSM():
            with m.State("idle"):
                m.d.comb += self.commands.ready.eq(1)
                m.d.sync += [word.eq(self.commands.payload), row.eq(0)]
                opcode = self.commands.payload[:8]
                with m.If(self.commands.valid):
                    m.next = "row"
                    with m.If((opcode == isa.LoadStream.opcode)
                              | (opcode == isa.LoadPages.opcode)):
                        m.next = "lanes"
            with m.State("lanes"):
                m.d.comb += self.lanes.valid.eq(1)
                with m.If(self.lanes.ready):
                    m.d.comb += self.done.eq(1)
                    m.next = "idle"
            with m.State("row"):
                index = Mux(load.index == Index.TOKEN, here.token, here.position)
                m.d.sync += offset.eq(Mux(is_params, 0, index * load.stride))
                m.next = "address"
            with m.State("address"):
                m.d.sync += [address.eq(self.base + ((load.offset + offset) << _WORD)),
                             taken.eq(0), part.eq(0), element.eq(0), holding.eq(0),
                             inside.eq(1), complete.eq(0)]
                m.next = "ask"
                with m.If(size == 0):
                    m.next = "next"
            with m.State("ask"):
                m.d.comb += self.requests.valid.eq(1)
                with m.If(self.requests.ready):
                    m.next = "codes"
                    with m.If(quantized):
                        m.next = "scales"
            with m.State("scales"):
                m.d.comb += [self.words.ready.eq(~holding), keep.en.eq(holding)]
                with m.If(self.words.valid & self.words.ready):
                    m.d.sync += [held.eq(self.words.payload), holding.eq(1)]
                with m.If(holding):
                    m.d.sync += part.eq(part + 1)
                    with m.If(part == _IN_WORD - 1):
                        m.d.sync += [holding.eq(0), part.eq(0), taken.eq(taken + 1)]
                        with m.If(taken + 1 == scale_words):
                            m.d.sync += taken.eq(0)
                            m.next = "codes"
            with m.State("codes"):
                through = (issue & (part == last_part)) | ~inside  # the word that is held
                m.d.comb += [issue.eq(holding & room & inside),
                             self.words.ready.eq((~holding | through) & ~complete)]
                with m.If(issue):
                    m.d.sync += [part.eq(part + 1), element.eq(element + _IN_WORD),
                                 inside.eq(element + _IN_WORD < size)]
                with m.If(through):
                    m.d.sync += [holding.eq(0), part.eq(0)]
                with m.If(complete & ~holding):
                    m.next = "drain"
                with m.If(self.words.valid & self.words.ready):
                    m.d.sync += [held.eq(self.words.payload), holding.eq(1), part.eq(0),
                                 taken.eq(taken + 1), complete.eq(taken + 1 == code_words)]
            with m.State("drain"), m.If((flight == 0) & ~out.r_rdy & (out.level == 0)):
                m.next = "next"
            with m.State("next"):
                m.d.sync += row.eq(row + 1)
                m.next = "row"
                with m.If(is_params | (row + 1 == self.rows)):
                    m.d.comb += self.done.eq(1)
                    m.next = "idle"
        return m

    def _convert(self, m, held, part, kind, element, size, scale, issue, out):
        """Turn the part of a word into fp32 values, queue them, and return how many are coming."""
        p = Pipe(m)
        def codes(bits):
            values = [Signal(signed(9), name=f"code{bits}_{at}") for at in range(_IN_WORD)]
            m.d.comb += [value.eq(held.word_select((part << 2) + at, bits) - (1 << bits - 1))
                         for at, value in enumerate(values)]
            return Cat(values)

        signed_codes = Array([0, 0, codes(4), codes(8)])[kind]  # by format
        piece, halves, whole = Signal(9 * _IN_WORD), Signal(16 * _IN_WORD), Signal.like(held)
        m.d.comb += [piece.eq(signed_codes), whole.eq(held),
                     halves.eq(held.word_select(part[0], 16 * _IN_WORD))]
        late_scale = p.input(scale, stage=1)
        values = []
        for at in range(_IN_WORD):
            number = fp.from_int(p, p.input(piece.word_select(at, 9).as_signed()))
            product = p.mul(number, late_scale)
            half = fp.from_half(p, p.input(halves.word_select(at, 16)))
            word = p.apply(fp.flushed, p.input(whole.word_select(at, 32)))
            values.append(p.apply(
                lambda kind, word, half, product: Mux(kind == Format.F32, word, Mux(
                    kind == Format.F16, half, product)),
                p.input(kind), word, half, product))
        end = values[0].stage
        mask = p.apply(lambda element: Cat(element + at < size for at in range(_IN_WORD)),
                       p.input(element))
        valid = p.at(p.input(issue, reset=True), end)
        flight = Signal(range(_QUEUED + 1))
        entering = data.View(_PIECE, out.w_data)
        m.d.comb += [
            entering.values.eq(Cat(value.signal for value in values)),
            entering.element.eq(p.at(p.input(element), end)),
            entering.mask.eq(p.at(mask, end)),
            out.w_en.eq(valid),
        ]
        m.d.sync += flight.eq(flight + issue - valid)
        return flight

    def _write(self, m, out, is_params, row, load, params):
        """Write converted values, four at a time."""
        width = self.arch.vector_width
        piece = data.View(_PIECE, out.r_data)
        target = Mux(is_params, params.target, load.target) * (BLOCK // width)
        place = piece.element[:ceil_log2(width)]
        words = self.arch.vector_elements // width
        m.d.comb += out.r_en.eq(is_params | self.writes.ready)
        for port in (self.params, self.writes.payload):
            m.d.comb += [port.data.eq(piece.values.replicate(width // _IN_WORD)),
                         port.mask.eq(Mux(out.r_rdy, piece.mask << place, 0))]
        in_row = target + (piece.element >> ceil_log2(width))
        m.d.comb += [
            self.params.address.eq(in_row),
            self.writes.payload.address.eq(row * words + in_row),
            self.writes.valid.eq(out.r_rdy & ~is_params),
        ]
        with m.If(~is_params):
            m.d.comb += self.params.mask.eq(0)
