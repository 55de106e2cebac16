"""The GPU's decoder, by its CPU stand-in: the same calls, without the hardware."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from combicam.engine.images import gpu_jpeg
from combicam.engine.images.decode import (
    DecodeConfig,
    Decoded,
    Encoded,
    decode_image,
    decode_or_leave,
)
from combicam.engine.images.gpu_jpeg import GpuDecoder
from combicam.engine.pipeline import gpu_decode, pipeline
from combicam.engine.run.config import RunConfig
from combicam.engine.runner import run_images
from combicam.errors import MissingExtra
from combicam.export.preprocess import Preprocess

GPU = DecodeConfig("gpu")
SQUARE = Preprocess((24, 32))


def jpeg(size: tuple[int, int], mode: str = "RGB", **options: Any) -> bytes:
    coarse = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize(size).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


def turned(orientation: int, size: tuple[int, int] = (60, 80)) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return jpeg(size, exif=exif)


def on_cpu(preprocess: Preprocess, device: torch.device | None = None) -> GpuDecoder:
    codec = pytest.importorskip("nvidia.nvimgcodec", reason="needs nvImageCodec")
    backends = [codec.Backend(codec.BackendKind.CPU_ONLY)]
    make = partial(codec.Decoder, device_id=-99999, backends=backends, options=gpu_jpeg.OPTIONS)
    return GpuDecoder(preprocess, torch.device("cpu"), make)


def check(files: list[bytes], preprocess: Preprocess) -> None:
    """The pixels are those of the CPU's decoders."""
    left = [decode_or_leave(data, preprocess, GPU) for data in files]
    photos = [photo for photo in left if isinstance(photo, Encoded)]
    assert len(photos) == len(files)
    for data, photo, found in zip(files, photos, on_cpu(preprocess)(photos), strict=True):
        expected = decode_image(data, preprocess)
        assert found is not None and photo.photo == (expected.width, expected.height)
        assert np.array_equal(found, expected.pixels)


@pytest.mark.parametrize(
    ("mode", "subsampling"), [("RGB", "4:4:4"), ("RGB", "4:2:2"), ("RGB", "4:2:0"), ("L", "4:4:4")]
)
def test_chroma_is_interpolated_as_pillow_does(subsampling: str, mode: str) -> None:
    sizes = [(1, 1), (7, 63), (160, 121)]
    check([jpeg(size, mode, subsampling=subsampling) for size in sizes], SQUARE)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("resize", ["crop", "squash", "short-side"])
def test_photos_are_turned_and_resized_as_on_a_cpu(resize: Any, interpolation: str) -> None:
    """The crop is not in the middle where a pixel is left over: sides are odd and even."""
    wanted = Preprocess((24, 32), resize=resize, interpolation=interpolation, crop_pct=0.9)
    sizes = ((60, 80), (97, 41), (20, 15))
    check([turned(i, size) for i in range(1, 9) for size in sizes], wanted)


def test_a_decoder_writes_over_what_it_decoded_before() -> None:
    """Pixels that were handed out stay, and images of another size take no pixels of old ones."""
    decoder = on_cpu(SQUARE)
    sizes = [[(60, 80), (97, 41), (33, 50)], [(20, 15)], [(64, 64)] * 5, [(31, 90), (70, 66)]]
    found, expected = [], []
    for i, batch in enumerate(sizes):
        files = [jpeg(size, quality=50 + i) for size in batch]
        left = [decode_or_leave(data, SQUARE, GPU) for data in files]
        found += decoder([photo for photo in left if isinstance(photo, Encoded)])
        expected += [decode_image(data, SQUARE).pixels for data in files]
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_photos_are_left_to_the_cpu_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once: the next ones are tried again, and run into nothing that was kept."""
    decoder, launch = on_cpu(SQUARE), gpu_jpeg.launch_resample

    def short(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    files = [jpeg((60, 80)), jpeg((40, 30))]
    photos = [p for f in files if isinstance(p := decode_or_leave(f, SQUARE, GPU), Encoded)]
    monkeypatch.setattr(gpu_jpeg, "launch_resample", short)
    assert decoder(photos) == [None, None]
    monkeypatch.setattr(gpu_jpeg, "launch_resample", launch)
    for data, found in zip(files, decoder(photos), strict=True):
        assert np.array_equal(found, decode_image(data, SQUARE).pixels)


def test_what_is_left_to_the_gpu() -> None:
    def is_left(data: bytes, preprocess: Preprocess = SQUARE) -> bool:
        found = decode_or_leave(data, preprocess, GPU)
        assert isinstance(found, (Encoded, Decoded))
        return isinstance(found, Encoded)

    photo, exif = jpeg((40, 30)), turned(6)
    assert is_left(photo) and is_left(exif) and is_left(jpeg((40, 30), "L"))
    others = {"progressive": True}, {"keep_rgb": True}
    assert not any(is_left(jpeg((40, 30), **options)) for options in others)
    assert not any(is_left(jpeg((40, 30), exif=Image.Exif().tobytes(), **o)) for o in others)
    assert not is_left(jpeg((40, 30), "CMYK"))
    assert not is_left(photo, Preprocess((24, 32), mean=(0.5,), std=(0.5,)))  # grey
    assert not is_left(photo, Preprocess((24, 32), interpolation="lanczos"))
    with pytest.raises(Exception, match="truncated"):
        decode_or_leave(photo[:-200], SQUARE, GPU)


@pytest.mark.long
def test_a_run(
    tmp_path: Path,
    photos: Callable[..., list[Path]],
    fake: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the GPU takes, what it leaves, and what it fails at, in two ways."""
    paths = photos(tmp_path / "in", 50)
    Image.open(paths[1]).save(paths[1], "PNG")
    paths[2].write_bytes(paths[2].read_bytes()[:-300])
    header = jpeg((40, 30))
    paths[3].write_bytes(header[:100] + bytes(500) + header[-2:])
    paths[4].write_bytes(jpeg((64, 64), progressive=True))
    declined = jpeg((64, 48))
    paths[5].write_bytes(declined)
    monkeypatch.setattr(pipeline, "GpuDecoder", on_cpu)
    monkeypatch.setattr(gpu_decode, "_PHOTOS", 7)
    lock, launch = Lock(), gpu_jpeg.launch_resample  # Triton interprets in one thread alone

    def launch_alone(*arguments: Any) -> None:
        with lock:
            launch(*arguments)

    monkeypatch.setattr(gpu_jpeg, "launch_resample", launch_alone)
    stream = GpuDecoder._code_stream
    monkeypatch.setattr(
        GpuDecoder,
        "_code_stream",
        lambda self, data: None if data == declined else stream(self, data),
    )
    tables = {}
    for decode, load_in in (("auto", "threads"), ("gpu", "threads"), ("gpu", "processes")):
        config = RunConfig(
            str(tmp_path / "in"),
            tmp_path / f"{decode}-{load_in}",
            "fake",
            decode=DecodeConfig(decode),
            load_in=load_in,
            shard_size=30,
            batch_size=8,
            progress=False,
        )
        summary = run_images(config, fake())
        shards = sorted((config.output / "shards").glob("*.parquet"))
        table = pq.read_table(shards)
        tables[decode, load_in] = table.drop_columns(["decoder"])
        decoders = table.column("decoder").to_pylist()
        assert summary.images == 50 and summary.failures == {"decode_error": 2}
        others = ["pillow", None, None, "simplejpeg", "simplejpeg"]
        assert decoders[1:6] == others
        usual = "nvimagecodec" if decode == "gpu" else "simplejpeg"
        assert {decoders[0], *decoders[6:]} == {usual}
    first, *rest = tables.values()
    assert all(table.equals(first) for table in rest)


def test_it_needs_a_gpu_and_the_extra(
    tmp_path: Path, photos: Any, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos(tmp_path / "in", 2)
    config = RunConfig(str(tmp_path / "in"), tmp_path / "run", "fake", decode=GPU, progress=False)
    with pytest.raises(ValueError, match=r"expected a CUDA device .* got cpu; use decoder='auto'"):
        run_images(config, fake())
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", None)
    with pytest.raises(MissingExtra, match=r"pip install 'combicam\[gpu-decode\]'"):
        gpu_jpeg.nvimgcodec()
    with pytest.raises(ValueError, match="leave one out"):
        DecodeConfig("gpu", fast_scale=True)
