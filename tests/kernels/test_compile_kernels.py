"""What the compilers of four GPUs make of the kernels; none of the GPUs is needed."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TARGETS = {"cuda:80": 3, "cuda:90": 8, "cuda:100": 4, "hip:gfx942": 4}  # configurations each
SHARED = {"cuda:80": 163 << 10, "cuda:90": 227 << 10, "cuda:100": 227 << 10, "hip:gfx942": 64 << 10}


def run(script: str, *arguments: str) -> Any:
    """The JSON that a script beside this file prints, where nothing is interpreted."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])  # for benchmarks
    done = subprocess.run(
        [sys.executable, "-W", "ignore", Path(__file__).with_name(script), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@functools.cache
def rows(target: str) -> list[dict[str, Any]]:
    return run("compile_kernels.py", target, str(TARGETS[target]))


@pytest.mark.long
@pytest.mark.parametrize(
    "target",
    [t if t == "cuda:90" else pytest.param(t, marks=pytest.mark.slow) for t in TARGETS],
)
def test_no_register_is_spilled_and_shared_memory_suffices(target: str) -> None:
    for row in rows(target):
        assert row["spills"] == 0, row
        assert row["shared"] <= SHARED[target], row
        # 128 threads: at least two programs fit an SM's 64 K registers (an AMD CU's 512 a lane).
        assert row["registers"] <= (512 if target.startswith("hip") else 255), row


@pytest.mark.parametrize(
    "target",
    [t if t == "cuda:90" else pytest.param(t, marks=pytest.mark.slow) for t in TARGETS],
)
def test_loads_are_16_bytes_wide_where_memory_allows(target: str) -> None:
    """The activations and gradients: every load of pool, none of 1 or 2 bytes in weigh."""
    checked = 0
    for row in rows(target):
        loads = {int(width): n for width, n in row["loads"].items() if n}
        if "odd" in row["config"]:
            continue
        if row["kernel"] == "pool_kernel":
            of_scales = {4, 8} if "scaled" in row["config"] else set()
            assert set(loads) <= {16, 32} | of_scales, row
            checked += 1
        if row["kernel"] == "weigh_kernel":
            assert min(loads) >= 4 and loads.get(16, 0) >= 4, row
            checked += 1
        if row["kernel"] == "bias_act_kernel":
            assert set(loads) == {16}, row
            checked += 1
        if row["kernel"] == "normalize_kernel" and target.startswith("cuda"):
            assert set(loads) == {16}, row
            checked += 1
    assert checked >= 4


@pytest.mark.long
def test_torch_sees_through_the_operator() -> None:
    """Ahead-of-time tracing finds the kernels, knows what each writes, and fixes no batch size."""
    found = run("capture_head.py")
    assert found["functional"] == ["pool", "weigh", "extremes", "render"]
    assert not any("clone" in name or "copy" in name for name in found["operators"])
    assert found["guards"] == []
    assert found["written"] == {
        "pool_kernel": ["part_ptr"],
        "weigh_kernel": ["map_ptr"],
        "extremes_kernel": ["partial_ptr"],
        "render_kernel": ["heatmaps_ptr", "ranges_ptr"],
    }
    # As when a program that is compiled gets images of a second size; each has kernels of its own.
    last = ["extremes_kernel", "render_kernel"]
    assert found["any size"] == [["pool_kernel", "weigh_kernel", *last], last]


@pytest.mark.slow  # it answers for a GPU inside torch's private functions, which may move
def test_inductor_stores_every_activation_once() -> None:
    found = run("inductor_head.py")
    kernels = {name: n for name, n in found["runs"].items() if name.endswith("_kernel")}
    assert kernels == {f"{name}_kernel": 1 for name in ("pool", "weigh", "extremes", "render")}
    assert sum(found["runs"].values()) - 4 == 4  # one launch doubles one activation
    # maps, partial sums, extremes, heatmaps, ranges; and the four activations
    assert found["buffers"] == 9


@pytest.mark.slow  # as above
def test_aot_inductor_passes_every_parameter_of_a_kernel() -> None:
    """Where one is missing, a driver reads beyond the arguments."""
    found = run("aoti_head.py")
    assert found["arguments"] == found["parameters"]
    assert set(found["launches"].values()) == {1} and found["launches"].keys() == (
        found["parameters"].keys()
    )
    kernels = {name.rpartition("_")[0] for name in found["launches"]}
    assert {f"{name}_kernel" for name in ("pool", "weigh", "extremes", "render")} <= kernels


@pytest.mark.long
def test_a_launch_is_repeated_without_triton_looking_into_it_again() -> None:
    """One binary per kernel for all batch sizes; the short way passes what Triton passes."""
    found = run("launch_again.py")
    binaries = {row["binaries"] for row in found["rows"]}
    assert len(binaries) == 1, "batch sizes have binaries of their own"
    for row in found["rows"]:
        assert len(row["first"]) >= 6  # two groups of layers: pool and weigh; condense, …
        assert row["first"] == row["again"]
    first, *_, last = found["rows"]
    assert [call[1] for call in first["first"]] != [call[1] for call in last["first"]]
    for once, again in found["others"].values():
        assert once == again
    assert found["kinds"] == [1, 2, 2, 2, 3, 4, 4, 4], "a binary for each type and alignment"
    assert found["seconds"]["short"] * 3 < found["seconds"]["long"], found["seconds"]
