"""``combicam run | status | convert | export | layers | demo``."""

from __future__ import annotations

import json
import logging
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from combicam.demo.tour import DemoConfig, demo
from combicam.engine import ComputeConfig, RunConfig, RunSummary, export, make_explainer, run
from combicam.engine.exporting import VERIFY_IMAGES, check_output
from combicam.engine.fiftyone import write_fiftyone
from combicam.engine.making import make_run_explainer
from combicam.engine.metrics import write_metrics
from combicam.engine.status import run_status, status_lines
from combicam.engine.triton_repository import check_repository, export_triton_repository
from combicam.engine.verifying import Verification
from combicam.engine.webdataset import write_webdataset
from combicam.errors import CombicamError, LayerError
from combicam.export.layers import select_layers
from combicam.export.models import LoadedModel, ModelConfig, load_model
from combicam.export.probe import LayerInfo, probe
from combicam.export.snapshot import snapshot
from combicam.export.spec import CamSpec


@dataclass(frozen=True)
class ExportConfig:
    """Write a network and its explanation as one file, or as a folder that a server runs.

    Args:
        output: model.onnx, model.ts, or model.pt2, which is compiled for the device.
        triton_repository: folder for NVIDIA Triton Inference Server; instead of ``output``, or
            beside it.
        model: which network.
        cam: what to compute.
        amp_dtype: precision of the computation: float32, bfloat16, float16.
        device: where the network is while it is exported.
        target_input: ``classes`` (a second input names them), ``none`` (the best ones), or
            ``weights`` (regions).
        keep_layers: also return every layer's map.
        verify: on how many random images the file is compared with the network; 0 for none.
        tolerance: difference that is accepted; the default depends on the precision.
        force: keep a file that disagrees.
        verbose: tell how many nodes the graph has before and after each rewrite.
    """

    model: ModelConfig
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    triton_repository: Path | None = None
    cam: CamSpec = field(default_factory=CamSpec)
    amp_dtype: str | None = None
    device: str = "cpu"
    target_input: str = "classes"
    keep_layers: bool = False
    verify: int = VERIFY_IMAGES
    tolerance: float | None = None
    force: bool = False
    verbose: bool = False


@dataclass(frozen=True)
class LayersConfig:
    """List the layers that can be explained, and which ones the rules select.

    Args:
        model: which network; no weights are needed.
        all: list every module with a 4-D output, not only blocks.
    """

    model: ModelConfig
    all: bool = False


@dataclass(frozen=True)
class StatusConfig:
    """How far a run is; also while it goes on.

    Args:
        run: run directory.
        json: print JSON.
        watch: print it again every so many seconds, until the run ends.
        metrics: also write it as a text file for Prometheus, at every look.
    """

    run: tyro.conf.Positional[Path]
    json: bool = False
    watch: float | None = None
    metrics: Path | None = None


@dataclass(frozen=True)
class ConvertConfig:
    """Write a run as WebDataset tars, one for each shard, or as a FiftyOne dataset.

    Args:
        run: run directory.
        output: folder of the tars; those that are there are kept.
        photos: also copy the photos into the tars.
        fiftyone: name of a new FiftyOne dataset.

    Raises:
        ValueError: neither of the two, or photos without tars.
    """

    run: tyro.conf.Positional[Path]
    output: tyro.conf.Positional[Path | None] = None
    photos: bool = False
    fiftyone: str | None = None

    def __post_init__(self) -> None:
        if self.output is None and (self.fiftyone is None or self.photos):
            raise ValueError(
                "convert: expected a folder for tars, or --fiftyone NAME, got neither; or leave "
                "out --photos"
            )


class Stopped(BaseException):
    """A signal asked the run to end; ``code`` is the exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


Command = (
    Annotated[RunConfig, tyro.conf.subcommand("run", description="Explain many photos.")]
    | Annotated[StatusConfig, tyro.conf.subcommand("status")]
    | Annotated[ConvertConfig, tyro.conf.subcommand("convert")]
    | Annotated[ExportConfig, tyro.conf.subcommand("export")]
    | Annotated[LayersConfig, tyro.conf.subcommand("layers")]
    | Annotated[DemoConfig, tyro.conf.subcommand("demo")]
)


def _table(rows: list[tuple[str, str]]) -> str:
    width = max(len(key) for key, _ in rows)
    return "\n".join(f"  {key:<{width}}  {value}" for key, value in rows)


def _summary_rows(summary: RunSummary) -> list[tuple[str, str]]:
    failed = ", ".join(f"{n} {status}" for status, n in summary.failures.items())
    rows = [
        ("images", str(summary.images)),
        ("failures", f"{sum(summary.failures.values())}" + (f" ({failed})" if failed else "")),
        ("images/s", f"{summary.images_per_s:.1f}"),
        ("slowest stage", summary.bottleneck or "nothing was left to do"),
        ("run", str(summary.run)),
    ]
    if summary.overlays:
        rows.append(("overlays", str(summary.overlays[0].parent)))
    return rows


def _run(config: RunConfig) -> None:
    explainer = make_run_explainer(config)
    if explainer.note:
        print(explainer.note, file=sys.stderr)
    with _stoppable():
        summary = run(config, explainer)
    print(_table(_summary_rows(summary)))


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGINT and SIGTERM end the run after the commit that is under way; a second one at once."""

    def stop(number: int, _frame: object) -> None:
        for known in previous:
            signal.signal(known, signal.SIG_DFL)
        raise Stopped(128 + number)

    previous = {known: signal.signal(known, stop) for known in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for known, handler in previous.items():
            signal.signal(known, handler)


def _status(config: StatusConfig) -> None:
    while True:
        status = run_status(config.run)
        text = json.dumps(status.to_dict()) if config.json else _table(status_lines(status))
        print(text, flush=True)
        if config.metrics is not None:
            write_metrics(status, config.metrics)
        if config.watch is None or status.state != "running":
            return
        time.sleep(config.watch)


def _convert(config: ConvertConfig) -> None:
    if config.output is not None:
        samples = write_webdataset(config.run, config.output, config.photos)
        print(_table([("samples", str(samples)), ("tars", str(config.output))]))
    if config.fiftyone is not None:
        samples = write_fiftyone(config.run, config.fiftyone)
        print(_table([("samples", str(samples)), ("FiftyOne dataset", config.fiftyone)]))


def _export(config: ExportConfig) -> None:
    if config.output is None and config.triton_repository is None:
        raise ValueError(
            "export: expected a file or a folder to write, got neither; give --output model.onnx "
            "or --triton-repository DIR"
        )
    if config.output is not None:
        check_output(config.output)
    if config.triton_repository is not None:
        check_repository(config.triton_repository)
    compute = ComputeConfig(config.device, config.amp_dtype)
    explainer = make_explainer(config.model, config.cam, compute, keep_layers=config.keep_layers)
    rows = [("layers", ", ".join(info.name for info in explainer.layers))]
    found = None
    if config.output is not None:
        found = export(
            explainer,
            config.output,
            target_input=config.target_input,
            verify=config.verify,
            tolerance=config.tolerance,
            allow_disagreement=config.force,
        )
        size = config.output.stat().st_size / 1e6
        rows.insert(0, ("file", f"{config.output} ({size:.1f} MB)"))
    if config.triton_repository is not None:
        served = export_triton_repository(
            explainer,
            config.triton_repository,
            target_input=config.target_input,
            verify=config.verify,
            tolerance=config.tolerance,
            allow_disagreement=config.force,
        )
        rows.insert(0, ("served model", f"{served.path}: see its README.md"))
        found = served.verification
    if found is not None:
        rows += _verification_rows(found)
    print(_table(rows))
    if found is not None and not found.agrees:
        print(f"combicam: warning: kept although it disagrees: {found}", file=sys.stderr)


def _verification_rows(found: Verification) -> list[tuple[str, str]]:
    """Every output's error; of the layer maps the one that is furthest off."""
    maps = [o for o in found.outputs if o.name.startswith("map:")]
    shown = [o for o in found.outputs if o not in maps]
    shown += sorted(maps, key=lambda o: -o.relative)[:1]
    names = {f"{name}s": name for name in ("heatmap", "logit", "score", "range")}
    names["classes"] = "class"
    return [
        ("compared", f"{found.images} images, network in float32, tolerance {found.tolerance:g}"),
        *(
            (
                f"{names.get(o.name, o.name)} error",
                f"{o.max_abs:.2g} max, {o.mean_abs:.2g} mean (values up to {o.scale:.3g})",
            )
            for o in shown
        ),
    ]


@contextmanager
def _rewrites_shown(wanted: bool) -> Iterator[None]:
    log, handler = logging.getLogger("combicam.export.passes"), logging.StreamHandler()
    before = log.level
    if wanted:
        log.setLevel(logging.INFO)
        log.addHandler(handler)
    try:
        yield
    finally:
        log.setLevel(before)
        log.removeHandler(handler)


def _layers(config: LayersConfig) -> None:
    wanted = config.model
    by_name = wanted.model.startswith(("timm:", "torchvision:"))
    if by_name and wanted.checkpoint is None and not wanted.pretrained:
        wanted = replace(wanted, random_weights=True)
    loaded = load_model(wanted)
    for line in layer_table(loaded, config.all):
        print(line)


def layer_table(loaded: LoadedModel, everything: bool = False) -> list[str]:
    """One line per layer: its shape, and the rules that select it."""
    model = snapshot(loaded.module)
    probed = probe(model, loaded.preprocess.input_size)
    rules: dict[str, list[str]] = {}
    for rule in ("blocks", "stages", "last"):
        try:
            selected = select_layers(model, probed, rule)
        except LayerError:  # no rule fits: the table shows what can be named
            selected = ()
        for info in selected:
            rules.setdefault(info.name, []).append(rule)
    everything = everything or not rules
    shown: list[LayerInfo] = [i for i in probed.layers.values() if everything or i.name in rules]
    width = max(len(info.name) for info in shown)
    kind = max(len(info.kind) for info in shown)
    lines = [f"{'layer':<{width}}  {'module':<{kind}}  {'C':>5} {'h':>4} {'w':>4}  selected by"]
    for info in shown:
        lines.append(
            f"{info.name:<{width}}  {info.kind:<{kind}}  {info.channels:>5} {info.height:>4} "
            f"{info.width:>4}  {' '.join(rules.get(info.name, []))}"
        )
    return lines


def _demo(config: DemoConfig) -> None:
    found = demo(config)
    rows = _summary_rows(found.summary)
    rows[3:3] = [
        ("right cell", f"{found.accuracy:.1%}"),
        (
            "pointing accuracy",
            f"{found.pointing:.1%} of maxima on the planted evidence (chance {found.chance:.1%}, "
            f"Grad-CAM of the last block {found.pointing_last:.1%})",
        ),
    ]
    rows += [("comparison", str(found.picture)), ("photos", str(config.output / "photos"))]
    print(_table(rows))


def main(arguments: list[str] | None = None) -> None:
    """The entry point ``combicam``."""
    config = tyro.cli(
        Command,
        args=arguments,
        prog="combicam",
        description=__doc__,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    try:
        if isinstance(config, RunConfig):
            _run(config)
        elif isinstance(config, ExportConfig):
            with _rewrites_shown(config.verbose):
                _export(config)
        elif isinstance(config, StatusConfig):
            _status(config)
        elif isinstance(config, ConvertConfig):
            _convert(config)
        elif isinstance(config, LayersConfig):
            _layers(config)
        else:
            _demo(config)
    except (CombicamError, ValueError, TypeError, FileNotFoundError) as error:
        raise SystemExit(f"combicam: error: {error}") from error
    except Stopped as stopped:
        print("combicam: stopped; committed shards are kept, run it again", file=sys.stderr)
        raise SystemExit(stopped.code) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
