"""Explain images with a model that combicam exported for NVIDIA Triton Inference Server.

    python client.py photo.jpg --url localhost:8000    # top classes, and photo.heatmap.png
    python client.py --golden --url localhost:8000     # check the server's numbers

Needs only ``pip install 'tritonclient[http]' pillow numpy`` and the files beside it
(preprocessing.json, labels.txt, golden/), not combicam.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

Arrays = dict[str, NDArray[Any]]
Settings = dict[str, Any]  # preprocessing.json

# From dark to bright in equal steps of lightness (anchors of the inferno colormap, CC0).
_COLOURS = (
    (48, 12, 92),
    (85, 15, 109),
    (136, 34, 106),
    (186, 54, 85),
    (227, 89, 51),
    (249, 140, 10),
    (249, 201, 50),
    (252, 255, 164),
)


def decode(photo: Path, settings: Settings, channels: int | None = None) -> NDArray[np.uint8]:
    """Decode to upright RGB, or its luma, at the model's input size: uint8 [H,W,C].

    Args:
        photo: file.
        settings: of the model.
        channels: C, 3 for RGB, 1 for grey; default: the model's.

    Raises:
        ValueError: a model of other images.
    """
    channels = channels or settings["channels"]
    if channels not in (1, 3):
        raise ValueError(f"this model takes images of {channels} channels, not photos")
    with Image.open(photo) as file:
        file.load()
        deep = file.mode == "F" or file.mode.startswith("I")
        depth = eight_bits(file) if deep else None
        if depth is not None:
            depth.info["exif"] = file.getexif().tobytes()
        image = ImageOps.exif_transpose(depth or file)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        image = white
    height, width = settings["input_size"]
    box = None
    if settings["resize"] == "crop":
        box = centre_box(image.size, (width, height), settings["crop_pct"])
    resampling = Image.Resampling[settings["interpolation"].upper()]
    image = image.convert("RGB")
    if channels == 1:
        image = image.convert("L")
    kept = np.asarray(image.resize((width, height), resampling, box=box))
    return kept.reshape(height, width, channels)


def eight_bits(image: Image.Image) -> Image.Image:
    """Scale samples of more than 8 bits to 8, by the range that the file says.

    Raises:
        ValueError: it says none.
    """
    samples = np.asarray(image)
    tags: Any = image.tag_v2 if image.format == "TIFF" else {}  # type: ignore[attr-defined]
    bits, kind = np.max(tags.get(258, 16)), np.max(tags.get(339, 1))
    low, high = 0.0, float(2 ** int(bits) - 1)
    known = image.mode != "F" and kind == 1 and bits <= 16
    known = known and samples.min() >= 0 and samples.max() <= 65535
    for names in ((280, 281), (340, 341)):  # MinSampleValue …, or better SMinSampleValue …
        if all(name in tags for name in names):
            least, most = (float(np.min(tags[name])) for name in names)
            if least < most:
                low, high, known = least, most, True
    if not known:
        raise ValueError(
            f"expected samples of known range, got {samples.dtype} from {samples.min():g} to "
            f"{samples.max():g}; convert the {image.format} to 8 or 16 bits"
        )
    share = (np.nan_to_num(samples.astype(np.float64)) - low) / (high - low)
    scaled = np.rint(share.clip(0, 1) * 255).astype(np.uint8)
    return Image.fromarray(255 - scaled if tags.get(262) == 0 else scaled)


def centre_box(
    photo: tuple[int, int], crop: tuple[int, int], crop_pct: float
) -> tuple[float, float, float, float]:
    """The box kept by scaling the image to cover crop / crop_pct and cropping the centre.

    Args:
        photo, crop: (width, height), pixels.
        crop_pct: see preprocessing.json.
    """
    cover = [math.floor(side / crop_pct) for side in crop]
    if photo[0] * cover[1] >= photo[1] * cover[0]:
        scaled = (cover[1] * photo[0] // photo[1], cover[1])
    else:
        scaled = (cover[0], cover[0] * photo[1] // photo[0])
    starts = [round((s - c) / 2) for s, c in zip(scaled, crop, strict=True)]
    left, top = (a * p / s for a, p, s in zip(starts, photo, scaled, strict=True))
    right, bottom = (
        min((a + c) * p / s, p) for a, c, p, s in zip(starts, crop, photo, scaled, strict=True)
    )
    return left, top, right, bottom


def normalize(pixels: NDArray[np.uint8], settings: Settings) -> NDArray[np.float32]:
    """uint8 [H,W,C] -> float32 [1,C,H,W], (x / 255 - mean) / std."""
    mean, std = (np.array(settings[key], np.float32) * 255 for key in ("mean", "std"))
    scaled = (pixels.astype(np.float32) - mean) / std
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None])


def make_feed(
    settings: Settings, images: NDArray[np.float32], classes: list[int] | None = None
) -> Arrays:
    """The model's inputs by name.

    Args:
        settings: of the model.
        images: float32 [B,C,H,W], normalised.
        classes: to explain (-1: the best, -2: the second best, …), or the classes of one region;
            default: the best ones.

    Raises:
        ValueError: classes that the model cannot explain.
    """
    kind, count, number = (settings[key] for key in ("target_input", "targets", "classes"))
    if kind == "none":
        if classes:
            raise ValueError("this model explains only its best classes; drop --targets")
        return {"images": images}
    least = -min(number, 1024)  # the graph ranks only so many classes
    if classes is not None and not all(least <= c < number for c in classes):
        raise ValueError(f"expected --targets from {least} to {number - 1}, got {classes}")
    if kind == "classes":
        row = classes or [-1 - k for k in range(count)]
        if len(row) != count:
            raise ValueError(f"expected {count} --targets, got {len(row)}")
        return {"images": images, "targets": np.tile(np.array(row, np.int64), (len(images), 1))}
    if not classes or min(classes) < 0:
        raise ValueError("this model explains regions; name their classes with --targets")
    region = np.zeros((len(images), count, number), np.float32)
    region[:, :, classes] = 1
    return {"images": images, "targets": region}


def make_inputs(feed: Arrays) -> list[Any]:
    """The request's tensors, in binary form."""
    import tritonclient.http as http
    from tritonclient.utils import np_to_triton_dtype

    inputs = []
    for name, array in feed.items():
        tensor = http.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(np.ascontiguousarray(array))
        inputs.append(tensor)
    return inputs


def ask(client: Any, model: str, feed: Arrays, outputs: list[str]) -> Arrays:
    """Send a request; arrays by name of output."""
    import tritonclient.http as http

    wanted = [http.InferRequestedOutput(name, binary_data=True) for name in outputs]
    result = client.infer(model, make_inputs(feed), outputs=wanted)
    return {name: result.as_numpy(name) for name in outputs}


def golden_errors(expected: Arrays, actual: Arrays) -> dict[str, float]:
    """Largest difference of each output, relative to its largest value.

    For ``classes``: how far the logit of the chosen class is below that of the right one. Where
    they differ, which rounding may cause among ties, only the logits are compared.
    """
    if any(values.shape != actual[name].shape for name, values in expected.items()):
        return dict.fromkeys(expected, math.inf)
    logits, classes = expected["logits"], expected["classes"]
    same = classes == actual["classes"]
    errors = {}
    for name, values in expected.items():
        other, scale = actual[name], values
        if name == "classes":
            values, other = (np.take_along_axis(logits, c, 1) for c in (values, other))
            scale = logits
        elif name != "logits":  # [B,K,...]
            values, other, scale = values[same], other[same], values[same]
        largest = max(float(np.abs(scale).max(initial=0)), 1e-30)
        error = float(np.abs(values - other).max(initial=0)) / largest
        errors[name] = error if same.any() and math.isfinite(error) else math.inf
    return errors


def check_golden(client: Any, folder: Path, settings: Settings) -> bool:
    """Send golden/input.npz, compare with golden/output.npz, and print a line per output."""
    feed = dict(np.load(folder / "golden" / "input.npz"))
    expected = dict(np.load(folder / "golden" / "output.npz"))
    tolerance = json.loads((folder / "golden" / "golden.json").read_text())["tolerance"]
    parts = []
    for start in range(0, len(feed["images"]), settings["max_batch_size"]):
        part = {n: a[start : start + settings["max_batch_size"]] for n, a in feed.items()}
        parts.append(ask(client, settings["model"], part, list(expected)))
    actual = {name: np.concatenate([part[name] for part in parts]) for name in expected}
    errors = golden_errors(expected, actual)
    for name, error in errors.items():
        print(f"{'ok  ' if error <= tolerance else 'FAIL'}  {name:<20}  {error:.2e}")
    return max(errors.values()) <= tolerance


def overlay(pixels: NDArray[np.uint8], heatmap: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Draw a heatmap [H,W] over uint8 [H,W,3]: low values dim the image, high values glow."""
    low, high = float(heatmap.min()), float(heatmap.max())
    heat = (heatmap - low) / (high - low) if high > low else np.zeros_like(heatmap)
    at = heat[..., None] * (len(_COLOURS) - 1)
    first = np.minimum(at.astype(int), len(_COLOURS) - 2)
    colours = np.array(_COLOURS, np.float32)
    glow = colours[first[..., 0]] * (1 - (at - first)) + colours[first[..., 0] + 1] * (at - first)
    photo = pixels.astype(np.float32)
    dim = (0.45 * photo + 0.55 * photo.mean(-1, keepdims=True)) * 0.85
    opacity = 0.8 * heat[..., None] ** 0.7
    return np.rint(dim * (1 - opacity) + glow * opacity).astype(np.uint8)


def explain(
    client: Any, folder: Path, photo: Path, classes: list[int] | None, top: int, output: Path
) -> None:
    """Print the image's top classes and the explained ones; save the overlay."""
    settings = read_settings(folder)
    labels = (folder / "labels.txt").read_text(encoding="utf-8").split("\n")
    pixels = decode(photo, settings)
    feed = make_feed(settings, normalize(pixels, settings), classes)
    results = ask(client, settings["model"], feed, ["logits", "classes", "scores", "heatmaps"])
    logits = results["logits"][0].astype(np.float64)
    probability = np.exp(logits - logits.max())
    probability /= probability.sum()
    for index in np.argsort(-probability)[:top]:
        print(f"{probability[index]:8.3%}  {index:>5}  {labels[index]}")
    for index, score in zip(results["classes"][0], results["scores"][0], strict=True):
        name = labels[index] if index >= 0 else "region"
        print(f"explained: {name} ({score:.3%})")
    shown = decode(photo, settings, 3)
    tiles = [shown, *(overlay(shown, heatmap) for heatmap in results["heatmaps"][0])]
    Image.fromarray(np.concatenate(tiles, 1)).save(output)
    print(f"overlay: {output}")


def read_settings(folder: Path) -> Settings:
    """Read preprocessing.json."""
    settings: Settings = json.loads((folder / "preprocessing.json").read_text(encoding="utf-8"))
    return settings


def main(arguments: list[str] | None = None, folder: Path | None = None) -> None:
    """Run the command line; ``folder`` has the model's files, default: this file's folder."""
    parser = argparse.ArgumentParser(description="Explain an image, or check the server.")
    parser.add_argument("photo", type=Path, nargs="?")
    parser.add_argument("--url", default="localhost:8000", help="HOST:PORT of the HTTP service")
    parser.add_argument("--targets", type=int, nargs="+", help="classes to explain; -1: the best")
    parser.add_argument("--top", type=int, default=5, help="number of classes to print")
    parser.add_argument("--output", type=Path, help="overlay; default: photo.heatmap.png")
    parser.add_argument("--golden", action="store_true", help="compare with golden/ instead")
    given = parser.parse_args(arguments)
    if (given.photo is None) != given.golden:
        parser.error("expected an image, or --golden")
    folder = folder or Path(__file__).resolve().parent

    import tritonclient.http as http
    from tritonclient.utils import InferenceServerException

    try:
        client = http.InferenceServerClient(given.url, network_timeout=300)
        if given.golden:
            raise SystemExit(0 if check_golden(client, folder, read_settings(folder)) else 1)
        output = given.output or given.photo.with_name(f"{given.photo.stem}.heatmap.png")
        explain(client, folder, given.photo, given.targets, given.top, output)
    except (InferenceServerException, ConnectionError, TimeoutError) as error:
        raise SystemExit(f"client: {given.url}: {error}") from error
    except (OSError, ValueError) as error:  # of the image or the arguments
        raise SystemExit(f"client: {error}") from error


if __name__ == "__main__":
    main()
