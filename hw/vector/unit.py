"""The vector unit: executes the MISC instructions, one at a time, for all rows of the step."""

from amaranth.hdl import DomainRenamer, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from alula.hw import isa
from alula.hw.formats import COMMAND_BITS
from alula.hw.gate import gated
from alula.hw.isa import TOP_K
from alula.hw.vector.activate import Activate
from alula.hw.vector.buffers import address_bits, param_bits
from alula.hw.vector.combine import Combine
from alula.hw.vector.lanes import WRITE_STAGE, Lanes
from alula.hw.vector.quantize import Quantize, codes_layout, scales_layout
from alula.hw.vector.rms_norm import RmsNorm
from alula.hw.vector.rotate import Rotate
from alula.hw.vector.select_top import SelectTop


class VectorUnit(wiring.Component):
    """Execute instructions on the vector buffer.

    Members
    -------
    commands : ``In(stream of COMMAND_BITS bits)``
        MISC instructions; ``SelectTop.offset`` is the first element's token. One is taken when the
        one before is done.
    done : ``Out(1)``
        One clock: every effect of the instruction can be read.
    rows : ``In(range(arch.rows + 1))``
        Rows of the step, at least 1; constant while an instruction runs.
    read_address, read_enable, read_data : vector buffer
        Data comes ``READ_LATENCY`` clocks after the address, which is
        ``row * row_words + block * words_of_block + word``.
    writes, write_address, write_data, write_mask : vector buffer
        A bit of the mask for each element, 0 if nothing is written. An address issued in the next
        clock reads it.
    param_address, param_data : parameter buffer, read only; as the vector buffer, without rows
    codes, scales : ``Out(codes_layout), Out(scales_layout)``
        Blocks of codes, and each group's scale at its first block, for the activation buffers.
    top_row, top_index, top_value, top_token : best lists
        Data ``READ_LATENCY`` clocks after the address, while no ``SelectTop`` runs.
    """

    def __init__(self, arch):
        self.arch = arch
        word, address = 32 * arch.vector_width, address_bits(arch)
        super().__init__({
            "commands": In(stream.Signature(COMMAND_BITS)), "done": Out(1),
            "rows": In(range(arch.rows + 1)),
            "read_address": Out(address), "read_enable": Out(1), "read_data": In(word),
            "writes": Out(1), "write_address": Out(address), "write_data": Out(word),
            "write_mask": Out(arch.vector_width),
            "param_address": Out(param_bits(arch)), "param_data": In(word),
            "codes": Out(codes_layout(arch)), "scales": Out(scales_layout(arch)),
            "top_row": In(range(arch.rows)), "top_index": In(range(TOP_K)),
            "top_value": Out(32), "top_token": Out(32),
        })

    def elaborate(self, platform):
        m = Module()
        arch = self.arch
        lanes, quantize = Lanes(arch), Quantize(arch)
        rms_norm, combine, rotate = RmsNorm(arch), Combine(arch), Rotate(arch)
        activate = Activate(arch)
        m.submodules.select_top = select_top = SelectTop(arch)
        units = {isa.RmsNorm: rms_norm, isa.Combine: combine, isa.Rotate: rotate,
                 isa.Activate: activate, isa.Quantize: quantize, isa.SelectTop: select_top}
        sequencers = (rms_norm, combine, rotate)
        command, start, finished, ordered = Signal(COMMAND_BITS), Signal(), Signal(), Signal()
        m.d.comb += finished.eq(1)  # what is no instruction of this unit does nothing
        for insn, unit in units.items():
            m.d.comb += [unit.command.eq(command), unit.rows.eq(self.rows)]
            with m.If(command[:isa.HEADER_BITS["opcode"]] == insn.opcode):
                m.d.comb += [unit.start.eq(start), finished.eq(unit.finished),
                             self.read_address.eq(unit.read_address)]
                if unit in sequencers:
                    m.d.comb += [ordered.eq(1), lanes.step.eq(unit.step),
                                 self.param_address.eq(unit.param_address)]
                elif unit is quantize:
                    m.d.comb += lanes.step.operation.eq(quantize.operation)
        running = self._control(m, command, start, finished, ordered)
        activates = command[:isa.HEADER_BITS["opcode"]] == isa.Activate.opcode
        gated(m, "activate", running & activates)
        m.submodules.activate = DomainRenamer("activate")(activate)
        gated(m, "shared", running & ~activates)
        for name, unit in {"lanes": lanes, "quantize": quantize, "rms_norm": rms_norm,
                           "combine": combine, "rotate": rotate}.items():
            m.submodules[name] = DomainRenamer("shared")(unit)
        for unit in (lanes, activate, quantize, select_top):
            m.d.comb += unit.read_data.eq(self.read_data)
        writer = activate.writes  # only one of the two has anything to write
        m.d.comb += [
            self.writes.eq(activate.writes | lanes.writes),
            self.write_address.eq(Mux(writer, activate.write_address, lanes.write_address)),
            self.write_data.eq(Mux(writer, activate.write_data, lanes.write_data)),
            self.write_mask.eq(activate.write_mask | lanes.write_mask),
            lanes.param_data.eq(self.param_data),
            lanes.group_word.eq(quantize.group_word),
            lanes.scalar.eq(Mux(ordered, rms_norm.scalar, quantize.scalar)),
            rms_norm.total.eq(lanes.total),
            quantize.product.eq(lanes.product),
            self.codes.eq(quantize.codes),
            self.scales.eq(quantize.scales),
            select_top.top_row.eq(self.top_row), select_top.top_index.eq(self.top_index),
            self.top_value.eq(select_top.top_value), self.top_token.eq(select_top.top_token),
        ]
        return m

    def _control(self, m, command, start, finished, ordered):
        """Take a command, start its unit, and wait for it, and for the lanes' last write.

        Returns a signal that is high from the start on.
        """
        wait = Signal(range(WRITE_STAGE + 1))
        with m.FSM() as fsm:
            with m.State("IDLE"):
                m.d.comb += self.commands.ready.eq(1)
                m.d.sync += command.eq(self.commands.payload)
                with m.If(self.commands.valid):
                    m.next = "START"
            with m.State("START"):
                m.d.comb += [start.eq(1), self.read_enable.eq(1)]
                m.next = "RUN"
            with m.State("RUN"):
                m.d.comb += self.read_enable.eq(1)
                m.d.sync += wait.eq(Mux(ordered, WRITE_STAGE, 0))
                with m.If(finished):
                    m.next = "DRAIN"
            with m.State("DRAIN"):
                m.d.comb += [self.read_enable.eq(1), self.done.eq(wait == 0)]
                m.d.sync += wait.eq(wait - 1)
                with m.If(wait == 0):
                    m.next = "IDLE"
        return ~fsm.ongoing("IDLE")
