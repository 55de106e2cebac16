"""``combicam check``: say what an ONNX file has that a runtime lacks, or runs slowly."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from combicam.commands.printing import check_rows, print_table
from combicam.export.formats.runtimes import RUNTIMES, check_file


@dataclass(frozen=True)
class Config:
    """Say what an ONNX file has that a runtime lacks, or runs slowly.

    Args:
        file: any ONNX file.
        runtime: the runtimes, of ``onnxruntime-cpu``, ``onnxruntime-cuda``, ``openvino``,
            ``tensorrt`` and ``web``; default: all.
    """

    file: tyro.conf.Positional[Path]
    runtime: Annotated[tuple[str, ...], tyro.conf.arg(name="for")] = tuple(RUNTIMES)


def main(config: Config) -> None:
    """Print a table for each runtime; exit with 1 if one does not run the file."""
    checks = [check_file(config.file, runtime) for runtime in config.runtime]
    for check in checks:
        print_table(check_rows(check))
    if not all(check.runs for check in checks):
        raise SystemExit(1)
