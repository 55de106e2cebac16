"""Write a joint graph as a TorchScript file.

The graph's generated source is scripted, not traced, so that sizes remain expressions of the batch
size instead of becoming numbers.
"""

from __future__ import annotations

import copy
import io
import warnings
import zipfile
from pathlib import Path

import torch
from torch import fx

from combicam.errors import TraceError, first_line
from combicam.export.trace.origins import culprit
from combicam.export.trace.trace import JointGraph

METADATA_FILE = "combicam.json"
aten = torch.ops.aten


def write_torchscript(joint: JointGraph, path: Path, metadata: str) -> None:
    """Write a TorchScript file; ``metadata`` is stored in its extra file ``combicam.json``.

    Raises:
        TraceError: an operator cannot be written as TorchScript.
    """
    graph = copy.deepcopy(joint.module.graph)
    module = fx.GraphModule(joint.module, graph)
    for node in list(graph.nodes):
        _to_script(graph, node)
    graph.lint()
    module.recompile()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scripted = torch.jit.script(module.eval())
            # By way of memory: torch ends the process if a disk is full.
            buffer = io.BytesIO()
            torch.jit.save(scripted, buffer, _extra_files={METADATA_FILE: metadata})
    except Exception as error:
        name = culprit(joint.module, error)
        raise TraceError(
            f"export: TorchScript refuses {name or 'the graph'} ({first_line(error)}); replace "
            "that operator, or export to .onnx or .pt2"
        ) from error
    path.write_bytes(buffer.getbuffer())


def read_torchscript(path: Path) -> str | None:
    """Read the metadata of a TorchScript file; None if combicam did not write it.

    Raises:
        zipfile.BadZipFile: not a TorchScript file.
    """
    with zipfile.ZipFile(path) as file:  # TorchScript files are zip archives
        for name in file.namelist():
            if name.endswith(f"/extra/{METADATA_FILE}"):
                return file.read(name).decode()
    return None


def _to_script(graph: fx.Graph, node: fx.Node) -> None:
    """Rewrite a node for the TorchScript compiler; cases:

    1. the size of a dimension is a method call;
    2. an operator is called without naming its overload;
    3. a device becomes that of the images, instead of the exporting machine's.
    """
    if node.target is aten.sym_size.int:  # case 1
        node.op, node.target = "call_method", "size"
        return
    if not isinstance(node.target, torch._ops.OpOverload):
        return
    node.target = node.target.overloadpacket  # case 2
    if "device" in node.kwargs:  # case 3
        images = next(n for n in graph.nodes if n.op == "placeholder")
        with graph.inserting_before(node):
            device = graph.call_function(getattr, (images, "device"))
        node.kwargs = {**node.kwargs, "device": device}
