"""What TensorRT lacks is found, what is within its limits is not, and networks are within them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_nodes import FLOAT, INT64, one_node

from benchmarks.architectures import ARCHITECTURES
from benchmarks.coverage_case import build
from combicam import Explainer, check_file, export

# What the table refuses, and the same within its limits.
TENSORRT: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Path], str]] = {
    "operator": (
        lambda f: one_node(f, "Det"),
        lambda f: one_node(f, "Relu"),
        "no such operator",
    ),
    "type": (
        lambda f: one_node(f, "Clip", np.int64(0), np.int64(3), kind=INT64),
        lambda f: one_node(f, "Clip", np.float32(0), np.float32(3)),
        "computes no INT64",
    ),
    "double": (
        lambda f: one_node(f, "Relu", kind=TensorProto.DOUBLE),
        lambda f: one_node(f, "Relu", kind=INT64),
        "computes no DOUBLE",
    ),
    "indices": (
        lambda f: one_node(f, "MaxPool", kernel_shape=[2, 2], outputs=["y", "i"]),
        lambda f: one_node(f, "MaxPool", kernel_shape=[2, 2]),
        "first output only",
    ),
    "dilations": (
        lambda f: one_node(f, "MaxPool", kernel_shape=[2, 2], dilations=[2, 2]),
        lambda f: one_node(f, "MaxPool", kernel_shape=[2, 2], dilations=[1, 1]),
        "no dilations",
    ),
    "constant axes": (
        lambda f: one_node(f, "ReduceSum", "k"),
        lambda f: one_node(f, "ReduceSum", [1]),
        "input 1 must be known",
    ),
    "large k": (
        lambda f: one_node(f, "TopK", np.array([4000]), outputs=["y", "i"]),
        lambda f: one_node(f, "TopK", np.array([3]), outputs=["y", "i"]),
        "at most 3839",
    ),
    "unsorted": (
        lambda f: one_node(f, "TopK", np.array([3]), outputs=["y", "i"], sorted=0),
        lambda f: one_node(f, "TopK", np.array([3]), outputs=["y", "i"], sorted=1),
        "it sorts",
    ),
    "cubic": (
        lambda f: one_node(f, "Resize", None, np.ones(4, np.float32) * 2, mode="cubic"),
        lambda f: one_node(f, "Resize", None, np.ones(4, np.float32) * 2, mode="linear"),
        "no mode cubic",
    ),
    "antialias": (
        lambda f: one_node(f, "Resize", None, np.ones(4, np.float32), mode="linear", antialias=1),
        lambda f: one_node(f, "Resize", None, np.ones(4, np.float32), mode="linear"),
        "no antialiasing",
    ),
    "reduction": (
        lambda f: one_node(f, "ScatterND", [[0]], np.ones((1, 4, 8, 8), "f"), reduction="add"),
        lambda f: one_node(f, "ScatterND", [[0]], np.ones((1, 4, 8, 8), "f")),
        "without a reduction",
    ),
}


@pytest.mark.parametrize("name", TENSORRT)
def test_limits_of_tensorrt(name: str, tmp_path: Path) -> None:
    beyond, within, why = TENSORRT[name]
    check = check_file(beyond(tmp_path), "tensorrt")
    assert not check.runs and why in str(check), check
    check = check_file(within(tmp_path), "tensorrt")
    assert check.runs and not check.concerns, check


def test_opsets_of_tensorrt(tmp_path: Path) -> None:
    assert "opset 8" in str(check_file(one_node(tmp_path, "Relu", opset=8), "tensorrt"))
    assert check_file(one_node(tmp_path, "Relu", opset=9), "tensorrt").runs
    path = one_node(tmp_path, "Equal", "x", result=TensorProto.BOOL)
    assert check_file(path, "tensorrt").runs


def test_types_that_a_file_does_not_say_are_found(tmp_path: Path) -> None:
    x = helper.make_tensor_value_info("x", FLOAT, ["B", 4])
    y = helper.make_tensor_value_info("y", FLOAT, ["B", 4])
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.DOUBLE),
        helper.make_node("Exp", ["wide"], ["grown"]),
        helper.make_node("Cast", ["grown"], ["y"], to=FLOAT),
    ]
    model = helper.make_model(helper.make_graph(nodes, "three", [x], [y]), ir_version=8)
    onnx.save(model, str(tmp_path / "three.onnx"))
    concerns = check_file(tmp_path / "three.onnx", "tensorrt").concerns
    assert {c.what for c in concerns if "DOUBLE" in c.why} == {"Cast", "Exp"}


NETWORKS = (
    *("torchvision:resnet18", "timm:resnet26d", "timm:gernet_s", "torchvision:alexnet"),
    *("torchvision:googlenet", "torchvision:mobilenet_v3_large", "torchvision:efficientnet_b0"),
    *("timm:efficientnet_lite0", "torchvision:shufflenet_v2_x1_0", "torchvision:squeezenet1_1"),
    *("timm:ghostnet_100", "timm:legacy_seresnet18", "timm:skresnet18", "timm:dla34"),
    *("torchvision:regnet_x_400mf", "timm:repvgg_a0", "timm:convnextv2_atto", "timm:lcnet_050"),
    *("timm:poolformer_s12", "timm:mobilevit_xxs", "timm:vit_tiny_patch16_224"),
)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_tensorrt_has_the_operators_of_networks(name: str, tmp_path: Path) -> None:
    """And the file gives the network's numbers, in ONNX Runtime."""
    architecture = ARCHITECTURES[name]
    explainer = Explainer(build(architecture), architecture.size, device="cpu")
    path = tmp_path / "model.onnx"
    export(explainer, path, runtime="tensorrt", verify=4, tolerance=1e-2)  # random weights
    assert not check_file(path, "tensorrt").concerns
