"""Write ``config.pbtxt``, the configuration of an ONNX file for NVIDIA Triton Inference Server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from combicam.errors import ArtifactError

# ONNX Runtime's type names -> Triton's; the server's backend has no bfloat16.
DATATYPES = {
    "tensor(float)": "FP32",
    "tensor(float16)": "FP16",
    "tensor(double)": "FP64",
    "tensor(int64)": "INT64",
    "tensor(int32)": "INT32",
    "tensor(uint8)": "UINT8",
    "tensor(bool)": "BOOL",
}
# How long a request may wait for others to share its batch.
QUEUE_DELAY_US = 2000
LABELLED = "logits"

_HEADER = """\
# For NVIDIA Triton Inference Server; inputs and outputs are those of 1/model.onnx. Their first
# dimension, the batch, is left out: max_batch_size implies it.
name: {name}
backend: "onnxruntime"
platform: "onnxruntime_onnx"
max_batch_size: {max_batch_size}
"""
_BATCHING = """
dynamic_batching {{
  preferred_batch_size: [ {sizes} ]
  max_queue_delay_microseconds: {delay}
}}
"""
# KIND_AUTO: on every GPU that the server sees, otherwise on the CPU.
_INSTANCES = """
instance_group [ { count: 1 kind: KIND_AUTO } ]
"""


@dataclass(frozen=True)
class TensorInfo:
    """An input or output as the server describes it.

    Attributes:
        name: in the ONNX file.
        datatype: Triton's name, ``FP32``, ``INT64``, …
        dims: without the batch; -1 for dynamic ones.
    """

    name: str
    datatype: str
    dims: tuple[int, ...]


def batched_tensors(entries: Sequence[Any]) -> tuple[TensorInfo, ...]:
    """Inputs or outputs of an ONNX Runtime session, checked for batching.

    Args:
        entries: of ``session.get_inputs()`` or ``get_outputs()``.

    Raises:
        ArtifactError: a tensor whose first dimension is not a dynamic batch, or whose type the
            server does not know, so that it would not load the model.
    """
    tensors = []
    for entry in entries:
        shape = list(entry.shape)
        # The server needs at least one dimension besides the batch (or a reshape).
        if len(shape) < 2 or isinstance(shape[0], int):
            raise ArtifactError(
                f"triton repository: expected tensors as [batch, ...] with a dynamic batch, got "
                f"{entry.name!r} {shape}; the server cannot batch this model, export it with "
                "combicam.export and serve it otherwise"
            )
        if entry.type not in DATATYPES:
            raise ArtifactError(
                f"triton repository: expected types among {list(DATATYPES)}, got {entry.name!r} "
                f"of {entry.type}; export with another dtype"
            )
        dims = tuple(d if isinstance(d, int) else -1 for d in shape[1:])
        tensors.append(TensorInfo(entry.name, DATATYPES[entry.type], dims))
    return tuple(tensors)


def preferred_sizes(max_batch_size: int) -> tuple[int, ...]:
    """The batch sizes that the server waits for: the largest, and half of it."""
    return tuple(sorted({max(1, max_batch_size // 2), max_batch_size}))


def config_text(
    name: str,
    inputs: Sequence[TensorInfo],
    outputs: Sequence[TensorInfo],
    max_batch_size: int,
    labels: str,
) -> str:
    """The text of config.pbtxt.

    Args:
        name: of the model, and of its folder.
        inputs, outputs: of the ONNX file.
        max_batch_size: the largest batch that the server forms, >= 1.
        labels: name of the file with a class name per line.
    """
    parts = [_HEADER.format(name=_quoted(name), max_batch_size=max_batch_size)]
    parts += [_tensor("input", tensor) for tensor in inputs]
    parts += [_tensor("output", t, labels if t.name == LABELLED else None) for t in outputs]
    if max_batch_size > 1:  # with one image per batch, waiting for more gains nothing
        sizes = ", ".join(map(str, preferred_sizes(max_batch_size)))
        parts.append(_BATCHING.format(sizes=sizes, delay=QUEUE_DELAY_US))
    parts.append(_INSTANCES)
    parts += [_warmup(inputs, size) for size in sorted({1, *preferred_sizes(max_batch_size)})]
    return "".join(parts)


def _tensor(kind: str, tensor: TensorInfo, labels: str | None = None) -> str:
    lines = [
        f"name: {_quoted(tensor.name)}",
        f"data_type: TYPE_{tensor.datatype}",
        f"dims: [ {', '.join(map(str, tensor.dims))} ]",
    ]
    if labels is not None:
        lines.append(f"label_filename: {_quoted(labels)}")
    return f"{kind} {{\n" + "".join(f"  {line}\n" for line in lines) + "}\n"


def _warmup(inputs: Sequence[TensorInfo], size: int) -> str:
    """A warm-up request, because the first request of each batch size is slow on a GPU.

    It has zeros, because random bytes could name a class that does not exist.
    """
    entries = "".join(
        f"  inputs {{ key: {_quoted(tensor.name)} value {{ data_type: TYPE_{tensor.datatype} "
        f"dims: [ {', '.join(str(max(d, 1)) for d in tensor.dims)} ] zero_data: true }} }}\n"
        for tensor in inputs
    )
    return f'\nmodel_warmup {{\n  name: "batch {size}"\n  batch_size: {size}\n{entries}}}\n'


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
