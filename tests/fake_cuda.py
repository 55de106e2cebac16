"""CUDA libraries without a GPU: enough for ONNX Runtime to plan which nodes its provider runs.

They compute nothing: memory is the host's, kernels are not launched. ``python fake_cuda.py
model.onnx`` needs them in ``LD_LIBRARY_PATH``, and prints the placement of the file's nodes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

PROVIDER = "libonnxruntime_providers_cuda.so"
# What the provider asks of a device before it plans. The rest returns 0, success.
_ANSWERS = {
    "cudaGetDeviceCount": "int *n) { *n = 1; return 0; }",
    "cudaGetDevice": "int *n) { *n = 0; return 0; }",
    "cudaDriverGetVersion": "int *n) { *n = 13000; return 0; }",
    "cudaRuntimeGetVersion": "int *n) { *n = 13000; return 0; }",
    "cudaMemGetInfo": "size_t *free, size_t *all) { *free = *all = 80ull << 30; return 0; }",
    "cudaDeviceGetAttribute": (
        "int *value, int attribute) { *value = attribute == 75 ? 9 : attribute == 76 ? 0 :"
        " attribute == 16 ? 132 : attribute == 10 ? 32 : 1024; return 0; }"
    ),
    "cudaMemcpy": "void *to, void *from, size_t n) { memcpy(to, from, n); return 0; }",
    "cudaMemcpyAsync": "void *to, void *from, size_t n) { memcpy(to, from, n); return 0; }",
    "cudaMemset": "void *to, int value, size_t n) { memset(to, value, n); return 0; }",
    "cudaMemsetAsync": "void *to, int value, size_t n) { memset(to, value, n); return 0; }",
    **dict.fromkeys(
        ("cudaMalloc", "cudaMallocAsync", "cudaMallocHost", "cudaHostAlloc"),
        "void **p, size_t n) { *p = calloc(1, n ? n : 1); return 0; }",
    ),
    **dict.fromkeys(
        ("cudaFree", "cudaFreeAsync", "cudaFreeHost"), "void *p) { free(p); return 0; }"
    ),
    **dict.fromkeys(
        (
            *("cudaStreamCreate", "cudaStreamCreateWithFlags", "cudaEventCreate"),
            *("cudaEventCreateWithFlags", "cudaMemPoolCreate", "cublasCreate_v2"),
            *("cublasLtCreate", "cudaLibraryLoadData", "cudaLibraryGetKernel"),
        ),
        "void **handle) { *handle = calloc(1, 64); return 0; }",
    ),
}
_NAMES = ("cudaGetErrorString", "cudaGetErrorName", "cublasGetStatusString", "cublasGetStatusName")
_PROPERTIES = """
int cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, "no device");
  p->totalGlobalMem = 80ull << 30; p->sharedMemPerBlock = 49152; p->regsPerBlock = 65536;
  p->warpSize = 32; p->maxThreadsPerBlock = 1024; p->maxThreadsPerMultiProcessor = 2048;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024; p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 2147483647; p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->major = 9; p->minor = 0; p->multiProcessorCount = 132;
  p->sharedMemPerMultiprocessor = 233472; p->sharedMemPerBlockOptin = 232448;
  return 0;
}
static int nothing(void) { return 0; }
int cudaGetDriverEntryPointByVersion(const char *name, void **f, unsigned version,
                                     unsigned long long flags, int *found) {
  *f = (void *)nothing; if (found) *found = 0; return 0;
}
void **__cudaRegisterFatBinary(void *image) { static void *handle[8]; return handle; }
"""


def provider() -> Path | None:
    """The CUDA provider of the installed ONNX Runtime."""
    found = find_spec("onnxruntime")
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).parent / "capi" / PROVIDER
    return path if path.is_file() else None


def headers() -> Path | None:
    """CUDA's headers, which Triton has."""
    found = find_spec("triton")
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).parent / "backends" / "nvidia" / "include"
    return path if (path / "driver_types.h").is_file() else None


def build(folder: Path) -> None:
    """Write the libraries that the provider needs into a folder, with the symbols it needs."""
    library, include = provider(), headers()
    assert library is not None and include is not None
    listed = ["nm", "-D", "--undefined-only", str(library)]
    words = subprocess.run(listed, check=True, capture_output=True, text=True).stdout.split()
    needed: dict[str, set[str]] = {"libcurand.so.10": set(), "libcuda.so.1": set()}
    for word in words:
        name, _, version = word.partition("@")
        if version.startswith(("libcu", "libnv")):
            needed.setdefault(version.strip("@"), set()).add(name)
        elif name.startswith("cu") and not version:
            needed["libcurand.so.10" if name.startswith("curand") else "libcuda.so.1"].add(name)
    for name, symbols in needed.items():
        _compile(folder, name, symbols, include)


def _compile(folder: Path, name: str, symbols: set[str], include: Path) -> None:
    lines = ["#include <stdlib.h>", "#include <string.h>", "#include <driver_types.h>"]
    runtime = "cudart" in name
    if runtime:
        lines.append(_PROPERTIES)
    for symbol in sorted(symbols):
        if (runtime and f" {symbol}(" in _PROPERTIES) or f"**{symbol}(" in _PROPERTIES:
            continue
        if symbol in _NAMES:
            lines.append(f'const char *{symbol}(int error) {{ return "no error"; }}')
        else:
            lines.append(f"int {symbol}({_ANSWERS.get(symbol, 'void) { return 0; }')}")
    source, versions = folder / f"{name}.c", folder / f"{name}.map"
    source.write_text("\n".join(lines) + "\n")
    versions.write_text(f"{name} {{ global: *; }};\n")
    command = ["gcc", "-w", "-shared", "-fPIC", f"-I{include}", f"-Wl,-soname,{name}"]
    if runtime or "cublas" in name:
        command.append(f"-Wl,--version-script={versions}")
    subprocess.run([*command, "-o", str(folder / name), str(source)], check=True)


def placement(path: Path, libraries: Path) -> dict[str, Counter[str]]:
    """Provider -> how many nodes of each operator of a file it runs; and ``copies``, those that the
    runtime adds, which carry values between a GPU and the CPU; and the ``stream`` that it takes."""
    environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries)}
    command = [sys.executable, __file__, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    return {name: Counter(counts) for name, counts in found.items()}


def _main(path: str) -> None:
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.enable_mem_pattern = False
    # The plan of providers is older than the copies; the optimised file has them.
    options.optimized_model_filepath = f"{path}.optimised"
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    stream = {"user_compute_stream": "4660"}
    providers = [("CUDAExecutionProvider", stream), "CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(path, options, providers=providers)
    found: dict[str, Counter[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        counts = found.setdefault(part.ep_name, Counter())
        counts.update(node.op_type for node in part.get_nodes())
    taken = session.get_provider_options()["CUDAExecutionProvider"]
    has_stream = taken["has_user_compute_stream"] == "1"
    found["stream"] = Counter({taken["user_compute_stream"]: int(has_stream)})
    nodes = onnx.load(options.optimized_model_filepath).graph.node
    found["copies"] = Counter(node.op_type for node in nodes if "Memcpy" in node.op_type)
    print(json.dumps(found), flush=True)
    os._exit(0)  # the libraries cannot be unloaded in order


if __name__ == "__main__":
    _main(sys.argv[1])
