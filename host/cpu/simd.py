"""Vectors of LLVM, for the one kernel that numba's loops do not vectorise well: products.

Everything is on sixteen 32-bit lanes, or the 64 bytes in their place: a lane is a row of a tile of
weights. Where the processor has AVX-512 with VNNI and VBMI2, products and expansions are its
instructions; elsewhere they are plain vector code, which gives the same integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from llvmlite import binding, ir

LANES = 16
I1, I8, I16, I32, I64 = (ir.IntType(width) for width in (1, 8, 16, 32, 64))
F32 = ir.FloatType()
FEATURES = ("avx512f", "avx512bw", "avx512vl", "avx512vnni", "avx512vbmi2", "f16c")
_BYTE_OPERANDS = 22  # LLVM from which VNNI's operands are bytes


@cache
def has_avx512() -> bool:
    """Return whether this processor has every instruction that the fast kernels use."""
    features = binding.get_host_cpu_features()
    return all(features.get(name, False) for name in FEATURES)


def vector(kind: Any, lanes: int = LANES) -> Any:
    return ir.VectorType(kind, lanes)


def constant(kind: Any, value: Any, lanes: int = LANES) -> Any:
    """Return a vector of one value."""
    return ir.Constant(vector(kind, lanes), [value] * lanes)


class Simd:
    """Emits vector operations at a builder's place.

    Parameters
    ----------
    fast
        Whether AVX-512's instructions may be used, or plain vector code must do.
    """

    def __init__(self, builder: Any, fast: bool) -> None:
        self.builder, self.fast = builder, fast

    # Memory; addresses are 64-bit integers, of any alignment.

    def load(self, address: Any, kind: Any) -> Any:
        pointer = self.builder.inttoptr(address, kind.as_pointer())
        return self.builder.load(pointer, align=1)

    def store(self, value: Any, address: Any) -> None:
        pointer = self.builder.inttoptr(address, value.type.as_pointer())
        self.builder.store(value, pointer, align=1)

    def offset(self, address: Any, *terms: Any) -> Any:
        for term in terms:
            if not isinstance(term, int):
                address = self.builder.add(address, term)
            elif term:
                address = self.builder.add(address, I64(term))
        return address

    def times(self, value: Any, factor: int) -> Any:
        return self.builder.mul(value, I64(factor))

    # Lanes.

    def splat(self, value: Any, lanes: int = LANES) -> Any:
        kind = vector(value.type, lanes)
        one = self.builder.insert_element(ir.Constant(kind, ir.Undefined), value, I32(0))
        return self.shuffle(one, one, [0] * lanes)

    def shuffle(self, a: Any, b: Any, order: Sequence[int]) -> Any:
        return self.builder.shuffle_vector(a, b, ir.Constant(vector(I32, len(order)), list(order)))

    def call(self, name: str, result: Any, *arguments: Any) -> Any:
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        function = self.builder.module.globals.get(name) or ir.Function(
            self.builder.module, kind, name)
        return self.builder.call(function, arguments)

    def dot4(self, total: Any, codes: Any, x: Any) -> Any:
        """Add to each lane the dot product of its four unsigned codes and ``x``, four int8."""
        if self.fast:
            kind = (vector(I8, 64) if binding.llvm_version_info[0] >= _BYTE_OPERANDS
                    else vector(I32))
            return self.call("llvm.x86.avx512.vpdpbusd.512", vector(I32), total,
                             self.builder.bitcast(codes, kind),
                             self.builder.bitcast(self.splat(x), kind))
        words = self.builder.bitcast(codes, vector(I32))
        for at in range(4):
            byte = self.builder.and_(self.builder.lshr(words, constant(I32, 8 * at)),
                                     constant(I32, 255))
            one = self.builder.ashr(self.builder.shl(x, I32(24 - 8 * at)), I32(24))
            total = self.builder.add(total, self.builder.mul(byte, self.splat(one)))
        return total

    def expand(self, values: Any, background: Any, mask: Any) -> Any:
        """Return the first values in the lanes of a mask's ones, the background elsewhere.

        ``mask`` is an integer of as many bits as there are lanes.
        """
        lanes, kind = values.type.count, values.type
        ones = self.builder.bitcast(mask, vector(I1, lanes))
        if self.fast:
            short = f"v{lanes}{'f32' if kind.element == F32 else f'i{kind.element.width}'}"
            return self.call(f"llvm.x86.avx512.mask.expand.{short}", kind, values, background,
                             ones)
        at = I32(0)
        for lane in range(lanes):  # no instruction for it
            one = self.builder.extract_element(ones, I32(lane))
            chosen = self.builder.select(
                one, self.builder.extract_element(values, at),
                self.builder.extract_element(background, I32(lane)))
            background = self.builder.insert_element(background, chosen, I32(lane))
            if lane < lanes - 1:
                at = self.builder.add(at, self.builder.zext(one, I32))
        return background

    # fp32 as the contract has it.

    def halves(self, address: Any) -> Any:
        """Load sixteen fp16 numbers as fp32."""
        if self.fast:
            half = self.load(address, vector(ir.HalfType()))
            return self.builder.fpext(half, vector(F32))
        wide = self.builder.zext(self.load(address, vector(I16)), vector(I32))
        size = self.builder.shl(self.builder.and_(wide, constant(I32, 0x7FFF)), constant(I32, 13))
        value = self.builder.fmul(self.builder.bitcast(size, vector(F32)),
                                  constant(F32, 2.0 ** 112))
        bits = self.builder.bitcast(value, vector(I32))
        odd = self.builder.icmp_unsigned(">=", size, constant(I32, 0x7C00 << 13))
        bits = self.builder.select(odd, self.builder.or_(size, constant(I32, 0x7F80_0000)), bits)
        sign = self.builder.shl(self.builder.and_(wide, constant(I32, 0x8000)), constant(I32, 16))
        return self.builder.bitcast(self.builder.or_(bits, sign), vector(F32))

    def flush(self, value: Any) -> Any:
        """Return the lanes with subnormals made zeros of their sign."""
        bits = self.builder.bitcast(value, vector(I32))
        small = self.builder.icmp_unsigned(
            "==", self.builder.and_(bits, constant(I32, 0x7F80_0000)), constant(I32, 0))
        sign = self.builder.and_(bits, constant(I32, 0x8000_0000))
        return self.builder.bitcast(self.builder.select(small, sign, bits), vector(F32))

    def one_nan(self, value: Any) -> Any:
        """Return the lanes with every NaN made the contract's."""
        nan = self.builder.fcmp_unordered("uno", value, value)
        bits = self.builder.bitcast(value, vector(I32))
        return self.builder.bitcast(
            self.builder.select(nan, constant(I32, 0x7FC0_0000), bits), vector(F32))

    def scale_by_power(self, value: Any, power: Any) -> Any:
        """Return the lanes times ``2**power``, a 32-bit integer; of which none is a subnormal."""
        bits = self.builder.bitcast(value, vector(I32))
        old = self.builder.and_(self.builder.lshr(bits, constant(I32, 23)), constant(I32, 255))
        new = self.builder.add(old, self.splat(power))
        zero, top = constant(I32, 0), constant(I32, 255)
        sign = self.builder.and_(bits, constant(I32, 0x8000_0000))
        moved = self.builder.or_(self.builder.and_(bits, constant(I32, 0x807F_FFFF)),
                                 self.builder.shl(new, constant(I32, 23)))
        small = self.builder.or_(self.builder.icmp_signed("<=", new, zero),
                                 self.builder.icmp_signed("==", old, zero))
        infinite = self.builder.or_(sign, constant(I32, 0x7F80_0000))
        moved = self.builder.select(self.builder.icmp_signed(">=", new, top), infinite, moved)
        moved = self.builder.select(small, sign, moved)
        moved = self.builder.select(self.builder.icmp_signed("==", old, top), bits, moved)
        return self.builder.bitcast(moved, vector(F32))
