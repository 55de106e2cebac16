"""Write ONNX files of one node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def one_node(
    folder: Path, operator: str, *inputs: Any, kind: int = FLOAT, opset: int = 18, **rest: Any
) -> Path:
    """A file of one node of x [B,4,8,8] and constants."""
    constants, names = [], ["x"]
    for number, value in enumerate(inputs):
        if value is None:
            names.append("")
        elif isinstance(value, str):
            names.append(value)
        else:
            constants.append(onnx.numpy_helper.from_array(np.asarray(value), f"c{number}"))
            names.append(f"c{number}")
    outputs = rest.pop("outputs", ["y"])
    result = rest.pop("result", kind)
    node = helper.make_node(operator, names, outputs, **rest)
    x = helper.make_tensor_value_info("x", kind, ["B", 4, 8, 8])
    k = helper.make_tensor_value_info("k", INT64, [1])
    results = [
        helper.make_tensor_value_info(name, INT64 if number else result, None)
        for number, name in enumerate(outputs)
    ]
    graph = helper.make_graph([node], "one", [x, k], results, constants)
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    path = folder / "one.onnx"
    onnx.save(model, str(path))
    return path
