"""Compute the expected outputs of a joint graph in eager torch, by autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from combicam.export.trace.checkpointing import plain_forward
from combicam.export.trace.snapshot import model_state, snapshot
from combicam.export.trace.trace import OUTPUTS, JointGraph, joint_function
from combicam.kernels.cam_head import cam_head_reference

HALF = ("float16", "bfloat16")


def eager_reference(
    model: nn.Module, joint: JointGraph
) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    """The outputs of a joint graph, computed by hooks and autograd in float32.

    They are independent of the trace, its decompositions and passes, and of kernels. Weights of
    half precision keep their rounded values.

    Args:
        model: the traced model.
        joint: its joint graph, which defines what to compute.

    Returns:
        A function from the graph's inputs to its outputs.
    """
    signature = joint.signature
    model = snapshot(model)
    if signature.dtype in HALF:
        model, signature = model.float(), replace(signature, dtype="float32")
    keep_layers = len(joint.output_names) > len(OUTPUTS)
    state = tuple(model_state(model).values())
    call = joint_function(
        model, joint.spec, joint.layers, signature, keep_layers, cam_head_reference
    )

    def outputs(inputs: Sequence[Tensor]) -> list[Tensor]:
        with torch.inference_mode(False), plain_forward(inputs[0].device):
            return call(*state, *inputs)

    return outputs
