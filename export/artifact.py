"""Artifacts: a joint graph in a file, with everything that is needed to use it."""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import onnx
import torch

from combicam.errors import ArtifactError, first_line
from combicam.export.classes import ClassTable
from combicam.export.onnx_file import METADATA_KEY, write_onnx
from combicam.export.preprocess import Preprocess
from combicam.export.probe import LayerInfo
from combicam.export.spec import CamSpec
from combicam.export.torchscript_file import METADATA_FILE, write_torchscript
from combicam.export.trace import JointGraph, Signature
from combicam.version import __version__

FORMAT = 1
SUFFIXES = (".onnx", ".ts")


@dataclass(frozen=True)
class Description:
    """What a joint graph is, in a form that travels inside the file.

    Attributes:
        model: where the network came from, for people.
        spec, layers, signature: see :class:`~combicam.export.trace.JointGraph`.
        outputs: names of the outputs, in order.
        preprocess: how photos become inputs.
        classes: what the classes are, where known.
        weights: SHA-256 of the network's weights.
        note: what a user should know before trusting it.
    """

    model: str
    spec: CamSpec
    layers: tuple[LayerInfo, ...]
    signature: Signature
    outputs: tuple[str, ...]
    preprocess: Preprocess
    classes: ClassTable | None = None
    weights: str = ""
    note: str = ""

    def to_json(self) -> str:
        """One JSON object, keys sorted."""
        return json.dumps(
            {
                "format": FORMAT,
                "combicam": __version__,
                "model": self.model,
                "spec": self.spec.to_dict(),
                "layers": [asdict(info) for info in self.layers],
                "signature": asdict(self.signature),
                "outputs": self.outputs,
                "preprocess": self.preprocess.to_dict(),
                "classes": self.classes.to_dict() if self.classes else None,
                "weights": self.weights,
                "note": self.note,
            },
            sort_keys=True,
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of :meth:`to_json`.

        Raises:
            ArtifactError: not such a text, or of a newer format.
        """
        try:
            values: dict[str, Any] = json.loads(text)
            if values["format"] > FORMAT:
                raise ArtifactError(
                    f"artifact: expected format <= {FORMAT}, got {values['format']}; "
                    "update combicam"
                )
            signature = values["signature"]
            classes = values["classes"]
            return cls(
                model=values["model"],
                spec=CamSpec.from_dict(values["spec"]),
                layers=tuple(LayerInfo(**info) for info in values["layers"]),
                signature=Signature(**{**signature, "input_size": tuple(signature["input_size"])}),
                outputs=tuple(values["outputs"]),
                preprocess=Preprocess.from_dict(values["preprocess"]),
                classes=ClassTable.from_dict(classes) if classes else None,
                weights=values["weights"],
                note=values["note"],
            )
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"artifact: its description is damaged ({first_line(error)}); export it again"
            ) from error


def weights_digest(module: torch.nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(flat.numpy().data)
    return digest.hexdigest()


def artifact_suffix(path: Path) -> str:
    """``.onnx`` or ``.ts``.

    Raises:
        ValueError: any other.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"artifact: expected a file name with {' or '.join(SUFFIXES)}, got {path}")
    return path.suffix


def write_artifact(joint: JointGraph, description: Description, path: Path) -> None:
    """Write a portable joint graph as ONNX or TorchScript, by the suffix of ``path``.

    Raises:
        ValueError: another suffix.
        TraceError: the graph has no such form.
    """
    write = write_onnx if artifact_suffix(path) == ".onnx" else write_torchscript
    write(joint, path, description.to_json())


def read_description(path: Path) -> Description:
    """The description inside an artifact.

    Raises:
        FileNotFoundError: no such file.
        ArtifactError: a file that combicam has not written.
    """
    if not path.is_file():
        raise FileNotFoundError(f"artifact: expected a file, got {path}")
    try:
        text = _onnx_text(path) if artifact_suffix(path) == ".onnx" else _torchscript_text(path)
    except (ArtifactError, ValueError):
        raise
    except Exception as error:
        raise ArtifactError(
            f"artifact: {path} is no {path.suffix} file ({first_line(error)})"
        ) from error
    return Description.from_json(text)


def _onnx_text(path: Path) -> str:
    model = onnx.load(str(path), load_external_data=False)
    found = {entry.key: entry.value for entry in model.metadata_props}
    if METADATA_KEY not in found:
        raise ArtifactError(
            f"artifact: expected an ONNX file that combicam wrote, got {path} without a "
            f"{METADATA_KEY!r} entry in its metadata; export the model with combicam.export"
        )
    return found[METADATA_KEY]


def _torchscript_text(path: Path) -> str:
    with zipfile.ZipFile(path) as file:  # a TorchScript file is one
        for name in file.namelist():
            if name.endswith(f"/extra/{METADATA_FILE}"):
                return file.read(name).decode()
    raise ArtifactError(
        f"artifact: expected a TorchScript file that combicam wrote, got {path} without "
        f"extra/{METADATA_FILE}; export the model with combicam.export"
    )
