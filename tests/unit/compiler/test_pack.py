"""Packing and unpacking are exact inverses, and cost the bytes they should."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from models import random_codes

from alula.compiler.graph import Codes
from alula.compiler.pack import PackStats, dense_strip, pack_strips
from alula.hw import layout
from alula.hw.arch import SIM, U55C, ArchConfig
from alula.sim.unpack import StreamError, unpack_stream


def _build(beat: int, dsps: int = 2) -> ArchConfig:
    """Return a build with beats of some bytes and ``dsps`` DSP slices for each byte."""
    return replace(SIM, beat_bytes=beat, lane_dsps=dsps * beat)


SMALL = _build(16)
FORMATS = dict(bits=st.sampled_from([2, 3, 4, 8]), group=st.sampled_from([16, 32, 64, 128, 256]))


def _pack(rows: Codes, bits: int, group: int, arch: ArchConfig = SMALL,
          exponent: int = 0) -> tuple[np.ndarray, int, PackStats]:
    stats = PackStats()
    strips = pack_strips(rows, bits, group, exponent, arch, stats)
    data = np.frombuffer(b"".join(strips), np.uint8)
    assert all(len(strip) % arch.beat_bytes == 0 for strip in strips)
    assert stats.total == data.size
    return data, len(strips), stats


def _check_inverse(rows: Codes, bits: int, group: int, arch: ArchConfig) -> None:
    data, strips, _ = _pack(rows, bits, group, arch)
    count, cols = rows.codes.shape
    groups = rows.scales.shape[1]
    got = unpack_stream(data, strips, groups, group, arch)
    wanted = rows.codes.astype(np.int16) - rows.zero_points[:, np.arange(cols) // group]
    np.testing.assert_array_equal(got.codes[:count, :cols], wanted)
    assert not got.codes[count:].any() and not got.codes[:, cols:].any()
    present = np.logical_or.reduceat(wanted != 0, np.arange(0, cols, group), axis=1)
    np.testing.assert_array_equal(got.scales[:count], np.where(present, rows.scales, 0))


@settings(max_examples=150, deadline=None)
@given(**FORMATS, rows=st.integers(1, 50), cols=st.integers(1, 700),
       beat=st.sampled_from([16, 32, 64]), dsps=st.sampled_from([2, 4]), asymmetric=st.booleans(),
       zeros=st.sampled_from([0, 0.1, 0.5, 0.9, 1]), kept=st.sampled_from([0, 0, 2, 4, 8, 12, 13]),
       dropped=st.sampled_from([0, 0.5, 1]), seed=st.integers(0, 2**32 - 1))
def test_pack_unpack_inverse(bits, group, rows, cols, beat, dsps, asymmetric, zeros, kept, dropped,
                             seed):
    random = np.random.default_rng(seed)
    _check_inverse(random_codes(random, rows, cols, bits, group, asymmetric=asymmetric,
                                zeros=zeros, kept=kept, dropped=dropped), bits, group,
                   _build(beat, dsps))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("fill", ["lowest", "highest", "zero", "one nonzero in each row"])
def test_pack_unpack_hostile_values(bits, fill):
    codes = np.full((17, 33), {"lowest": 0, "highest": (1 << bits) - 1}.get(fill, 1 << (bits - 1)),
                    np.uint8)
    if fill.startswith("one"):
        codes[np.arange(17), np.arange(17) * 7 % 33] = 0
    scales = np.full((17, 3), -6.1e-5, np.float16).astype(np.float32)
    scales[::2] = 65504
    points = np.full((17, 3), 1 << (bits - 1), np.uint8)
    _check_inverse(Codes(codes, scales, points), bits, 16, U55C)


def test_pack_keeps_negative_zero_points_and_scales():
    random = np.random.default_rng(3)
    _check_inverse(random_codes(random, 40, 100, 8, 32, asymmetric=True), 8, 32, SIM)


@pytest.mark.parametrize("bits, group, tiles", [(4, 128, 32), (4, 32, 7), (3, 64, 33), (8, 16, 1)])
@pytest.mark.parametrize("beat", [16, 64])
def test_dense_strip_is_what_packing_makes(bits, group, tiles, beat):
    random = np.random.default_rng(0)
    codes = random.integers(0, 1 << bits, (16, tiles * group)).astype(np.uint8)
    codes[:, ::16] = 0  # so that no row is absent and no window sparse
    codes[codes == 1 << (bits - 1)] = 1
    rows = Codes(codes, np.ones((16, tiles), np.float32),
                 np.full((16, tiles), 1 << (bits - 1), np.uint8))
    _, _, stats = _pack(rows, bits, group, _build(beat))
    assert stats == dense_strip(bits, group, tiles, _build(beat))


@pytest.mark.parametrize("kept, bits_per_weight", [(4, (4 * 4 + 11) / 16), (8, (8 * 4 + 14) / 16),
                                                   (12, (12 * 4 + 11) / 16)])
def test_sparse_bytes(kept, bits_per_weight):
    """8:16 at four bits reads 2.875 bits a weight, not four: patterns are coded."""
    random = np.random.default_rng(0)
    rows = random_codes(random, 256, 1024, 4, 128, kept=kept)
    _, _, stats = _pack(rows, 4, 128, U55C)
    assert (stats.codes + stats.positions) * 8 == bits_per_weight * rows.codes.size
    assert stats.padding < 0.01 * stats.total


def test_dropped_groups_cost_one_bit():
    random = np.random.default_rng(0)
    _, _, dense = _pack(random_codes(random, 256, 1024, 4, 128), 4, 128, U55C)
    _, _, half = _pack(random_codes(random, 256, 1024, 4, 128, dropped=0.5), 4, 128, U55C)
    assert 0.45 < (half.codes + half.scales) / (dense.codes + dense.scales) < 0.55
    assert half.headers == dense.headers


@pytest.mark.parametrize("kept", sorted(layout.KEPT_PATTERNS))
def test_every_pattern_has_a_code(kept):
    codes, bitmaps = layout.pattern_tables(kept)
    patterns = np.flatnonzero(np.bitwise_count(np.arange(1 << 16)) == kept)
    assert len(set(codes[patterns].tolist())) == len(patterns)
    np.testing.assert_array_equal(bitmaps[codes[patterns]], patterns)
    assert np.count_nonzero(bitmaps) == len(patterns)


def test_unpack_short_wrong():
    random = np.random.default_rng(0)
    data, strips, _ = _pack(random_codes(random, 16, 64, 4, 32), 4, 32, SIM)
    with pytest.raises(StreamError, match=r"^a stream must have at least \d+ bytes, not \d+$"):
        unpack_stream(data[:-SIM.beat_bytes], strips, 2, 32, SIM)
    with pytest.raises(StreamError, match=r"^a stream of 1 strips must end at byte \d+, not \d+$"):
        unpack_stream(np.append(data, np.zeros(SIM.beat_bytes, np.uint8)), strips, 2, 32, SIM)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=400))
def test_unpack_any_bytes(data):
    """Hostile bytes are unpacked or refused; nothing else."""
    try:
        unpack_stream(np.frombuffer(data, np.uint8), 1, 2, 32, SIM)
    except ValueError as error:
        assert str(error)


def test_formats_text_knows_the_order_and_the_codes(monkeypatch):
    """It is hashed into every program, so that one packed otherwise is refused."""
    texts = {layout.describe()}
    with monkeypatch.context() as patch:
        patch.setattr(layout, "SECTIONS", layout.SECTIONS[::-1])
        texts.add(layout.describe())
    with monkeypatch.context() as patch:
        patch.setattr(layout, "pattern_tables", lambda kept: (None, np.arange(kept)))
        texts.add(layout.describe())
    assert len(texts) == 3
