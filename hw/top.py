"""The accelerator: a kernel and its lanes, wired up."""

import re

from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from alula.hw import axi, gate, passive, ram
from alula.hw.control import lite_signature
from alula.hw.isa import WORD_BYTES
from alula.hw.kernel import Kernel, kernel_signature
from alula.hw.lane.lane import Lane, lane_signature, socket_signature
from alula.hw.lane.slice import DSP48E2
from alula.hw.once import Once, generate
from alula.hw.stripe import Stripe

TOP_MODULE, KERNEL_MODULE, LANE_MODULE = "alula", "alula_kernel", "alula_lane"


def top_signature(arch):
    """Return the ports of the accelerator."""
    return wiring.Signature({
        "s_axi_control": In(lite_signature()),
        "m_axi_control": Out(axi.signature(WORD_BYTES)),
        "m_axi_lane": Out(axi.signature(arch.port_bytes)).array(
            arch.lanes * arch.lane_ports),
        "interrupt": Out(1),
    })


class Top(wiring.Component):
    """An XRT-managed kernel.

    Members
    -------
    s_axi_control : AXI4-Lite slave
    m_axi_control : AXI4 master of ``isa.WORD_BYTES``
    m_axi_lane : AXI4 master of ``beat_bytes`` for each lane, or its share for each of its ports
    interrupt : ``Out(1)``
    """

    def __init__(self, arch):
        self.arch = arch
        super().__init__(top_signature(arch))

    def elaborate(self, platform):
        m = Module()
        arch = self.arch
        m.submodules.kernel = kernel = Once(kernel_signature(arch), KERNEL_MODULE)
        wiring.connect(m, wiring.flipped(self.s_axi_control), kernel.s_axi_control)
        axi.join(m, self.m_axi_control, kernel.m_axi_control)
        m.d.comb += self.interrupt.eq(kernel.interrupt)
        for at, socket in enumerate(kernel.lanes):
            m.submodules[f"lane_{at}"] = lane = Once(lane_signature(arch), LANE_MODULE)
            self._join(m, at, lane.bus)
            m.d.comb += lane.clear.eq(socket.reset)
            for path, member, ours in socket_signature(arch).flatten(socket):
                if path != ("reset",):
                    theirs = lane
                    for name in path:
                        theirs = theirs[name] if isinstance(name, int) else getattr(theirs, name)
                    m.d.comb += ours.eq(theirs) if member.flow is Out else theirs.eq(ours)
        return m

    def _join(self, m, at, bus):
        """Give a lane its ports."""
        count = self.arch.lane_ports
        ports = self.m_axi_lane[at * count:(at + 1) * count]
        if count == 1:
            axi.join(m, ports[0], bus)
            return
        m.submodules[f"stripe_{at}"] = stripe = Stripe(self.arch.beat_bytes, count)
        wiring.connect(m, bus, stripe.bus)
        for outer, inner in zip(ports, stripe.ports, strict=True):
            axi.join(m, outer, inner)


def verilog(arch, primitive=""):
    """Return the accelerator's Verilog: the top, and, once, the kernel and a lane.

    ``primitive`` is the DSP slice of AMD's family (:mod:`alula.hw.lane.slice`), for instances of it
    instead of arithmetic; with UltraScale+'s, memories may be UltraRAM. Ports are named as kernels'
    are: ``m_axi_lane_0_araddr``.
    """
    bus = re.compile(r"\b[ms]_axi_\w+")
    outer = "".join([generate(Kernel(arch), KERNEL_MODULE), generate(Top(arch), TOP_MODULE)])
    text = "".join([*(module.VERILOG for module in (ram, passive, gate)),
                    generate(Lane(arch, primitive), LANE_MODULE),
                    bus.sub(lambda name: name[0].replace("__", "_"), outer)])
    return text if primitive == DSP48E2 else text.replace('STYLE("ultra")', 'STYLE("block")')
