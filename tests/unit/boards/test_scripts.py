"""The scripts, run by a real Tcl interpreter in which the vendor's commands are checked."""

import re

import pytest
from amaranth.hdl import Value
from vendor import Vendor

from alula.boards import bundle
from alula.boards.board import Alveo, Zynq
from alula.boards.buses import buses
from alula.boards.catalogue import BOARDS
from alula.boards.register import entries
from alula.boards.shell import ports, shell
from alula.hw.control import ControlRegisters
from alula.hw.csr import CONTROL_BYTES, Ctrl, Register
from alula.hw.isa import WORD_BYTES

TclError = pytest.importorskip("tkinter", reason="Python has no tkinter").TclError
pytestmark = pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")
ALVEO = [board for board in BOARDS.values() if isinstance(board, Alveo)]
ZYNQ = [board for board in BOARDS.values() if isinstance(board, Zynq)]


def named(board):
    return board.name


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Write a board's bundle, all of it but the accelerator's Verilog."""
    monkeypatch.chdir(tmp_path)  # Tcl's `cd` is the process's
    monkeypatch.setattr(bundle, "verilog", lambda arch, primitive: "module alula; endmodule\n")

    def write(board, arch=None, **options):
        folder = tmp_path / board.name
        bundle.write(board, arch or board.arch, folder)
        (folder / "reports").mkdir()
        text = (folder / "alula_shell.v").read_text()
        found = set(re.findall(r"^ +(?:in|out)put wire (?:\[\d+:0\] )?(\w+)", text, re.M))
        return folder, Vendor(folder, found, **options)
    return write


def check_registers(board, tool, arch):
    """What was packaged is what hw/csr.py says, and, of a runtime's registers, all of it."""
    register = {name.upper(): facts for name, facts in tool.registers.items()}
    names = {Register.GIE: "GIER", Register.IER: "IP_IER", Register.ISR: "IP_ISR"}
    wanted = [one for one in Register if one != Register.LANE
              and (isinstance(board, Zynq) or one < Register.STATE)]
    for one in wanted:
        assert int(register.pop(names.get(one, one.name))["address_offset"], 0) == one
    for lane in range(arch.lanes):
        facts = register.pop(f"LANE_{lane}")
        assert int(facts["address_offset"], 0) == Register.LANE + 8 * lane
        assert facts["bus"] == f"m_axi_lane_{lane}" and facts["size"] == "64"
    assert not register
    assert tool.fields == {f"AP_{bit.name}": {"register": "CTRL", "bit_offset": int(bit),
                                              "bit_width": 1} for bit in Ctrl}


@pytest.mark.parametrize("board", ALVEO, ids=named)
def test_alveo_is_packaged(board, written):
    folder, tool = written(board)
    tool.run("package.tcl")
    assert tool.device == board.device
    assert (folder / "alula.xo").exists()
    tool.order("create_project", "ipx::package_project", "ipx::associate_bus_interfaces",
               "ipx::add_register", "ipx::update_checksums", "ipx::check_integrity",
               "ipx::save_core", "package_xo")
    assert ("ipx::check_integrity", "-kernel", "core") in tool.calls
    assert tool.properties["core", "sdx_kernel"] == "true"
    assert tool.properties["core", "sdx_kernel_type"] == "rtl"
    assert set(tool.clock_of) == {"s_axi_control", *buses(board.arch)}
    assert set(tool.clock_of.values()) == {"ap_clk"}
    check_registers(board, tool, board.arch)


@pytest.mark.parametrize("board", ALVEO, ids=named)
def test_kernel_xml_is_the_registers(board, written):
    folder, tool = written(board)
    tool.run("package.tcl")
    assert tool.kernel.get("hwControlProtocol") == "ap_ctrl_chain"
    args = {arg.get("name"): arg for arg in tool.kernel.iter("arg")}
    assert [arg.get("id") for arg in args.values()] == [str(at) for at in range(len(args))]
    for name, arg in args.items():
        register = Register[name.upper()] if "lane" not in name else Register.LANE + 8 * int(
            name.removeprefix("lane_"))
        assert int(arg.get("offset"), 0) == register
        facts = tool.registers[name]  # component.xml and kernel.xml say the same
        assert 8 * int(arg.get("size"), 0) == int(facts["size"])
        assert arg.get("port") == facts.get("bus", "s_axi_control")
        assert arg.get("addressQualifier") == str(int("bus" in facts))
    assert len(args) == 5 + board.arch.lanes
    widths = {port.get("name"): int(port.get("dataWidth")) for port in tool.kernel.iter("port")}
    text = (folder / "alula_shell.v").read_text()
    for name, width in widths.items():
        assert f"[{width - 1}:0] {name}_rdata" in text
        if name != "s_axi_control":
            assert f"[63:0] {name}_araddr" in text
    assert widths["m_axi_control"] == 8 * WORD_BYTES
    assert max(widths.values()) <= 512


@pytest.mark.parametrize("board", ALVEO, ids=named)
def test_link_file_has_a_channel_for_each_lane(board, written):
    folder, tool = written(board)
    text = (folder / "link.cfg").read_text()
    assert f"platform={board.platform}\n" in text
    assert f"kernel_frequency=0:{board.arch.clock_hz // 10**6}\n" in text
    assert text.count("nk=alula:1:alula_1\n") == 1
    memory = dict(re.findall(r"^sp=alula_1\.(\w+):(\S+)$", text, re.M))
    assert set(memory) == {port.removesuffix("_araddr") for port in tool.ports
                           if port.startswith("m_axi") and port.endswith("_araddr")}
    lanes = [int(re.fullmatch(r"HBM\[(\d+)\]", memory[f"m_axi_lane_{lane}"])[1])
             for lane in range(board.arch.lanes)]
    assert len(set(lanes)) == board.arch.lanes and max(lanes) < board.channels


def test_control_memory_has_what_lanes_leave():
    """Its channels are apart from the lanes', and hold it, where the board has room."""
    u55c, u280, u50 = (BOARDS[name] for name in ("u55c", "u280", "u50"))
    assert u280.ports(u280.arch)["m_axi_control"] == "DDR[0]" and not u280.shortage(u280.arch)
    assert u50.ports(u50.arch)["m_axi_control"] == "HBM[20:27]" and not u50.shortage(u50.arch)
    few = u55c.arch.with_lanes(24)
    assert u55c.ports(few)["m_axi_control"] == "HBM[24:31]" and not u55c.shortage(few)
    some = u55c.arch.with_lanes(28)
    assert u55c.ports(some)["m_axi_control"] == "HBM[28:31]"
    assert u55c.shortage(some).startswith("28 lanes leave 4 of 32 HBM channels")
    assert "has 2 GiB" in u55c.shortage(some)
    assert u55c.ports(u55c.arch)["m_axi_control"] == "HBM[0:31]"
    assert "shares the lanes' channels" in u55c.shortage(u55c.arch)


@pytest.mark.parametrize("board", ALVEO, ids=named)
def test_floorplan_names_every_lane(board, written):
    folder, tool = written(board)
    tool.run("floorplan.tcl")
    placed = {item.removeprefix("cells:*alula_1/*accelerator/"): die
              for (item, name), die in tool.properties.items() if name == "USER_SLR_ASSIGNMENT"}
    assert placed.pop("kernel") == "SLR0"
    assert set(placed) == {f"lane_{lane}" for lane in range(board.arch.lanes)}
    shares = [list(placed.values()).count(f"SLR{die}") for die in range(board.slrs)]
    assert sum(shares) == board.arch.lanes and max(shares) - min(shares) <= 1


@pytest.mark.parametrize("board", ZYNQ, ids=named)
def test_zynq_becomes_an_overlay(board, written):
    folder, tool = written(board)
    tool.run("package.tcl")
    check_registers(board, tool, board.arch)
    assert ("ipx::check_integrity", "core") in tool.calls
    tool.run("block_design.tcl")
    tool.order("create_bd_design", "apply_bd_automation", "connect_bd_intf_net",
               "assign_bd_address", "validate_bd_design", "save_bd_design", "generate_target",
               "make_wrapper", "add_files")
    joined = dict(tool.joined)
    for bus, port in board.ports(board.arch).items():
        assert joined[f"alula/{bus}"] == f"memory_{bus}/S00_AXI"
        assert joined[f"memory_{bus}/M00_AXI"] == f"ps/{port}"
    assert len(set(board.ports(board.arch).values())) == 1 + board.arch.lane_ports
    clock = f"ps/{board.processor.clock}"
    assert all(tool.wired[sink] == clock for sink in tool.wired
               if re.search(r"clk$", sink, re.I))
    assert tool.wired["alula/ap_rst_n"] == "reset/peripheral_aresetn"
    assert tool.wired[f"ps/{board.processor.interrupt}"] == "interrupts/irq"
    frequency = tool.settings["ps", board.processor.clock_setting]
    assert int(frequency) * 1_000_000 == board.arch.clock_hz
    widths = [int(value) for (cell, name), value in tool.settings.items()
              if cell == "ps" and name.endswith("DATA_WIDTH")]
    assert widths == [board.processor.port_bits] * (1 + board.arch.lane_ports)
    tool.run("implement.tcl")
    assert (folder / "overlay/alula.bit").read_text() == "bits"
    assert (folder / "overlay/alula.hwh").read_text() == "hwh"  # one stem, or PYNQ does not load it
    assert (folder / "reports/timing.rpt").exists()


def test_no_bitstream_with_negative_slack(written):
    folder, tool = written(BOARDS["kv260"], slack="-0.310")
    tool.run("package.tcl")
    tool.run("block_design.tcl")
    with pytest.raises(TclError, match="^slack must be at least 0 ns, not -0.310; ask for"):
        tool.run("implement.tcl")
    assert not (folder / "overlay").exists()
    assert (folder / "reports/timing.rpt").exists()


def test_board_files_are_asked_for(written):
    folder, tool = written(BOARDS["pynq-z2"], board_files=False)
    tool.run("package.tcl")
    with pytest.raises(TclError, match=r"^Vivado must have the board files of \*:pynq-z2:\*;"):
        tool.run("block_design.tcl")


def test_vendor_refuses_what_it_does_not_know(written):
    """The recorder can fail: a wrong pin, a wrong bus and an unknown command stop the script."""
    folder, tool = written(BOARDS["kv260"])
    settings = folder / "settings.tcl"
    good = settings.read_text()
    settings.write_text(good.replace("m_axi_lane_0", "m_axi_lane_9"))
    with pytest.raises(AssertionError):
        tool.run("package.tcl")
    settings.write_text(good.replace("pl_clk0", "pl_clk7"))
    tool = Vendor(folder, tool.ports)
    (folder / "work").rename(folder / "old")
    tool.run("package.tcl")
    with pytest.raises(ValueError, match="^no pin ps/pl_clk7$"):
        tool.run("block_design.tcl")
    with pytest.raises(TclError, match="invalid command name"):
        tool.tcl.eval("ipx::package_everything")


@pytest.mark.parametrize("board", BOARDS.values(), ids=named)
def test_registers_are_as_wide_as_the_hardware(board):
    """No two overlap, all are decoded, and each has the width of what is behind it."""
    found = entries(board.arch)
    ends = [entry.offset + entry.bits // 8 for entry in found]
    assert all(end <= entry.offset for end, entry in zip(ends, found[1:], strict=False))
    assert ends[-1] <= CONTROL_BYTES
    hardware = ControlRegisters(board.arch)
    held = {"lanes": 32, "hash": 4 * len(board.arch.hash)}  # constants
    held |= {f"lane_{lane}": len(base) for lane, base in enumerate(hardware.lanes)}
    for entry in found[4:]:
        bits = held.get(entry.name) or len(Value.cast(getattr(hardware, entry.name)))
        assert entry.bits == -(-bits // 32) * 32, entry.name


@pytest.mark.parametrize("board", BOARDS.values(), ids=named)
def test_build_script_names_what_is_there(board, written):
    folder, _ = written(board)
    text = (folder / "build.sh").read_text()
    sources = re.findall(r"-source (\S+)|--config (\S+)|\$PWD/(\S+)\"", text)
    for name in (name for names in sources for name in names if name):
        assert (folder / name).is_file(), name
    for tool in board.tool.commands:
        assert re.search(rf"^{re.escape(tool)} ", text, re.M)
    assert shell(board.arch).count(" wire ") == len(ports(board.arch)) + 2
