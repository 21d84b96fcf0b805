"""Timing and utilization reports; the examples are written by hand (reports/README.md)."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from alula.boards.reports import parse_timing, parse_utilization, read

HERE = Path(__file__).parent / "reports"


def text(name):
    return (HERE / f"{name}.rpt").read_text()


def test_timing_met():
    timing = parse_timing(text("alveo_timing"))
    assert (timing.setup_ns, timing.hold_ns, timing.pulse_ns) == (0.012, 0.010, 0.5)
    assert timing.met and timing.failing == 0
    assert timing.clocks_mhz == {"clk_kernel_00": 225.023, "hbm_aclk": 450.045}


def test_timing_not_met():
    timing = parse_timing(text("failed_timing"))
    assert (timing.setup_ns, timing.failing, timing.met) == (-0.310, 1203, False)


def test_hold_slack_counts():
    assert not parse_timing(text("zynq_timing").replace("  0.011  ", " -0.011  ")).met


@pytest.mark.parametrize("name, used", [
    ("alveo_utilization", dict(lut=1_020_733, ff=851_204, bram=760.5, uram=440, dsp=3400)),
    ("zynq_utilization", dict(lut=71_234, ff=61_012, bram=90, uram=22, dsp=410)),
    ("series7_utilization", dict(lut=45_123, ff=30_011, bram=101.5, dsp=96))])
def test_utilization(name, used):
    found = parse_utilization(text(name))
    assert {what: one.used for what, one in found.items()} == used


def test_utilization_of_older_tools():
    """Vivado before 2022 has no column of prohibited sites."""
    lines = []
    for line in text("series7_utilization").splitlines():
        cells = line.split("|")
        if line.startswith("|") and len(cells) == 8:
            line = "|".join(cells[:4] + cells[5:])
        lines.append(line)
    found = parse_utilization("\n".join(lines))
    assert found["lut"].used == 45_123 and found["lut"].available == 53_200
    assert found["lut"].share == pytest.approx(0.8482, abs=1e-4)


def test_timing_wrong():
    with pytest.raises(ValueError, match="^timing report must have a Design Timing Summary"):
        parse_timing("ERROR: no design is open")
    with pytest.raises(ValueError, match="^timing report must have paths with a clock, not NA"):
        parse_timing(text("zynq_timing").replace("0.104", "   NA"))


def test_utilization_wrong():
    with pytest.raises(ValueError, match="^utilization report must have rows of lut, ff, bram, "
                                         "dsp$"):
        parse_utilization("")
    cut = text("zynq_utilization").split("3. ARITHMETIC\n---")[0]
    with pytest.raises(ValueError, match="^utilization report must have rows of dsp$"):
        parse_utilization(cut)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "reports").mkdir()
    for kind in ("timing", "utilization"):
        shutil.copy(HERE / f"zynq_{kind}.rpt", tmp_path / "reports" / f"{kind}.rpt")
    return tmp_path


def test_one_table(folder):
    rows = read(folder).rows()
    assert ("LUT", "71234", "117120", "60.8%") in rows
    assert ("setup slack", "+0.104 ns", "", "met") in rows
    assert ("clock clk_pl_0", "300.03 MHz", "", "") in rows


def test_report_absent(folder):
    (folder / "reports" / "timing.rpt").unlink()
    with pytest.raises(ValueError, match="timing.rpt must be a report of the vendor's tool; run "
                                         "build.sh first$"):
        read(folder)


def test_command(folder):
    done = subprocess.run([sys.executable, "-m", "alula.boards.reports", str(folder)],
                          capture_output=True, text=True, check=True)
    assert '"setup_ns": 0.104' in done.stdout
