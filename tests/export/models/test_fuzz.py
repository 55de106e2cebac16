"""Checkpoints and tables of others with anything in them: read, or one of the errors that say why.

Fewer than a second each here; ``FUZZ_EXAMPLES=20000`` makes it an hour.
"""

from __future__ import annotations

import io
import os
import pickle
import resource
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

from combicam.errors import CombicamError
from combicam.export.classes.cell_files import read_classes
from combicam.export.classes.safe_pickle import load_numbers
from combicam.export.formats.artifact import read_description
from combicam.export.models.adapters import checkpoint
from combicam.export.models.adapters.checkpoint import read_weights
from combicam.export.models.models import load_checkpoint

FUZZ = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "60")),
    suppress_health_check=list(HealthCheck),
)
STATE = nn.Linear(2, 3).state_dict()


def torch_bytes(old: bool) -> bytes:
    file = io.BytesIO()
    content = {"state_dict": STATE, "epoch": np.float64(3), "args": Namespace(lr=0.1)}
    torch.save(content, file, _use_new_zipfile_serialization=not old)
    return file.getvalue()


WHOLE = {
    "zip.pt": torch_bytes(False),
    "old.pt": torch_bytes(True),
    "s.safetensors": save(STATE),
    "p.pkl": pickle.dumps([(1.0, 2.0), (np.float32(3), np.arange(3))]),
    "cells.csv": b"class_label,hex_id,latitude_mean,longitude_mean\n0,89c,40.1,-73.2\n1,89d,1,2\n",
    "names.json": b'{"0": ["n01440764", "tench"], "1": ["n01443537", "goldfish"]}',
    "names.txt": "a\nb\nc\n".encode("utf-16"),
}


@st.composite
def damaged(draw: st.DrawFn) -> tuple[str, bytes]:
    """A file of others, cut, or with bytes replaced, put in, or taken out."""
    name = draw(st.sampled_from(sorted(WHOLE)))
    data = bytearray(WHOLE[name])
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        some = draw(st.binary(max_size=8))
        kind = draw(st.sampled_from(["cut", "set", "insert", "remove"]))
        if kind == "cut":
            data = data[:at]
        elif kind == "insert":
            data[at:at] = some
        else:
            data[at : at + len(some)] = some if kind == "set" else b""
    return name, bytes(data)


READERS: tuple[Callable[[Path], Any], ...] = (
    read_weights,
    lambda path: load_checkpoint(nn.Linear(2, 3), path),
    load_numbers,
    read_classes,
)


@FUZZ
@pytest.mark.filterwarnings("ignore")
@given(damaged())
def test_damaged_checkpoints_and_tables(file: tuple[str, bytes]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, file[0])
        path.write_bytes(file[1])
        for read in READERS:
            try:
                read(path)
            except (CombicamError, ValueError) as error:
                assert str(error)


@FUZZ
@given(st.sampled_from([".onnx", ".ts", ".pt2"]), st.binary(max_size=200))
def test_damaged_artifacts(suffix: str, data: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, f"a{suffix}")
        path.write_bytes(data)
        with pytest.raises((CombicamError, ValueError)):
            read_description(path)


# Values that a file says it numbers: 2^32 - 1, of which there is one.
MANY = b"\x80\x02}(X\x01\x00\x00\x00aK\x01r\xff\xff\xff\xffu."


def test_a_pickle_that_claims_many_values(tmp_path: Path) -> None:
    """It is read in the memory that its bytes need; 64 GB would be set aside for the claim."""
    path = tmp_path / "p.pkl"
    path.write_bytes(MANY)
    assert load_numbers(path) == {"a": 1}
    limit = resource.getrlimit(resource.RLIMIT_AS)
    here = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (here + 2**30, limit[1]))
    try:
        content = checkpoint._Tensors(io.BytesIO(MANY)).load()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)
    assert content == {"a": 1}
