"""Every kind of photo, and every kind of damage, as bytes; with the fast decoder and without."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.Image import Transpose
from PIL.PngImagePlugin import PngInfo

from combicam.engine.images import jpeg as fast_jpeg
from combicam.engine.images.decode import DecodeConfig, decode_image
from combicam.engine.images.formats import (
    HEAD,
    TooLargeError,
    UnsupportedError,
    image_format,
)
from combicam.errors import DecodeError
from combicam.export.preprocess import Preprocess


@pytest.fixture(autouse=True, params=["simplejpeg", "pillow alone"])
def installed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Nothing that a test sees may depend on what is installed."""
    if request.param == "pillow alone":
        monkeypatch.setattr(fast_jpeg, "simplejpeg", None)
    else:
        assert fast_jpeg.simplejpeg is not None, "the tests need simplejpeg"
    return request.param


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def exact(image: Image.Image) -> Preprocess:
    """Keeps the size, so that pixels can be compared."""
    return Preprocess((image.height, image.width), resize="squash")


def decoded(image: Image.Image, kind: str, **options: Any) -> np.ndarray:
    return decode_image(encoded(image, kind, **options), exact(image)).pixels


def photo(width: int = 12, height: int = 8) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_rgb_is_exact(kind: str) -> None:
    assert np.array_equal(decoded(photo(), kind), np.asarray(photo()))


def test_webp_lossless_is_exact() -> None:
    assert np.array_equal(decoded(photo(), "WEBP", lossless=True), np.asarray(photo()))


TURNED = {
    1: None,
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", TURNED)
def test_exif_orientation_is_undone_once(orientation: int, kind: str) -> None:
    image = photo()
    exif = Image.Exif()
    exif[0x0112] = orientation
    turn = TURNED[orientation]
    upright = image if turn is None else image.transpose(turn)
    found = decode_image(encoded(image, kind, exif=exif), exact(upright))
    assert (found.width, found.height) == upright.size
    assert np.array_equal(found.pixels, np.asarray(upright))


@pytest.mark.parametrize("orientation", TURNED)
def test_rotated_jpegs_are_upright(orientation: int, installed: str) -> None:
    image, exif = photo(40, 24).resize((120, 72)), Image.Exif()
    exif[0x0112] = orientation
    data, turn = encoded(image, "JPEG", exif=exif), TURNED[orientation]
    stored = Image.open(io.BytesIO(data))
    upright = stored if turn is None else stored.transpose(turn)
    found = decode_image(data, exact(upright))
    assert (found.width, found.height) == upright.size
    assert found.decoder == ("simplejpeg" if installed == "simplejpeg" else "pillow")
    assert np.array_equal(found.pixels, np.asarray(upright))


@pytest.mark.parametrize("value", [0, 9, 70000, "abc", (1, 2)])
def test_impossible_orientations_are_ignored(
    value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image.Image, "getexif", lambda self: {0x0112: value})
    data = encoded(photo(), "JPEG")
    found = decode_image(data, exact(photo()))
    assert np.array_equal(found.pixels, np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_unreadable_exif_does_not_lose_the_photo() -> None:
    data = encoded(photo(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xffgarbage")
    assert decode_image(data, exact(photo())).pixels.shape == (8, 12, 3)


def test_grayscale_jpeg() -> None:
    image = photo().convert("L")
    expected = np.asarray(Image.open(io.BytesIO(encoded(image, "JPEG"))))
    assert np.array_equal(decoded(image, "JPEG"), np.repeat(expected[..., None], 3, -1))


@pytest.mark.parametrize("mode", ["L", "1"])
def test_grayscale(mode: str) -> None:
    image = photo().convert(mode)
    expected = np.repeat(np.asarray(image.convert("L"))[..., None], 3, -1)
    assert np.array_equal(decoded(image, "PNG"), expected)


def test_cmyk_jpeg_is_not_inverted() -> None:
    red = Image.new("RGB", (16, 16), (220, 30, 30)).convert("CMYK")
    found = decode_image(encoded(red, "JPEG", quality=95), exact(red))
    assert np.abs(found.pixels[8, 8].astype(int) - (220, 30, 30)).max() <= 6
    assert found.decoder == "pillow"


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    samples = np.array([[0, 128, 129], [32768, 65406, 65535]], np.uint16)
    image = Image.fromarray(samples)
    assert image.mode.startswith("I;16")
    assert decoded(image, "PNG")[..., 0].tolist() == [[0, 0, 1], [128, 254, 255]]
    assert decoded(image, "TIFF")[..., 2].tolist() == [[0, 0, 1], [128, 254, 255]]


_LOWEST, _HIGHEST = 340, 341  # SMinSampleValue, SMaxSampleValue


@pytest.mark.parametrize(
    ("samples", "seen"),
    [
        (np.array([[0, 200]], np.int32), "int32 from 0 to 200"),
        (np.array([[0, 70000]], np.int32), "int32 from 0 to 70000"),
        (np.array([[-3, 5]], np.int16), "from -3 to 5"),
        (np.array([[0.0, 0.5]], np.float32), "float32 from 0 to 0.5"),
        (np.array([[np.nan, 0.5]], np.float32), "float32 from nan"),
    ],
)
def test_samples_of_unknown_range_are_not_guessed(samples: np.ndarray, seen: str) -> None:
    mode = "I" if samples.dtype == np.int16 else None
    image = Image.fromarray(samples.astype(np.int32) if mode else samples)
    with pytest.raises(UnsupportedError, match=f"{seen}.*convert it"):
        decoded(image, "TIFF")


@pytest.mark.parametrize("kind", [np.int32, np.float32, np.uint16])
def test_samples_are_stretched_to_the_range_that_the_file_says(kind: Any) -> None:
    image = Image.fromarray(np.array([[100, 150, 200, 250]], kind))
    found = decoded(image, "TIFF", tiffinfo={_LOWEST: 100.0, _HIGHEST: 200.0})
    assert found[0, :, 1].tolist() == [0, 128, 255, 255]


def test_floats_that_are_not_finite_are_the_lowest_value() -> None:
    image = Image.fromarray(np.array([[np.nan, 1, 3]], np.float32))
    found = decoded(image, "TIFF", tiffinfo={_LOWEST: 1.0, _HIGHEST: 3.0})
    assert found[0, :, 0].tolist() == [0, 0, 255]


def tiff(bits: int, photometric: int, kind: int, samples: bytes, channels: int = 1) -> bytes:
    """An uncompressed TIFF of 4 x 1 pixels."""
    tags = {256: (4,), 257: (1,), 258: (bits,), 259: (1,), 262: (photometric,), 273: (0,)}
    tags |= {277: (channels,), 278: (1,), 279: (len(samples),), 339: (kind,)}
    if channels > 1:
        tags[258] = tags[339] = ()
    size = 8 + 2 + 12 * len(tags) + 4
    more = b""
    body = struct.pack("<H", len(tags))
    for tag, value in tags.items():
        if not value:  # more than fit into an entry
            values = struct.pack(f"<{channels}H", *[bits if tag == 258 else kind] * channels)
            body += struct.pack("<HHII", tag, 3, channels, size + len(more))
            more += values
        else:
            body += struct.pack("<HHII", tag, 4, 1, value[0])
    at = body.index(struct.pack("<HHI", 273, 4, 1)) + 8
    body = body[:at] + struct.pack("<I", size + len(more)) + body[at + 4 :]
    return b"II*\0" + struct.pack("<I", 8) + body + bytes(4) + more + samples


def test_bits_and_sign_of_a_tiff_are_its_own() -> None:
    exactly = Preprocess((1, 4), resize="squash")
    deep = np.array([0, 257, 32768, 65535], np.uint16).tobytes()
    assert decode_image(tiff(16, 1, 1, deep), exactly).pixels[0, :, 0].tolist() == [0, 1, 128, 255]
    white_is_zero = decode_image(tiff(16, 0, 1, deep), exactly).pixels[0, :, 0]
    assert white_is_zero.tolist() == [255, 254, 127, 0]
    twelve = bytes([0, 0, 1, 128, 15, 255])  # 0, 1, 2048, 4095; Pillow unpacks pairs
    found = decode_image(tiff(12, 1, 1, twelve), exactly).pixels[0, :, 0]
    assert found[0] == 0 and found[3] == 255
    signed = np.array([-5, 0, 9, 100], np.int16).tobytes()
    with pytest.raises(UnsupportedError, match="from -5 to 100"):
        decode_image(tiff(16, 1, 2, signed), exactly)


def test_samples_that_pillow_does_not_read_are_named() -> None:
    data = tiff(32, 2, 3, np.zeros(12, np.float32).tobytes(), channels=3)
    with pytest.raises(UnsupportedError, match="3 of 32 bits, floating point; convert it"):
        decode_image(data, Preprocess((1, 4)))


def test_alpha_is_laid_on_white() -> None:
    image = Image.new("RGBA", (3, 1))
    for x, alpha in enumerate((0, 128, 255)):
        image.putpixel((x, 0), (200, 0, 0, alpha))
    pixels = decoded(image, "PNG")
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert np.abs(pixels[0, 1].astype(int) - (227, 127, 127)).max() <= 1
    assert pixels[0, 2].tolist() == [200, 0, 0]


def test_palette_transparency_is_laid_on_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert decoded(image, "PNG", transparency=0)[0].tolist() == [[255, 255, 255], [40, 50, 60]]
    assert decoded(image, "PNG")[0].tolist() == [[10, 20, 30], [40, 50, 60]]


def test_colour_key_transparency_is_laid_on_white() -> None:
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.putpixel((1, 0), (9, 9, 9))
    pixels = decoded(image, "PNG", transparency=(1, 2, 3))
    assert pixels[0].tolist() == [[255, 255, 255], [9, 9, 9]]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_animations_give_their_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    pixels = decoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert pixels[4, 4].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_one_pixel(kind: str) -> None:
    data = encoded(Image.new("RGB", (1, 1), (9, 9, 9)), kind)
    for resize in ("squash", "crop"):
        found = decode_image(data, Preprocess((5, 7), resize=resize))
        assert (found.width, found.height) == (1, 1)
        assert (found.pixels == 9).all() and found.pixels.shape == (5, 7, 3)


@pytest.mark.parametrize("size", [(1, 20000), (20000, 1)])
@pytest.mark.parametrize("resize", ["squash", "crop", "short-side"])
def test_a_thread_of_an_image(size: tuple[int, int], resize: str) -> None:
    image = Image.new("RGB", size, (40, 40, 40))
    found = decode_image(encoded(image, "JPEG"), Preprocess((32, 48), resize=resize))
    assert (found.width, found.height) == size
    if resize != "short-side":
        assert found.pixels.shape == (32, 48, 3)
    assert (found.pixels == 40).all() and max(found.pixels.shape) <= 4 * 32


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_truncated_files_are_errors(kind: str, share: float) -> None:
    data = encoded(photo(64, 64), kind)
    decode_image(data, Preprocess((8, 8)))
    with pytest.raises(DecodeError):
        decode_image(data[: int(len(data) * share)], Preprocess((8, 8)))


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "empty file"),
        (b"<!DOCTYPE html><html>404</html>", "<!DOCTYPE ht"),
        (b"\xff\xd8\xff", "3 bytes"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PS-Adobe"),
    ],
)
def test_what_is_no_image_says_what_it_is(data: bytes, message: str) -> None:
    with pytest.raises(DecodeError, match="expected an image") as caught:
        decode_image(data, Preprocess((8, 8)))
    assert message in str(caught.value)
    assert "0x7" not in str(caught.value)


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises pixels that are not there."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_pixels_are_counted_before_decoding() -> None:
    with pytest.raises(TooLargeError, match="1001x1000") as caught:
        decode_image(bomb(1001, 1000), Preprocess((8, 8)), DecodeConfig(max_pixels=1_000_000))
    assert caught.value.size == (1001, 1000)
    with pytest.raises(DecodeError) as damaged:
        decode_image(bomb(1000, 1000), Preprocess((8, 8)), DecodeConfig(max_pixels=1_000_000))
    assert not isinstance(damaged.value, TooLargeError)


def with_frame(data: bytes, precision: int, width: int, height: int) -> bytes:
    """A JPEG whose frame header says something else."""
    at = data.index(b"\xff\xc0\x00\x11") + 4
    return data[:at] + struct.pack(">BHH", precision, height, width) + data[at + 5 :]


@pytest.mark.parametrize("scaled", [False, True])
def test_a_jpeg_bomb_is_refused_by_its_header(scaled: bool) -> None:
    data = with_frame(encoded(photo(), "JPEG"), 8, 60000, 20000)
    config = DecodeConfig(fast_scale=scaled)
    with pytest.raises(TooLargeError) as caught:
        decode_image(data, Preprocess((8, 8)), config)
    assert "bomb" in str(caught.value) or caught.value.size == (60000, 20000)


def test_jpegs_of_twelve_bits_are_refused() -> None:
    with pytest.raises(DecodeError):
        decode_image(with_frame(encoded(photo(), "JPEG"), 12, 12, 8), exact(photo()))


def test_the_given_limit_holds_not_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)  # photo() has 96
    limit = DecodeConfig(max_pixels=96)
    for kind in ("PNG", "JPEG", "TIFF", "WEBP"):
        data = encoded(photo(), kind)
        assert decode_image(data, exact(photo()), limit).pixels.shape == (8, 12, 3)
        with pytest.raises(TooLargeError):
            decode_image(data, exact(photo()), DecodeConfig(max_pixels=95))


HEIF_OR_JXL = {"HEIF": "pillow_heif", "JXL": "pillow_jxl"}


def encoded_by_plugin(kind: str) -> bytes:
    plugin = pytest.importorskip(HEIF_OR_JXL[kind])
    if kind == "HEIF":
        plugin.register_heif_opener()
    return encoded(photo(64, 48).resize((128, 96)), kind)


@pytest.mark.parametrize("kind", HEIF_OR_JXL)
def test_formats_of_plugins(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded_by_plugin(kind)
    assert image_format(data[:HEAD]) == kind
    found = decode_image(data, Preprocess((96, 128), resize="squash")).pixels
    close = np.abs(found.astype(int) - np.asarray(photo(64, 48).resize((128, 96)))).mean()
    assert close < 25
    monkeypatch.setitem(sys.modules, HEIF_OR_JXL[kind], None)  # as if it were not installed
    with pytest.raises(UnsupportedError, match=r"pip install 'combicam\[formats\]'"):
        decode_image(data, Preprocess((8, 8)))
    with pytest.raises(TooLargeError):
        monkeypatch.undo()
        decode_image(data, Preprocess((8, 8)), DecodeConfig(max_pixels=100))


def dng(samples: np.ndarray) -> bytes:
    """A raw of a camera whose colours are those of the screen; four samples, RGGB, a colour."""
    height, width = samples.shape
    one, zero = struct.pack("<ii", 1, 1), struct.pack("<ii", 0, 1)
    short, long = struct.Struct("<H").pack, struct.Struct("<I").pack
    tags = [(256, 4, long(width)), (257, 4, long(height)), (258, 3, short(16)), (259, 3, short(1))]
    tags += [(262, 3, short(32803)), (271, 2, b"Test\0"), (273, 4, b"here"), (277, 3, short(1))]
    tags += [(278, 4, long(height)), (279, 4, long(samples.nbytes)), (33421, 3, short(2) * 2)]
    tags += [(33422, 1, bytes([0, 1, 1, 2])), (50706, 1, bytes([1, 4, 0, 0]))]
    tags += [(50708, 2, b"Test\0"), (50717, 4, long(65535)), (50728, 5, one * 3)]
    tags.insert(-1, (50721, 10, (one + zero * 3) * 2 + one))
    sizes, start = {2: 1, 1: 1, 3: 2, 4: 4, 5: 8, 10: 8}, 8 + 2 + 12 * len(tags) + 4
    body, more = short(len(tags)), b""
    for tag, kind, value in tags:
        place = value.ljust(4, b"\0")
        if len(value) > 4:
            place, more = long(start + len(more)), more + value + bytes(len(value) % 2)
        body += short(tag) + short(kind) + long(len(value) // sizes[kind]) + place
    body = body.replace(b"here", long(start + len(more)))
    return b"II*\0" + long(8) + body + bytes(4) + more + samples.tobytes()


def test_a_dng_is_developed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rawpy")
    samples = np.full((48, 64), 6000, np.uint16)
    samples[:, :32] = 30000
    found = decode_image(dng(samples), Preprocess((48, 64), resize="squash"))
    assert (found.width, found.height, found.decoder) == (64, 48, "libraw")
    assert found.pixels[:, 4:28].min() > found.pixels[:, 36:60].max() > 20
    with pytest.raises(TooLargeError, match="64x48"):
        decode_image(dng(samples), Preprocess((8, 8)), DecodeConfig(max_pixels=100))
    with pytest.raises(DecodeError):
        decode_image(dng(samples)[:300], Preprocess((8, 8)))
    monkeypatch.setitem(sys.modules, "rawpy", None)
    with pytest.raises(UnsupportedError, match=r"for a DNG, .*pip install 'combicam\[formats\]'"):
        decode_image(dng(samples), Preprocess((8, 8)))


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("behind", [False, True])
def test_long_texts_do_not_lose_the_pixels(compressed: bool, behind: bool) -> None:
    info = PngInfo()
    info.add_text("prompt", "x" * 2_000_000, zip=compressed)
    data = encoded(photo(), "PNG", pnginfo=info)
    if behind:  # the text between pixels and end
        bare, start = encoded(photo(), "PNG"), 8 + 25
        end = data.index(b"IDAT") - 4
        data = bare[:-12] + data[start:end] + bare[-12:]
    assert np.array_equal(decode_image(data, exact(photo())).pixels, np.asarray(photo()))


@pytest.mark.parametrize(
    ("kind", "options"),
    [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("BMP", {}), ("PPM", {})],
)
@pytest.mark.parametrize("share", [0.6, 0.95])
def test_tolerance_takes_what_is_there(kind: str, options: Any, share: float) -> None:
    image = photo(16, 12).resize((160, 120))
    data = encoded(image, kind, **options)
    whole = decode_image(data, exact(image), DecodeConfig(tolerant=True))
    assert not whole.truncated
    part = data[: int(len(data) * share)]
    with pytest.raises(DecodeError):
        decode_image(part, exact(image))
    found = decode_image(part, exact(image), DecodeConfig(tolerant=True))
    assert found.truncated and found.decoder == "pillow"
    rows = slice(0, 40) if kind != "BMP" else slice(80, 120)  # a BMP begins below
    error = np.abs(found.pixels[rows].astype(int) - whole.pixels[rows]).mean()
    assert error == 0 if not options else error < 30


def test_tolerance_keeps_photos_upright() -> None:
    image, exif = photo(16, 12).resize((160, 120)), Image.Exif()
    exif[0x0112] = 6
    for kind in ("JPEG", "PNG"):
        data = encoded(image, kind, exif=exif)
        found = decode_image(
            data[: int(len(data) * 0.9)], Preprocess((160, 120)), DecodeConfig(tolerant=True)
        )
        assert (found.width, found.height, found.truncated) == (120, 160, True)


@pytest.mark.parametrize(
    ("kind", "mark", "behind"), [("JPEG", b"\xff\xda", 14), ("PNG", b"IDAT", 4), ("BMP", b"BM", 54)]
)
def test_tolerance_does_not_invent_a_photo(kind: str, mark: bytes, behind: int) -> None:
    data = encoded(photo(64, 64), kind)
    with pytest.raises(DecodeError):
        decode_image(
            data[: data.index(mark) + behind], Preprocess((8, 8)), DecodeConfig(tolerant=True)
        )


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "JPEG2000", "AVIF"])
def test_first_bytes_tell_images(kind: str) -> None:
    if kind == "AVIF" and kind not in Image.SAVE:
        pytest.skip("Pillow has no AVIF")
    assert image_format(encoded(photo(), kind)[:HEAD]) == kind


@pytest.mark.parametrize(
    "head",
    [b"", b"BM", b"BMW sells cars, among other things", b"P3 is a report", b"ID3", b"\0" * 64],
)
def test_first_bytes_of_other_files(head: bytes) -> None:
    assert image_format(head) is None


@pytest.mark.parametrize("size", [(64, 48), (37, 91), (300, 20), (9, 9)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crop_is_resize_then_centre_crop(size: tuple[int, int], interpolation: str) -> None:
    image = photo(*size)
    short = 32  # floor(28 / 0.875), as timm's eval transform does
    width, height = image.size
    scaled = (
        (short, short * height // width) if width <= height else (short * width // height, short)
    )
    filter_ = getattr(Image.Resampling, interpolation.upper())
    whole = image.resize((scaled[0], height), filter_).resize(scaled, filter_)
    left, top = round((scaled[0] - 28) / 2), round((scaled[1] - 28) / 2)
    expected = np.asarray(whole.crop((left, top, left + 28, top + 28))).astype(int)
    preprocess = Preprocess((28, 28), crop_pct=0.875, interpolation=interpolation)
    found = decode_image(encoded(image, "PNG"), preprocess).pixels
    assert np.abs(found - expected).max() <= 1


def test_crop_of_a_thread_of_an_image_is_cheap() -> None:
    found = decode_image(encoded(photo(60000, 1), "PNG"), Preprocess((224, 224)))
    assert found.pixels.shape == (224, 224, 3)


def test_squash_sees_the_whole_photo() -> None:
    image = photo(40, 10)
    found = decode_image(encoded(image, "PNG"), Preprocess((6, 6), resize="squash"))
    expected = np.asarray(image.resize((6, 6), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(found.pixels - expected).max() <= 1


def test_unknown_decoders_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected decoder in .*got 'magic'"):
        DecodeConfig("magic")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"max_pixels": 0}, "max_pixels >= 1, got 0"),
        ({"decoder": "cv2"}, "decoder in .* got 'cv2'"),
    ],
)
def test_configurations_that_cannot_be(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"DecodeConfig: expected {words}"):
        DecodeConfig(**values)
