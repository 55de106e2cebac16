"""Explain a batch of images: scores and heatmaps."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from combicam.engine.explain.arguments import (
    best_device,
    check_backend,
    check_channels,
    check_chunk,
    check_classes,
    check_score,
    check_tf32,
    chosen_preprocess,
    known_device,
    named_device,
    numbered,
    prepared,
    usable_device,
)
from combicam.engine.explain.explanation import Explanation
from combicam.engine.explain.image_batch import expected, image_tensor
from combicam.engine.explain.packing import packed_session, unpacked_session
from combicam.engine.explain.photo_batch import photo_batch
from combicam.engine.explain.score_network import Network, score_network
from combicam.engine.explain.sessions import (
    ArtifactSession,
    ModelSession,
    Request,
    Session,
    SizedSessions,
)
from combicam.engine.explain.targets import Finer, check_columns, read_targets
from combicam.engine.images.decode import MAX_PIXELS
from combicam.errors import ArtifactError
from combicam.export.classes.classes import ClassTable
from combicam.export.formats.artifact import Description, read_description, weights_digest
from combicam.export.models.models import LoadedModel
from combicam.export.preprocess import Preprocess
from combicam.export.spec import CamSpec, preset_values
from combicam.export.trace.agreement import Agreement
from combicam.export.trace.output import Inputs, Output, call_digest, output_name
from combicam.export.trace.probe import LayerInfo
from combicam.export.trace.scores import best_classes
from combicam.kernels.extremes import is_flat
from combicam.kernels.weigh import EPS
from combicam.version import __version__


class Explainer:
    """Class activation maps of a CNN, in one graph with its scores.

    Calls are thread-safe; explainers can be copied and pickled. The caller's model keeps its hooks,
    ``.grad``, ``requires_grad`` and training flags. Weights are read when the explainer is made:
    make a new one after training.

    Args:
        model: any CNN [B,C,H,W] -> logits [B,n], or that returns them with other things (see
            ``output``); a ``torch.nn.Module`` (explained in eval mode) or a
            :class:`~combicam.export.models.models.LoadedModel`.
        input_size: (H, W), pixels; default: that of the LoadedModel.
        layers, method, score, fuse, normalize, align_corners, targets, layer_weights, eps,
            method_eps, tokens, masks, finer, finer_alpha, finer_weights, smooth: see
            :class:`~combicam.export.spec.CamSpec`.
        device: default: that of the model.
        dtype: of the computation, ``float32`` (as IEEE has it, also on CUDA), ``tf32`` (CUDA rounds
            it in convolutions and products; files are float32), ``bfloat16`` or ``float16``;
            default: the model's own.
        backend: ``eager``, ``compile``, ``torchscript``, ``onnxruntime``, ``openvino``,
            ``aoti``; ``auto`` is eager. ``compile`` and ``aoti`` need a C++ compiler.
        chunk: of ``scorecam`` and ``ablationcam``, changed images per pass; default: as many as
            easily fit into memory.
            It changes results only by rounding, and is halved when memory is short.
        keep_layers: also return every layer's map.
        preprocess: how uint8 images are normalised; default: ImageNet's mean and deviation, of
            grey images their average.
        classes: names and locations of the classes.
        output: where the logits [B,n] are in what the model returns: a key or an index
            (``heads.country.0`` for nested ones), or a function ``returned -> [B,n]`` of torch's
            operations, which becomes part of the graph; None takes the only tensor [B,n]. A
            function that has weights should be a module: those follow ``device`` and ``dtype``.
        inputs: fixed arguments after the images: a dict by name, or a list. Tensors [1,...] are
            repeated for every image.
        channels: C of the images; default: that of ``preprocess`` or of the LoadedModel; for a bare
            module 3 if it runs on RGB, else what its first convolution takes.

    Raises:
        ValueError, TypeError: an invalid argument.
        LayerError: layers that the model does not have.
        ModelError: weights that are NaN or infinite.
        TraceError: a model that cannot become one graph, whose graph would give other logits, or
            that mixes the images of a batch.

    Source: Combi-CAM, arXiv 2603.24117; methods and presets as in ``CamSpec``.
    """

    def __init__(
        self,
        model: nn.Module | LoadedModel,
        input_size: tuple[int, int] | None = None,
        layers: str | Sequence[str] = "blocks",
        method: str = "gradcam",
        score: str = "logprob",
        fuse: str = "sum",
        normalize: str = "map",
        align_corners: bool = True,
        targets: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        backend: str = "auto",
        *,
        layer_weights: Sequence[float] = (),
        eps: float = 0.0,
        method_eps: float = EPS,
        tokens: tuple[int, int, int] | None = None,
        masks: str = "image",
        finer: int = 0,
        finer_alpha: float = 1.0,
        finer_weights: str = "softmax",
        smooth: str = "none",
        chunk: int | None = None,
        keep_layers: bool = False,
        preprocess: Preprocess | None = None,
        classes: ClassTable | None = None,
        output: Output = None,
        inputs: Inputs = None,
        channels: int | None = None,
    ) -> None:
        spec = CamSpec(
            layers=layers if isinstance(layers, str) else tuple(layers),
            method=method,
            score=score,
            targets=targets,
            fuse=fuse,
            normalize=normalize,
            align_corners=align_corners,
            layer_weights=tuple(layer_weights),
            eps=eps,
            method_eps=method_eps,
            tokens=tokens,
            masks=masks,
            finer=finer,
            finer_alpha=finer_alpha,
            finer_weights=finer_weights,
            smooth=smooth,
        )
        check_backend(backend)
        check_tf32(dtype, backend)
        check_chunk(chunk, method)
        check_channels(channels)
        loaded = model if isinstance(model, LoadedModel) else None
        check_score(loaded, score)
        output = loaded.output if loaded and output is None else output
        inputs = loaded.inputs if loaded and inputs is None else inputs
        module = prepared(loaded.module if loaded else model, device, dtype, output, inputs)
        preprocess = chosen_preprocess(preprocess, loaded, input_size, channels, module)
        self.device = next((p.device for p in module.parameters()), torch.device("cpu"))
        agreement = Agreement(module, preprocess.input_size, preprocess.channels)
        session = ModelSession(
            module,
            spec,
            preprocess.input_size,
            keep_layers,
            "eager" if backend == "auto" else backend,
            self.device,
            chunk,
            preprocess.channels,
            tf32=str(dtype) == "tf32",
        )
        agreement.check(session.logits)
        self.description = Description(
            model=loaded.name if loaded else type(model).__name__,
            spec=session.spec,
            layers=session.layers,
            signature=session.signature,
            outputs=session.output_names,
            preprocess=preprocess,
            classes=classes or (loaded.classes if loaded else None),
            weights=weights_digest(module) + call_digest(output, inputs),
            note=loaded.note if loaded else "",
            output=output_name(output),
        )
        check_classes(self.description)
        self.session: Session = session
        self._sized = None if preprocess.has_one_size else SizedSessions(session)

    @classmethod
    def preset(cls, name: str, model: nn.Module | LoadedModel, *args: Any, **changes: Any) -> Self:
        """An explainer with the semantics of ``combicam``, ``pytorch-grad-cam`` or ``torchcam``.

        Args:
            name: the library whose numbers to reproduce.
            model, args, changes: as for the constructor; ``changes`` override the preset.

        Raises:
            ValueError: an unknown preset.
        """
        return cls(model, *args, **preset_values(name, **changes))

    @classmethod
    def load(
        cls, path: str | Path, device: torch.device | str | None = None, backend: str = "auto"
    ) -> Self:
        """Load an artifact; the model's own code is not needed.

        Args:
            path: a .onnx, .ts or .pt2 file that combicam wrote.
            device: default: CUDA if torch and the file's runtime support it, else the CPU; for
                .pt2 the device that it was compiled for.
            backend: ``auto``, or the runtime of that type of file.

        Raises:
            FileNotFoundError, ArtifactError: a missing file, or not an artifact.
            ValueError: a backend that does not run the file.
        """
        path = Path(path)
        self = cls.__new__(cls)
        self.description = read_description(path)
        self._sized = None
        if device is None:
            self.device = best_device(path)
        else:  # for a .pt2 file, its own device is better
            is_package = path.suffix == ".pt2"
            self.device = numbered(known_device(device)) if is_package else named_device(device)
        try:
            self.session = ArtifactSession(path, self.description, backend, self.device)
        except ArtifactError as error:
            if device is not None or self.device.type == "cpu":
                raise
            warnings.warn(f"{error}; the CPU is used", RuntimeWarning, stacklevel=2)
            self.device = torch.device("cpu")
            self.session = ArtifactSession(path, self.description, backend, self.device)
        return self

    def __copy__(self) -> Self:
        """A copy that shares the graph, which calls do not change."""
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.__copy__()

    def __getstate__(self) -> dict[str, Any]:
        """The model, or the file's bytes; graphs are traced again in the process that reads it."""
        return {
            "description": self.description,
            "device": str(self.device),
            "has_one_size": self._sized is None,
            "session": packed_session(self.session),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.description = state["description"]
        self.device = usable_device(state["device"])
        self.session = unpacked_session(state["session"], self.description, self.device)
        is_model = isinstance(self.session, ModelSession) and not state["has_one_size"]
        self._sized = SizedSessions(self.session) if is_model else None  # type: ignore[arg-type]

    def with_backend(self, backend: str) -> Self:
        """The same explainer in another backend; graphs that are traced are used again.

        Raises:
            ValueError: an unknown backend, or one that does not run this file.
            TraceError, ArtifactError: a graph that the backend cannot run.
        """
        check_backend(backend)
        check_tf32(self.precision, backend)
        if backend == "auto" and isinstance(self.session, ModelSession):
            backend = "eager"
        other = self.__copy__()
        other.session = self.session.with_backend(backend)
        if self._sized is not None:
            assert isinstance(other.session, ModelSession)
            other._sized = SizedSessions(other.session)
        return other

    @property
    def spec(self) -> CamSpec:
        """What is computed."""
        return self.description.spec

    @property
    def preprocess(self) -> Preprocess:
        """How images become inputs of the model."""
        return self.description.preprocess

    @property
    def classes(self) -> ClassTable | None:
        """Names and locations of the classes, if known."""
        return self.description.classes

    @property
    def num_classes(self) -> int:
        """Number of classes, and of logits."""
        return self.description.signature.classes

    @property
    def layers(self) -> tuple[LayerInfo, ...]:
        """The target layers, in order of execution."""
        return self.description.layers

    @property
    def keeps_layers(self) -> bool:
        """Whether explanations have the layers' maps."""
        return any(name.startswith("map:") for name in self.description.outputs)

    def layers_at(self, size: tuple[int, int]) -> tuple[LayerInfo, ...]:
        """The target layers for images (H, W), if images may differ in size.

        Raises:
            LayerError, TraceError: the model does not accept that size.
        """
        session = self.session_at(size)
        return session.layers if isinstance(session, ModelSession) else self.layers

    def session_at(self, size: tuple[int, int]) -> Session:
        """The graphs for images (H, W)."""
        if self._sized is None or size == self.input_size:
            return self.session
        return self._sized.at(size)

    @property
    def note(self) -> str:
        """A warning about the model to show to users; may be empty."""
        return self.description.note

    @property
    def precision(self) -> str:
        """Of the computation: ``float32``, ``tf32``, ``bfloat16``, ``float16`` or ``float64``."""
        rounds = isinstance(self.session, ModelSession) and self.session.tf32
        return "tf32" if rounds else self.description.signature.dtype

    @property
    def input_size(self) -> tuple[int, int]:
        """(H, W) of the images, pixels."""
        return self.description.signature.input_size

    @property
    def channels(self) -> int:
        """C of the images [B,C,H,W]: 1 for grey, 3 for RGB."""
        return self.description.signature.channels

    @cached_property
    def score_network(self) -> Network:
        """Normalised images [N,C,H,W] -> logits float32 [N,n]; traced at first use.

        An exported file has scores and maps in one graph, and computes both.
        """
        if isinstance(self.session, ModelSession):
            return score_network(self.session)
        return lambda images: self(images).logits

    def fingerprint(self) -> dict[str, Any]:
        """Everything that determines results: weights, spec, layers, preprocessing, precision,
        version."""
        d = self.description
        return {
            "model": d.model,
            "weights": d.weights,
            "spec": d.spec.to_dict(),
            "layers": " ".join(info.name for info in d.layers),
            "classes": hashlib.sha256(json.dumps(d.classes.to_dict()).encode()).hexdigest()
            if d.classes
            else "",
            "preprocess": d.preprocess.to_dict(),
            "dtype": self.precision,
            "combicam": __version__,
        }

    def __call__(self, images: Any, targets: Any = None) -> Explanation:
        """Explain a batch.

        Args:
            images: a tensor or an array, float [B,C,H,W], normalised, or uint8 [B,H,W,C] or
                [B,C,H,W]; or a list of images, also of PIL. (H, W) is ``input_size``; with
                ``short-side`` preprocessing only the shorter side must match. C is ``channels``;
                uint8 images in RGB become grey for a network of grey images, and grey ones RGB.
            targets: None for the K best classes of each image; a class as int, or classes as int
                [B] or [B,K], -1 the best, -2 the second best, …, -n the worst (with more than 1024
                classes: down to -1024); a region as float [n], or regions as float [B,K,n], one
                weight per class, negative weights count against; a contrast, see
                :func:`~combicam.contrast`; or :func:`~combicam.finer`. For locations see
                :class:`~combicam.CellTable`.

        Returns:
            Tensors on the explainer's device.

        Raises:
            TypeError, ValueError: invalid shapes or classes.
            ArtifactError: an artifact that was exported for other targets.
        """
        batch = self._images(images)
        inputs = [batch]
        session = self.session_at((batch.shape[2], batch.shape[3]))
        request = session.top
        changes: tuple[tuple[str, Any], ...] = ()
        if isinstance(targets, Finer):
            changes, targets = targets.changes(), targets.classes
            request = replace(request, finer=changes)
        if targets is not None or request.target_input == "weights":
            given, kind = read_targets(targets, len(batch), self.description.signature.classes)
            if kind == "classes" and self.description.format < 2:
                check_columns(given)
            request = Request(kind, given.shape[1], changes)
            inputs.append(given.to(self.device).contiguous())
        elif request.target_input == "classes":
            inputs.append(best_classes(len(batch), request.count, self.device))
        logits, chosen, scores, heatmaps, ranges, *maps = session.execute(request)(inputs)
        return Explanation(
            heatmaps=heatmaps,
            targets=chosen,
            scores=scores,
            logits=logits,
            ranges=ranges,
            flat=is_flat(ranges),
            layer_maps={info.name: m for info, m in zip(self.layers, maps, strict=False)},
        )

    def prepare(self, photos: Any, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
        """Photos of any size as a batch for a call: decoded, upright and resized as in runs.

        >>> explainer(explainer.prepare(["a.jpg", "b.png"])).scores

        Args:
            photos: a list of files (paths, or their bytes), images of PIL, or uint8 arrays [h,w,3],
                RGB, or [h,w], grey; or a single file or image of PIL.
            max_pixels: files with more pixels, by their header, are refused before decoding.

        Returns:
            uint8 [B,H,W,C], by ``preprocess``.

        Raises:
            TypeError, ValueError: no photos, other things, or a network that takes no photos; with
                ``short-side`` preprocessing, photos that differ in shape.
            OSError: a file that cannot be read.
            DecodeError: not an image, a damaged one, or too many pixels.
        """
        return photo_batch(photos, self.preprocess, max_pixels)

    def _images(self, images: Any) -> Tensor:
        batch = image_tensor(images, self.channels, self.preprocess.takes_bytes)
        by_bytes = batch.dtype == torch.uint8
        fits = (by_bytes or batch.is_floating_point()) and batch.ndim == 4 and len(batch) > 0
        if fits:
            *size, channels = batch.shape[1:] if by_bytes else (*batch.shape[2:], batch.shape[1])
            fits = channels == self.channels and self._has_size((size[0], size[1]))
        if not fits:
            h, w = self.input_size if self._sized is None else ("H", "W")
            sizes = "" if self._sized is None else f", the shorter side {min(self.input_size)}"
            asked = expected(self.channels, self.preprocess.takes_bytes, (h, w))
            raise ValueError(
                f"{asked}{sizes}, got {batch.dtype} {tuple(batch.shape)}; resize them, photos by "
                "explainer.prepare, or make an explainer with another input_size or channels"
            )
        batch = batch.detach().to(self.device, non_blocking=True)
        if not by_bytes:
            return batch.float()
        return self.preprocess.normalize(batch, self.session.image_dtype)

    def _has_size(self, size: tuple[int, int]) -> bool:
        if self._sized is None:
            return size == self.input_size
        return min(size) == min(self.input_size)
