"""One table from the vendor's timing summary and utilization reports.

Run on a bundle's folder: ``python -m alula.boards.reports DIR``.

Ref: AMD UG906, Design Analysis and Closure Techniques, "Report Timing Summary", "Report
Utilization".
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

TIMING, UTILIZATION = "timing.rpt", "utilization.rpt"
# What a resource is called: UltraScale+ first, Zynq-7000 second.
_SITES = {
    "lut": ("CLB LUTs", "Slice LUTs"), "ff": ("CLB Registers", "Slice Registers"),
    "bram": ("Block RAM Tile",), "uram": ("URAM",), "dsp": ("DSPs",),
}


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Slack in nanoseconds, of setup, hold and pulse widths, and the slowest endpoints' count."""

    setup_ns: float
    hold_ns: float
    pulse_ns: float
    failing: int
    clocks_mhz: dict[str, float]

    @property
    def met(self) -> bool:
        return min(self.setup_ns, self.hold_ns, self.pulse_ns) >= 0


@dataclass(frozen=True, kw_only=True)
class Used:
    """How many of a resource a design takes, and how many there are."""

    used: float
    available: float

    @property
    def share(self) -> float:
        return self.used / self.available


def parse_timing(text: str) -> Timing:
    """Read what ``report_timing_summary`` wrote."""
    values = _summary(text)
    if any(values[name] == "NA" for name in ("WNS(ns)", "WHS(ns)")):
        raise ValueError("timing report must have paths with a clock, not NA: "
                         "the design has no constrained clock")
    return Timing(setup_ns=float(values["WNS(ns)"]), hold_ns=float(values["WHS(ns)"]),
                  pulse_ns=float(values["WPWS(ns)"]),
                  failing=sum(int(value) for name, value in values.items()
                              if name.endswith("Failing Endpoints") and value != "NA"),
                  clocks_mhz=_clocks(text))


def _summary(text: str) -> dict[str, str]:
    """Return the one row of the design's table by its headings."""
    found = re.search(r"^ *(WNS\(ns\).*)\n[ -]+\n(.+)$", text, re.MULTILINE)
    if not found:
        raise ValueError("timing report must have a Design Timing Summary, with WNS(ns)")
    names = re.split(r"\s{2,}", found[1].strip())
    return dict(zip(names, found[2].split(), strict=True))


def _clocks(text: str) -> dict[str, float]:
    """Return the frequencies of the clock summary."""
    rows = re.findall(r"^\s*(\S+)\s+\{[\d. ]+\}\s+[\d.]+\s+([\d.]+)\s*$", text, re.MULTILINE)
    return {name: float(mhz) for name, mhz in rows}


def parse_utilization(text: str) -> dict[str, Used]:
    """Read what ``report_utilization`` wrote, or ``v++``'s copy of it."""
    rows: dict[str, Used] = {}
    heads: list[str] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if "Site Type" in cells:
            heads = cells
        elif line.startswith("|") and len(cells) == len(heads) and "Available" in heads:
            row = dict(zip(heads, cells, strict=True))
            name = row["Site Type"].rstrip("*")
            if row["Available"] and name not in rows:
                rows[name] = Used(used=float(row["Used"]), available=float(row["Available"]))
    found = {what: rows[site] for what, sites in _SITES.items() for site in sites if site in rows}
    missing = [what for what in ("lut", "ff", "bram", "dsp") if what not in found]
    if missing:
        raise ValueError(f"utilization report must have rows of {', '.join(missing)}")
    return found


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a build."""

    timing: Timing
    used: dict[str, Used]

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Return one table: a name, a value, what there is, a share."""
        slack = self.timing
        rows = [(what.upper(), f"{one.used:g}", f"{one.available:g}", f"{one.share:.1%}")
                for what, one in self.used.items()]
        rows += [(f"clock {name}", f"{mhz:g} MHz", "", "")
                 for name, mhz in slack.clocks_mhz.items()]
        rows += [(f"{name} slack", f"{value:+.3f} ns", "", "met" if value >= 0 else "not met")
                 for name, value in (("setup", slack.setup_ns), ("hold", slack.hold_ns),
                                     ("pulse width", slack.pulse_ns))]
        return [*rows, ("failing endpoints", f"{slack.failing:,}", "", "")]


def read(folder: Path) -> Outcome:
    """Read the reports of a bundle's folder; raise ValueError if one is not there or not whole."""
    texts = {}
    for name in (TIMING, UTILIZATION):
        path = folder / "reports" / name
        if not path.is_file():
            raise ValueError(f"{path} must be a report of the vendor's tool; run build.sh first")
        texts[name] = path.read_text(errors="replace")
    return Outcome(timing=parse_timing(texts[TIMING]), used=parse_utilization(texts[UTILIZATION]))


if __name__ == "__main__":
    try:
        print(json.dumps(asdict(read(Path(*sys.argv[1:2]))), indent=2))
    except ValueError as error:
        sys.exit(str(error))
