"""Bundles: whole or absent, built by the tool where it is, and Verilog that a tool can read."""

import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from alula.boards import (
    bundle,
    estimate as estimates,
    manifest as manifests,
)
from alula.boards.area import PARTS
from alula.boards.bundle import ToolError
from alula.boards.catalogue import BOARDS, board as find
from alula.boards.estimate import MEASURED, check_room, describe, estimate, lane_hash
from alula.boards.manifest import ManifestError
from alula.boards.shell import SHELL_MODULE, shell
from alula.compiler.recipe import parse
from alula.host import predicted, vectors
from alula.host.boards_command import build as build_command
from alula.host.fits import fitting, lane_bytes
from alula.host.perf import shape_program
from alula.hw import isa
from alula.hw.arch import BUILDS, PYNQ_Z2, SIM, build
from alula.hw.lane.slice import DSP48E1, DSP48E2
from alula.hw.top import KERNEL_MODULE, LANE_MODULE
from alula.sim.rtl.build import verilator_tools

HERE = Path(__file__).parent
COSIM = HERE.parents[1] / "cosim"
U55C, KV260 = BOARDS["u55c"], BOARDS["kv260"]
FILES = {"alula.v", "alula_shell.v", "settings.tcl", "package.tcl", "build.sh", "manifest.json"}


@pytest.fixture
def fake_verilog(monkeypatch):
    monkeypatch.setattr(bundle, "verilog", lambda arch, primitive: f"// {arch.lanes} lanes\n")


def lint(folder, tops=(LANE_MODULE, KERNEL_MODULE, SHELL_MODULE)):
    """Return Verilator's errors, and what it says of pins and widths in the shell.

    Each of ``tops`` is read with the others as boxes that have ports only: a lane is there once.
    """
    text = (folder / "alula.v").read_text() + (folder / "alula_shell.v").read_text()
    models = [(COSIM / f"{name}.v").read_text() for name in ("dsp48e1", "dsp48e2", "muxf7")]
    boxes = "".join(model[:model.index(");\n") + 3] + "endmodule\n" for model in models)
    return [line for top in tops for line in _lint(
        folder, top, boxes + _boxed(text, {LANE_MODULE, KERNEL_MODULE} - {top}))]


def _boxed(text, names):
    """Return Verilog in which modules have nothing but their ports."""
    def box(match):
        ports = re.findall(r"^  (?:input|output) .*;\n", match[2], re.MULTILINE)
        return f"{match[1]}\n{''.join(ports)}endmodule\n"
    for name in names:
        text = re.sub(rf"^(module {name}\(.*?\);)(.*?)^endmodule\n", box, text, count=1,
                      flags=re.MULTILINE | re.DOTALL)
    return text


def _lint(folder, top, text):
    root, environment = verilator_tools()
    (folder / "lint.v").write_text(text)
    done = subprocess.run(
        [root / "bin" / "verilator_bin", "--lint-only", "--top-module", top, "-Wno-fatal",
         folder / "lint.v"], env=environment, capture_output=True, text=True, check=False)
    shell_at = 1 + text[:text.index(f"module {SHELL_MODULE}")].count("\n")
    found = re.findall(r"^%(?:Error|Warning-(?:PIN|WIDTH|IMPLICIT)).*", done.stderr, re.MULTILINE)
    return [line for line in found if line.startswith("%Error")
            or int(re.search(r"lint\.v:(\d+)", line)[1]) >= shell_at]


@pytest.mark.parametrize("board, arch", [
    (U55C, replace(PYNQ_Z2, lanes=2)), (BOARDS["pynq-z2"], PYNQ_Z2)], ids=["alveo", "zynq"])
def test_small_build_is_legal_verilog(board, arch, tmp_path):
    """With its shell; and a pin of a wrong name or width would be found."""
    bundle.write(board, arch, tmp_path / "out")
    text = (tmp_path / "out" / "alula.v").read_text()
    assert board.part.primitive in text
    for instance in ("kernel", *(f"lane_{lane}" for lane in range(arch.lanes))):
        assert f" {instance} (" in text  # the names that the floorplan hints at
    assert lint(tmp_path / "out") == []
    wrong, right, found = ((".m_axi_control_arids(", ".m_axi_control_arid(", "m_axi_control_arids'")
                           if board is U55C else
                           ("[31:0] m_axi_control_araddr", "[63:0] m_axi_control_araddr",
                            "%Warning-WIDTH"))
    (tmp_path / "out" / "alula_shell.v").write_text(shell(arch).replace(right, wrong))
    assert found in " ".join(lint(tmp_path / "out", [SHELL_MODULE]))


@pytest.mark.slow
@pytest.mark.parametrize("board", BOARDS.values(), ids=lambda board: board.name)
def test_full_build_is_legal_verilog(board, tmp_path):
    bundle.write(board, board.arch, tmp_path / "out")
    assert lint(tmp_path / "out") == []


def test_names_are_those_of_builds():
    assert all(board.arch is BUILDS.get(name, board.arch) and board.arch.name == name
               for name, board in BOARDS.items())
    assert set(BUILDS) - {"sim"} <= set(BOARDS)


def test_board_wrong():
    with pytest.raises(ValueError, match="^board must be one of u55c, u280, u50, zcu104, kv260, "
                                         "pynq-z2, not 'u250'$"):
        find("u250")


@pytest.mark.parametrize("lanes", [0, -1, 33])
def test_lanes_wrong(lanes):
    with pytest.raises(ValueError, match=f"^lanes must be from 1 to 32 on u55c, not {lanes}$"):
        U55C.arch.with_lanes(lanes)


def test_bundle_is_whole(tmp_path, fake_verilog):
    out = tmp_path / "above" / "out"
    made = bundle.write(U55C, U55C.arch.with_lanes(20), out)
    assert {path.name for path in out.iterdir()} == FILES | {
        "kernel.xml", "link.cfg", "floorplan.tcl"}
    assert (out / "alula.v").read_text() == "// 20 lanes\n"
    assert os.access(out / "build.sh", os.X_OK)
    assert manifests.load(out) == made
    assert made.memory["m_axi_lane_19"] == "HBM[19]" and made.bitstream == "alula.xclbin"
    assert made.tool_version is None and made.utilization is None


def test_empty_folder_is_filled(tmp_path, fake_verilog):
    out = tmp_path / "out"
    out.mkdir()
    assert bundle.write(KV260, KV260.arch, out).bitstream == "overlay/alula.bit"
    assert {path.name for path in out.iterdir()} == FILES | {
        "block_design.tcl", "implement.tcl", "constraints.xdc"}


def test_nothing_is_left_of_a_failure(tmp_path, monkeypatch):
    def fails(arch, primitive):
        raise MemoryError("no memory")
    monkeypatch.setattr(bundle, "verilog", fails)
    with pytest.raises(MemoryError):
        bundle.write(KV260, KV260.arch, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_folder_wrong(tmp_path, fake_verilog):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="^.*out must be a folder that is empty or absent, not "
                                         "one with files; remove it, or name another$"):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").touch()
        bundle.write(KV260, KV260.arch, tmp_path / "out")
    with pytest.raises(ValueError, match="^.*file must be a folder that is empty or absent, "
                                         "not a file$"):
        bundle.write(KV260, KV260.arch, tmp_path / "file")
    with pytest.raises(ValueError, match="^.*deep must be in a folder that can be written, not in "
                                         ".*file; name another$"):
        bundle.write(KV260, KV260.arch, tmp_path / "file" / "deep")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "out"]
    assert (tmp_path / "file").read_text() == "mine"


# What the tool does.


@pytest.fixture
def tools(tmp_path, monkeypatch, fake_verilog):
    """Put a vivado and a v++ on PATH that write what the real ones would, and what was asked."""
    place = tmp_path / "bin"
    place.mkdir()
    fixtures = HERE / "reports"
    (place / "vivado").write_text(f"""#!/bin/sh
echo "vivado $@" >> {tmp_path}/asked
[ "$1" = -version ] && {{ echo "vivado v${{FAKE_VERSION:-2024.1}} (64-bit)"; exit 0; }}
[ -z "$FAKE_FAILURE" ] || {{ echo "ERROR: [Common 17-69] it fails"; exit 1; }}
case "$*" in
*package.tcl) touch alula.xo ;;
*implement.tcl) mkdir overlay; touch overlay/alula.bit overlay/alula.hwh
  cp {fixtures}/zynq_timing.rpt reports/timing.rpt
  cp {fixtures}/zynq_utilization.rpt reports/utilization.rpt ;;
esac
""")
    (place / "v++").write_text(f"""#!/bin/sh
echo "v++ $@" >> {tmp_path}/asked
mkdir -p _x/reports/link/imp
cp {fixtures}/alveo_timing.rpt _x/reports/link/imp/impl_1_hw_bb_locked_timing_summary_routed.rpt
cp {fixtures}/alveo_utilization.rpt _x/reports/link/imp/impl_1_full_util_routed.rpt
[ -n "$FAKE_NOTHING" ] || touch alula.xclbin
""")
    for name in ("vivado", "v++"):
        (place / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    return tmp_path / "asked"


def built(board, folder):
    stages = []
    bundle.write(board, board.arch, folder)
    version = bundle.tool_version(board)
    made = bundle.run(board, folder, version, lambda at, of, title: stages.append((at, of, title)))
    return made, stages


def test_tool_is_run_for_alveo(tmp_path, tools):
    made, stages = built(U55C, tmp_path / "out")
    assert [stage[:2] for stage in stages] == [(1, 3), (2, 3), (3, 3)]
    asked = tools.read_text()
    assert "-source package.tcl" in asked and "v++ -l -t hw --config link.cfg" in asked
    assert f"PLACE_DESIGN.TCL.PRE={tmp_path / 'out' / 'floorplan.tcl'} " in asked
    assert made == manifests.load(tmp_path / "out")
    assert made.tool_version == "2024.1" and made.slack_ns == 0.012
    assert made.bitstream_bytes == 0 and made.bitstream_hash == hashlib.sha256().hexdigest()
    assert made.utilization["lut"] == round(1_020_733 / 1_303_680, 4)


def test_tool_is_run_for_zynq(tmp_path, tools):
    made, stages = built(KV260, tmp_path / "out")
    assert [stage[2] for stage in stages] == [
        "package the kernel", "put it beside the processor", "implement it"]
    assert made.bitstream == "overlay/alula.bit" and made.utilization["uram"] == 0.3438
    scripts = [line.split()[-1] for line in tools.read_text().splitlines()]
    assert scripts == ["-version", "package.tcl", "block_design.tcl", "implement.tcl"]


def test_tool_fails(tmp_path, tools, monkeypatch):
    monkeypatch.setenv("FAKE_FAILURE", "1")
    with pytest.raises(ToolError, match="^Vivado must end well, not with 1; see .*build.log$"):
        built(KV260, tmp_path / "out")
    assert "[Common 17-69]" in (tmp_path / "out" / "build.log").read_text()
    assert manifests.load(tmp_path / "out").tool_version is None


def test_tool_leaves_nothing(tmp_path, tools, monkeypatch):
    monkeypatch.setenv("FAKE_NOTHING", "1")
    with pytest.raises(ToolError, match="^Vitis must write .*alula.xclbin; see .*build.log$"):
        built(U55C, tmp_path / "out")


@pytest.mark.parametrize("name, version, wanted", [
    ("u280", "2025.2", "Vitis must be 2022.1 to 2025.1 for u280, not 2025.2"),
    ("kv260", "2019.2", "Vivado must be 2022.1 or newer for kv260, not 2019.2")])
def test_tool_version_wrong(name, version, wanted, tools, monkeypatch):
    monkeypatch.setenv("FAKE_VERSION", version)
    with pytest.raises(ToolError, match=f"^{wanted}$"):
        bundle.tool_version(BOARDS[name])


def test_tool_version_counts_no_patch(tools, monkeypatch):
    monkeypatch.setenv("FAKE_VERSION", "2025.1.1")
    assert bundle.tool_version(BOARDS["u280"]) == "2025.1.1"


# Area.


def test_boards_are_within_the_limit():
    assert all(estimate(board, board.arch).over == [] for board in BOARDS.values())


def test_area_over_the_limit(monkeypatch):
    monkeypatch.setattr(estimates, "LIMIT", 0.5)
    found = estimate(U55C, U55C.arch)
    used = re.escape(str(found))
    with pytest.raises(ValueError, match=(
            rf"^u55c's 32 lanes must take at most 50% of XCU55C, not {used} \(Yosys"
            rf".*--lanes {found.most_lanes} stays within it, --force writes the files anyway$")):
        check_room(U55C, U55C.arch)


@pytest.mark.parametrize("name", ["u55c", "u280", "u50"])
def test_most_lanes_is_the_limit(name):
    board = BOARDS[name]
    most = estimate(board, board.arch).most_lanes
    check_room(board, replace(board.arch, lanes=most))
    with pytest.raises(ValueError, match=f"--lanes {most} stays"):
        check_room(board, replace(board.arch, lanes=most + 1))


def test_area_is_of_a_lane_of_these_sizes():
    """Clock and memory do not change a lane; any size of it does, and DSP slices it has not."""
    assert estimate(U55C, replace(U55C.arch, clock_hz=1, control_bytes=64)).lane is MEASURED[0]
    wider = replace(U55C.arch, lane_dsps=256)
    assert lane_hash(wider) != lane_hash(U55C.arch) and estimate(U55C, wider) is None
    assert estimate(replace(U55C, part=PARTS["pynq-z2"]), U55C.arch) is None
    narrow = replace(KV260.arch, vector_width=4)
    assert describe(KV260, narrow) == "not measured; run python -m alula.boards.area kv260"
    check_room(KV260, narrow)


def test_area_where_a_part_has_none():
    """A resource that a part lacks is over any limit."""
    board = BOARDS["pynq-z2"]
    found = estimates.Estimate(part=board.part, lanes=1, lane=MEASURED[0])  # a U55C's
    assert "uram" in found.over and found.most_lanes == 0


# Manifest.


@pytest.fixture
def written(tmp_path, fake_verilog):
    bundle.write(KV260, KV260.arch, tmp_path / "out")
    return tmp_path / "out"


def test_manifest_takes_its_programs(written):
    made = manifests.load(written)
    assert made.isa_hash == isa.isa_hash() and made.arch_hash == build("kv260").hash
    manifests.check(made, build("kv260"))


def test_manifest_refuses_a_program(written):
    made = manifests.load(written)
    mine, other = build("kv260").hash, build("zcu104").hash
    with pytest.raises(ManifestError, match=rf"^bundle's architecture must be {other}, as the "
                       rf"program's \(zcu104, 1 lanes\), not {mine} \(kv260, 1 lanes\); compile"):
        manifests.check(made, build("zcu104"))
    with pytest.raises(ManifestError, match="^bundle's instruction set must be 0123, as the "
                                            f"program's, not {isa.isa_hash()}; build"):
        manifests.check(made, build("kv260"), "0123")


@pytest.mark.parametrize("change, message", [
    (dict(format=2), "format must be legal in format 1, not '2'"),
    (dict(speed=3), "speed must be legal in format 1, not '3'"),
    (dict(clock_hz="fast"), "clock_hz must be legal in format 1, not 'fast'"),
    (dict(arch_hash="00"), f"arch_hash must be {build('kv260').hash}, which its sizes give, "
                           "not 00; build it again")])
def test_manifest_wrong(written, change, message):
    path = written / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ManifestError, match=f"^{path}: {message}"):
        manifests.load(written)


def test_manifest_absent(tmp_path):
    with pytest.raises(ManifestError, match="manifest.json must be a manifest that can be read; "
                                            "alula build writes it$"):
        manifests.load(tmp_path)


# What fits.


@pytest.mark.parametrize("recipe", ["w4g128", "w4g32"])
def test_count_of_bytes_is_that_of_a_program(recipe):
    """The count, of two layers, is at most 2 % above the compiler's, and not below it."""
    from alula.compiler.shapes import SHAPES

    program = shape_program("tinyllama", parse(recipe), build("u55c"), 512)
    shape = replace(SHAPES["tinyllama"], layers=program.model.layers)
    exact = program.statistics["bytes"]["total"]
    assert exact <= lane_bytes(shape, parse(recipe), 0) <= 1.02 * exact


def test_fitting():
    recipe = parse("w4g128")
    small = fitting(build("kv260"), recipe, 512)
    assert set(small) == {"tinyllama", "llama-3.2-1b"}
    assert small["tinyllama"] == pytest.approx(19.2e9 / 542e6, rel=0.02)
    assert "llama2-7b" in fitting(build("u50"), recipe, 512)
    assert fitting(PYNQ_Z2, recipe, 512) == {}
    assert fitting(replace(SIM, control_bytes=1 << 20), recipe, 512) == {}


def test_predictions_are_of_models_that_fit_and_below_what_memory_feeds():
    for name, entry in predicted.kept().items():
        most = fitting(BOARDS[name].arch, parse(predicted.RECIPE), predicted.CONTEXT)
        assert set(entry["tokens_per_s"]) <= set(most)
        assert all(rate is None or 0 < rate < most[shape]
                   for shape, rate in entry["tokens_per_s"].items())


# The commands.


def command(name, out, **options):
    build_command(name, out, **dict(lanes=None, force=False, files_only=False, as_json=False,
                                    quiet=False) | options)


def alula(*arguments, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "alula.host.cli", *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == code, done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    return done


def test_boards_command():
    facts = json.loads(alula("boards", "--json").stdout)
    assert [one["board"] for one in facts["boards"]] == list(BOARDS)
    assert {one["verified"] for one in facts["boards"]} == {"none yet"}
    text = alula("boards").stdout
    assert "none was verified on a card" in text and "XC7Z020" not in text
    assert all(board.title in text for board in BOARDS.values())


@pytest.mark.parametrize("arguments, message", [
    (("u56c",), "board must be one of u55c, u280, "),
    (("u55c", "--lanes", 40), "lanes must be from 1 to 32 on u55c, not 40")])
def test_build_command_refuses(arguments, message, tmp_path):
    done = alula("build", *arguments, "-o", tmp_path / "out", code=1)
    assert done.stderr.startswith(f"alula: {message}") and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_build_command_without_the_tool(tmp_path, fake_verilog, monkeypatch, capsys):
    """The files are there, and what is missing is said, with its version."""
    monkeypatch.setenv("PATH", "/nowhere")
    command("pynq-z2", tmp_path / "out")
    said = capsys.readouterr().err
    assert ("vivado must be on PATH to make overlay/alula.bit: Vivado 2022.1 to 2024.1 (verified "
            "with: none yet). The files are in") in " ".join(said.split())
    assert "LUT of 53,200" in said
    made = manifests.load(tmp_path / "out")
    assert made.arch == PYNQ_Z2 and made.selftest == "selftest"
    assert vectors.read(tmp_path / "out" / made.selftest)[1].arch_hash == PYNQ_Z2.hash


def test_build_command_with_force(tmp_path, fake_verilog, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(estimates, "LIMIT", 0.5)
    with pytest.raises(ValueError, match="^u55c's 32 lanes must take at most 50% of XCU55C"):
        command("u55c", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    command("u55c", tmp_path / "out", force=True)
    said = " ".join(capsys.readouterr().err.split())
    assert ("this build does not fit XCU55C; its files were written because of --force") in said
    assert "32 lanes leave 0 of 32 HBM channels" in said
    assert "vivado and v++ must be on PATH to make alula.xclbin: Vitis 2022.1 or newer" in said
    assert manifests.load(tmp_path / "out").arch == U55C.arch


def test_build_command_runs_the_tool(tmp_path, tools, capsys):
    command("u55c", tmp_path / "out", lanes=20, as_json=True)
    said = capsys.readouterr()
    facts = json.loads(said.out)
    assert facts["ran"] and facts["missing"] == [] and facts["lanes"] == 20
    assert facts["manifest"]["slack_ns"] == 0.012
    assert facts["estimate"]["lut"] == estimate(U55C, U55C.arch.with_lanes(20)).used("lut")
    assert "[4/5] link it with the platform" in said.err
    assert (tmp_path / "out" / "build.log").exists()


def test_build_command_keeps_files_of_a_failure(tmp_path, tools, monkeypatch):
    monkeypatch.setenv("FAKE_VERSION", "2019.1")
    with pytest.raises(ValueError, match="^Vivado must be 2022.1 or newer for kv260, not 2019.1; "
                                         "the files are in .*out$"):
        command("kv260", tmp_path / "out")
    assert manifests.load(tmp_path / "out").board == "kv260"


def test_build_command_writes_files_only(tmp_path, tools):
    command("kv260", tmp_path / "out", files_only=True)
    assert not tools.exists() and (tmp_path / "out" / "build.sh").exists()


def test_verilog_is_of_the_arch_asked_for(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(bundle, "verilog", lambda arch, primitive: asked.append(
        (arch.lanes, primitive)) or "")
    bundle.write(U55C, U55C.arch.with_lanes(3), tmp_path / "a")
    bundle.write(BOARDS["pynq-z2"], PYNQ_Z2, tmp_path / "b")
    assert asked == [(3, DSP48E2), (1, DSP48E1)]
