"""Photos of any size become the batch that a run would explain."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from combicam import DecodeError, Preprocess
from combicam.engine.explain.photo_batch import photo_batch
from combicam.engine.images.decode import TooLargeError, decode_image

PIXELS = np.random.default_rng(0).integers(0, 256, (45, 70, 3), np.uint8)
ROTATED = 6  # EXIF: the camera was turned


def encoded(kind: str = "PNG", orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, kind, exif=exif)
    return file.getvalue()


def batch(photos: Any, preprocess: Preprocess, max_pixels: int = 10_000) -> np.ndarray[Any, Any]:
    return photo_batch(photos, preprocess, max_pixels)


@pytest.mark.parametrize("resize", ["crop", "squash"])
@pytest.mark.parametrize("channels", [1, 3])
def test_all_kinds_of_photos_give_a_runs_pixels(resize: str, channels: int, tmp_path: Path) -> None:
    preprocess = Preprocess((24, 32), resize=resize, channels=channels)
    data = encoded()
    (tmp_path / "a.png").write_bytes(data)
    view = np.ascontiguousarray(PIXELS[:, ::-1])[:, ::-1]
    view.flags.writeable = False
    image = Image.open(io.BytesIO(data))
    photos = [data, memoryview(data), str(tmp_path / "a.png"), tmp_path / "a.png", image, view]
    found = batch(photos, preprocess)
    assert found.shape == (6, 24, 32, channels) and found.dtype == np.uint8
    expected = decode_image(data, preprocess).pixels
    assert all(np.array_equal(pixels, expected) for pixels in found)
    for one in (data, image, tmp_path / "a.png"):
        assert np.array_equal(batch(one, preprocess), expected[None])


def test_images_of_pil_are_turned_upright() -> None:
    preprocess = Preprocess((24, 32), resize="squash")
    data = encoded("TIFF", ROTATED), encoded("PNG", ROTATED)
    found = batch([*data, *(Image.open(io.BytesIO(d)) for d in data)], preprocess)
    turned = np.rot90(PIXELS, -1)
    assert all(np.array_equal(pixels, batch([turned], preprocess)[0]) for pixels in found)


def test_errors_say_which_photo_and_what_to_do(tmp_path: Path) -> None:
    preprocess = Preprocess((24, 32))
    with pytest.raises(DecodeError, match="photo 1: decode: "):
        batch([encoded(), b"no image"], preprocess)
    (tmp_path / "bad.jpg").write_bytes(encoded("JPEG")[:200])
    with pytest.raises(DecodeError, match=r"bad\.jpg: decode: "):
        batch([tmp_path / "bad.jpg"], preprocess)
    with pytest.raises(TooLargeError, match="photo 0: "):
        batch([encoded()], preprocess, max_pixels=3000)
    with pytest.raises(ValueError, match="at least one photo"):
        batch([], preprocess)
    with pytest.raises(TypeError, match="got int"):
        batch([5], preprocess)
    with pytest.raises(ValueError, match=r"prepare: .*float64 \(45, 70, 3\)"):
        batch([PIXELS / 255], preprocess)
    with pytest.raises(ValueError, match="those of one shape together"):
        batch([PIXELS, PIXELS[:, :45]], Preprocess((24, 24), resize="short-side", side_step=1))
    with pytest.raises(ValueError, match="got one of 5"):
        batch([PIXELS], Preprocess((24, 32), channels=5))
