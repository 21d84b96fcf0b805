"""The GPU's kernels compile for an H100, without one; nothing in them is fused or flushed by it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("triton", reason="triton is not installed")

TESTS = Path(__file__).parents[2]
# The only flush: rounding a peak up, which is never subnormal.
ALLOWED = {"cvt.rpi.ftz.f32.f32", "add.rn.f32", "sub.rn.f32", "mul.rn.f32", "div.rn.f32"}


def kernels(folder, rows, fused_rows, decoder):
    """Return what each launch is made of; the process has no interpreter."""
    run = subprocess.run(
        [sys.executable, "gpu_compile.py", str(rows), str(fused_rows), decoder], cwd=TESTS,
        env=os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(folder)},
        capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    return [json.loads(line) for line in run.stdout.splitlines()]


def products(found):
    return {word for kernel in found if kernel["kernel"] == "linear_kernel"
            for word in kernel["instructions"] if "dp4a" in word or "mma" in word}


@pytest.mark.parametrize("rows, fused_rows, decoder, product", [
    (1, 1, "dict(bits=4)", "dp4a.s32.s32"),
    pytest.param(16, 0, "dict(kept=8)",
                 "mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32",
                 marks=pytest.mark.slow),
])
def test_exact(rows, fused_rows, decoder, product, tmp_path):
    found = kernels(tmp_path, rows, fused_rows, decoder)
    assert {"linear_kernel", "attend_kernel"} <= {kernel["kernel"] for kernel in found}
    for kernel in found:
        assert not kernel["fusion"] and kernel["binary"]
        rounded = {word for word in kernel["instructions"] if "32.s8" not in word}
        assert rounded - {"dp4a.s32.s32"} <= ALLOWED, kernel
    assert products(found) == {product}
