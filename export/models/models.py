"""Load models by name: ``timm:NAME``, ``torchvision:NAME``, ``package.module:callable``."""

from __future__ import annotations

import importlib
import os
import re
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor, nn

from combicam.errors import ModelError, first_line
from combicam.export.classes.cell_files import read_classes
from combicam.export.classes.classes import ClassTable
from combicam.export.classes.name_files import imagenet_names
from combicam.export.classes.safe_pickle import number_globals
from combicam.export.formats.artifact import SUFFIXES
from combicam.export.models.image_size import IMAGE_SIZE, as_size
from combicam.export.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from combicam.export.spec import SCORES, check_choice
from combicam.export.trace.channels import input_channels
from combicam.export.trace.output import Inputs, Output
from combicam.export.trace.snapshot import snapshot
from combicam.requirements import require

ALIASES = {"demo": "combicam.demo.model:load"}
# Families of published checkpoints, by their --model name -> the adapter's module.
FAMILIES = {
    "geoestimation": "geoestimation",
    "certh": "certh",
    "eigenplaces": "descriptors",
    "cosplace": "descriptors",
}
NESTED_KEYS = (
    *("state_dict_ema", "ema", "state_dict", "model_state_dict"),
    *("model", "net", "weights", "module"),
)
# Of wrappers, whatever the network; and of the networks in training modules such as Lightning's.
PREFIXES = ("module.", "_orig_mod.")
TRAINING_PREFIXES = ("model.", "net.", "network.", "backbone.")
LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class LoadedModel:
    """A model with its preprocessing and classes.

    Attributes:
        module: in eval mode; [B,C,H,W] normalised -> logits [B,n].
        preprocess: how images become its inputs.
        name: by which it was loaded.
        classes: names and locations of its classes, if known.
        note: a caveat about the model.
        score: the only value of ``CamSpec.score`` that suits its logits; None for any.
        output, inputs: where its logits are in what it returns, and its arguments after the images;
            see :class:`~combicam.engine.explain.explainer.Explainer`.

    Raises:
        ValueError: an unknown score.
    """

    module: nn.Module
    preprocess: Preprocess
    name: str
    classes: ClassTable | None = None
    note: str = ""
    score: str | None = None
    output: Output = None
    inputs: Inputs = None

    def __post_init__(self) -> None:
        if self.score is not None:
            check_choice("LoadedModel", "score", self.score, SCORES)


@dataclass(frozen=True)
class ModelConfig:
    """The model to explain.

    Args:
        model: ``demo`` (for postcards of the embedded planet only), ``timm:NAME``,
            ``torchvision:NAME``, ``package.module:callable``, or an exported artifact; or one of
            the published ``geoestimation[:coarse|middle|fine|hierarchy]``, ``certh``,
            ``eigenplaces``, ``cosplace``, with their ``checkpoint``.
        checkpoint: weights, a .safetensors or a torch file (pickled code in it is not run); for
            ``certh``, also the folder of its files.
        pretrained: use the weights that timm or torchvision download for that name, and the names
            of their classes.
        random_weights: use random weights, always the same ones, for listing layers and timing, not
            for explaining.
        num_classes: number of logits, if the checkpoint's differs from the architecture's.
        img_size: of the input, pixels: H and W, or one number for both; the default is the
            model's.
        in_chans: number of channels of the input, for timm's models: 1 for grey images; the default
            is the model's, mostly 3.
        resize: ``squash`` (the whole image), ``crop`` (the centre) or ``short-side`` (the whole
            image with its aspect ratio, to within half a ``side_step``); the default is the
            model's.
        side_step: for ``short-side``, the longer side is rounded to a multiple of it, pixels; every
            size that occurs has its own graph.
        classes: file of classes: CSV or Parquet with class, name, latitude, longitude, s2_token;
            GeoEstimation's CSV of cells; a pickled list of (latitude, longitude); names as JSON
            (``id2label``, ``class_index``) or a name a line; or ``imagenet``. The default is the
            model's own, of ``demo`` and of pretrained weights. For ``geoestimation:hierarchy``, the
            folder with the CSVs of its three levels.
        references: for ``eigenplaces`` and ``cosplace``, the descriptors to compare images with:
            .npy, float [n,D]; scores are similarities.
        output: where the logits [B,n] are in what the model returns: a key or an index
            (``heads.country.0`` for nested ones), or ``package.module:function``, a function
            returned -> [B,n]. The default is the only tensor [B,n].
    """

    model: Annotated[str, tyro.conf.arg(aliases=["-m"])]
    checkpoint: Path | None = None
    pretrained: bool = False
    random_weights: bool = False
    num_classes: int | None = None
    img_size: Annotated[int | tuple[int, int] | None, IMAGE_SIZE] = None
    resize: str | None = None
    side_step: int | None = None
    classes: Path | None = None
    references: Path | None = None
    # The commands' own --output is where they write.
    output: Annotated[str | None, tyro.conf.arg(name="model-output")] = None
    in_chans: int | None = None

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("ModelConfig: expected a model, got an empty name")
        if sum([self.checkpoint is not None, self.pretrained, self.random_weights]) > 1:
            raise ValueError(
                "ModelConfig: expected one of checkpoint, pretrained and random_weights, got more"
            )
        if self.img_size is not None:
            object.__setattr__(self, "img_size", as_size(self.img_size))
        if self.in_chans is not None and not self.model.startswith("timm:"):
            raise ValueError(
                "ModelConfig: expected in_chans with a model of timm, got it with "
                f"{self.model!r}, which has its own number of channels; leave it out"
            )

    @property
    def input_size(self) -> tuple[int, int] | None:
        """``img_size`` as (H, W)."""
        return None if self.img_size is None else as_size(self.img_size)

    @property
    def is_artifact(self) -> bool:
        """Whether the model is an exported file."""
        return Path(self.model).suffix in SUFFIXES


def load_model(config: ModelConfig) -> LoadedModel:
    """Build the model and load its weights.

    Raises:
        ModelError: an unknown name, no weights, or weights that do not match.
        MissingExtra: timm or torchvision is needed and not installed.
        FileNotFoundError: no such checkpoint or file of classes.
    """
    library, _, name = config.model.partition(":")
    if config.references is not None and FAMILIES.get(library) != "descriptors":
        raise ModelError(
            f"{config.model}: expected no references, which are for eigenplaces and cosplace"
        )
    if library in FAMILIES:
        adapter = importlib.import_module(f"combicam.export.models.adapters.{FAMILIES[library]}")
        loaded = adapter.load(name, config)
    elif library in ("timm", "torchvision") and name:
        # Random weights are the same in every process, so that workers of a run agree.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            named = _from_timm if library == "timm" else _from_torchvision
            loaded = named(name, config)
    else:
        loaded = _from_callable(ALIASES.get(config.model, config.model), config)
    if config.checkpoint is not None and library not in FAMILIES:
        load_checkpoint(loaded.module, config.checkpoint)
    if config.output is not None:
        loaded = replace(loaded, output=_output(config.output))
    changes: dict[str, Any] = {}
    if config.input_size is not None:
        changes["input_size"] = config.input_size
    if config.resize is not None:
        changes["resize"] = config.resize
    if config.side_step is not None:
        changes["side_step"] = config.side_step
    return replace(
        loaded,
        module=loaded.module.eval(),
        preprocess=replace(loaded.preprocess, **changes),
        classes=read_classes(config.classes)
        if config.classes and library not in FAMILIES
        else loaded.classes,
    )


def _require_weights(config: ModelConfig) -> None:
    if config.checkpoint is None and not config.pretrained and not config.random_weights:
        raise ModelError(
            f"{config.model}: expected weights, got none; pass --checkpoint FILE, --pretrained "
            "to download the library's own, or --random-weights to explain noise on purpose"
        )


def _from_timm(name: str, config: ModelConfig) -> LoadedModel:
    timm = require("timm", extra="models", operation=f"timm:{name}")
    _require_weights(config)
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('.')[0][:8]}*")[:5]
        raise ModelError(f"timm:{name}: timm has no such model; near: {', '.join(near) or 'none'}")
    given = {"num_classes": config.num_classes, "in_chans": config.in_chans}
    extra = {key: value for key, value in given.items() if value is not None}
    module = timm.create_model(name, pretrained=config.pretrained, **extra)
    data = timm.data.resolve_model_data_config(module)
    channels = config.in_chans or data["input_size"][0]
    preprocess = Preprocess(
        input_size=tuple(data["input_size"][1:]),
        mean=_fitting(data["mean"], channels),
        std=_fitting(data["std"], channels),
        crop_pct=data["crop_pct"],
        interpolation=data["interpolation"],
        channels=channels,
    )
    classes = _timm_classes(module) if config.pretrained else None
    return LoadedModel(module, preprocess, f"timm:{name}", classes)


def _fitting(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Mean or deviation of RGB for a number of channels: the average for one, as in timm."""
    if len(values) == channels:
        return tuple(values)
    return (sum(values) / len(values),) if channels == 1 else ()


def _timm_classes(module: Any) -> ClassTable | None:
    """Names of a pretrained head's classes; None if timm knows none, or replaced the head."""
    known, count = module.pretrained_cfg, module.num_classes
    if known.get("num_classes") != count:
        return None
    names = known.get("label_names")
    if isinstance(names, list | tuple):
        described = known.get("label_descriptions") or {}
        names = tuple(described.get(name, name) for name in names)
    else:
        subset = importlib.import_module("timm.data").infer_imagenet_subset(known)
        names = imagenet_names(subset) if subset else ()
    return ClassTable(names=names) if len(names) == count else None


def _from_torchvision(name: str, config: ModelConfig) -> LoadedModel:
    models = require("torchvision", extra="models", operation=f"torchvision:{name}").models
    _require_weights(config)
    if name not in models.list_models(module=models):
        near = models.list_models(module=models, include=f"*{name[:6]}*")[:5]
        raise ModelError(
            f"torchvision:{name}: torchvision has no such classifier; near: "
            f"{', '.join(near) or 'none'}"
        )
    weights = models.get_model_weights(name).DEFAULT
    extra: dict[str, Any] = {}
    if config.num_classes is not None:
        extra["num_classes"] = config.num_classes
    if name in ("googlenet", "inception_v3") and not config.pretrained:
        extra["init_weights"] = False
    module = models.get_model(name, weights=weights if config.pretrained else None, **extra)
    transform = weights.transforms()
    crop, resized = transform.crop_size[0], transform.resize_size[0]
    preprocess = Preprocess(
        input_size=(crop, crop),
        mean=tuple(getattr(transform, "mean", IMAGENET_MEAN)),
        std=tuple(getattr(transform, "std", IMAGENET_STD)),
        crop_pct=min(1.0, crop / resized),
        interpolation=transform.interpolation.value,
    )
    # torchvision refuses to replace the head of pretrained weights.
    names = tuple(weights.meta.get("categories", ())) if config.pretrained else ()
    classes = ClassTable(names=names) if names else None
    return LoadedModel(module, preprocess, f"torchvision:{name}", classes)


def _from_callable(path: str, config: ModelConfig) -> LoadedModel:
    ignored = [n for n in ("pretrained", "random_weights", "num_classes") if getattr(config, n)]
    if ignored:
        raise ModelError(
            f"{config.model}: expected no {', '.join(ignored)}: these are for timm and "
            "torchvision; set them in the callable"
        )
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise ModelError(
            f"model: expected demo, timm:NAME, torchvision:NAME, package.module:callable or an "
            f"artifact ({', '.join(SUFFIXES)}), got {config.model!r}"
        )
    built = _imported(path)()
    if isinstance(built, nn.Module):
        size = config.input_size or (224, 224)
        channels = input_channels(snapshot(built), size)
        built = LoadedModel(built, Preprocess(size, channels=channels), config.model)
    if not isinstance(built, LoadedModel):
        raise ModelError(
            f"{config.model}: expected {attribute}() to return a torch.nn.Module or a "
            f"combicam.LoadedModel, got {type(built).__name__}"
        )
    return replace(built, name=config.model)


def _imported(path: str) -> Any:
    """The object at ``package.module:attribute``."""
    module_name, _, attribute = path.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(os.getcwd())  # noqa: PTH109  modules in the working directory, like python -m
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ModelError(
            f"{path}: expected an importable {module_name}:{attribute}, got {first_line(error)}"
        ) from error


def _output(text: str) -> Output:
    """A key, an index, or the function ``package.module:function``."""
    if ":" not in text:
        return int(text) if text.lstrip("-").isdigit() else text
    function = _imported(text)
    if not callable(function):
        raise ModelError(f"output: expected {text} to be a function, got {type(function).__name__}")
    return function


def load_checkpoint(module: nn.Module, path: Path) -> None:
    """Load the weights of a file, inside wrappers such as ``state_dict`` or not, into a model.

    Raises:
        FileNotFoundError: no such file.
        ModelError: not a state dict, or keys and shapes that do not match.
    """
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: expected a file, got {path}")
    own = module.state_dict()
    state = _without_training(read_state(path), set(own))
    missing = sorted(set(own) - set(state))
    unexpected = sorted(set(state) - set(own))
    shapes = [
        f"{key} is {tuple(state[key].shape)} and should be {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    problems = [
        f"{what}: {', '.join(keys[:3])}{' ...' if len(keys) > 3 else ''} ({len(keys)})"
        for what, keys in (("missing", missing), ("not in the model", unexpected), ("", shapes))
        if keys
    ]
    if problems:
        raise ModelError(
            f"checkpoint {path}: expected the weights of {type(module).__name__}, got a file that "
            f"does not match; {'; '.join(problems)}"
        )
    module.load_state_dict(state)


def _without_training(state: dict[str, Tensor], own: set[str]) -> dict[str, Tensor]:
    """The network in the state of a training module: all keys below ``model.`` or the like.

    Other keys of the training module (its losses) are left out if those below are all that the
    model has.
    """
    for prefix in () if own <= set(state) else TRAINING_PREFIXES:
        below = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        if below:
            found = _without_training(_without_wrappers(below), own)
            if len(below) == len(state) or own <= set(found):
                return found
    return state


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the state dict of a file, inside wrappers such as ``state_dict`` or not.

    Beside tensors it may have numbers of NumPy and an ``argparse.Namespace``, as Lightning writes.

    Raises:
        ModelError: it has anything else, which is named, or no state dict.
    """
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise ModelError(
                f"checkpoint {path}: expected weights, got a Git-LFS pointer to them; run "
                "'git lfs pull' in its repository"
            )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            with torch.serialization.safe_globals([Namespace, *number_globals()]):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        named = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
        got = (
            f"{named[1]}, which was not called; save model.state_dict() alone"
            if named
            else re.sub(r"\x1b\[[0-9;]*m", "", first_line(error))
        )
        raise ModelError(
            f"checkpoint {path}: expected .safetensors or a torch file of only tensors, got {got}"
        ) from error
    return unwrapped(content, path)


def unwrapped(content: Any, path: Path) -> dict[str, Tensor]:
    """Find the state dict in the contents of a file.

    Raises:
        ModelError: there is none.
    """
    nested: Any = content
    while nested is not None:
        content = nested
        inner = [content.get(key) for key in NESTED_KEYS] if isinstance(content, Mapping) else []
        nested = next((value for value in inner if isinstance(value, Mapping)), None)
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ModelError(f"checkpoint {path}: expected a state dict, name -> tensor")
    return _without_wrappers(dict(content))


def _without_wrappers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Keys without the prefixes of ``torch.compile`` and parallel wrappers, in any order."""
    for prefix in PREFIXES:
        if state and all(key.startswith(prefix) for key in state):
            return _without_wrappers({k.removeprefix(prefix): v for k, v in state.items()})
    return state
