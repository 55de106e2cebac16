"""Headers that are read without Pillow are those of which it says the same."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from combicam.engine.images import decode as decoding
from combicam.engine.images.decode import DecodeConfig, decode_image
from combicam.engine.images.jpeg import opened_frame
from combicam.engine.images.jpeg_header import JpegFrame, has_common_sampling, plain_frame
from combicam.errors import DecodeError
from combicam.export.preprocess import Preprocess

ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
EXIF = Image.Exif()
EXIF[0x0112] = 6
PLAIN: dict[str, dict[str, Any]] = {
    "plain": {},
    "4:4:4": {"subsampling": "4:4:4"},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 2},
    "colour profile": {"icc_profile": ICC},
    "RGB": {"keep_rgb": True},
    "comment": {"comment": b"from a camera"},
    "resolution": {"dpi": (300, 300)},
}

UNCOMMON = (("RGB", "progressive"), ("L", "progressive"), ("RGB", "RGB"))


def jpeg(mode: str = "RGB", form: str = "JPEG", **options: Any) -> bytes:
    coarse = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((40, 24)).convert(mode).save(file, form, **options)
    return file.getvalue()


def segments(data: bytes) -> tuple[list[bytes], bytes]:
    """The segments of a header, and all that follows them."""
    found, at = [], 2
    while data[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        found.append(data[at:end])
        at = end
    return found, data[at:]


def joined(parts: list[bytes], rest: bytes) -> bytes:
    return b"\xff\xd8" + b"".join(parts) + rest


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_plain_headers(mode: str, kind: str) -> None:
    data = jpeg(mode, **PLAIN[kind])
    expected = JpegFrame(40, 24, mode == "L", (mode, kind) not in UNCOMMON)
    assert plain_frame(data) == expected
    with Image.open(io.BytesIO(data)) as image:
        assert opened_frame(image) == expected


def test_sampling_that_gpus_decode() -> None:
    chroma = [(2, 1, 1), (3, 1, 1)]
    common = [(1, 1), (2, 1), (2, 2)]
    for luma in [*common, (4, 1), (1, 2), (4, 4)]:
        assert has_common_sampling([(1, *luma), *chroma]) is (luma in common)
    assert has_common_sampling([(1, 1, 1)]) and not has_common_sampling([])
    assert not has_common_sampling([(1, 2, 2)])  # grey, which an H200 decodes wrongly
    assert not has_common_sampling([(1, 2, 2), (2, 2, 1), (3, 1, 1)])
    assert not has_common_sampling([(ord(c), 1, 1) for c in "RGB"])


def with_frame_twice() -> bytes:
    parts, rest = segments(jpeg())
    frame = next(part for part in parts if part[1] == 0xC0)
    return joined([*parts, frame], rest)


OTHERS = {
    "EXIF": jpeg(exif=EXIF),
    "XMP": jpeg(xmp=b'<x:xmpmeta tiff:Orientation="6"/>'),
    "several pictures": jpeg(form="MPO", save_all=True, append_images=[Image.new("RGB", (40, 24))]),
    "CMYK": jpeg("CMYK"),
    "PNG": jpeg(form="PNG"),
    "empty": b"",
    "two frames": with_frame_twice(),
    "stray bytes": joined([*segments(jpeg())[0], b"\0\0"], segments(jpeg())[1]),
    "no frame": joined([p for p in segments(jpeg())[0] if p[1] != 0xC0], segments(jpeg())[1]),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_others_are_left_to_pillow(kind: str) -> None:
    assert plain_frame(OTHERS[kind]) is None


def test_a_header_that_is_cut_off() -> None:
    data = jpeg()
    header = data.index(b"\xff\xda") + 14
    assert plain_frame(data[:header]) is not None
    assert all(plain_frame(data[:size]) is None for size in range(header))


def damaged(rng: np.random.Generator, whole: bytes) -> bytes:
    """A header with a segment more, fewer, shorter, of another kind, elsewhere; or other bytes."""
    parts, rest = segments(whole)
    at, kind = int(rng.integers(len(parts))), rng.integers(6)
    part = bytearray(parts[at])
    if kind == 0:
        parts.append(parts[at])
    elif kind == 1:
        parts.pop(at)
    elif kind == 2:
        rng.shuffle(parts)
    elif kind == 3:
        part[1] = rng.integers(0xC0, 0x100)
    elif kind == 4:
        size = int(rng.integers(2, len(part) - 1))
        part = part[:2] + size.to_bytes(2, "big") + part[4 : 2 + size]
    else:
        part[rng.integers(len(part))] = rng.integers(256)
    if kind > 2:
        parts[at] = bytes(part)
    return joined(parts, rest)


def outcome(data: bytes) -> Any:
    try:
        found = decode_image(data, Preprocess((24, 24)), DecodeConfig())
    except DecodeError as error:
        return str(error)
    return found.pixels.tolist(), found.width, found.height, found.decoder


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::Warning:PIL")
def test_damage_ends_as_if_pillow_had_read_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    whole = [jpeg(mode, **options) for mode in ("RGB", "L") for options in PLAIN.values()]
    files = [damaged(rng, whole[i % len(whole)]) for i in range(500)]
    found = [outcome(data) for data in files]
    plain = sum(plain_frame(data) is not None for data in files)
    monkeypatch.setattr(decoding, "plain_frame", lambda data: None)
    assert found == [outcome(data) for data in files]
    assert plain > 100 and sum(isinstance(result, str) for result in found) > 50


def test_pixels_outlive_the_next_photo() -> None:
    """The memory that they were decoded in does not."""
    first, second = jpeg(), jpeg("L")
    for mode in ("squash", "crop"):
        for size in ((24, 40), (12, 20)):
            for interpolation in ("bilinear", "nearest"):
                preprocess = Preprocess(size, resize=mode, interpolation=interpolation, crop_pct=1)
                kept = decode_image(first, preprocess).pixels
                before = kept.copy()
                decode_image(second, preprocess)
                assert np.array_equal(kept, before)
