"""Each function of the accelerator that ONNX has an operator for, against that operator alone."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from alula.compiler.graph import Codes
from alula.compiler.pack import PackStats, pack_strips
from alula.hw import numerics
from alula.hw.arch import SIM
from alula.sim.unpack import unpack_stream

RANDOM = np.random.default_rng(0)


def _onnx(op, inputs, opset=23, domain="", **attributes):
    """Run one operator in ONNX Runtime."""
    names = [f"i{at}" for at in range(len(inputs))]
    node = helper.make_node(op, names, ["y"], domain=domain, **attributes)
    kinds = [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype),
                                           value.shape)
             for name, value in zip(names, inputs, strict=True)]
    constants = [numpy_helper.from_array(value, name) for name, value in
                 zip(names[1:], inputs[1:], strict=True)] if op == "MatMulNBits" else []
    model = helper.make_model(
        helper.make_graph([node], "g", kinds[:1] if constants else kinds,
                          [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], constants),
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)])
    model.ir_version = 10
    feed = {names[0]: inputs[0]} if constants else dict(zip(names, inputs, strict=True))
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, feed)[0]


def _close(got, wanted, worst):
    error = np.abs(got - wanted).max() / np.abs(wanted).max()
    print(f"worst error {error:.2e} of the largest value")
    assert error <= worst


@pytest.mark.parametrize("bits", [4, 8])  # what its CPU kernel of accuracy level 4 takes
@pytest.mark.parametrize("group, cols", [(16, 64), (32, 80), (64, 256), (128, 512)])
@pytest.mark.parametrize("asymmetric", [False, True])
def test_linear(bits, group, cols, asymmetric):
    rows, groups = 48, -(-cols // group)
    codes = RANDOM.integers(0, 1 << bits, (rows, cols)).astype(np.uint8)
    points = (RANDOM.integers(0, 1 << bits, (rows, groups)) if asymmetric
              else np.full((rows, groups), 1 << (bits - 1))).astype(np.uint8)
    scales = (RANDOM.standard_normal((rows, groups)) * 0.1).astype(np.float16).astype(np.float32)
    x = RANDOM.standard_normal((5, cols)).astype(np.float32)
    whole = np.pad(codes, ((0, 0), (0, groups * group - cols)))
    packed = whole if bits == 8 else whole[:, 0::2] | whole[:, 1::2] << 4
    inputs = [x, packed.reshape(rows, groups, -1), scales]
    if asymmetric:
        even = np.pad(points, ((0, 0), (0, groups % 2)))
        inputs.append(points if bits == 8 else even[:, 0::2] | even[:, 1::2] << 4)
    wanted = _onnx("MatMulNBits", inputs, 21, "com.microsoft", K=cols, N=rows, bits=bits,
                   block_size=group, accuracy_level=4)
    strips = pack_strips(Codes(codes, scales, points), bits, group, 0, SIM, PackStats())
    data = np.frombuffer(b"".join(strips), np.uint8)
    share = unpack_stream(data, len(strips), groups, group, SIM)
    padded = np.pad(x, ((0, 0), (0, groups * group - cols))).reshape(5, groups, group)
    got = numerics.linear(
        share.codes.reshape(-1, groups, group).transpose(1, 0, 2).astype(np.float32),
        np.ascontiguousarray(share.scales.T), *numerics.quantize(padded), 0)[:, :rows]
    _close(got, wanted, 5e-6)


def test_rms_norm():
    x = RANDOM.standard_normal((7, 192)).astype(np.float32) * 3
    gamma = RANDOM.random(192).astype(np.float32)
    wanted = _onnx("RMSNormalization", [x, gamma], axis=-1, epsilon=1e-5)
    _close(numerics.rms_norm(x, gamma, np.float32(1e-5)), wanted, 5e-7)


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("rotary", [32, 16])
def test_rotary(interleaved, rotary):
    heads, count, head_dim = 3, 11, 32
    x = RANDOM.standard_normal((1, heads, count, head_dim)).astype(np.float32)
    angles = RANDOM.random((1, count, rotary // 2)) * 6
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    wanted = _onnx("RotaryEmbedding", [x, cos, sin], interleaved=interleaved,
                   rotary_embedding_dim=rotary)
    got = numerics.rotate(x[0].transpose(1, 0, 2), cos[0][:, None], sin[0][:, None],
                          bool(interleaved))
    _close(got.transpose(1, 0, 2), wanted[0], 2e-7)


@pytest.mark.parametrize("ours, op, attributes", [
    (numerics.sigmoid, "Sigmoid", {}),
    (numerics.relu, "Relu", {}),
    (numerics.gelu, "Gelu", {}),
    (numerics.gelu_tanh, "Gelu", {"approximate": "tanh"}),
    (numerics.reciprocal, "Reciprocal", {}),
    (numerics.exp, "Exp", {}),
])
def test_function(ours, op, attributes):
    x = RANDOM.uniform(-8, 8, 4096).astype(np.float32)
    x = x[np.abs(x) > 0.01]
    _close(ours(x), _onnx(op, [x], **attributes), 1e-6)


def test_attention():
    """Softmax attention with quantized keys and values, ONNX Runtime given the same values."""
    heads, kv_heads, count, head_dim = 4, 2, 150, 32
    query = RANDOM.standard_normal((heads, head_dim)).astype(np.float32)
    keys, key_scales = numerics.quantize(
        RANDOM.standard_normal((kv_heads, count, head_dim)).astype(np.float32))
    values, value_scales = numerics.quantize(
        RANDOM.standard_normal((kv_heads, count, head_dim)).astype(np.float32))
    wanted = _onnx("Attention", [query[None, :, None], (keys * key_scales[..., None])[None],
                                 (values * value_scales[..., None])[None]])[0, :, 0]
    scale = np.float32(head_dim ** -0.5 * np.log2(np.e))
    scores = np.einsum("grd,gtd->grt", query.reshape(kv_heads, 2, head_dim),
                       keys * key_scales[..., None]).astype(np.float32) * scale
    tokens = numerics.PAGE_TOKENS
    short = -count % tokens
    pad = lambda x: np.pad(x, [(0, 0), (0, short)] + [(0, 0)] * (x.ndim - 2))  # noqa: E731
    kept = (np.arange(count + short) < count).reshape(1, -1, tokens)
    got = numerics.attend_pages(
        np.pad(scores, ((0, 0), (0, 0), (0, short))).reshape(1, kv_heads, 2, -1, tokens),
        pad(values).reshape(kv_heads, -1, tokens, head_dim),
        pad(value_scales).reshape(kv_heads, -1, tokens), kept)
    _close(got.reshape(heads, head_dim), wanted, 1e-2)


def test_top_of_logits_matches_topk():
    logits = RANDOM.integers(-50, 50, 500).astype(np.float32)  # many ties
    model = helper.make_model(helper.make_graph(
        [helper.make_node("TopK", ["x", "k"], ["v", "i"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [500])],
        [helper.make_tensor_value_info("i", TensorProto.INT64, [16])],
        [numpy_helper.from_array(np.array([16]), "k")]),
        opset_imports=[helper.make_opsetid("", 21)])
    model.ir_version = 10
    onnx.checker.check_model(model)
    wanted = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": logits})[0]
    values, tokens = np.full(16, -np.inf, np.float32), np.full(16, 2**32 - 1, np.uint32)
    for first in (200, 0, 350):  # in runs, in any order
        run = logits[first:{200: 350, 0: 200, 350: 500}[first]]
        values, tokens = numerics.merge_top(values, tokens, run, first, 16)
    np.testing.assert_array_equal(tokens, wanted)
    np.testing.assert_array_equal(values, logits[wanted])
