"""``run_images``: explain any number of photos into a run directory."""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from combicam.engine.distribution.executor import Crew, Distribution
from combicam.engine.distribution.process_backend import ProcessCrew, named_devices
from combicam.engine.distribution.ray_backend import RayCrew
from combicam.engine.distribution.worker import WorkerTask
from combicam.engine.explain.protocol import BatchExplainer, has_places
from combicam.engine.geo.location_target import located, read_question
from combicam.engine.inputs.ground_truth import truth_digest
from combicam.engine.inputs.manifest import Manifest, write_manifest
from combicam.engine.outputs.accuracy import accuracy
from combicam.engine.outputs.run_overlays import draw_overlays
from combicam.engine.pipeline.pipeline import Pipeline
from combicam.engine.run.config import RunConfig
from combicam.engine.run.directory import RunDirectory
from combicam.engine.run.explainer import make_run_explainer
from combicam.engine.run.inputs import run_inputs, warn_of_other_inputs
from combicam.engine.run.progress import Progress
from combicam.engine.run.summary import RunSummary
from combicam.engine.run.work import ShardWork, work_left
from combicam.engine.shards.map_format import map_format
from combicam.engine.shards.row_format import ShardFormat
from combicam.engine.shards.status import OK
from combicam.engine.storage.paths import is_client_error, names_store
from combicam.errors import RunError, first_line
from combicam.version import __version__


def run(config: RunConfig, explainer: BatchExplainer | None = None) -> RunSummary:
    """Build the explainer that a configuration names and explain every input with it.

    Where the configuration names several devices or Ray, their processes explain and commit, each
    with an explainer of its own. They are spawned: a script needs ``if __name__ == "__main__":``.

    Args:
        config: inputs, output, model, spec and resources.
        explainer: what :func:`~combicam.engine.run.explainer.make_run_explainer` made of the
            configuration; default: it is made now.

    Returns:
        The summary, also written to ``summary.json``.

    Raises:
        CombicamError, ValueError, FileNotFoundError: see :func:`run_images` and
            :func:`~combicam.engine.run.explainer.make_run_explainer`.
        RunError: also, workers that die again and again of the same shard.
    """
    return _run(config, explainer or make_run_explainer(config))


def run_images(config: RunConfig, explainer: BatchExplainer) -> RunSummary:
    """Explain every input, one row each, into ``config.output``; done shards are kept.

    Args:
        config: inputs, output and resources.
        explainer: what is computed.

    Returns:
        The summary, also written to ``summary.json``.

    Raises:
        ValueError: INPUT is nothing usable, or heatmaps cannot be stored as bytes in [0, 1].
        RunError: the directory belongs to another run, or the explainer failed.
        KeyboardInterrupt: committed shards stay, nothing else does.
    """
    if config.devices or config.ray is not None:
        raise ValueError(
            "run_images: expected a configuration of one process, for an explainer in memory, got "
            f"devices={config.devices}, ray={config.ray!r}; use combicam.run(config)"
        )
    return _run(config, explainer)


def _run(config: RunConfig, explainer: BatchExplainer) -> RunSummary:
    try:
        return _locked_run(config, explainer)
    except FileNotFoundError:
        raise
    except OSError as error:  # of inputs they are rows
        raise RunError(
            f"run: expected to write {error.filename or config.output}, got "
            f"{error.strerror or repr(error)}; free space or choose an output that can be "
            "written, and run again: what is committed is kept"
        ) from error
    except Exception as error:
        if not is_client_error(error):
            raise
        raise RunError(
            f"run: expected the object store to answer, got {first_line(error)}; run again: what "
            "is committed is kept"
        ) from error


def _locked_run(config: RunConfig, explainer: BatchExplainer) -> RunSummary:
    shard_format = _format(config, explainer)
    question = read_question(config.explain, explainer)
    needs_truth = question is not None and question.needs_truth
    if config.truth is not None and not has_places(explainer):
        raise ValueError(
            f"run: expected classes with places for truth={str(config.truth)!r}, got none; give "
            "them with --classes, or leave out --truth"
        )
    with RunDirectory(config.output) as run, _quiet_pillow():
        is_new = run.prepare(
            _fingerprint(config, explainer),
            lambda path: write_manifest(
                path, located(run_inputs(config), needs_truth), config.shard_size
            ),
            explainer.classes,
        )
        with Manifest(run.manifest) as manifest:
            if not is_new:
                warn_of_other_inputs(config, manifest)
            shard_format = dataclasses.replace(shard_format, has_truth=manifest.has_truth)
            work = work_left(run, manifest, config.retry_failed)
            pipeline: Pipeline | Distribution
            if work and (config.devices or config.ray is not None):
                task = WorkerTask(config, run.path, explainer.fingerprint())
                pipeline = Distribution(_crew(task))
            else:
                pipeline = Pipeline(config, explainer, run, manifest, shard_format, question)
            if work:
                _process(config, run, pipeline, manifest, work)
            summary = _summary(run, manifest, pipeline, is_new=bool(work))
            if config.overlays:
                paths = draw_overlays(run, manifest, config, explainer)
                summary = dataclasses.replace(summary, overlays=paths)
            if manifest.has_truth and has_places(explainer):
                summary = dataclasses.replace(summary, accuracy=accuracy(run.path))
        summary.write(run.summary)
    return summary


def _format(config: RunConfig, explainer: BatchExplainer) -> ShardFormat:
    spec = explainer.spec
    if spec.fuse == "none" or not spec.unit_range:
        raise ValueError(
            f"run: expected a spec whose heatmaps are one map in [0, 1], got fuse={spec.fuse!r}, "
            f"normalize={spec.normalize!r}; use normalize='map', or the explainer in memory"
        )
    maps = map_format(explainer, config.store, config.heatmap_size)
    return ShardFormat(spec, maps, explainer.classes, explain=config.explain)


def _fingerprint(config: RunConfig, explainer: BatchExplainer) -> dict[str, Any]:
    """Everything that decides what rows hold."""
    return {
        "explainer": explainer.fingerprint(),
        "input": config.input if names_store(config.input) else str(Path(config.input).absolute()),
        "explain": list(config.explain) or None,
        "store": config.store,
        "heatmap_size": config.heatmap_size,
        "shard_size": config.shard_size,
        "top_places": config.top_places if has_places(explainer) else None,
        "truth": truth_digest(config.truth),
        "max_pixels": config.max_pixels,
        # Not which of the others: they give the same pixels, up to rounding.
        "fast_scale": config.decode.fast_scale,
        **({"decoder": "gpu"} if config.decode.decoder == "gpu" else {}),
    }


@contextmanager
def _quiet_pillow() -> Iterator[None]:
    """What Pillow warns of either fails, and is a row, or is harmless."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _crew(task: WorkerTask) -> Crew:
    config = task.config
    if config.ray is None:
        return ProcessCrew(task, named_devices(config.devices))
    return RayCrew(task, config.ray, config.ray_cpus)


def _process(
    config: RunConfig,
    run: RunDirectory,
    pipeline: Pipeline | Distribution,
    manifest: Manifest,
    work: list[ShardWork],
) -> None:
    left = {item.index: item for item in work}
    done = manifest.images - sum(
        manifest.shard_images(i) if item.rows is None else len(item.rows)
        for i, item in left.items()
    )
    statuses: Counter[str] = Counter()
    for record in run.records(set(range(manifest.shards)) - set(left)):
        statuses.update(record["statuses"])
    pipeline.max_failures = config.failure_limit(manifest.images)
    pipeline.failures = statuses.total() - statuses[OK]
    fields = {"config": dataclasses.asdict(config), "combicam": __version__}
    with Progress(run.path, manifest.images, done, show=config.progress, fields=fields) as progress:

        def tick() -> None:
            bottleneck = pipeline.times.bottleneck if pipeline.images else None
            progress.update(pipeline.images, bottleneck)
            run.check_lock()

        pipeline.process(work, tick)
        tick()


def _summary(
    run: RunDirectory, manifest: Manifest, pipeline: Pipeline | Distribution, is_new: bool
) -> RunSummary:
    statuses: Counter[str] = Counter()
    for record in run.records(range(manifest.shards)):
        statuses.update(record["statuses"])
    failures = {status: n for status, n in sorted(statuses.items()) if status != OK}
    # Nothing done: the speed of the invocation that did it is more use than zeros.
    if not is_new and run.summary.exists():
        return dataclasses.replace(RunSummary.read(run.summary), failures=failures)
    wall, stages = pipeline.times.wall_s, pipeline.times.seconds()
    return RunSummary(
        run=run.path,
        images=statuses.total(),
        shards=manifest.shards,
        failures=failures,
        new_images=pipeline.images,
        wall_s=round(wall, 4),
        images_per_s=round(pipeline.images / wall, 3),
        stages=stages,
        bottleneck=pipeline.times.bottleneck if is_new else None,
        batch_limit=pipeline.batch_limit,
        halvings=pipeline.halvings,
    )
