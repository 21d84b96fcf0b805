"""Every stored form of a weight, read back and compared with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import reference
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    HQQWeightOnlyQuantConfig,
    MatMulNBitsQuantizer,
    QuantFormat,
)
from sketch import HIDDEN, VOCAB, Sketch

from alula.compiler.graph import Embed, FloatMatrix, Linear, QuantMatrix
from alula.compiler.importer import Refused, import_model

Agrees = Callable[..., Any]
COLS = 80  # no multiple of 32


def quantized(tmp_path: Path, config: Any, width: int = COLS) -> Path:
    """Return a model whose head ONNX Runtime's own tool quantized."""
    directory = Sketch(21, width=width).save(tmp_path)
    proto = onnx.load(directory / "model.onnx")
    tool = MatMulNBitsQuantizer(proto, algo_config=config)
    tool.process()
    tool.model.save_model_to_file(str(directory / "model.onnx"))
    return directory


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("bits, block", [(2, 16), (2, 32), (4, 16), (4, 32), (4, 64), (4, 128),
                                         (4, 256), (8, 16), (8, 32), (8, 128)])
def test_matmul_nbits(tmp_path: Path, agrees: Agrees, bits: int, block: int,
                      symmetric: bool) -> None:
    config = DefaultWeightOnlyQuantConfig(bits=bits, block_size=block, is_symmetric=symmetric)
    graph, _ = agrees(quantized(tmp_path, config))
    matrix = next(graph.of(Linear)).op.weight
    assert isinstance(matrix, QuantMatrix)
    assert (matrix.rows, matrix.cols, matrix.bits, matrix.group) == (VOCAB, COLS, bits, block)
    codes = matrix.read(10, 17)
    assert codes.codes.shape == (7, COLS)
    assert codes.scales.shape == codes.zero_points.shape == (7, matrix.groups)
    assert int(codes.codes.max()) < 2**bits
    for part, whole in zip(codes, matrix.read(0, VOCAB), strict=True):
        np.testing.assert_array_equal(part, whole[10:17])


def test_matmul_nbits_long_block(tmp_path: Path) -> None:
    """A block of 512 becomes two groups of one scale. ONNX Runtime does not run it."""
    head = Head(block=512, cols=1040)
    graph, _ = import_model(head.save(tmp_path))
    matrix = next(graph.of(Linear)).op.weight
    assert (matrix.group, matrix.groups) == (256, 5)
    read = matrix.read(3, 5)
    np.testing.assert_array_equal(read.scales, head.scales[3:5, [0, 0, 1, 1, 2]])
    packed = head.codes.reshape(VOCAB, -1)[3:5]
    np.testing.assert_array_equal(read.codes[:, ::2], (packed & 15)[:, :520])
    np.testing.assert_array_equal(read.codes[:, 1::2], (packed >> 4)[:, :520])


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
def test_qdq(tmp_path: Path, agrees: Agrees, symmetric: bool) -> None:
    config = DefaultWeightOnlyQuantConfig(bits=4, block_size=16, is_symmetric=symmetric,
                                          quant_format=QuantFormat.QDQ)
    graph, _ = agrees(quantized(tmp_path, config))
    assert isinstance(next(graph.of(Linear)).op.weight, QuantMatrix)


def test_qdq_channels(tmp_path: Path, agrees: Agrees) -> None:
    config = DefaultWeightOnlyQuantConfig(bits=4, block_size=COLS, is_symmetric=True,
                                          quant_format=QuantFormat.QDQ, channel_wised_quantize=True)
    graph, _ = agrees(quantized(tmp_path, config))
    assert next(graph.of(Linear)).op.weight.group == 128


def test_hqq_wrong(tmp_path: Path) -> None:
    directory = quantized(tmp_path, HQQWeightOnlyQuantConfig(block_size=16, bits=4))
    with pytest.raises(Refused, match=r"^head\w* \(com\.microsoft\.MatMulNBits, opset 1\): "
                                      r"zero_points must be integers from 0 to 15, not [\d.]+; "
                                      r"quantize with RTN, k-quant or the default"):
        import_model(directory)


def test_gather_quantized(tmp_path: Path, agrees: Agrees) -> None:
    for symmetric in (True, False):
        config = DefaultWeightOnlyQuantConfig(
            block_size=16, is_symmetric=symmetric, op_types_to_quantize=("MatMul", "Gather"),
            quant_axes=(("MatMul", 0), ("Gather", 1)))
        graph, _ = agrees(quantized(tmp_path / str(symmetric), config))
        assert isinstance(next(graph.of(Embed)).op.table, QuantMatrix)


class Head:
    """A model whose head is a MatMulNBits of given codes; options change one thing of it."""

    def __init__(self, bits: int = 4, block: int = 32, cols: int = COLS, rows: int = VOCAB) -> None:
        self.sketch = sketch = Sketch(21, width=cols)
        self.blocks, self.rows, self.bits = -(-cols // block), rows, bits
        random = sketch.random
        self.codes = random.integers(0, 256, (rows, self.blocks, block * bits // 8), np.uint8)
        self.scales = random.standard_normal((rows, self.blocks)).astype(np.float32)
        self.inputs = ["", "B", "scales"]
        self.attributes = {"K": cols, "N": rows, "bits": bits, "block_size": block}

    def more(self, name: str, array: NDArray[Any], at: int) -> Head:
        self.sketch.tensor(name, array)
        self.inputs += [""] * (at + 1 - len(self.inputs))
        self.inputs[at] = name
        return self

    def save(self, directory: Path) -> Path:
        sketch = self.sketch
        sketch.tensor("B", self.codes)
        sketch.tensor("scales", self.scales)
        self.inputs[0] = sketch.norm(sketch.x, "final")
        sketch.x = sketch.add("MatMulNBits", self.inputs, "head", domain="com.microsoft",
                              **self.attributes)
        return sketch.save(directory, head=False)


def test_nbits_flat_scales_and_bias(tmp_path: Path, agrees: Agrees) -> None:
    head = Head()
    head.scales = head.scales.reshape(-1)
    bias = head.sketch.random.standard_normal(VOCAB).astype(np.float32)
    graph, _ = agrees(head.more("bias", bias, 5).save(tmp_path))
    np.testing.assert_array_equal(next(graph.of(Linear)).op.bias, bias)


@pytest.mark.parametrize("flat", [False, True])
def test_nbits_zero_points_packed(tmp_path: Path, agrees: Agrees, flat: bool) -> None:
    head = Head()
    packed = head.sketch.random.integers(0, 256, (VOCAB, 2), np.uint8)
    agrees(head.more("zeros", packed.reshape(-1) if flat else packed, 3).save(tmp_path))


def test_nbits_zero_points_whole_floats(tmp_path: Path, agrees: Agrees) -> None:
    head = Head()
    zeros = head.sketch.random.integers(0, 16, (VOCAB, 3)).astype(np.float32)
    graph, _ = agrees(head.more("zeros", zeros, 3).save(tmp_path))
    read = next(graph.of(Linear)).op.weight.read(0, VOCAB)
    np.testing.assert_array_equal(read.zero_points, zeros)


def test_nbits_group_order(tmp_path: Path) -> None:
    head = Head()
    order = (np.arange(COLS) // 32).astype(np.int32)
    import_model(head.more("g_idx", order, 4).save(tmp_path))


WRONG: list[tuple[Callable[[Head], Any], str]] = [
    (lambda head: head.more("g_idx", np.arange(COLS, dtype=np.int32)[::-1] // 32, 4),
     r"g_idx must be absent or in order \(input // block_size\), not a permutation; re-quantize "
     r"with desc_act=false"),
    (lambda head: head.attributes.update(weight_prepacked=1),
     r"weight_prepacked must be 0, not 1; re-export with matmulnbits_weights_prepacked=0"),
    (lambda head: head.attributes.update(bits=5), r"bits must be 2, 4 or 8, not 5"),
    (lambda head: head.attributes.update(block_size=24), r"N, K and block_size must be positive"),
    (lambda head: head.attributes.update(K=COLS + 32),
     r"shape of B must be \[160, 4, 16\], not \[160, 3, 16\]"),
    (lambda head: setattr(head, "codes", head.codes[:7]), r"shape of B must be"),
    (lambda head: setattr(head, "scales", head.scales[:7]), r"scales must be 160 x 3 floats"),
    (lambda head: head.more("zeros", np.zeros((VOCAB, 3), np.uint8), 3),
     r"zero_points must be 160 x 2 bytes or 160 x 3 floats, not UINT8 of shape \[160, 3\]"),
    (lambda head: head.more("zeros", np.full((VOCAB, 3), 7.5, np.float32), 3),
     r"zero_points must be integers from 0 to 15, not 7\.5"),
    (lambda head: head.more("bias", np.zeros(7, np.float32), 5),
     r"elements of input 5 must be 160, not 7"),
]


@pytest.mark.parametrize("change, message", WRONG, ids=[message[:24] for _, message in WRONG])
def test_nbits_wrong(tmp_path: Path, change: Callable[[Head], Any], message: str) -> None:
    head = Head()
    change(head)
    with pytest.raises(Refused, match=r"^head \(com.microsoft.MatMulNBits, opset 1\): " + message):
        import_model(head.save(tmp_path))


# DequantizeLinear, which no tool of ours writes in all its forms

QDQ = [(TensorProto.INT4, 16, -8, 8), (TensorProto.UINT4, 16, 0, 16), (TensorProto.INT8, 16, -128,
       128), (TensorProto.UINT8, 16, 0, 256), (TensorProto.INT4, 0, -8, 8),
       (TensorProto.INT8, 0, -128, 128)]


@pytest.mark.parametrize("dtype, block, low, high", QDQ)
@pytest.mark.parametrize("form", ["MatMul", "Transpose", "Gemm"])
@pytest.mark.parametrize("rows", [VOCAB, VOCAB + 1], ids=["even", "odd"])
@pytest.mark.parametrize("zeros", [True, False])
def test_dequantize_forms(tmp_path: Path, dtype: int, block: int, low: int, high: int, form: str,
                          rows: int, zeros: bool) -> None:
    """Codes with a byte shared along either axis; compared with the definition of the operator."""
    sketch = Sketch(23)
    by_input = form == "MatMul"
    shape = (HIDDEN, rows) if by_input else (rows, HIDDEN)
    axis = 0 if by_input else 1
    values = sketch.random.integers(low, high, shape)
    blocks = list(shape)
    blocks[axis] = HIDDEN // block if block else 1
    scales = sketch.random.standard_normal(blocks).astype(np.float32)
    points = sketch.random.integers(low, high, blocks)
    wanted = (values - (np.repeat(points, block or HIDDEN, axis) if zeros else 0)) * np.repeat(
        scales, block or HIDDEN, axis)
    attributes = {"axis": axis, "block_size": block} if block else {"axis": 1 - axis}
    given = [sketch.packed("codes", dtype, values),
             sketch.tensor("scales", scales if block else scales.reshape(-1))]
    if zeros:
        given.append(sketch.packed("zeros", dtype, points if block else points.reshape(-1)))
    weight = sketch.add("DequantizeLinear", given, "dq", **attributes)
    x = sketch.norm(sketch.x, "final")
    if form == "Transpose":
        weight = sketch.add("Transpose", [weight], "turn", perm=[1, 0])
    sketch.x = (sketch.add("Gemm", [x, weight], "head", transB=1) if form == "Gemm"
                else sketch.add("MatMul", [x, weight], "head"))
    graph, coverage = import_model(sketch.save(tmp_path, head=False))
    matrix = next(graph.of(Linear)).op.weight
    np.testing.assert_allclose(reference.dense(matrix), wanted.T if by_input else wanted,
                               rtol=1e-6)
    assert any(entry.op == "DequantizeLinear" and entry.disposition == "accelerator"
               for entry in coverage.entries)


def test_dequantize_axis_wrong(tmp_path: Path) -> None:
    sketch = Sketch(23)
    codes = sketch.packed("codes", TensorProto.INT4, np.zeros((HIDDEN, VOCAB), int))
    scales = sketch.tensor("scales", np.ones((HIDDEN, VOCAB // 16), np.float32))
    weight = sketch.add("DequantizeLinear", [codes, scales], "dq", axis=1, block_size=16)
    sketch.x = sketch.add("MatMul", [sketch.norm(sketch.x, "final"), weight], "head")
    with pytest.raises(Refused, match=r"^dq \(DequantizeLinear, opset 23\): axis must be 0, not 1; "
                                      r"blocks must lie along the inputs of the layer$"):
        import_model(sketch.save(tmp_path, head=False))


# Float weights


@pytest.mark.parametrize("transposed", [False, True])
def test_gemm_bias(tmp_path: Path, agrees: Agrees, transposed: bool) -> None:
    sketch = Sketch(23)
    flat = sketch.tensor("flat", np.array([-1, HIDDEN]))
    x = sketch.add("Reshape", [sketch.norm(sketch.x, "final"), flat], "rows")
    shape = (VOCAB, HIDDEN) if transposed else (HIDDEN, VOCAB)
    x = sketch.add("Gemm", [x, sketch.weight("w", *shape), sketch.weight("b", VOCAB)], "gemm",
                   transB=int(transposed))
    back = sketch.tensor("back", np.array([1, -1, VOCAB]))
    sketch.x = sketch.add("Reshape", [x, back], "unflat")
    graph, _ = agrees(sketch.save(tmp_path, head=False))
    assert next(graph.of(Linear)).op.bias is not None


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_float_types(tmp_path: Path, dtype: Any) -> None:
    sketch = Sketch(23)
    weight = sketch.random.standard_normal((HIDDEN, VOCAB)).astype(dtype)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    sketch.initializers.append(helper.make_tensor("w", kind, weight.shape, weight.tobytes(),
                                                  raw=True))
    cast = sketch.add("Cast", ["w"], "cast", to=1)
    sketch.x = sketch.add("MatMul", [sketch.norm(sketch.x, "final"), cast], "head")
    graph, _ = import_model(sketch.save(tmp_path, head=False))
    matrix = next(graph.of(Linear)).op.weight
    assert isinstance(matrix, FloatMatrix)
    np.testing.assert_array_equal(matrix.read(5, 9), weight[:, 5:9].T.astype(np.float32))


@pytest.mark.parametrize("flat", [True, False])
def test_sparse_weight(tmp_path: Path, agrees: Agrees, flat: bool) -> None:
    sketch = Sketch(23)
    weight = sketch.random.standard_normal((HIDDEN, VOCAB)).astype(np.float32)
    weight[sketch.random.random(weight.shape) < 0.6] = 0
    places = np.flatnonzero(weight) if flat else np.argwhere(weight)
    values = onnx.numpy_helper.from_array(weight[weight != 0], "w")
    index = onnx.numpy_helper.from_array(places, "w_index")
    sketch.sparse.append(helper.make_sparse_tensor(values, index, weight.shape))
    sketch.x = sketch.add("MatMul", [sketch.norm(sketch.x, "final"), "w"], "head")
    graph, _ = agrees(sketch.save(tmp_path, head=False))
    np.testing.assert_array_equal(reference.dense(next(graph.of(Linear)).op.weight), weight.T)


def test_adapter_wrong(tmp_path: Path) -> None:
    """LoRA as graph inputs: the weight is not in the file."""
    sketch = Sketch(23)
    sketch.inputs.append(helper.make_tensor_value_info("lora_A", TensorProto.FLOAT,
                                                       [HIDDEN, VOCAB]))
    sketch.x = sketch.add("MatMul", [sketch.norm(sketch.x, "final"), "lora_A"], "head")
    with pytest.raises(Refused, match=r"^head \(MatMul, opset 23\): input 1 must be a weight of "
                                      r"the file, not the graph input 'lora_A'; merge adapters"):
        import_model(sketch.save(tmp_path, head=False))
