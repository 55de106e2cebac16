"""Where an explainer's joint graphs come from: a network that is traced on demand, or one file."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from combicam.engine.backends import (
    Execute,
    aoti_backend,
    artifact_backend,
    compile_backend,
    eager_backend,
    portable_backend,
)
from combicam.errors import ArtifactError
from combicam.export.artifact import Description
from combicam.export.spec import CamSpec
from combicam.export.trace import JointGraph, trace

PORTABLE = ("torchscript", "onnxruntime")


@dataclass(frozen=True)
class Request:
    """Which joint graph a call needs: how targets are given, and how many."""

    target_input: str
    count: int


class Session(Protocol):
    """Gives the function that answers a request.

    Attributes:
        top: the request of a call that names no targets.
    """

    top: Request

    def execute(self, request: Request) -> Execute:
        """The joint graph as a function of its inputs."""


class ModelSession:
    """Traces a network once per kind of request.

    Args:
        module: a snapshot of the network.
        spec, input_size, keep_layers: what to trace.
        backend: ``eager``, ``compile``, ``torchscript``, ``onnxruntime`` or ``aoti``.
        device: where the network is.
    """

    def __init__(
        self,
        module: nn.Module,
        spec: CamSpec,
        input_size: tuple[int, int],
        keep_layers: bool,
        backend: str,
        device: torch.device,
    ) -> None:
        self.module = module
        self.spec = spec
        self.input_size = input_size
        self.keep_layers = keep_layers
        self.backend = backend
        self.device = device
        self.top = Request("classes", spec.targets)
        self._joints: dict[Request, JointGraph] = {}
        self._ready: dict[Request, Execute] = {}
        self._lock = threading.RLock()
        self.execute(self.top)

    def joint(self, request: Request) -> JointGraph:
        """The joint graph that answers a request; traced at its first request."""
        with self._lock:
            if request not in self._joints:
                self._joints[request] = trace(
                    self.module,
                    replace(self.spec, targets=request.count),
                    self.input_size,
                    target_input=request.target_input,
                    keep_layers=self.keep_layers,
                )
            return self._joints[request]

    def execute(self, request: Request) -> Execute:
        """The joint graph as a function of its inputs."""
        with self._lock:
            if request not in self._ready:
                self._ready[request] = self._start(self.joint(request))
            return self._ready[request]

    def _start(self, joint: JointGraph) -> Execute:
        if self.backend in PORTABLE:
            return portable_backend(joint.portable(), self.backend, self.device)
        if self.backend == "aoti":
            return aoti_backend(joint.portable())
        return compile_backend(joint) if self.backend == "compile" else eager_backend(joint)


class ArtifactSession:
    """One exported file, which answers one kind of request.

    Args:
        path: the file.
        description: what it holds.
        backend: ``auto`` or its runtime.
        device: where to run.
    """

    def __init__(
        self, path: Path, description: Description, backend: str, device: torch.device
    ) -> None:
        self.top = Request(description.signature.target_input, description.spec.targets)
        self._execute = artifact_backend(path, backend, device)

    def execute(self, request: Request) -> Execute:
        """The file's graph.

        Raises:
            ArtifactError: the file was exported for another kind of targets.
        """
        if request != self.top:
            raise ArtifactError(
                f"Explainer: expected targets as this artifact takes them "
                f"({self.top.target_input!r}, K={self.top.count}), got "
                f"{request.target_input!r} with K={request.count}; export it with "
                f"target_input={request.target_input!r} and targets={request.count}"
            )
        return self._execute
