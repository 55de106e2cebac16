"""Provide an explainer's joint graphs: traced from a model on demand, or loaded from a file."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from combicam.engine.explain.ablationcam import AblationCam
from combicam.engine.explain.backends import (
    LOADERS,
    Execute,
    artifact_backend,
    compile_backend,
    eager_backend,
    file_backend,
    with_tf32,
)
from combicam.engine.explain.config import ONNX_BACKENDS
from combicam.engine.explain.forward_only import ForwardOnly
from combicam.engine.explain.scorecam import ScoreCam
from combicam.errors import ArtifactError
from combicam.export.formats.artifact import Description
from combicam.export.spec import FORWARD_METHODS, CamSpec
from combicam.export.trace.agreement import logits_only
from combicam.export.trace.probe import LayerInfo
from combicam.export.trace.scores import best_classes, fitting_score
from combicam.export.trace.signature import Signature, check_target_input
from combicam.export.trace.trace import (
    OUTPUTS,
    JointGraph,
    trace,
)

FORWARD_ONLY: dict[str, type[ForwardOnly]] = {"scorecam": ScoreCam, "ablationcam": AblationCam}


def _finer(spec: CamSpec) -> str:
    names = ("finer", "finer_alpha", "finer_weights")
    return ", ".join(f"{name}={getattr(spec, name)!r}" for name in names)


@dataclass(frozen=True)
class Request:
    """Which joint graph a call needs: how targets are given, and how many.

    Attributes:
        target_input, count: see :class:`~combicam.export.trace.signature.Signature`.
        finer: fields of the spec that the call changes, with their values.

    Raises:
        ValueError: an unknown kind of targets.
    """

    target_input: str
    count: int
    finer: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        check_target_input(self.target_input)

    def spec(self, spec: CamSpec) -> CamSpec:
        """The spec of an explainer, as this call changes it."""
        return replace(spec, targets=self.count, **dict(self.finer))


class Session(Protocol):
    """Provides the joint graph for a request.

    Attributes:
        top: the request of a call without targets.
        image_dtype: best dtype for normalised images; float32 always works.
        backend: that executes it.
    """

    top: Request
    image_dtype: torch.dtype
    backend: str

    def with_backend(self, backend: str) -> Session:
        """A session of the same graphs in another backend."""

    def execute(self, request: Request) -> Execute:
        """The joint graph as a function of its inputs."""


SETTINGS = ("spec", "input_size", "keep_layers", "backend", "chunk", "channels", "tf32")


class ModelSession:
    """Traces a model once per kind of request.

    Args:
        module: a snapshot of the model.
        spec, input_size, keep_layers: what to trace.
        backend: ``eager``, ``compile``, ``torchscript``, ``onnxruntime``, ``openvino`` or
            ``aoti``.
        device: of the model.
        chunk: of ``scorecam`` and ``ablationcam``, changed images per pass.
        channels: C of the images.
        tf32: whether CUDA may round float32 to TF32.
        joints: graphs that were traced already, of a session that differs in the backend.
    """

    def __init__(
        self,
        module: nn.Module,
        spec: CamSpec,
        input_size: tuple[int, int],
        keep_layers: bool,
        backend: str,
        device: torch.device,
        chunk: int | None = None,
        channels: int = 3,
        tf32: bool = False,
        joints: dict[tuple[Request, bool], JointGraph] | None = None,
    ) -> None:
        self.module = module
        self.spec = spec
        self.input_size = input_size
        self.keep_layers = keep_layers
        self.backend = backend
        self.device = device
        self.chunk = chunk
        self.channels = channels
        self.tf32 = tf32
        self.top = Request("classes", spec.targets)
        # Files take float32; a graph in memory takes the model's type, which saves a cast.
        forward_only = spec.method in FORWARD_METHODS
        direct = backend not in LOADERS and device.type == "cuda" and not forward_only
        dtype = next((p.dtype for p in module.parameters()), torch.float32)
        self.image_dtype = dtype if direct else torch.float32
        self._joints = {} if joints is None else joints
        self._ready: dict[Request, Execute] = {}
        self._lock = threading.RLock()
        self.forward_only: ForwardOnly | None = None
        if forward_only:
            make = FORWARD_ONLY[spec.method]
            self.forward_only = make(
                module, spec, input_size, keep_layers, backend, device, chunk, channels
            )
        self.execute(self.top)
        # A single logit has a sigmoid of its own.
        self.spec = replace(spec, score=fitting_score(spec.score, self.signature.classes))

    def at(self, size: tuple[int, int]) -> ModelSession:
        """The same layers of the same model for images (H, W)."""
        spec = self.spec
        if spec.method != "fullgrad":  # which has the same layers at any size
            spec = replace(spec, layers=tuple(info.name for info in self.layers))
        return self._changed(spec=spec, input_size=size)

    @property
    def nodes(self) -> int:
        """Number of operators of the graph of a call without targets."""
        return 0 if self.forward_only is not None else len(self._top_joint().module.graph.nodes)

    def with_backend(self, backend: str) -> ModelSession:
        """The same graphs in another backend."""
        return self._changed(backend=backend, joints=self._joints)

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments that make this session again, by name, but for the module and device."""
        return {name: getattr(self, name) for name in SETTINGS}

    def _changed(self, **changes: Any) -> ModelSession:
        return ModelSession(self.module, device=self.device, **{**self.settings, **changes})

    @property
    def layers(self) -> tuple[LayerInfo, ...]:
        """The target layers, in order of execution."""
        if self.forward_only is not None:
            return self.forward_only.graph.layers
        return self._top_joint().layers

    @property
    def signature(self) -> Signature:
        """The inputs of a call without targets."""
        if self.forward_only is not None:
            return replace(self.forward_only.graph.signature, target_input=self.top.target_input)
        return self._top_joint().signature

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs; layer maps are named after their layer."""
        if self.forward_only is not None:
            kept = self.layers if self.keep_layers else ()
            return (*OUTPUTS, *(f"map:{info.name}" for info in kept))
        return self._top_joint().output_names

    def logits(self, images: Tensor) -> Tensor:
        """The graph's logits, float32 [B,n], of normalised images [B,C,H,W], run eagerly."""
        if self.forward_only is not None:
            scores: Tensor = self.forward_only.graph.logits(images)[0]
            return scores
        graph = logits_only(self._top_joint().module)
        found: Tensor = graph(images, best_classes(len(images), self.top.count, self.device))
        return found

    def _top_joint(self) -> JointGraph:
        return self.joint(self.top, for_onnx=self.backend in ONNX_BACKENDS)

    def joint(self, request: Request, for_onnx: bool = False) -> JointGraph:
        """The joint graph for a request; traced at its first use.

        Args:
            request: kind and number of targets.
            for_onnx: use a backward pass per target: a batched one makes ONNX Runtime copy every
                value of the forward pass for every target (measured slower on a CPU).

        Raises:
            TraceError: the method has no joint graph; or see
                :func:`~combicam.export.trace.trace.trace`.
        """
        with self._lock:
            batched = not for_onnx or request.count == 1
            if (request, batched) not in self._joints:
                self._joints[request, batched] = trace(
                    self.module,
                    request.spec(self.spec),
                    self.input_size,
                    target_input=request.target_input,
                    keep_layers=self.keep_layers,
                    batched=batched,
                    channels=self.channels,
                )
            return self._joints[request, batched]

    def execute(self, request: Request) -> Execute:
        """The joint graph as a function of its inputs."""
        with self._lock:
            if request not in self._ready:
                self._ready[request] = self._start(request)
            return self._ready[request]

    def _start(self, request: Request) -> Execute:
        execute = self._in_backend(request)
        return with_tf32(execute) if self.tf32 else execute

    def _in_backend(self, request: Request) -> Execute:
        if self.forward_only is not None:
            return self.forward_only.execute(request.target_input, request.spec(self.spec))
        joint = self.joint(request, for_onnx=self.backend in ONNX_BACKENDS)
        if self.backend in LOADERS:
            return file_backend(joint, self.backend, self.device)
        if self.backend == "compile":
            return compile_backend(joint)
        return eager_backend(joint, self.device)


class SizedSessions:
    """An LRU cache of sessions of one model for images of other sizes.

    Every size has its own graph and constants: a few hundred MB each.

    Args:
        first: of the nominal size; its layers are used for all sizes.
        limit: how many sessions are kept.
    """

    def __init__(self, first: ModelSession, limit: int = 16) -> None:
        self._first = first
        self._limit = limit
        self._sessions: OrderedDict[tuple[int, int], ModelSession] = OrderedDict()
        self._lock = threading.Lock()

    def at(self, size: tuple[int, int]) -> ModelSession:
        """The session for images (H, W); traced if it is not cached.

        Raises:
            LayerError, TraceError: the model does not accept that size.
        """
        with self._lock:
            if size not in self._sessions:
                if len(self._sessions) == self._limit:
                    self._sessions.popitem(last=False)
                self._sessions[size] = self._first.at(size)
            self._sessions.move_to_end(size)
            return self._sessions[size]


class ArtifactSession:
    """An exported file, which has the joint graph for one kind of request.

    Args:
        path: the file.
        description: of its contents.
        backend: ``auto`` or its runtime.
        device: where to run.
    """

    def __init__(
        self, path: Path, description: Description, backend: str, device: torch.device
    ) -> None:
        self.top = Request(description.signature.target_input, description.spec.targets)
        self.image_dtype = torch.float32
        self.path, self.backend = path, backend
        self.folder: object = None  # a temporary one that holds the file, or none
        self._description, self._device = description, device
        self._execute = artifact_backend(path, backend, device)

    def with_backend(self, backend: str) -> ArtifactSession:
        """The same file in another runtime."""
        other = ArtifactSession(self.path, self._description, backend, self._device)
        other.folder = self.folder
        return other

    def execute(self, request: Request) -> Execute:
        """The file's graph.

        Raises:
            ArtifactError: the file was exported for another kind of targets.
        """
        spec = self._description.spec
        asked = request.spec(spec)
        if asked != replace(spec, targets=request.count):
            raise ArtifactError(
                f"Explainer: expected the similar classes that this artifact compares "
                f"({_finer(spec)}), got {_finer(asked)}; export an explainer with these "
                "fields"
            )
        if (request.target_input, request.count) != (self.top.target_input, self.top.count):
            raise ArtifactError(
                f"Explainer: expected targets as this artifact accepts them "
                f"({self.top.target_input!r}, K={self.top.count}), got "
                f"{request.target_input!r} with K={request.count}; export it with "
                f"target_input={request.target_input!r} and targets={request.count}"
            )
        return self._execute
