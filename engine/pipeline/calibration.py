"""Replace a run's ``auto`` by the backend, batch size and streams that are fastest here."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from combicam.cores import usable_cores
from combicam.engine.explain.artifact_verify import TOLERANCES
from combicam.engine.explain.config import ONNX_BACKENDS
from combicam.engine.explain.explainer import Explainer
from combicam.engine.explain.explanation import Explanation
from combicam.engine.explain.protocol import BatchExplainer
from combicam.engine.explain.sessions import ModelSession
from combicam.engine.explain.streams import shared_cores
from combicam.engine.explain.targets import Targets
from combicam.engine.explain.tuning import (
    SIZES,
    Tuner,
    Tuning,
    candidates,
    in_backend,
)
from combicam.engine.geo.five_crop import FiveCropExplainer
from combicam.engine.inputs.entry import Entry
from combicam.engine.inputs.manifest import Manifest
from combicam.engine.pipeline.batch import even_batch_size
from combicam.engine.pipeline.load import load
from combicam.engine.run.config import BATCH_ON_GPU, RunConfig
from combicam.engine.run.layout import RunLayout
from combicam.engine.run.plan import RunPlan
from combicam.engine.run.work import ShardWork
from combicam.engine.storage.atomic import read_json, write_json
from combicam.errors import RunError
from combicam.export.spec import FORWARD_METHODS

log = logging.getLogger(__name__)

Explaining = Explainer | FiveCropExplainer
Explain = Callable[[Any, int], Explanation]

# Of runs that are not measured.
_MOST_STREAMS, _IN_STREAM = 8, 8
# Runs of so few images are not measured.
_FEW, _FEW_ON_GPU = 64, 10_000
# What was measured before is used if the usual backend would take longer.
_WORTH_S = 20.0
_AS_BEGUN = "as the run began"
_LIBRARIES = ("combicam", "torch", "onnxruntime-gpu", "onnxruntime", "openvino")


def calibrated(
    config: RunConfig,
    plan: RunPlan,
    layout: RunLayout,
    manifest: Manifest,
    work: Sequence[ShardWork],
) -> tuple[RunConfig, RunPlan]:
    """The configuration with a backend, batch size and streams, and the plan with that explainer.

    What is named is kept. ``auto`` is what the run was started with; or what was measured on this
    machine before, for the same explainer; or what is measured now, on the first images. In short
    runs, and in a cluster, it is eager torch in a batch of 8 for each thread; for a file the usual
    runtime in batches of 32; on GPUs batches of 128. Streams go with the batch size: one, if that
    is named.

    Args:
        config, plan: of the run.
        layout: where the choice is kept.
        manifest: of the run.
        work: what is left.
    """
    explainer = plan.explainer
    config = _with_graphs(config, explainer)
    is_auto = "auto" in (config.compute.backend, config.batch_size)
    if not is_auto or not isinstance(explainer, Explaining):
        return config, plan
    left = sum(len(item.places(manifest.shard_images(item.index))) for item in work)
    was_started, on_gpu = layout.tuning.exists(), explainer.device.type == "cuda"
    if not _is_here(config):
        return config, plan
    few = left <= (_FEW_ON_GPU if on_gpu else _FEW) and not was_started
    explain = None if few else _sample(config, plan, manifest, work)
    if explain is None:  # or no image can be decoded
        return unmeasured(config, explainer), plan
    threads, processes = torch.get_num_threads(), max(1, len(config.distribution.devices))
    torch.set_num_threads(max(1, threads // processes))
    try:
        cache = _cache_file(config, explainer)
        tuned, tuning, why = (
            _begun(layout.tuning, config, explainer, explain)
            or _measured_before(cache, explainer, explain, left)
            or _measured(cache, config, explainer, explain, left // processes)
        )
    finally:
        torch.set_num_threads(threads)
    if tuning is None:
        return unmeasured(config, explainer), plan
    if why != _AS_BEGUN:
        write_json(layout.tuning, asdict(tuning))
    if config.progress:
        tqdm.write(f"combicam: {tuning} ({why}; --backend and -b fix them)", file=sys.stderr)
    if processes == 1:
        torch.set_num_threads(tuning.threads)
    compute = replace(config.compute, backend=tuning.backend, streams=tuning.streams)
    config = replace(config, compute=compute, batch_size=tuning.batch_size)
    return config, replace(plan, explainer=tuned)


def unmeasured(config: RunConfig, explainer: BatchExplainer) -> RunConfig:
    """With what mostly is fastest, where the batch size is left to the run: on a GPU large batches;
    on a CPU, of torch, a stream for each thread, of a few images each. Else as it is."""
    if not isinstance(explainer, Explaining) or config.batch_size != "auto":
        return config
    inner = _of_crops(explainer)
    if explainer.device.type == "cuda":
        return replace(config, batch_size=BATCH_ON_GPU)
    if (
        config.compute.streams is not None
        or not isinstance(inner.session, ModelSession)
        or inner.session.backend in ONNX_BACKENDS
        or inner.spec.method in FORWARD_METHODS
    ):
        return config
    processes = max(1, len(config.distribution.devices))
    streams = min(max(1, torch.get_num_threads() // processes), _MOST_STREAMS)
    compute = replace(config.compute, streams=streams)
    return replace(config, compute=compute, batch_size=_IN_STREAM)


def _with_graphs(config: RunConfig, explainer: object) -> RunConfig:
    """With CUDA graphs where the backend is left to the run, and they are possible."""
    if (
        config.compute.backend != "auto"
        or not isinstance(explainer, Explainer)
        or explainer.device.type != "cuda"
        or not isinstance(explainer.session, ModelSession)
        or explainer.spec.method in FORWARD_METHODS
        or not explainer.preprocess.has_one_size
        or config.explain
    ):
        return config
    return replace(config, compute=replace(config.compute, cuda_graphs=True))


def _is_here(config: RunConfig) -> bool:
    """Whether the images are explained by processors of the kind that this process measures."""
    devices = config.distribution.devices
    return config.distribution.ray is None and all(name == "cpu" for name in devices)


def _sample(
    config: RunConfig, plan: RunPlan, manifest: Manifest, work: Sequence[ShardWork]
) -> Explain | None:
    """A function from an explainer and n to its explanation of the run's first n images; None if
    none of those can be decoded. They are decoded at the first call for so many, and repeated if
    there are fewer."""
    crops = 5 if isinstance(plan.explainer, FiveCropExplainer) else 1
    device, target = plan.explainer.device, plan.target
    most = SIZES[device.type][-1]
    inputs = chain.from_iterable(_entries(manifest, item) for item in work)
    decodable = _decodable(config, plan, islice(inputs, 4 * most))
    entries: list[Entry] = []
    decoded: list[Any] = []

    def has(n: int) -> int:
        """How many of n there are."""
        for entry, pixels in islice(decodable, max(0, n - len(decoded))):
            entries.append(entry)
            decoded.append(torch.from_numpy(pixels).to(device))
        return min(n, len(decoded))

    if not has(1):
        return None

    def explain(explainer: Any, n: int) -> Explanation:
        wanted = max(1, n // crops)
        there = has(wanted)
        chosen = [i % there for i in range(wanted)]
        images = torch.stack([decoded[i] for i in chosen])
        if target is None:
            return explainer(images)
        values = target.targets([entries[i] for i in chosen], len(chosen))
        targets = Targets(values.to(explainer.device), target.kind)
        return explainer(images, targets=targets)

    return explain


def _decodable(
    config: RunConfig, plan: RunPlan, entries: Iterable[Entry]
) -> Iterator[tuple[Entry, Any]]:
    """Inputs and their pixels uint8 [H,W,C], of the first one's shape."""
    shape: Any = None
    for entry in entries:
        pixels = load(entry, plan.explainer.preprocess, config.decode).pixels
        if pixels is None or shape not in (None, pixels.shape):
            continue
        shape = pixels.shape
        yield entry, pixels


def _entries(manifest: Manifest, item: ShardWork) -> list[Entry]:
    inputs = manifest.shard(item.index)
    return [inputs[row] for row in item.places(len(inputs))]


def _begun(
    path: Path, config: RunConfig, explainer: Explaining, explain: Explain
) -> tuple[Explaining, Tuning, str] | None:
    """What the run began with, but for what is named now."""
    tuning = _read(path)
    if tuning is None:
        return None
    if config.batch_size != "auto":
        tuning = replace(tuning, batch_size=config.batch_size, streams=config.compute.streams or 1)
    if config.compute.backend != "auto":
        return explainer, replace(tuning, backend=config.compute.backend), _AS_BEGUN
    tuned = _in_backend(explainer, tuning, explain)
    return None if tuned is None else (tuned, tuning, _AS_BEGUN)


def _measured_before(
    path: Path, explainer: Explaining, explain: Explain, left: int
) -> tuple[Explaining, Tuning, str] | None:
    """What this machine measured before, if that saves time."""
    tuning = _read(path)
    if tuning is None or left < _WORTH_S * tuning.usual:
        return None
    tuned = _in_backend(explainer, tuning, explain)
    return None if tuned is None else (tuned, tuning, "measured before")


def _in_backend(explainer: Explaining, tuning: Tuning, explain: Explain) -> Explaining | None:
    """The explainer in the backend that was measured, with its threads; None if it differs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(min(threads, tuning.threads))  # runtimes keep those of their start
    try:
        with shared_cores(tuning.streams):
            return in_backend(explainer, tuning.backend, explain, _tolerance(explainer))
    finally:
        torch.set_num_threads(threads)


def _measured(
    cache: Path, config: RunConfig, explainer: Explaining, explain: Explain, images: int
) -> tuple[Explaining, Tuning | None, str]:
    """What is fastest now."""
    inner = _of_crops(explainer)
    session = inner.session
    nodes = session.nodes if isinstance(session, ModelSession) else 0
    device, tolerance = explainer.device, _tolerance(explainer)
    streams = config.compute.streams if config.batch_size == "auto" else config.compute.streams or 1
    tuner = Tuner(explainer, session.backend, nodes, explain, images, tolerance, device, streams)
    found = tuner.tune(
        candidates(inner) if config.compute.backend == "auto" else (),
        _sizes(config, device) if config.batch_size == "auto" else (config.batch_size,),
    )
    if found is None:
        return explainer, None, ""
    _keep(cache, found[1])
    return *found, f"measured in {found[1].seconds:.0f} s"


def _sizes(config: RunConfig, device: torch.device) -> Sequence[int]:
    """Batch sizes to try; on a GPU those that a shard is divided into, since libraries choose and
    build kernels for each."""
    sizes = SIZES[device.type]
    if device.type == "cpu" or config.crops != "one":
        return sizes
    return list(dict.fromkeys(even_batch_size(config.storage.shard_size, n) for n in sizes))


def _tolerance(explainer: Explaining) -> float:
    return TOLERANCES[_of_crops(explainer).precision]


def _of_crops(explainer: Explaining) -> Explainer:
    """The explainer of the graph that runs."""
    return explainer.explainer if isinstance(explainer, FiveCropExplainer) else explainer


def _cache_file(config: RunConfig, explainer: Explaining) -> Path:
    """Where this user's machine keeps what was measured for an explainer."""
    libraries = {}
    for name in _LIBRARIES:
        try:
            libraries[name] = version(name)
        except PackageNotFoundError:
            continue
    device = explainer.device
    key = {
        "explainer": explainer.fingerprint(),
        "wanted": [
            *(config.compute.backend, config.batch_size, config.compute.streams),
            len(config.explain),
        ],
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "machine": [platform.node(), platform.machine(), _processor(), usable_cores()],
        "threads": torch.get_num_threads(),
        "libraries": libraries,
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    folder = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(folder).expanduser() / "combicam" / "tuning" / f"{digest}.json"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith("model name")), "")


def _read(path: Path) -> Tuning | None:
    """What was measured; None if nothing was, or the file is damaged."""
    try:
        return Tuning(**read_json(path, "measure again"))
    except (OSError, RunError, TypeError):
        return None


def _keep(path: Path, tuning: Tuning) -> None:
    """Write what was measured; without a folder that can be written, it is measured again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(tuning), durable=False)
    except OSError as error:
        log.info("%s cannot be written: %s", path, error)
