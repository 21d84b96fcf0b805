"""The vector and parameter buffers, shared by the units that read and write them."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from alula.hw.ram import Ram

READ_LATENCY = 2  # clocks from an address to its data


def vector_words(arch):
    """Words of the vector buffer, all rows."""
    return arch.rows * arch.vector_elements // arch.vector_width


def write_layout(arch):
    """A write of the vector buffer: ``mask`` has a bit for each fp32 value."""
    return data.StructLayout({"address": ceil_log2(vector_words(arch)),
                              "data": 32 * arch.vector_width, "mask": arch.vector_width})


class VectorBuffer(wiring.Component):
    """fp32 values of each row, in words of ``vector_width``.

    Even and odd words are in memories of their own: while the vector unit writes one after the
    other, others write in between.

    Members
    -------
    read_enable, read_address : ``In``; read_data : ``Out``
        The vector unit's, always granted.
    reads : ``In(stream of address)``
        Another reader's, when the vector unit does not read. Both get their data on ``read_data``
        ``READ_LATENCY`` clocks after.
    writing : ``In(1)``, write : ``In(write_layout)``
        The vector unit's, always granted.
    writes : ``In(stream of write_layout)``
        Other writers'; the lower number goes first, if the vector unit does not write to the same
        memory in that clock.
    """

    def __init__(self, arch, writers):
        self.arch = arch
        address = ceil_log2(vector_words(arch))
        super().__init__({
            "read_enable": In(1), "read_address": In(address), "read_data": Out(
                32 * arch.vector_width),
            "reads": In(stream.Signature(address)),
            "writing": In(1), "write": In(write_layout(arch)),
            "writes": In(stream.Signature(write_layout(arch))).array(writers),
        })

    def elaborate(self, platform):
        m = Module()
        layout = write_layout(self.arch)
        address = Signal.like(self.read_address)
        other, offered = Signal(layout), Signal()  # the first of the other writers
        was_odd = Signal()
        m.d.comb += [
            self.reads.ready.eq(~self.read_enable),
            address.eq(Mux(self.read_enable, self.read_address, self.reads.payload)),
        ]
        free = [Signal(name=f"free_{odd}") for odd in range(2)]
        found = []
        for odd in range(2):
            m.submodules[f"store_{odd}"] = store = Ram(
                shape=32 * self.arch.vector_width, depth=-(-vector_words(self.arch) // 2),
                passive=True)
            read, write = store.read_port(), store.write_port(granularity=32)
            mine = self.writing & (self.write.address[0] == odd)
            chosen = Signal(layout, name=f"chosen_{odd}")
            theirs = offered & (other.address[0] == odd)
            m.d.comb += [
                read.addr.eq(address[1:]), free[odd].eq(~mine),
                chosen.eq(Mux(mine, self.write, other)), write.addr.eq(chosen.address[1:]),
                write.data.eq(chosen.data), write.en.eq(Mux(mine | theirs, chosen.mask, 0)),
            ]
            found.append(read.data)
        m.d.sync += [was_odd.eq(address[0]),
                     self.read_data.eq(Mux(was_odd, found[1], found[0]))]
        before = 0
        for client in self.writes:
            m.d.comb += client.ready.eq(~before & Mux(client.payload.address[0], free[1], free[0]))
            before = before | client.valid
        for client in reversed(self.writes):
            with m.If(client.valid):
                m.d.comb += [other.eq(client.payload), offered.eq(client.ready)]
        return m


class ParamBuffer(wiring.Component):
    """fp32 values that all rows share.

    Members
    -------
    address : ``In``; data : ``Out``
        Data ``READ_LATENCY`` clocks after its address.
    write : ``In``
        A word and a mask, 0 when there is none.
    """

    def __init__(self, arch):
        self.words = arch.param_elements // arch.vector_width
        address = ceil_log2(self.words)
        self.width, self.style = arch.vector_width, arch.core_memory
        super().__init__({
            "address": In(address), "data": Out(32 * self.width),
            "write": In(data.StructLayout({
                "address": address, "data": 32 * self.width, "mask": self.width})),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.store = store = Ram(
            shape=32 * self.width, depth=self.words, passive=True, style=self.style)
        read, write = store.read_port(), store.write_port(granularity=32)
        m.d.comb += [read.addr.eq(self.address), write.addr.eq(self.write.address),
                     write.data.eq(self.write.data), write.en.eq(self.write.mask)]
        m.d.sync += self.data.eq(read.data)
        return m
