"""JPEGs by simplejpeg: Pillow's pixels bit for bit, or Pillow itself."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

from combicam.engine.images.decode import DecodeConfig, Decoded, decode_image
from combicam.engine.images.jpeg import decode_jpeg
from combicam.errors import DecodeError
from combicam.export.preprocess import Preprocess

SMALL = Preprocess((24, 24))
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"quality": 85},
    "fine": {"quality": 95},
    "4:4:4": {"quality": 90, "subsampling": "4:4:4"},
    "4:2:2": {"quality": 90, "subsampling": "4:2:2"},
    "progressive": {"quality": 85, "progressive": True},
    "restarts": {"quality": 85, "restart_marker_blocks": 2},
    "stored as RGB": {"quality": 90, "keep_rgb": True},
    "optimised": {"quality": 40, "optimize": True},
}


def photo(width: int, height: int, mode: str = "RGB") -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return image.convert(mode)


def jpeg(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def fast(data: bytes, scale: int = 1) -> np.ndarray | None:
    with Image.open(io.BytesIO(data)) as image:
        return decode_jpeg(data, image, scale)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 1), (7, 63), (160, 120), (121, 161)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_are_pillows(kind: str, size: tuple[int, int], mode: str) -> None:
    options = {k: v for k, v in KINDS[kind].items() if mode == "RGB" or k != "keep_rgb"}
    data = jpeg(photo(*size, mode), **options)
    found = fast(data)
    assert found is not None and found.flags["WRITEABLE"]
    assert np.array_equal(found, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def png() -> bytes:
    file = io.BytesIO()
    photo(30, 20).save(file, "PNG")
    return file.getvalue()


def with_stray_bytes() -> bytes:
    data = jpeg(photo(64, 48))
    at = data.index(b"\xff\xda")
    return data[:at] + b"\0\0\0" + data[at:]


DOUBTFUL = {
    "no JPEG": png(),
    "CMYK": jpeg(photo(40, 30, "CMYK")),
    "body cut": jpeg(photo(64, 48))[:-200],
    "end missing": jpeg(photo(64, 48))[:-2],
    "stray bytes": with_stray_bytes(),
}


def outcome(data: bytes, decoder: str) -> Decoded | str:
    try:
        return decode_image(data, SMALL, DecodeConfig(decoder))
    except DecodeError as error:
        return str(error)


def assert_same(data: bytes) -> str:
    """Status and pixels with and without the fast decoder; who decoded, with it."""
    found, expected = outcome(data, "auto"), outcome(data, "pillow")
    if isinstance(found, str) or isinstance(expected, str):
        assert found == expected
        return "error"
    assert np.array_equal(found.pixels, expected.pixels)
    assert (found.width, found.height) == (expected.width, expected.height)
    assert expected.decoder == "pillow"
    return found.decoder


@pytest.mark.parametrize("kind", DOUBTFUL)
def test_what_is_doubtful_is_left_to_pillow(kind: str) -> None:
    assert fast(DOUBTFUL[kind]) is None
    assert assert_same(DOUBTFUL[kind]) in ("pillow", "error")


def test_trailing_bytes_and_the_first_of_several_pictures() -> None:
    """Phones append videos and second pictures."""
    assert assert_same(jpeg(photo(64, 48)) + b"\0" * 5000) == "simplejpeg"
    file = io.BytesIO()
    photo(64, 48).save(file, "MPO", save_all=True, append_images=[Image.new("RGB", (64, 48))])
    with Image.open(io.BytesIO(file.getvalue())) as image:
        assert image.format == "MPO"
    assert assert_same(file.getvalue()) == "simplejpeg"


def test_a_header_that_promises_another_size_is_left_to_pillow() -> None:
    with Image.open(io.BytesIO(jpeg(photo(20, 10)))) as small:
        assert decode_jpeg(jpeg(photo(200, 100)), small) is None


def damaged(rng: np.random.Generator, whole: bytes) -> bytes:
    """Cut off, overwritten, shortened, or with a broken header."""
    data = bytearray(whole)
    kind = rng.integers(4)
    if kind == 0:
        return bytes(data[: rng.integers(len(data))])
    if kind == 1:
        at = rng.integers(len(data))
        del data[at : at + rng.integers(1, 60)]
        return bytes(data)
    end = len(data) if kind == 2 else 640
    for _ in range(rng.integers(1, 5)):
        data[rng.integers(end)] = rng.integers(256)
    return bytes(data)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::Warning:PIL")
def test_damage_ends_the_same_with_and_without() -> None:
    rng = np.random.default_rng(0)
    whole = [
        jpeg(photo(96, 64, mode), **KINDS[kind])
        for mode in ("RGB", "L", "CMYK")
        for kind in ("plain", "4:4:4", "progressive", "restarts")
    ]
    found = [assert_same(damaged(rng, whole[i % len(whole)])) for i in range(600)]
    assert min(found.count(who) for who in ("simplejpeg", "pillow", "error")) > 50


@pytest.mark.parametrize("size", [(1600, 1200), (1601, 1207)])
@pytest.mark.parametrize("scale", [2, 4, 8])
def test_scaled_pixels_are_pillows_drafts(size: tuple[int, int], scale: int) -> None:
    data = jpeg(photo(*size), quality=90)
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", (size[0] // scale, size[1] // scale))
        expected = np.asarray(image)
    assert np.array_equal(fast(data, scale), expected)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("decoder", ["auto", "pillow"])
def test_fast_scale_is_near_the_whole(decoder: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = jpeg(photo(1600, 1200), quality=90, exif=exif)
    whole = decode_image(data, SMALL)
    found = decode_image(data, SMALL, DecodeConfig(decoder, fast_scale=True))
    assert (found.width, found.height) == (whole.width, whole.height)
    assert (found.width, found.height) == ((1600, 1200) if orientation == 1 else (1200, 1600))
    error = np.abs(found.pixels.astype(int) - whole.pixels)
    assert 0 < error.max() <= 3 and error.mean() < 0.5


GROWTH = """
import sys, resource, warnings
from pathlib import Path
import numpy as np
sys.path.insert(0, {folder!r})
from test_jpeg import KINDS, damaged, jpeg, outcome, photo
warnings.simplefilter("ignore")
rng = np.random.default_rng(1)
whole = [jpeg(photo(800, 600), **KINDS[kind]) for kind in ("plain", "progressive", "restarts")]
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
for i in range({count} + 100):
    if i == 100:
        before = resident()
    outcome(damaged(rng, whole[i % len(whole)]), "auto")
print(resident() - before)
"""


def growth(count: int) -> float:
    """MB that a process gains over so many damaged JPEGs of 1.4 MB of pixels, after a hundred."""
    folder = __file__.rpartition("/")[0]
    code = GROWTH.format(folder=folder, count=count)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return float(result.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_flat_over_damaged_jpegs() -> None:
    """A leak of one in ten would show: 300 x 1.4 MB / 10."""
    assert growth(300) < 40


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_flat_over_ten_thousand_damaged_jpegs() -> None:
    assert growth(10_000) < 50
