"""Decoders agree before they are timed, and one that is wrong is a failed row."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import decoders
from benchmarks.decoders import DecodeBenchmark, decode_table, decoding, gpu_contenders
from benchmarks.harness import measure
from combicam.engine.images.gpu_jpeg import OPTIONS, GpuDecoder


@pytest.mark.slow
def test_every_decoder_is_checked_and_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "_PIXELS_PER_CALL", 1)

    def off_by_one() -> Any:
        return lambda data: np.minimum(decoders.by_pillow(data), 254) + 1

    monkeypatch.setitem(decoders.LIBRARIES, "decode, wrong", off_by_one)
    cases = ("128x96:85",)
    rows = decoding(DecodeBenchmark(cases, threads=(1, 2), rounds=1), lambda line: None)
    names = [*decoders.LIBRARIES, "decode and resize, Pillow", *decoders.ENGINE]
    assert [row.name for row in rows] == names * 2
    for row in rows:
        if row.name == "decode, wrong":
            assert row.images_per_s is None and str(row.error).startswith("ArithmeticError")
        elif row.error is not None:
            assert row.error.startswith("ModuleNotFoundError"), row.error
        else:
            assert row.images_per_s and row.images_per_s > 0
            limit = 0 if row.name.startswith("decode, ") else 10 if "fast" in row.name else 1
            assert (row.max_abs_err or 0) <= limit
    measured = {row.name for row in rows if row.error is None}
    assert {"decode, Pillow", "decode, simplejpeg", *decoders.ENGINE} <= measured
    lines = decode_table(rows).splitlines()
    assert len(lines) == 2 + len(names) and {line.count("|") for line in lines} == {4}
    assert "| decode, wrong | ArithmeticError |" in lines[2 + names.index("decode, wrong")]


def test_decoding_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """By nvImageCodec's CPU decoder; batches of one call, and what a GPU does not decode."""
    codec = pytest.importorskip("nvidia.nvimgcodec", reason="needs nvImageCodec")
    backends = [codec.Backend(codec.BackendKind.CPU_ONLY)]
    make = partial(codec.Decoder, device_id=-99999, backends=backends, options=OPTIONS)
    monkeypatch.setattr(decoders, "GpuDecoder", partial(GpuDecoder, make=make))
    monkeypatch.setattr(decoders, "_BATCH", 5)
    monkeypatch.setattr(decoders, "_SIDE", 64)
    multiplied: list[torch.device] = []
    multiplying = decoders._multiplying
    monkeypatch.setattr(
        decoders, "_multiplying", lambda at: (multiplied.append(at), multiplying(at))[1]
    )
    small = decoders.Preprocess((32, 32))
    monkeypatch.setattr(decoders, "Preprocess", lambda size: small)
    with ThreadPoolExecutor(1) as pool:
        for case, fails in (("64x48:85", False), ("64x48:85:progressive", True)):
            compared = gpu_contenders(case, pool, 2, torch.device("cpu"))
            rows = measure(compared, {}, 1, lambda line: None)
            assert [row.name for row in rows] == ["run, --decoder gpu", "the same, the GPU busy"]
            for row in rows:
                if fails:
                    assert row.error and "left to the GPU" in row.error
                else:
                    assert row.error is None and row.max_abs_err == 0 and row.seconds
    assert len(multiplied) == 2  # the second row's call that is checked, and the one that is timed


def test_a_decoder_that_mixes_photos_up_is_a_failed_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """One image overwritten by its neighbour's, of the same size."""
    codec = pytest.importorskip("nvidia.nvimgcodec", reason="needs nvImageCodec")
    backends = [codec.Backend(codec.BackendKind.CPU_ONLY)]
    make = partial(codec.Decoder, device_id=-99999, backends=backends, options=OPTIONS)

    class Mixing(GpuDecoder):
        def __call__(self, photos: Any) -> Any:
            found = super().__call__(photos)
            return [found[0], found[0], *found[2:]]

    monkeypatch.setattr(decoders, "GpuDecoder", partial(Mixing, make=make))
    monkeypatch.setattr(decoders, "_BATCH", 3)
    monkeypatch.setattr(decoders, "_SIDE", 64)
    small = decoders.Preprocess((32, 32))
    monkeypatch.setattr(decoders, "Preprocess", lambda size: small)
    with ThreadPoolExecutor(1) as pool:
        compared = gpu_contenders("64x48:85", pool, 1, torch.device("cpu"))
        for row in measure(compared, {}, 1, lambda line: None):
            assert row.error is not None and row.error.startswith("ArithmeticError")
