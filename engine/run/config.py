"""Configure a run over many images."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from combicam.cores import usable_cores
from combicam.engine.explain.config import ComputeConfig
from combicam.engine.geo.location_estimate import TOP_PLACES
from combicam.engine.images.decode import DecodeConfig
from combicam.engine.inputs.selection import SelectionConfig
from combicam.engine.run.nested import accepts_flat_keywords
from combicam.engine.shards.status import FAILURES
from combicam.engine.storage.paths import LOCATION, location
from combicam.export.models.models import ModelConfig
from combicam.export.spec import FORWARD_METHODS, CamSpec

USUAL_BATCH, BATCH_ON_GPU = 32, 128
STORES = ("full", "grid", "layers")
CROPS = ("one", "five")
LOAD_IN = ("auto", "threads", "processes")
# `--ray` without an address starts a cluster on this machine.
_RAY_FLAG = PrimitiveConstructorSpec(
    nargs="*",
    metavar="[ADDRESS]",
    instance_from_str=lambda words: " ".join(words) or "local",
    is_instance=lambda value: value is None or isinstance(value, str),
    str_from_instance=lambda value: [] if value is None else [value],
)


@dataclass(frozen=True)
class StorageConfig:
    """Which results of an image are stored, and how.

    Args:
        store: ``full``: the heatmap at the model's input size; ``grid``: on the grid of the finest
            layer; ``layers``: that, and every layer's map on its own grid.
        heatmap_size: with ``full``, (H, W) to which heatmaps are scaled, pixels.
        top_places: number of locations stored per row, if the classes have locations.
        shard_size: images per committed file.

    Raises:
        ValueError: an invalid value.
    """

    store: str = "full"
    heatmap_size: tuple[int, int] | None = None
    top_places: int = TOP_PLACES
    shard_size: int = 1000

    def __post_init__(self) -> None:
        for name in ("shard_size", "top_places"):
            if getattr(self, name) < 1:
                raise ValueError(f"RunConfig: expected {name} >= 1, got {getattr(self, name)}")
        if self.store not in STORES:
            raise ValueError(f"RunConfig: expected store in {STORES}, got {self.store!r}")
        if self.heatmap_size is None:
            return
        if self.store != "full":
            raise ValueError(
                f"RunConfig: expected heatmap_size with store='full', got store={self.store!r}, "
                "whose heatmaps have the size of a layer's grid; leave one out"
            )
        size = tuple(int(s) for s in self.heatmap_size)
        if len(size) != 2 or min(size) < 1:
            raise ValueError(
                f"RunConfig: expected heatmap_size as (H, W) in pixels, got {self.heatmap_size!r}"
            )
        object.__setattr__(self, "heatmap_size", size)


@dataclass(frozen=True)
class DistributionConfig:
    """Which processes do the work; default: this one.

    Args:
        devices: one process for each of these devices of this machine: ``cuda:0 cuda:1``, ``all``
            GPUs, or ``cpu cpu``, which share the cores; ``workers`` are divided among them. Empty
            for one process on ``device``.
        ray: address of a Ray cluster: one actor for each of its GPUs, or for each ``ray_cpus``
            CPUs if it has no GPU; ``local`` starts a cluster on this machine. None for no cluster.
        ray_cpus: CPUs of an actor, and its threads that read and decode; None for a machine's CPUs
            divided among its GPUs, and for at most 4 on machines without a GPU.

    Raises:
        ValueError: an invalid value.
    """

    devices: tuple[str, ...] = ()
    ray: Annotated[str | None, _RAY_FLAG] = None
    ray_cpus: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.devices, str):
            raise ValueError(f"RunConfig: expected devices as a list, got {self.devices!r}")
        object.__setattr__(self, "devices", tuple(self.devices))
        if "all" in self.devices and len(self.devices) > 1:
            raise ValueError(
                f"RunConfig: expected devices as 'all' or a list of devices, got {self.devices}"
            )
        if self.devices and self.ray is not None:
            raise ValueError("RunConfig: expected devices or ray, got both; leave one of them out")
        if self.ray_cpus is not None and (self.ray is None or self.ray_cpus < 1):
            raise ValueError(
                f"RunConfig: expected ray_cpus >= 1 together with ray, got {self.ray_cpus} and "
                f"ray={self.ray!r}"
            )

    @property
    def is_local(self) -> bool:
        """Whether this process does the work."""
        return not self.devices and self.ray is None


@accepts_flat_keywords
@dataclass(frozen=True)
class RunConfig:
    """Explain any number of images into a run directory.

    The fields of ``storage``, ``distribution``, ``decode`` and the others may also be given as
    keywords: ``RunConfig("photos/", "run/", "model.onnx", shard_size=100)``.

    Args:
        input: folder, glob, list (text, CSV, TSV, JSON lines, Parquet), Parquet or Arrow files
            with images, or WebDataset tars; ``s3://…`` too.
        output: run directory; an existing run is continued; ``s3://bucket/run`` too.
        model: which model; a name is enough.
        cam: what to compute; an artifact has its own.
        spec: method, layers and fusion by one name: ``combicam``, ``combicam+``,
            ``pytorch-grad-cam`` or ``torchcam``; or a JSON file of ``combicam recommend``. Options
            of the method that are not at their defaults override it.
        compute: device, precision and backend.
        selection: which of the images found are inputs.
        decode: how images are decoded.
        storage: which results are stored.
        distribution: which processes do the work.
        explain: what to explain instead of the best classes, one or several of: ``top``;
            ``truth``, the class of the location where the photo was taken; a class number;
            ``LAT,LON``, the class whose cell contains this location; the S2 token of a class
            (``s2:8744`` if it has digits only); the regions ``within:500km@LAT,LON`` and
            ``under:TOKEN`` (an S2 cell); or ``ONE-not-OTHER``, why one of these and not another.
        crops: ``five`` explains the corners and the centre of every image together, as
            GeoEstimation does; ``one`` explains the image as the model's preprocessing resizes it.
        batch_size: largest number of images explained at once; five crops count as five images.
            ``auto`` measures it, in runs that are long enough to gain by it.
        workers: threads or processes that read and decode.
        load_in: where: ``threads`` of this process; ``processes``, past the interpreter's lock, and
            so that an image that crashes its decoder is a failed row (Linux); ``auto`` takes
            processes for a GPU, with at least 6 workers and 10,000 inputs.
        overlays: number of images, the first explained ones, to draw as PNG too.
        truth: ground truth, CSV or Parquet with the columns id, latitude and longitude: where the
            photos were taken. Input lists may have these columns, too. Rows then have the error.
        retry_failed: retry the failed images of committed shards (their files may have been fixed
            since); other rows stay unchanged.
        retry: retry only failed images of these statuses, such as ``decode_error,missing``.
        max_failures: stop the run when more images fail, counting earlier invocations: a number,
            or a share of all inputs such as ``5%``; None for no limit.
        progress: show a progress bar on stderr.

    Raises:
        ValueError: an invalid value.
    """

    input: tyro.conf.Positional[str]
    output: Annotated[Path, LOCATION, tyro.conf.arg(aliases=["-o"])]
    model: ModelConfig
    cam: CamSpec = field(default_factory=CamSpec)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    distribution: DistributionConfig = field(default_factory=DistributionConfig)
    explain: tuple[str, ...] = ()
    crops: str = "one"
    batch_size: Annotated[int | Literal["auto"], tyro.conf.arg(aliases=["-b"])] = "auto"
    workers: int = field(default_factory=usable_cores)
    load_in: Literal["auto", "threads", "processes"] = "auto"
    overlays: int = 0
    truth: Annotated[Path | None, LOCATION] = None
    retry_failed: bool = False
    retry: tuple[str, ...] = ()
    max_failures: str | None = None
    progress: bool = True
    spec: str | None = None

    def __post_init__(self) -> None:
        if not str(self.input):
            raise ValueError("RunConfig: expected input as a folder, glob, list or tars, got ''")
        if isinstance(self.model, str):
            object.__setattr__(self, "model", ModelConfig(self.model))
        if self.spec is not None:
            object.__setattr__(self, "cam", self.cam.overriding(CamSpec.read(self.spec)))
        location(self.input)  # raises for unsupported URLs
        object.__setattr__(self, "input", str(self.input))
        object.__setattr__(self, "output", location(self.output))
        if self.truth is not None:
            object.__setattr__(self, "truth", location(self.truth))
        if self.batch_size != "auto" and self.batch_size < 1:
            raise ValueError(
                f"RunConfig: expected batch_size >= 1 or 'auto', got {self.batch_size!r}"
            )
        if self.workers < 1:
            raise ValueError(f"RunConfig: expected workers >= 1, got {self.workers}")
        if self.load_in not in LOAD_IN:
            raise ValueError(f"RunConfig: expected load_in in {LOAD_IN}, got {self.load_in!r}")
        self._check_explain()
        self._check_crops()
        self._check_retry()
        if self.max_failures is not None:
            object.__setattr__(self, "max_failures", str(self.max_failures))
            self.failure_limit(1)
        if self.overlays < 0:
            raise ValueError(f"RunConfig: expected overlays >= 0, got {self.overlays}")
        devices = [*self.distribution.devices, self.compute.device or ""]
        if (self.compute.streams or 1) > 1 and any(
            name == "all" or name.startswith("cuda") for name in devices
        ):
            raise ValueError(
                f"RunConfig: expected a CPU for streams={self.compute.streams}, got "
                f"{' '.join(filter(None, devices))}: a GPU's batches follow each other; leave "
                "streams out"
            )
        if self.distribution.devices and self.compute.device is not None:
            raise ValueError(
                "RunConfig: expected devices or device, got both; leave one of them out"
            )

    def _check_explain(self) -> None:
        """Check ``explain`` against the options that it excludes."""
        if isinstance(self.explain, str):
            object.__setattr__(self, "explain", (self.explain,))
        object.__setattr__(self, "explain", tuple(str(word) for word in self.explain))
        if self.explain and self.cam.targets not in (1, len(self.explain)):
            raise ValueError(
                f"RunConfig: expected explain or targets, got explain={list(self.explain)} and "
                f"targets={self.cam.targets}; leave targets out"
            )
        if self.explain and self.compute.cuda_graphs:
            raise ValueError(
                "RunConfig: expected explain or cuda_graphs, got both: a captured graph holds no "
                "targets; leave one out"
            )

    def _check_crops(self) -> None:
        if self.crops not in CROPS:
            raise ValueError(f"RunConfig: expected crops in {CROPS}, got {self.crops!r}")
        if self.crops == "five" and self.storage.store == "layers":
            raise ValueError(
                "RunConfig: expected store='full' or 'grid' with crops='five', got 'layers': the "
                "layers' grids of five crops do not align on an image; choose another store"
            )
        if self.cam.method in FORWARD_METHODS and self.compute.cuda_graphs:
            raise ValueError(
                f"RunConfig: expected cuda_graphs or method {self.cam.method!r}, got both: its "
                "passes are too many to be captured; leave one out"
            )
        if self.crops == "five" and self.compute.cuda_graphs:
            raise ValueError(
                "RunConfig: expected crops='five' or cuda_graphs, got both: a captured graph holds "
                "no targets, which five crops share; leave one out"
            )

    def _check_retry(self) -> None:
        given = (self.retry,) if isinstance(self.retry, str) else self.retry
        words = tuple(word.strip() for value in given for word in value.split(","))
        if not set(words) <= set(FAILURES):
            raise ValueError(
                f"RunConfig: expected retry as some of {', '.join(FAILURES)}, got {given!r}"
            )
        object.__setattr__(self, "retry", words)

    @property
    def retried(self) -> frozenset[str]:
        """The statuses whose rows are tried again."""
        return frozenset(FAILURES if self.retry_failed and not self.retry else self.retry)

    @property
    def batch(self) -> int:
        """``batch_size`` as a number."""
        return USUAL_BATCH if self.batch_size == "auto" else self.batch_size

    @property
    def photos_at_once(self) -> int:
        """Largest number of images in a batch, before cropping."""
        return self.batch if self.crops == "one" else max(1, self.batch // 5)

    def failure_limit(self, images: int) -> int | None:
        """How many of this many images may fail; None for no limit.

        Raises:
            ValueError: neither a number nor a share.
        """
        text = self.max_failures
        if text is None:
            return None
        match = re.fullmatch(r"(\d+)|(\d+(?:\.\d+)?)%", text)
        if match is None or float(match[2] or 0) > 100:
            raise ValueError(
                f"RunConfig: expected max_failures as a number or a share such as '5%', "
                f"got {text!r}"
            )
        return int(match[1]) if match[1] else math.floor(images * float(match[2]) / 100)
