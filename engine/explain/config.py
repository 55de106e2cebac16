"""Configure the device, precision and backend of an explainer."""

from __future__ import annotations

from dataclasses import dataclass

from combicam.engine.explain.backends import BACKENDS


@dataclass(frozen=True)
class ComputeConfig:
    """Device, precision and backend of an explainer.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:1``, ...; None for CUDA if available.
        amp_dtype: ``float32``, ``bfloat16`` or ``float16``; None for the model's own.
        backend: ``eager``, ``compile``, ``torchscript``, ``onnxruntime``, ``openvino``, ``aoti``;
            ``auto`` is eager, or the usual runtime of the artifact; in runs, what is fastest.
        chunk: of ``scorecam`` and ``ablationcam``, changed images per pass; None for as many as
            easily fit into memory.
        cuda_graphs: in runs on a GPU, replay a batch's launches as one CUDA graph; not with
            ``onnxruntime``, ``scorecam`` or ``ablationcam``.

    Raises:
        ValueError: an unknown backend.
    """

    device: str | None = None
    amp_dtype: str | None = None
    backend: str = "auto"
    chunk: int | None = None
    cuda_graphs: bool = False

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise ValueError(
                f"ComputeConfig: expected backend in {list(BACKENDS)}, got {self.backend!r}"
            )
