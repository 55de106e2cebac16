"""Explain any number of images into a run directory."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import torch

from combicam.engine.distribution.executor import DistributedExecutor
from combicam.engine.distribution.process_backend import (
    ProcessBackend,
    check_not_imported_by_worker,
    named_devices,
)
from combicam.engine.distribution.ray_backend import RayBackend
from combicam.engine.distribution.worker import WorkerTask
from combicam.engine.explain.protocol import BatchExplainer, has_places
from combicam.engine.geo.location_target import located
from combicam.engine.inputs.manifest import Manifest, write_manifest
from combicam.engine.inputs.selection import Tally
from combicam.engine.outputs.accuracy import accuracy
from combicam.engine.outputs.run_overlays import draw_overlays
from combicam.engine.pipeline.calibration import calibrated
from combicam.engine.pipeline.pipeline import Pipeline, start_loading
from combicam.engine.run.config import RunConfig
from combicam.engine.run.directory import RunDirectory, committed_shards
from combicam.engine.run.explainer import make_run_explainer
from combicam.engine.run.failure_limit import FailureLimit
from combicam.engine.run.inputs import run_inputs, warn_of_other_inputs
from combicam.engine.run.layout import RunLayout
from combicam.engine.run.plan import RunPlan, fingerprint, plan_run
from combicam.engine.run.progress import Progress
from combicam.engine.run.records import count_statuses
from combicam.engine.run.stage_times import StageTimes
from combicam.engine.run.summary import RunSummary
from combicam.engine.run.work import ShardExecutor, ShardReport, ShardWork, work_left
from combicam.engine.shards.status import OK
from combicam.engine.storage.paths import is_client_error
from combicam.errors import RunError, first_line
from combicam.version import __version__

MakeExplainer = Callable[[RunConfig], BatchExplainer]


def run(
    config: RunConfig,
    explainer: BatchExplainer | None = None,
    *,
    make: MakeExplainer = make_run_explainer,
) -> RunSummary:
    """Make the explainer of a configuration and explain every input with it.

    With several devices or Ray, worker processes explain and commit, each with its own explainer.
    They are spawned: a script needs ``if __name__ == "__main__":``.

    Args:
        config: inputs, output, model, spec and resources.
        explainer: result of ``make(config)``, if it is made already.
        make: makes an explainer from a configuration, here and in workers, which import it by
            name.

    Returns:
        The summary, also written to ``summary.json``.

    Raises:
        CombicamError, ValueError, FileNotFoundError: see :func:`run_images` and
            :func:`~combicam.engine.run.explainer.make_run_explainer`.
        RunError: also if workers are lost repeatedly at the same shard.
    """
    check_not_imported_by_worker()
    with _storage_errors(config):
        if explainer is None:
            start_loading(config)
            explainer = make(config)
        return _run(config, explainer, make)


def run_images(config: RunConfig, explainer: BatchExplainer) -> RunSummary:
    """Explain every input into ``config.output``, one row each; committed shards are kept.

    Args:
        config: inputs, output and resources.
        explainer: explains the batches.

    Returns:
        The summary, also written to ``summary.json``.

    Raises:
        ValueError: the input is not usable, or heatmaps cannot be stored as bytes in [0, 1].
        RunError: the directory belongs to another run, or the explainer failed.
        KeyboardInterrupt: only committed shards are kept.
    """
    if not config.distribution.is_local:
        raise ValueError(
            "run_images: expected a single-process configuration for an explainer in memory, got "
            f"{config.distribution}; use combicam.run(config)"
        )
    return run(config, explainer)


def _run(config: RunConfig, explainer: BatchExplainer, make: MakeExplainer) -> RunSummary:
    plan = plan_run(config, explainer)
    needs_truth = plan.target is not None and plan.target.needs_truth
    with RunDirectory(config.output) as directory, _quiet_pillow(), _same_threads():
        layout = directory.layout
        is_new = directory.prepare(
            fingerprint(config, explainer),
            lambda path: _list(config, path, needs_truth),
            explainer.classes,
        )
        with Manifest(layout.manifest) as manifest:
            if not is_new:
                warn_of_other_inputs(config, manifest)
            work = work_left(layout, manifest, config.retried)
            if work:
                config, plan = calibrated(config, plan, layout, manifest, work)
                summary = _process(config, plan, directory, manifest, work, make)
            else:
                summary = _nothing_done(layout, manifest)
            if config.overlays:
                paths = draw_overlays(layout, manifest, config, explainer)
                summary = dataclasses.replace(summary, overlays=paths)
            if manifest.has_truth and has_places(explainer):
                summary = dataclasses.replace(summary, accuracy=accuracy(layout.path))
        summary.write(layout.summary)
    return summary


def _list(config: RunConfig, path: Path, needs_truth: bool) -> None:
    """Write the manifest."""
    tally = Tally()
    entries = located(run_inputs(config, tally), needs_truth)
    write_manifest(path, entries, config.storage.shard_size, tally)


def _process(
    config: RunConfig,
    plan: RunPlan,
    directory: RunDirectory,
    manifest: Manifest,
    work: list[ShardWork],
    make: MakeExplainer,
) -> RunSummary:
    """Execute the work, update the progress, check the lock, and summarise the reports."""
    layout = directory.layout
    left = sum(len(item.places(manifest.shard_images(item.index))) for item in work)
    kept = committed_shards(layout) - {item.index for item in work}
    statuses = count_statuses(layout, kept, repair=True)
    limit = FailureLimit(config.failure_limit(manifest.images), statuses.total() - statuses[OK])
    executor = _executor(config, plan, layout, manifest, limit, make)
    fields = {"config": dataclasses.asdict(config), "combicam": __version__}
    done = ShardReport()
    with (
        Progress(
            layout, manifest.images, manifest.images - left, show=config.progress, fields=fields
        ) as progress,
        closing(executor.process(work)) as reports,
    ):
        for report in reports:
            done += report
            progress.update(done.images, executor.times.bottleneck if done.images else None)
            directory.check_lock()
    return _summary(layout, manifest, done, executor.times)


def _executor(
    config: RunConfig,
    plan: RunPlan,
    layout: RunLayout,
    manifest: Manifest,
    limit: FailureLimit,
    make: MakeExplainer,
) -> ShardExecutor:
    """This process's pipeline, or the workers that the configuration names."""
    if config.distribution.is_local:
        return Pipeline(config, plan, layout, manifest, limit)
    task = WorkerTask(config, layout.path, plan.explainer.fingerprint(), make=make)
    if config.distribution.ray is None:
        devices = named_devices(config.distribution.devices)
        return DistributedExecutor(ProcessBackend(task, devices), limit)
    return DistributedExecutor(RayBackend(task), limit)


def _nothing_done(layout: RunLayout, manifest: Manifest) -> RunSummary:
    """Keep the speed of the invocation that did the work; zeros would tell nothing."""
    summary = _summary(layout, manifest, ShardReport(), StageTimes())
    try:
        earlier = RunSummary.read(layout.summary)
    except (FileNotFoundError, RunError, TypeError, KeyError):  # damaged, or of another version
        return summary
    return dataclasses.replace(earlier, failures=summary.failures, ignored=summary.ignored)


def _summary(
    layout: RunLayout, manifest: Manifest, done: ShardReport, times: StageTimes
) -> RunSummary:
    statuses = count_statuses(layout, range(manifest.shards), repair=True)
    wall = times.wall_s
    return RunSummary(
        run=layout.path,
        images=statuses.total(),
        shards=manifest.shards,
        failures={status: n for status, n in sorted(statuses.items()) if status != OK},
        new_images=done.images,
        wall_s=round(wall, 4),
        images_per_s=round(done.images / wall, 3),
        stages=times.seconds(),
        bottleneck=times.bottleneck if done.images else None,
        batch_limit=done.batch_limit,
        halvings=done.halvings,
        ignored=manifest.ignored,
    )


@contextmanager
def _storage_errors(config: RunConfig) -> Iterator[None]:
    """Report errors of the run's storage as RunError; errors of inputs are rows."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RunError(
            f"run: expected to write {error.filename or config.output}, got "
            f"{error.strerror or repr(error)}; free space or choose an output that can be "
            "written, and run again: committed shards are kept"
        ) from error
    except Exception as error:
        if not is_client_error(error):
            raise
        raise RunError(
            f"run: expected the object store to answer, got {first_line(error)}; run again: "
            "committed shards are kept"
        ) from error


@contextmanager
def _same_threads() -> Iterator[None]:
    """Leave torch's threads as they were: a run takes as many as it measured to be fastest."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Suppress Pillow's warnings: images that cannot be decoded become rows anyway."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield
