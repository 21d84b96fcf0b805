"""Compile every kernel of a small decoder's step for sm_90, on any machine; print what is in them.

    TRITON_INTERPRET=0 python tests/gpu_compile.py ROWS FUSED_ROWS "dict(bits=4)"

A line of JSON for each launch: the kernel, whether multiplies and adds may be fused, and its PTX's
instructions that round or that multiply integers.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import torch
import triton
from models import program
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from alula.host.gpu.device import GpuDevice, Tuning, _Plan
from alula.host.gpu.plan import Key
from alula.host.gpu.vector import Memory
from alula.hw.arch import SIM

TYPES = {torch.float32: "*fp32", torch.int8: "*i8", torch.int32: "*i32", torch.int16: "*i16",
         torch.float16: "*fp16", torch.int64: "*i64", torch.uint8: "*u8"}
WANTED = re.compile(r"\b(?:fma|mad|add|sub|mul|div)\S*f32\b|\b\S+\.ftz\S*|\bdp4a\S*|\bw?gmma\S*"
                    r"|\bmma\.\S+")


def type_of(value: Any) -> Any:
    if isinstance(value, Memory):
        return Memory(*map(type_of, value))
    if hasattr(value, "dtype"):
        return TYPES[value.dtype]
    return "constexpr" if value == 1 else "i32"  # as a launch has it


def compiled(call: tuple[Any, ...], plan: _Plan) -> Any:
    """Return Triton's compiled kernel for a launch."""
    kernel, _, _, arguments, choices = call
    values = (plan.device.memory, plan.addresses, *arguments)
    options = {name: choices[name] for name in ("num_warps", "enable_fp_fusion")}
    names = kernel.arg_names
    choices = choices | {"ASSEMBLY": True}
    signature = {name: type_of(value) for name, value in zip(names, values, strict=False)}
    constants = {(at,): choices[name] for at, name in enumerate(names) if name not in signature}
    constants |= {(at,): 1 for at, name in enumerate(names) if signature.get(name) == "constexpr"}
    signature |= dict.fromkeys(names[len(values):], "constexpr")
    return triton.compile(ASTSource(kernel, signature, constants),
                          target=GPUTarget("cuda", 90, 32), options=options)


def main(rows: str, fused_rows: str, decoder: str) -> None:
    made = program(SIM, layers=1, context=128, sequences=2, **eval(decoder))
    device = GpuDevice(made, Tuning(fused_rows=int(fused_rows)), where="cpu")
    plan = _Plan(device, Key(int(rows), 1, 1, False))
    for call in plan.calls:
        kernel = compiled(call, plan)
        found = sorted(set(WANTED.findall(kernel.asm["ptx"])))
        print(json.dumps(dict(kernel=call[0].__name__, fusion=kernel.metadata.enable_fp_fusion,
                              binary=len(kernel.asm["cubin"]), instructions=found)))


if __name__ == "__main__":
    main(*sys.argv[1:])
