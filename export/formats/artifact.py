"""Write and read artifacts: a joint graph in a file, with everything needed to use it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import onnx
import torch

from combicam.errors import ArtifactError, first_line
from combicam.export.classes.classes import ClassTable
from combicam.export.formats.aoti_file import read_aoti, write_aoti
from combicam.export.formats.onnx_file import METADATA_KEY, write_onnx
from combicam.export.formats.onnx_opset import DEFAULT_OPSET, check_opset
from combicam.export.formats.onnx_weights import WEIGHTS
from combicam.export.formats.runtimes import DEFAULT_RUNTIME, RUNTIMES, check_runtime
from combicam.export.formats.torchscript_file import read_torchscript, write_torchscript
from combicam.export.preprocess import Preprocess
from combicam.export.spec import CamSpec
from combicam.export.trace.probe import LayerInfo
from combicam.export.trace.signature import Signature
from combicam.export.trace.trace import JointGraph
from combicam.version import __version__

# In format 1, any negative target in column k means the k-th best class; in 2, -k does. In 3,
# images have other channels than RGB's; of RGB, files stay in 2, which earlier versions read.
FORMAT = 3
RGB_FORMAT = 2
# Fields of specs that came after version 0.2.0, which refuses what it does not know: they are
# written only if they are not the default.
LATER_SPEC_FIELDS = frozenset({"finer", "finer_alpha", "finer_weights", "smooth"})


@dataclass(frozen=True)
class Description:
    """The description of a joint graph that is stored in its file.

    Attributes:
        model: name of the model.
        spec, layers, signature: see :class:`~combicam.export.trace.trace.JointGraph`.
        outputs: names of the outputs, in order.
        preprocess: how images become inputs.
        classes: names and locations of the classes, if known.
        weights: SHA-256 of the model's weights; behind it that of a function that finds its
            logits, and of fixed inputs, if there are any; ``+float16`` if they are stored so.
        note: a caveat about the model.
        output: where the logits are in what the model returns; empty for the only [B,n].
        format: of the file; default: the oldest that says everything, ``RGB_FORMAT`` or ``FORMAT``.
        opset: of an ONNX file; None for other formats, and in files of earlier versions.
        runtime: which an ONNX file was written for; empty as ``opset`` is None.
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
    output: str = ""
    format: int = 0
    opset: int | None = None
    runtime: str = ""

    def __post_init__(self) -> None:
        if not self.format:
            form = RGB_FORMAT if self.signature.channels == 3 else FORMAT
            object.__setattr__(self, "format", form)

    def to_json(self) -> str:
        """One JSON object, keys sorted."""
        usual = CamSpec().to_dict()
        spec = {
            name: value
            for name, value in self.spec.to_dict().items()
            if name not in LATER_SPEC_FIELDS or value != usual[name]
        }
        signature = asdict(self.signature)
        if self.signature.channels == 3:
            del signature["channels"]
        return json.dumps(
            {
                "format": self.format,
                "combicam": __version__,
                "model": self.model,
                "spec": spec,
                "layers": [asdict(info) for info in self.layers],
                "signature": signature,
                "outputs": self.outputs,
                "preprocess": self.preprocess.to_dict(),
                "classes": self.classes.to_dict() if self.classes else None,
                "weights": self.weights,
                "note": self.note,
                "output": self.output,
                "opset": self.opset,
                "runtime": self.runtime,
            },
            sort_keys=True,
        )

    @classmethod
    def from_json(cls, text: str, name: str = "its description") -> Self:
        """The inverse of :meth:`to_json`; keys at the top that are unknown are left out.

        Args:
            text: JSON.
            name: of the file, for messages.

        Raises:
            ArtifactError: invalid text, or of a newer version.
        """
        version = "an unknown version"
        try:
            values: dict[str, Any] = json.loads(text)
            if "combicam" in values:
                version = f"combicam {values['combicam']}"
            if values["format"] > FORMAT:
                raise ArtifactError(
                    f"artifact: {name}: expected format <= {FORMAT}, got {values['format']}, of "
                    f"{version}; update combicam, this is {__version__}"
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
                output=values.get("output", ""),
                format=values["format"],
                opset=values.get("opset"),
                runtime=values.get("runtime", ""),
            )
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"artifact: {name}: expected a description that combicam {__version__} reads, got "
                f"one of {version} ({first_line(error)}); if that is newer, update combicam, else "
                "export it again"
            ) from error


def weights_digest(module: torch.nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(flat.numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Format:
    """A kind of artifact.

    Attributes:
        name: of the format, for messages.
        runtimes: the backends that run it, the usual one first.
        write: writes a joint graph and its description to a file.
        read: reads the description of a file, or returns None.
        is_compiled: for one device, so it may keep our operators; otherwise it is portable.
        refuses: unsupported dtypes -> the reason.
    """

    name: str
    runtimes: tuple[str, ...]
    write: Callable[[JointGraph, Path, str], None]
    read: Callable[[Path], str | None]
    is_compiled: bool = False
    refuses: tuple[tuple[str, str], ...] = ()


def _read_onnx(path: Path) -> str | None:
    model = onnx.load(str(path), load_external_data=False)
    return {entry.key: entry.value for entry in model.metadata_props}.get(METADATA_KEY)


NO_BFLOAT16 = "ONNX has no bfloat16 convolution before opset 22, nor has ONNX Runtime on CPUs"
FORMATS = {
    ".onnx": Format(
        "ONNX",
        ("onnxruntime", "openvino"),
        write_onnx,
        _read_onnx,
        refuses=(("bfloat16", NO_BFLOAT16),),
    ),
    ".ts": Format("TorchScript", ("torchscript",), write_torchscript, read_torchscript),
    ".pt2": Format("AOTInductor", ("aoti",), write_aoti, read_aoti, is_compiled=True),
}
SUFFIXES = tuple(FORMATS)


def artifact_suffix(path: Path) -> str:
    """The suffix of a file: ``.onnx``, ``.ts`` or ``.pt2``.

    Raises:
        ValueError: another suffix.
    """
    if path.suffix not in FORMATS:
        known = ", ".join(f"{suffix} ({form.name})" for suffix, form in FORMATS.items())
        raise ValueError(
            f"artifact: expected a file name that ends with one of {known}, got {path}; the "
            "suffix decides the format"
        )
    return path.suffix


def artifact_format(path: Path) -> Format:
    """The format of a file, by its suffix.

    Raises:
        ValueError: an unknown suffix.
    """
    return FORMATS[artifact_suffix(path)]


def check_dtype(suffix: str, dtype: str) -> None:
    """Check that a format supports a precision.

    Args:
        suffix: a key of ``FORMATS``.
        dtype: of the computation, as in :class:`~combicam.export.trace.signature.Signature`.

    Raises:
        ValueError: it does not; the message gives the reason and alternatives.
    """
    reason = dict(FORMATS[suffix].refuses).get(dtype)
    if reason:
        others = [s for s, form in FORMATS.items() if dtype not in dict(form.refuses)]
        raise ValueError(
            f"export: expected another dtype than {dtype} for {suffix}, {reason}; use float16 "
            f"or float32, or write {' or '.join(others)}"
        )


def check_weights(weights: str, suffix: str, runtime: str | None = None) -> None:
    """Check that a file of this suffix, for this runtime, can store its weights so.

    Raises:
        ValueError: it cannot.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"export: expected weights in {WEIGHTS}, got {weights!r}")
    if weights == "float16" and suffix != ".onnx":
        raise ValueError(
            f"export: expected weights='float32' for {suffix}, got 'float16': only .onnx files "
            "store them in another type than they compute in; use dtype='float16'"
        )
    if weights == "float16" and runtime is not None and not RUNTIMES[runtime].computes_weights:
        raise ValueError(
            f"export: expected weights='float32' for runtime {runtime!r}, got 'float16': it takes "
            "weights as they are stored; export with dtype='float16' (--amp-dtype)"
        )


def write_artifact(
    joint: JointGraph,
    description: Description,
    path: Path,
    opset: int | None = None,
    weights: str = "float32",
    runtime: str | None = None,
) -> None:
    """Write a joint graph, lowered or not, in the format given by the suffix of ``path``.

    Args:
        joint, description: the graph, and what the file says of it.
        path: of the file.
        opset: of an ONNX file, which its description records; None for the default.
        weights: how an ONNX file stores them: ``float32`` or ``float16``.
        runtime: which will run an ONNX file; None for the default.

    Raises:
        ValueError: an unknown suffix, or a dtype, opset, weights or runtime that the format does
            not support.
        TraceError: the graph cannot be written in this format.
    """
    form = artifact_format(path)
    check_dtype(path.suffix, joint.signature.dtype)
    check_opset(opset, path.suffix)
    check_runtime(runtime, path.suffix)
    check_weights(weights, path.suffix, runtime)
    write = form.write
    if path.suffix == ".onnx":
        opset = DEFAULT_OPSET if opset is None else opset
        runtime = DEFAULT_RUNTIME if runtime is None else runtime
        write = partial(write_onnx, opset=opset, weights=weights, runtime=runtime)
        stored = "" if weights == "float32" else f"+{weights}"
        description = replace(
            description, opset=opset, weights=description.weights + stored, runtime=runtime
        )
    write(joint if form.is_compiled else joint.portable(), path, description.to_json())


def read_description(path: Path) -> Description:
    """Read the description of an artifact without loading its graph.

    Raises:
        ValueError: an unknown suffix.
        FileNotFoundError: no such file.
        ArtifactError: a file that combicam did not write.
    """
    form = artifact_format(path)
    if not path.is_file():
        raise FileNotFoundError(f"artifact: expected a file, got {path}")
    try:
        text = form.read(path)
    except Exception as error:
        raise ArtifactError(
            f"artifact: {path} is not a {path.suffix} file ({first_line(error)})"
        ) from error
    if text is None:
        raise ArtifactError(
            f"artifact: expected a {path.suffix} file that combicam wrote, got {path} without its "
            "description; export the model with combicam.export"
        )
    return Description.from_json(text, str(path))
