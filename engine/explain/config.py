"""Configure the device, precision and backend of an explainer."""

from __future__ import annotations

from dataclasses import dataclass

BACKENDS = ("auto", "eager", "compile", "torchscript", "onnxruntime", "openvino", "aoti")
# Those that run the ONNX file; its graph differs from the others'.
ONNX_BACKENDS = ("onnxruntime", "openvino")


@dataclass(frozen=True)
class ComputeConfig:
    """Device, precision and backend of an explainer.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:1``, ...; None for CUDA if available.
        amp_dtype: ``float32``, ``tf32`` (float32, rounded in convolutions and products on CUDA),
            ``bfloat16`` or ``float16``; None for the model's own.
        backend: ``eager``, ``compile``, ``torchscript``, ``onnxruntime``, ``openvino``, ``aoti``;
            ``auto`` is eager, or the usual runtime of the artifact; in runs, what is fastest.
        chunk: of ``scorecam`` and ``ablationcam``, changed images per pass; None for as many as
            easily fit into memory.
        cuda_graphs: in runs on a GPU, replay a batch's launches as one CUDA graph; not with
            ``onnxruntime``, ``openvino``, ``scorecam`` or ``ablationcam``. With the backend
            ``auto``, runs of the best classes do so by themselves.
        streams: in runs on a CPU, batches that are explained at the same time, each on a share of
            the threads; None for the fastest number where the batch size is ``auto``, else for 1.

    Raises:
        ValueError: an unknown backend, one that cannot be captured, or no stream.
    """

    device: str | None = None
    amp_dtype: str | None = None
    backend: str = "auto"
    chunk: int | None = None
    cuda_graphs: bool = False
    streams: int | None = None

    def __post_init__(self) -> None:
        if self.cuda_graphs and self.backend in ONNX_BACKENDS:
            raise ValueError(
                f"ComputeConfig: expected cuda_graphs or backend {self.backend!r}, got both: only "
                "torch's launches can be captured; leave one out"
            )
        if self.streams is not None and self.streams < 1:
            raise ValueError(f"ComputeConfig: expected streams >= 1, got {self.streams}")
        if self.backend not in BACKENDS:
            raise ValueError(
                f"ComputeConfig: expected backend in {list(BACKENDS)}, got {self.backend!r}"
            )
