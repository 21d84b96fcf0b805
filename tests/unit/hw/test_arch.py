"""Sizes of builds: what is legal, and how a build is named."""

from dataclasses import replace

import pytest

from alula.hw.arch import BUILDS, SIM, U55C, build


@pytest.mark.parametrize("name", BUILDS)
def test_names(name):
    assert build(name).name == name and build(name) is BUILDS[name]


def test_some_lanes():
    some = build("u55c:30")
    assert some == replace(U55C, lanes=30) == U55C.with_lanes(30)
    assert some.name == "u55c" and some.hash != U55C.hash


@pytest.mark.parametrize("name, message", [
    ("u250", "arch must be one of sim, .*, not 'u250'"),
    ("u250:3", "arch must be one of sim, .*, not 'u250:3'"),
    ("u55c:x", "arch must be NAME or NAME:LANES, such as u55c:30, not 'u55c:x'"),
    ("u55c:33", "lanes must be from 1 to 32 on u55c, not 33"),
    ("u55c:0", "lanes must be from 1 to 32 on u55c, not 0"),
])
def test_build_wrong(name, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        build(name)


@pytest.mark.parametrize("sizes, message", [
    (dict(beat_bytes=48), "beat_bytes must be 16, 32 or 64, not 48"),
    (dict(lane_ports=3), "lane_ports must be 1, 2 or 4, for ports of 8 bytes or more, not 3"),
    (dict(beat_bytes=16, lane_ports=4), "lane_ports must be 1, 2 or 4, .*, not 4"),
    (dict(lanes=65), "lanes must be from 1 to 64, not 65"),
    (dict(lane_dsps=96), "lane_dsps must be a power of two from 64 to 65536, not 96"),
])
def test_sizes_wrong(sizes, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        replace(SIM, **sizes)
