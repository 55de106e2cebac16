"""Compile every launch of the kernels for a GPU that is not here, and say what came out.

``python tests/kernels/compile_kernels.py cuda:90 [how many configurations]`` prints JSON, one
entry a kernel. It runs in a process of its own, since where kernels are interpreted they cannot be
compiled.
"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

MODULES = ["pool", "weigh", "extremes", "combine", "normalize", "bias_act", "resample", "to_bytes"]
kernels = {name: importlib.import_module(f"combicam.kernels.{name}") for name in MODULES}
head = importlib.import_module("combicam.kernels.cam_head")

RESNET50 = [(256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7)]  # stages at 224
B4 = [(24, 150, 150), (32, 75, 75), (56, 38, 38), (160, 19, 19), (272, 10, 10)]  # blocks at 300
CONFIGS: dict[str, dict[str, Any]] = {
    "resnet50": {"layers": RESNET50, "dtype": torch.bfloat16, "out": torch.uint8},
    "b4, 3 targets": {
        "layers": B4,
        "targets": 3,
        "method": "xgradcam",
        "fuse": "max",
        "normalize": "grid+map",
    },
    "resnet50, gated": {"layers": RESNET50, "fuse": "gated", "dtype": torch.bfloat16},
    "resnet50, contiguous": {"layers": RESNET50[:2], "nchw": True, "dtype": torch.float16},
    "resnet50, odd and contiguous": {"layers": RESNET50[2:], "nchw": True, "method": "hirescam"},
    "b4, 8 targets": {"layers": B4, "targets": 8, "dtype": torch.bfloat16},
    "b4, gradcam++, scaled": {
        "layers": B4 * 2,
        "targets": 2,
        "method": "gradcam++",
        "scaled": True,
    },
    "b4, gradcam++": {
        "layers": B4 * 4,
        "method": "gradcam++",
        "normalize": "layer+map",
        "dtype": torch.float16,
        "out": torch.float16,
    },
}
TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.uint8: "*u8",
    torch.bool: "*i1",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


LAUNCHES: list[tuple[Any, dict[str, Any]]] = []


def keep(kernel: Any, plan: Any, count: int, tensors: Any, *numbers: int) -> None:
    """Stands for ``launch``: keeps the launches instead of making them."""
    assert 0 < count * plan.programs < 2**31
    pointers = [*tensors, *[tensors[0]] * (plan.pointers - len(tensors))]
    given = dict(zip(kernel.arg_names, [*pointers, *numbers], strict=False))
    assert [*given, *plan.constants] == kernel.arg_names
    LAUNCHES.append((kernel, given | plan.constants | {"num_warps": plan.num_warps}))


def record(
    layers: list[tuple[int, int, int]],
    targets: int = 1,
    method: str = "gradcam",
    fuse: str = "sum",
    normalize: str = "map",
    dtype: torch.dtype = torch.float32,
    out: torch.dtype = torch.float32,
    nchw: bool = False,
    scaled: bool = False,
) -> list[tuple[Any, dict[str, Any]]]:
    """The launches of one head, for tensors that have shapes alone."""
    acts, grads = [], []
    for c, h, w in layers:
        if nchw:
            acts.append(torch.empty(4, c, h, w, dtype=dtype, device="meta"))
            grads.append(torch.empty(4, targets, c, h, w, dtype=dtype, device="meta"))
        else:
            a = torch.empty(4, h, w, c, dtype=dtype, device="meta")
            g = torch.empty(4, targets, h, w, c, dtype=dtype, device="meta")
            acts.append(a.permute(0, 3, 1, 2))
            grads.append(g.permute(0, 1, 4, 2, 3))
    LAUNCHES.clear()
    scale = torch.empty(4, targets, device="meta") if scaled else None
    head.launch_cam_head(
        acts, grads, (224, 224), method, fuse, normalize, True, 0.0, (), 1e-8, False, out, scale
    )
    if dtype != torch.float32:
        photos = torch.empty(4, 224, 224, 3, dtype=torch.uint8, device="meta")
        kernels["normalize"].launch_normalize(photos, (0.5,) * 3, (0.25,) * 3, dtype)
    if layers is RESNET50:
        x, bias = acts[0], torch.empty(layers[0][0], dtype=dtype, device="meta")
        launch_bias_act = kernels["bias_act"].launch_bias_act
        launch_bias_act(x, bias, None, "silu", torch.empty_like(x))
        launch_bias_act(x, bias, x, "relu", x)
        to_bytes = kernels["to_bytes"].launch_to_bytes
        to_bytes(torch.empty(4, 1, 224, 224, device="meta"))
        to_bytes(acts[0][:, :2], torch.empty(4, 2, device="meta"))
        resample = kernels["resample"]
        axis = resample.resampled_axis(640, 224, 0, 224, "bicubic")
        strip = resample.Strip(0, 1920, 3, 0, 672, 3, 480, axis)
        resample.launch_resample([[strip]], 3, torch.device("meta"))
    return LAUNCHES


def compiled(kernel: Any, arguments: dict[str, Any], target: GPUTarget) -> Any:
    """The kernel as a launch with these arguments would compile it."""
    options = {"num_warps": arguments["num_warps"]}
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name] = "constexpr"
            constants[(i,)] = value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = TYPES[value.dtype]
            attributes[(i,)] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "i32"
            if value % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=target, options=options)


def resources(binary: Any) -> dict[str, Any]:
    """Registers, spilled bytes or registers, shared memory, and global loads by width in bytes."""
    if "cubin" not in binary.asm:
        text = binary.asm["amdgcn"]
        words = {"": 4, "x2": 8, "x3": 12, "x4": 16}
        loads: Counter[int] = Counter()
        for width in re.findall(r"(?:global|buffer)_load_dword(x\d)?\b", text):
            loads[words[width]] += 1
        loads[2] += len(re.findall(r"(?:global|buffer)_load_(?:short|ushort|d16)", text))
        counts = {k: int(v) for k, v in re.findall(r"\.(\w+_count):\s*(\d+)", text)}
        spills = counts["vgpr_spill_count"] + counts["sgpr_spill_count"]
        return {
            "registers": counts["vgpr_count"],
            "spills": spills,
            "shared": binary.metadata.shared,
            "loads": loads,
        }
    tool = str(Path(triton.__path__[0]) / "backends/nvidia/bin/cuobjdump")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(binary.asm["cubin"])

        def dump(option: str) -> str:
            return subprocess.run(
                [tool, option, file.name], capture_output=True, text=True, check=True
            ).stdout

        usage, sass = dump("--dump-resource-usage"), dump("--dump-sass")
    found = {k: int(v) for k, v in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", usage)}
    loads = Counter()
    for suffix in re.findall(r"\bLDG\.E((?:\.\w+)*)", sass):
        bits = re.search(r"\.(64|128|256)\b", suffix)
        narrow = {".U8": 1, ".S8": 1, ".U16": 2, ".S16": 2}
        width = next((n for s, n in narrow.items() if s in suffix), 4)
        loads[int(bits.group(1)) // 8 if bits else width] += 1
    return {
        "registers": found["REG"],
        "spills": found["STACK"] + found["LOCAL"] + len(re.findall(r"\b(?:LDL|STL)\b", sass)),
        "shared": found["SHARED"],
        "loads": loads,
    }


def main(name: str, count: int) -> None:
    """Compile the first ``count`` configurations for ``cuda:<arch>`` or ``hip:<arch>``."""
    backend, arch = name.split(":")
    target = GPUTarget(backend, int(arch), 32) if backend == "cuda" else GPUTarget("hip", arch, 64)
    for module in kernels.values():
        module.launch, module.wrap_triton = keep, lambda kernel: kernel
    rows = []
    for config, arguments in list(CONFIGS.items())[:count]:
        for kernel, launch in record(**arguments):
            found = resources(compiled(kernel, launch, target))
            rows.append({"config": config, "kernel": kernel.__name__, **found})
    print(json.dumps(rows))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else len(CONFIGS))
