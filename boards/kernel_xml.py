"""``kernel.xml``: what XRT knows of a kernel's ports and arguments.

Ref: AMD UG1393, Vitis Application Acceleration, "Create the Kernel Description XML File".
"""

from __future__ import annotations

from xml.etree import ElementTree

from alula.boards.board import NAME
from alula.boards.buses import buses
from alula.boards.register import arguments
from alula.hw.arch import ArchConfig
from alula.hw.csr import CONTROL_BYTES
from alula.hw.isa import WORD_BYTES

VLNV = f"{NAME}:kernel:{NAME}:1.0"
PROTOCOL = "ap_ctrl_chain"


def kernel_xml(arch: ArchConfig) -> str:
    """Return the file's text: scalars by value, memories by pointer, offsets as in ``csr.py``."""
    root = ElementTree.Element("root", versionMajor="1", versionMinor="6")
    kernel = ElementTree.SubElement(
        root, "kernel", name=NAME, language="ip_c", vlnv=VLNV, attributes="",
        preferredWorkGroupSizeMultiple="0", workGroupSize="1", interrupt="true",
        hwControlProtocol=PROTOCOL)
    ports = ElementTree.SubElement(kernel, "ports")
    ElementTree.SubElement(ports, "port", name="s_axi_control", mode="slave",
                           range=hex(CONTROL_BYTES), dataWidth="32", portType="addressable",
                           base="0x0")
    for bus in buses(arch):
        size = WORD_BYTES if bus == "m_axi_control" else arch.port_bytes
        ElementTree.SubElement(ports, "port", name=bus, mode="master", range=hex((1 << 64) - 1),
                               dataWidth=str(8 * size), portType="addressable", base="0x0")
    args = ElementTree.SubElement(kernel, "args")
    for at, entry in enumerate(arguments(arch)):
        size_text = hex(entry.bits // 8)
        ElementTree.SubElement(
            args, "arg", name=entry.name, id=str(at), addressQualifier="1" if entry.bus else "0",
            port=entry.bus or "s_axi_control", size=size_text, offset=hex(entry.offset),
            hostOffset="0x0", hostSize=size_text, type="void*" if entry.bus else "uint")
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(
        root, encoding="unicode") + "\n"
