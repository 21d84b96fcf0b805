"""The plumbing evaluator against the ONNX reference evaluator."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from alula.compiler.importer.coverage import Refused
from alula.compiler.importer.evaluate import apply
from alula.compiler.importer.model import Op

GRID = np.arange(24, dtype=np.float32).reshape(2, 3, 4) - 7
INTS = np.array([[7, -7, 3], [-9, 4, 11]])
ROW = np.array([2, -2, 4])
BOOLS = INTS > 0


def i64(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


CASES: list[tuple[str, list[Any], dict[str, Any]]] = [
    ("Add", [INTS, ROW], {}), ("Sub", [INTS, ROW], {}), ("Mul", [GRID, GRID], {}),
    ("Div", [INTS, ROW], {}), ("Div", [GRID, np.float32(3)], {}), ("Mod", [INTS, ROW], {}),
    ("Mod", [GRID, np.float32(3)], {"fmod": 1}), ("Pow", [GRID, np.float32(2)], {}),
    ("Neg", [INTS], {}), ("Abs", [GRID], {}), ("Cos", [GRID], {}), ("Sin", [GRID], {}),
    ("Equal", [INTS, ROW], {}), ("LessOrEqual", [INTS, ROW], {}), ("And", [BOOLS, ~BOOLS], {}),
    ("Not", [BOOLS], {}), ("Where", [BOOLS, INTS, ROW], {}), ("Max", [INTS, ROW], {}),
    ("Cast", [GRID], {"to": TensorProto.INT64}), ("Cast", [INTS], {"to": TensorProto.BOOL}),
    ("Unsqueeze", [GRID, i64(0, -1)], {}), ("Squeeze", [GRID[:1], i64(0)], {}),
    ("Reshape", [GRID, i64(0, -1)], {}), ("Reshape", [GRID, i64(4, 6)], {}),
    ("Flatten", [GRID], {"axis": 2}), ("Transpose", [GRID], {"perm": [2, 0, 1]}),
    ("Transpose", [GRID], {}), ("Expand", [ROW, i64(2, 1, 3)], {}), ("Tile", [ROW, i64(3)], {}),
    ("Range", [np.int64(3), np.int64(12), np.int64(4)], {}),
    ("Range", [np.int64(3), np.int64(0), np.int64(-2)], {}),
    ("ConstantOfShape", [i64(2, 3)], {"value": helper.make_tensor("v", 7, [1], [5])}),
    ("Slice", [GRID, i64(1), i64(2**62), i64(2), i64(2)], {}),
    ("Slice", [GRID, i64(-1), i64(-2**62), i64(1), i64(-1)], {}),
    ("Split", [GRID, i64(1, 3)], {"axis": -1, "outputs": 2}),
    ("Gather", [GRID, i64(2, 0)], {"axis": 1}), ("Gather", [GRID, np.int64(-1)], {"axis": 2}),
    ("GatherND", [GRID, np.array([[0, 1], [1, 2]])], {}),
    ("ScatterND", [ROW, np.array([[1]]), i64(9)], {}),
    ("Concat", [INTS, ROW[None]], {"axis": 0}), ("Trilu", [INTS], {"upper": 0}),
    ("Trilu", [INTS, np.int64(1)], {}), ("CumSum", [INTS, np.int64(1)], {}),
    ("MatMul", [GRID, GRID[0].T], {}), ("Clip", [GRID, np.float32(-2), np.float32(3)], {}),
    ("ReduceSum", [GRID, i64(1)], {"keepdims": 0}), ("ReduceMax", [GRID, i64(-1)], {}),
    ("ReduceSum", [GRID], {"noop_with_empty_axes": 1}), ("ReduceProd", [INTS], {}),
    ("IsNaN", [GRID / GRID[1]], {}), ("Identity", [GRID], {}),
]


def operator(kind: str, count: int, outputs: int = 1, **attributes: Any) -> Op:
    node = helper.make_node(kind, [f"x{at}" for at in range(count)],
                            [f"y{at}" for at in range(outputs)], name="node", **attributes)
    return Op("node", kind, "", 20, tuple(node.input), tuple(node.output),
              {entry.name: entry for entry in node.attribute})


@pytest.mark.parametrize("kind, given, attributes", CASES, ids=[case[0] for case in CASES])
def test_operator(kind: str, given: list[Any], attributes: dict[str, Any]) -> None:
    arrays = [np.asarray(array) for array in given]
    op = operator(kind, len(arrays), **attributes)
    attributes = {name: value for name, value in attributes.items() if name != "outputs"}
    node = helper.make_node(kind, list(op.inputs), list(op.outputs), **attributes)
    inputs = [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype),
                                            array.shape)
              for name, array in zip(op.inputs, arrays, strict=True)]
    outputs = [helper.make_tensor_value_info(name, 0, None) for name in op.outputs]
    graph = helper.make_graph([node], "one", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    wanted = ReferenceEvaluator(model).run(None, dict(zip(op.inputs, arrays, strict=True)))
    for found, expected in zip(apply(op, list(arrays)), wanted, strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=1e-6)


HUGE: list[tuple[str, list[Any], dict[str, Any]]] = [
    ("Expand", [ROW, i64(2**50, 3)], {}), ("Tile", [ROW, i64(2**50)], {}),
    ("ConstantOfShape", [i64(2**40, 2**40)], {}), ("Range", [i64(0), i64(2**60), i64(1)], {}),
    ("Gather", [np.zeros((1, 2**20), np.int8), np.zeros(2**10, np.int64)], {}),
    ("Add", [np.zeros((2**20, 1), np.int8), np.zeros((1, 2**20), np.int8)], {}),
    ("MatMul", [np.zeros((2**20, 1), np.int8), np.zeros((1, 2**20), np.int8)], {}),
    ("ConstantOfShape", [i64(-4)], {}),
]


@pytest.mark.parametrize("kind, given, attributes", HUGE, ids=[case[0] for case in HUGE])
def test_size_wrong(kind: str, given: list[Any], attributes: dict[str, Any]) -> None:
    with pytest.raises(Refused, match=rf"^node \({kind}, opset 20\): output shape must be of at "
                                      r"most 67108864 elements, not "):
        apply(operator(kind, len(given), **attributes), given)


def test_operands_wrong() -> None:
    with pytest.raises(Refused, match=r"^node \(Concat, opset 20\): operands must be of fitting "
                                      r"shapes and types, not such that numpy says: "):
        apply(operator("Concat", 2, axis=0), [GRID, ROW])
    with pytest.raises(Refused, match=r"^node \(Conv, opset 20\): an operator that decides shapes, "
                                      r"positions or masks must be one the importer can evaluate"):
        apply(operator("Conv", 1), [GRID])
