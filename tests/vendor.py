"""A Tcl interpreter in which the vendor's commands are checked and recorded, not carried out.

Only commands, pins and interfaces listed here exist, written from AMD's UG835 (Tcl commands),
PG201, PG082 (processing systems), PG247 (SmartConnect), PG164 (reset) and PG099 (interrupts): a
script that names another one stops with an error. It is what we read there, not a Vivado.
"""

import re
from xml.etree import ElementTree

CELLS = {  # pins, interfaces
    "zynq_ultra_ps_e": ({"pl_clk0", "pl_resetn0", "pl_ps_irq0", "maxihpm0_fpd_aclk",
                         *(f"saxihp{at}_fpd_aclk" for at in range(4)), "saxihpc0_fpd_aclk"}, set()),
    "processing_system7": ({"FCLK_CLK0", "FCLK_RESET0_N", "IRQ_F2P", "M_AXI_GP0_ACLK",
                            *(f"S_AXI_HP{at}_ACLK" for at in range(3))}, set()),
    "smartconnect": ({"aclk", "aresetn"}, set()),
    "axi_intc": ({"s_axi_aclk", "s_axi_aresetn", "intr", "irq"}, {"s_axi"}),
    "proc_sys_reset": ({"slowest_sync_clk", "ext_reset_in", "peripheral_aresetn"}, set()),
}
SWITCHED = {  # interfaces that a setting turns on
    "PSU__USE__M_AXI_GP0": "M_AXI_HPM0_FPD", "PSU__USE__S_AXI_GP0": "S_AXI_HPC0_FPD",
    **{f"PSU__USE__S_AXI_GP{2 + at}": f"S_AXI_HP{at}_FPD" for at in range(4)},
    "PCW_USE_M_AXI_GP0": "M_AXI_GP0",
    **{f"PCW_USE_S_AXI_HP{at}": f"S_AXI_HP{at}" for at in range(3)},
}
OUTPUTS = {"pl_clk0", "pl_resetn0", "FCLK_CLK0", "FCLK_RESET0_N", "irq", "interrupt",
           "peripheral_aresetn"}


class Vendor:
    """What a Vivado would know after the scripts so far; ``calls`` in their order.

    Parameters
    ----------
    ports
        Names of the Verilog's ports.
    slack
        Of the implementation that is only pretended.
    board_files
        Whether the board's files are installed.
    """

    def __init__(self, folder, ports, *, slack="0.021", board_files=True):
        import tkinter

        self.folder, self.ports, self.slack, self.board_files = folder, ports, slack, board_files
        self.calls, self.registers, self.fields, self.buses = [], {}, {}, {}
        self.cells, self.settings, self.wired, self.joined = {}, {}, {}, []
        self.properties, self.clock_of = {}, {}
        self.tcl = tkinter.Tcl()
        self.tcl.eval("namespace eval ipx {}")
        for name in dir(self):
            if name.startswith(("v_", "ipx_")):
                command = name.removeprefix("v_").replace("ipx_", "ipx::")
                self.tcl.createcommand(command, self._recorded(command, getattr(self, name)))

    def _recorded(self, command, action):
        def call(*arguments):
            self.calls.append((command, *arguments))
            try:
                return action(*arguments) or ""
            except Exception as error:
                self.refusal = error
                raise
        return call

    def run(self, script):
        """Run a script in the bundle's folder, as ``vivado -source`` does."""
        self.tcl.eval(f"cd {{{self.folder}}}")
        self.refusal = None
        try:
            self.tcl.eval(f"source {{{script}}}")
        except Exception:
            if self.refusal:
                raise self.refusal from None  # tkinter says no more than that there was one
            raise

    def order(self, *commands):
        """The commands were all called, each for the last time before the next one."""
        names = [call[0] for call in self.calls]
        places = [len(names) - 1 - names[::-1].index(command) for command in commands]
        assert places == sorted(places), list(zip(commands, places, strict=True))

    def _words(self, text):
        return self.tcl.splitlist(text)

    def _files(self, *names):
        for name in names:
            if not (self.folder / name).is_file():
                raise ValueError(f"no file {name}")

    # Projects and runs.

    def v_create_project(self, force, name, folder, part, device):
        assert (force, part) == ("-force", "-part")
        self.device = device
        (self.folder / folder).mkdir(parents=True)
        (self.folder / folder / f"{name}.xpr").touch()

    def v_open_project(self, path):
        self._files(path)

    def v_close_project(self):
        pass

    def v_current_project(self):
        return "project"

    def v_current_fileset(self):
        return "sources_1"

    def v_update_compile_order(self, flag, fileset):
        assert (flag, fileset) == ("-fileset", "sources_1")

    def v_add_files(self, *arguments):
        names = self._words(arguments[-1])
        assert "-norecurse" in arguments and names
        self._files(*names)

    def v_launch_runs(self, run, *options):
        assert run in ("synth_1", "impl_1") and "-jobs" in options
        if run == "impl_1":
            assert options[:2] == ("-to_step", "write_bitstream")
            place = self.folder / "work/system/system.runs/impl_1"
            place.mkdir(parents=True)
            (place / "system_wrapper.bit").write_text("bits")

    def v_wait_on_run(self, run):
        assert ("launch_runs", run) in [call[:2] for call in self.calls]

    def v_get_runs(self, run):
        return run

    def v_open_run(self, run):
        self.v_wait_on_run(run)

    def v_report_timing_summary(self, flag, path):
        assert flag == "-file"
        (self.folder / path).write_text("timing")

    def v_report_utilization(self, flag, path):
        assert flag == "-file"
        (self.folder / path).write_text("utilization")

    def v_get_property(self, name, item):
        known = {"PROGRESS": "100%", "STATS.WNS": self.slack, "NAME": item}
        return known[name]

    def v_set_property(self, *arguments):
        if arguments[0] == "-dict":
            pairs, item = self._words(arguments[1]), arguments[2]
            pairs = list(zip(pairs[::2], pairs[1::2], strict=True))
        else:
            name, value, item = arguments
            pairs = [(name, value)]
        for name, value in pairs:
            self.properties[item, name] = value
            if item in self.cells:
                self.settings[item, name.removeprefix("CONFIG.")] = value
            if item.startswith("register:"):
                self.registers[item.removeprefix("register:")][name] = value
            if item.startswith("parameter:"):
                assert name == "value" and f"{value}_araddr" in self.ports
                self.registers[item.removeprefix("parameter:")]["bus"] = value
            if item.startswith("field:"):
                self.fields[item.removeprefix("field:")][name] = int(value)

    # Packaging.

    def ipx_package_project(self, *options):
        options = list(options)
        self.ip_folder = options[options.index("-root_dir") + 1]
        assert {"-vendor", "-library", "-taxonomy", "-import_files"} <= set(options)
        (self.folder / self.ip_folder).mkdir(parents=True)

    def ipx_current_core(self):
        return "core"

    def ipx_get_user_parameters(self, *_):
        return "ALULA_TIMING"

    def ipx_remove_user_parameter(self, name, core):
        assert (name, core) == ("ALULA_TIMING", "core")

    def ipx_associate_bus_interfaces(self, *arguments):
        options = dict(zip(arguments[:-1:2], arguments[1:-1:2], strict=True))
        assert arguments[-1] == "core" and options["-clock"] in self.ports
        if "-reset" in options:
            assert options["-reset"] in self.ports
        else:
            assert f"{options['-busif']}_araddr" in self.ports
            self.clock_of[options["-busif"]] = options["-clock"]

    def ipx_infer_bus_interface(self, port, kind, core):
        assert port in self.ports and kind == "xilinx.com:signal:interrupt_rtl:1.0"

    def ipx_get_memory_maps(self, *_):
        return ""

    def ipx_add_memory_map(self, name, core):
        return f"map:{name}"

    def ipx_get_bus_interfaces(self, name, flag, core):
        assert f"{name}_araddr" in self.ports and flag == "-of_objects"
        return name

    def ipx_add_address_block(self, name, memory_map):
        assert memory_map == "map:s_axi_control"
        return f"block:{name}"

    def ipx_add_register(self, name, block):
        assert block == "block:reg0" and name not in self.registers
        self.registers[name] = {}
        return f"register:{name}"

    def ipx_add_register_parameter(self, name, register):
        assert name == "ASSOCIATED_BUSIF"
        return register.replace("register:", "parameter:")

    def ipx_add_field(self, name, register):
        self.fields[name] = {"register": register.removeprefix("register:")}
        return f"field:{name}"

    def ipx_create_xgui_files(self, core):
        pass

    def ipx_update_checksums(self, core):
        pass

    def ipx_check_integrity(self, *arguments):
        assert arguments[-1] == "core" and set(arguments[:-1]) <= {"-kernel"}

    def ipx_save_core(self, core):
        (self.folder / self.ip_folder / "component.xml").touch()

    def v_package_xo(self, *options):
        options = dict(zip(options[1::2], options[2::2], strict=True))
        self._files(options["-kernel_xml"], f"{options['-ip_directory']}/component.xml")
        self.kernel = ElementTree.parse(self.folder / options["-kernel_xml"]).find("kernel")
        assert options["-kernel_name"] == self.kernel.get("name")
        assert options["-ctrl_protocol"] == self.kernel.get("hwControlProtocol")
        (self.folder / options["-xo_path"]).touch()

    # Placement.

    def v_get_cells(self, *options):
        assert "-hierarchical" in options
        return "cells:" + re.search(r"NAME =~ (\S+)", options[-1])[1]

    # Block design.

    def v_get_board_parts(self, *arguments):
        return f"vendor:{arguments[-1].strip('*:')}:part0:1.0" if self.board_files else ""

    def v_update_ip_catalog(self):
        self._files(f"{self.properties['project', 'ip_repo_paths']}/component.xml")

    def v_create_bd_design(self, name):
        assert name == "system"

    def v_get_ipdefs(self, pattern):
        kind = re.fullmatch(r"xilinx\.com:ip:(\w+):\*", pattern)[1]
        return f"xilinx.com:ip:{kind}:1.0" if kind in CELLS else ""

    def v_create_bd_cell(self, flag, kind, option, vlnv, name):
        assert (flag, kind, option) == ("-type", "ip", "-vlnv") and name not in self.cells
        self.cells[name] = vlnv.split(":")[2]
        return name

    def v_apply_bd_automation(self, flag, rule, option, options, cell):
        assert (flag, option) == ("-rule", "-config")
        assert rule == f"xilinx.com:bd_rule:{self.cells[cell]}"
        assert dict(zip(*[iter(self._words(options))] * 2, strict=True))[
            "apply_board_preset"] == "1"

    def v_get_bd_cells(self, name):
        assert name in self.cells
        return name

    def pins(self, cell):
        """The pins and the interfaces of a cell as it is set up."""
        kind = self.cells[cell]
        if kind == "alula":
            return ({port for port in self.ports if "_axi_" not in port},
                    {port.removesuffix("_araddr") for port in self.ports
                     if port.endswith("_araddr")})
        pins, interfaces = CELLS[kind]
        if kind == "smartconnect":
            interfaces = {f"{way}{at:02}_AXI" for way, count in (("S", "NUM_SI"), ("M", "NUM_MI"))
                          for at in range(int(self.settings[cell, count]))}
        on = {SWITCHED[name] for (of, name), value in self.settings.items()
              if of == cell and name in SWITCHED and value == "1"}
        return pins, interfaces | on

    def v_get_bd_pins(self, path):
        cell, pin = path.split("/")
        if pin not in self.pins(cell)[0]:
            raise ValueError(f"no pin {path}")
        return path

    def v_get_bd_intf_pins(self, path):
        cell, pin = path.split("/")
        if pin not in self.pins(cell)[1]:
            raise ValueError(f"no interface {path}")
        return path

    def v_connect_bd_net(self, source, sink):
        assert source.split("/")[1] in OUTPUTS and sink.split("/")[1] not in OUTPUTS
        assert sink not in self.wired, f"{sink} is driven twice"
        self.wired[sink] = source

    def v_connect_bd_intf_net(self, master, slave):
        assert not {master, slave} & {end for pair in self.joined for end in pair}
        self.joined.append((master, slave))

    def v_assign_bd_address(self):
        pass

    def v_validate_bd_design(self):
        """Every interface is joined, and every input has a driver."""
        ends = {end for pair in self.joined for end in pair}
        for cell in self.cells:
            pins, interfaces = self.pins(cell)
            assert {f"{cell}/{one}" for one in interfaces} <= ends
            assert {f"{cell}/{one}" for one in pins - OUTPUTS} <= self.wired.keys()

    def v_save_bd_design(self):
        pass

    def v_get_files(self, name):
        return name

    def v_generate_target(self, what, design):
        assert (what, design) == ("all", "system.bd")
        place = self.folder / "work/system/system.gen/sources_1/bd/system/hw_handoff"
        place.mkdir(parents=True)
        (place / "system.hwh").write_text("hwh")

    def v_make_wrapper(self, *options):
        assert options == ("-files", "system.bd", "-top")
        path = self.folder / "work/system/system_wrapper.v"
        path.touch()
        return str(path)
