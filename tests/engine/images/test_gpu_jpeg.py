"""The GPU's decoder, by its CPU stand-in: the same calls, without the hardware."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from combicam.engine.images import gpu_jpeg
from combicam.engine.images.decode import DecodeConfig, decode_image
from combicam.engine.images.gpu_jpeg import decode_jpeg_on_gpu
from combicam.engine.run.config import RunConfig
from combicam.engine.runner import run_images
from combicam.errors import MissingExtra
from combicam.export.preprocess import Preprocess

GPU = DecodeConfig("gpu")


def jpeg(size: tuple[int, int], mode: str = "RGB", **options: Any) -> bytes:
    coarse = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize(size).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


def on_cpu() -> Any:
    codec = pytest.importorskip("nvidia.nvimgcodec", reason="needs nvImageCodec")
    backends = [codec.Backend(codec.BackendKind.CPU_ONLY)]
    return codec.Decoder(device_id=-99999, backends=backends, options=gpu_jpeg.OPTIONS)


def decoded(data: bytes) -> np.ndarray | None:
    with Image.open(io.BytesIO(data)) as image:
        return decode_jpeg_on_gpu(data, image, on_cpu())


@pytest.mark.parametrize("size", [(1, 1), (7, 63), (160, 121)])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_chroma_is_interpolated_as_pillow_does(
    size: tuple[int, int], subsampling: str, mode: str
) -> None:
    data = jpeg(size, mode, subsampling=subsampling)
    found = decoded(data)
    assert found is not None
    assert np.array_equal(found, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_what_it_should_not_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked() -> Any:
        raise AssertionError("asked")

    monkeypatch.setattr(gpu_jpeg, "nvimgcodec", asked)
    assert decoded(jpeg((40, 30), "CMYK")) is None
    assert decoded(jpeg((40, 30))[:-2]) is None
    with pytest.raises(AssertionError, match="asked"):
        decoded(jpeg((40, 30)))


def test_rows_say_who_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "combicam.engine.images.decode.decode_jpeg_on_gpu",
        lambda data, image: decode_jpeg_on_gpu(data, image, on_cpu()),
    )
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    data, wanted = jpeg((60, 80), exif=exif), Preprocess((24, 24))
    found = decode_image(data, wanted, GPU)
    expected = decode_image(data, wanted)
    assert (found.decoder, expected.decoder) == ("nvimagecodec", "simplejpeg")
    assert np.array_equal(found.pixels, expected.pixels)
    assert (found.width, found.height) == (expected.width, expected.height) == (80, 60)
    cut = jpeg((60, 80), "CMYK")
    assert decode_image(cut, wanted, GPU).decoder == "pillow"


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
