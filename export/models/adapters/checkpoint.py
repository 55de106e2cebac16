"""Read weights of published checkpoints without running code pickled in them."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from combicam.errors import ModelError, first_line
from combicam.export.classes.safe_pickle import PlainUnpickler
from combicam.export.models.models import ModelConfig, read_state, unwrapped

# A key that only one family has -> the family's --model name.
_MARKS = {
    "_conv_stem.weight": "certh",
    "mvmf.mus": "certh",
    "aggregation.1.p": "eigenplaces (or cosplace, which has the same keys)",
    "classifier.0.weight": "geoestimation",
}
_SHOWN = 3


def require_checkpoint(config: ModelConfig) -> Path:
    """The checkpoint of a configuration.

    Raises:
        ModelError: no checkpoint, or an option that cannot be combined with one.
        FileNotFoundError: no such file or folder.
    """
    wrong = [name for name in ("pretrained", "random_weights", "num_classes")
             if getattr(config, name)]  # fmt: skip
    if wrong or config.checkpoint is None:
        got = f"--{wrong[0].replace('_', '-')}" if wrong else "none"
        raise ModelError(
            f"{config.model}: expected --checkpoint FILE, got {got}; download the published "
            "weights first, which are not included"
        )
    if not config.checkpoint.exists():
        raise FileNotFoundError(f"checkpoint: expected a file, got {config.checkpoint}")
    return config.checkpoint


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a checkpoint's state dict, without training state.

    Other objects in Lightning's checkpoints are read as empty stand-ins; none of their code is
    imported or called.

    Args:
        path: a .safetensors or a torch file.

    Raises:
        FileNotFoundError: no such file.
        ModelError: damaged, or without a state dict.
    """
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: expected a file, got {path}")
    try:
        return read_state(path)
    except ModelError as error:
        if not isinstance(error.__cause__, pickle.UnpicklingError):
            raise
    try:
        content = torch.load(path, map_location="cpu", weights_only=False, pickle_module=_Inert)
    except Exception as error:  # a damaged pickle may fail in any way
        raise ModelError(
            f"checkpoint {path}: expected a torch file, got one that cannot be read "
            f"({first_line(error)})"
        ) from error
    return unwrapped(content, path)


class _StandIn(dict[Any, Any]):
    """Replaces any object of a pickle that is not a tensor; accepts everything, does nothing."""

    __hash__ = object.__hash__  # type: ignore[assignment]

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __setstate__(self, _: Any) -> None:
        """Ignore the state."""

    def append(self, _: Any) -> None:
        """Ignore an item."""


class _Tensors(PlainUnpickler):  # type: ignore[misc]
    """Unpickles tensors; everything else becomes a stand-in.

    ``torch.load`` itself reads their storages.
    """

    def find_class(self, module: str, name: str) -> Any:
        return _PARTS.get((module, name), _StandIn)


class _Inert:
    """Replaces the module ``pickle`` for ``torch.load``."""

    Unpickler = _Tensors
    UnpicklingError = pickle.UnpicklingError

    @staticmethod
    def load(file: Any, **options: Any) -> Any:
        return _Tensors(file, **options).load()


_PARTS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
    **{
        ("torch._utils", name): getattr(torch._utils, name)
        for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")
    },
}


def check_family(
    state: Mapping[str, Tensor], marks: Iterable[str], family: str, path: Path
) -> None:
    """Check that a checkpoint belongs to a family.

    Args:
        state: of the file.
        marks: suffixes of keys that the family has.
        family: its ``--model`` name.
        path: for the error.

    Raises:
        ModelError: it does not; the message names its family, if known.
    """
    marks = list(marks)
    missing = [mark for mark in marks if not any(_ends(key, mark) for key in state)]
    if not missing:
        return
    other = next((f for m, f in _MARKS.items() if any(_ends(k, m) for k in state)), None)
    hint = f"; this is a checkpoint of {other}" if other and family not in other else ""
    got = ", ".join([*list(state)[:_SHOWN], *(["..."] if len(state) > _SHOWN else [])])
    raise ModelError(
        f"checkpoint {path}: expected one of {family}, with {missing[0]}, got "
        f"{got or 'no weights'}{hint}"
    )


def fill(module: nn.Module, state: Mapping[str, Tensor], path: Path, original: str) -> None:
    """Load weights into a model.

    Args:
        module: with the names of ``state``.
        state: floating-point tensors are cast to the model's type.
        path: for the error.
        original: prefix of the names in the file, for the error.

    Raises:
        ModelError: missing or unexpected keys, wrong shapes, or values that are not finite.
    """
    own = module.state_dict()
    # The number of batches seen is irrelevant to inference, and missing in old files.
    counters = {key for key in own if key.endswith("num_batches_tracked")}
    missing = [key for key in own if key not in state and key not in counters]
    unexpected = [key for key in state if key not in own]
    shapes = [
        f"{original}{key} is {tuple(state[key].shape)} and should be {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    problems = [
        f"{what}{', '.join(keys[:_SHOWN])}{' ...' if len(keys) > _SHOWN else ''} ({len(keys)})"
        for what, keys in (
            ("missing: ", [original + key for key in missing]),
            ("not in the model: ", [original + key for key in unexpected]),
            ("", shapes),
        )
        if keys
    ]
    if problems:
        raise ModelError(
            f"checkpoint {path}: expected the weights of {type(module).__name__}, got a file that "
            f"does not match; {'; '.join(problems)}"
        )
    module.load_state_dict({**{k: own[k] for k in counters}, **state})


def under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The part of a state dict with a prefix, which is removed."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _ends(key: str, mark: str) -> bool:
    return key == mark or key.endswith("." + mark)
