"""The client: it prepares photos as the engine does, and speaks the server's protocol.

The server itself is not here; its client library is, and a stand-in that answers it.
"""

from __future__ import annotations

import ast
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from triton_stand_in import read_config, served

from combicam import Explainer, LoadedModel, Preprocess, ServedModel
from combicam.engine.images.decode import decode_image
from combicam.engine.serving import client
from combicam.errors import DecodeError


def save(kind: str, pixels: np.ndarray[Any, Any], path: Path) -> Path:
    image, exif = Image.fromarray(pixels), Image.Exif()
    if kind == "rotated":
        exif[0x0112] = 6
    if kind == "rgba":
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    if kind == "16 bits":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 250)
    path = path / f"photo.{'jpg' if kind in ('plain', 'rotated') else 'png'}"
    image.save(path, exif=exif, **({"quality": 90} if path.suffix == ".jpg" else {}))
    return path


@pytest.mark.parametrize("kind", ["plain", "rotated", "rgba", "16 bits"])
@pytest.mark.parametrize(
    "preprocess",
    [
        Preprocess((160, 160), resize="squash"),
        Preprocess((96, 150), interpolation="bicubic", crop_pct=0.9),
    ],
    ids=["squash", "crop"],
)
def test_the_client_prepares_photos_as_the_engine_does(
    kind: str, preprocess: Preprocess, postcards: Callable[[int, int], Tensor], tmp_path: Path
) -> None:
    card = Image.fromarray(postcards(1, 40)[0].numpy()).resize((333, 217))
    path = save(kind, np.asarray(card), tmp_path)
    settings = json.loads(json.dumps(preprocess.to_dict() | {"channels": preprocess.channels}))
    pixels = decode_image(path.read_bytes(), preprocess).pixels
    ours = preprocess.normalize(torch.from_numpy(pixels.copy())[None]).numpy()
    theirs = client.normalize(client.decode(path, settings), settings)
    assert theirs.dtype == np.float32 and theirs.shape == (1, 3, *preprocess.input_size)
    # The client scales with Pillow, the engine with torch: two roundings, a level each.
    level = 1 / 255 / np.asarray(preprocess.std).reshape(3, 1, 1)
    assert (np.abs(ours - theirs) / level).max() < 2.01
    assert (np.abs(ours - theirs) / level).mean() < 0.2


def test_settings_hold_all_of_the_preprocessing(
    planet: ServedModel, demo_model: LoadedModel
) -> None:
    settings = client.read_settings(planet.path)
    for key, value in demo_model.preprocess.to_dict().items():
        assert settings[key] == (list(value) if isinstance(value, tuple) else value)
    assert settings["target_input"] == "classes" and settings["targets"] == 2


@pytest.mark.long
def test_requests(planet: ServedModel, tiny: Callable[[str], ServedModel]) -> None:
    images = np.random.default_rng(0).random((2, 3, 160, 160), np.float32)
    settings = client.read_settings(planet.path)
    inputs = client.make_inputs(client.make_feed(settings, images))
    assert [(i.name(), i.datatype(), list(i.shape())) for i in inputs] == [
        ("images", "FP32", [2, 3, 160, 160]),
        ("targets", "INT64", [2, 2]),
    ]
    assert inputs[0]._get_binary_data() == images.tobytes()
    assert inputs[1]._get_binary_data() == np.array([[-1, -2]] * 2).tobytes()
    assert client.make_feed(settings, images, [3, -2])["targets"].tolist() == [[3, -2]] * 2
    with pytest.raises(ValueError, match="2 --targets, got 1"):
        client.make_feed(settings, images, [3])
    for wrong in (36, -37):
        with pytest.raises(ValueError, match="from -36 to 35"):
            client.make_feed(settings, images, [3, wrong])
    none, regions = (client.read_settings(tiny(k).path) for k in ("none", "weights"))
    assert list(client.make_feed(none, images)) == ["images"]
    with pytest.raises(ValueError, match="only its best classes"):
        client.make_feed(none, images, [1])
    region = client.make_feed(regions, images, [1, 3])["targets"]
    assert region.tolist() == [[[0, 1, 0, 1]]] * 2 and region.dtype == np.float32
    with pytest.raises(ValueError, match="name their classes"):
        client.make_feed(regions, images)


def run_client(model: ServedModel, *arguments: str) -> subprocess.CompletedProcess[str]:
    """As a user does: the file in the repository, in a process of its own."""
    command = [sys.executable, str(model.path / "client.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_client_explains_a_photo(
    planet: ServedModel,
    demo_model: LoadedModel,
    postcards: Callable[[int, int], Tensor],
    tmp_path: Path,
) -> None:
    photo = save("plain", postcards(1, 70)[0].numpy(), tmp_path)
    with served(planet.path) as url:
        result = run_client(planet, str(photo), "--url", url, "--top", "3")
        refused = run_client(planet, str(photo), "--url", url, "--targets", "1")
    assert result.returncode == 0, result.stderr
    pixels = decode_image(photo.read_bytes(), demo_model.preprocess).pixels
    found = Explainer(demo_model, layers="stages", targets=2)(torch.from_numpy(pixels.copy())[None])
    best = found.logits.softmax(-1)[0].topk(3)
    lines = result.stdout.splitlines()
    assert demo_model.classes is not None
    for line, index, value in zip(lines, best.indices.tolist(), best.values.tolist(), strict=False):
        percent, number, name = line.split(maxsplit=2)
        assert (int(number), name) == (index, demo_model.classes.name(index))
        assert float(percent[:-1]) == pytest.approx(100 * value, abs=0.01)
    assert lines[3].startswith(f"explained: {demo_model.classes.name(best.indices[0])} (")
    overlay = np.asarray(Image.open(tmp_path / "photo.heatmap.png"))
    assert overlay.shape == (160, 3 * 160, 3) and np.array_equal(overlay[:, :160], pixels)
    bright = overlay[:, 160:320].sum(-1)[(found.heatmaps[0, 0] > 0.9).numpy()].mean()
    assert bright > 1.2 * overlay[:, 160:320].sum(-1)[(found.heatmaps[0, 0] < 0.1).numpy()].mean()
    assert refused.returncode == 1 and "expected 2 --targets" in refused.stderr


def test_the_client_checks_the_server(model: ServedModel) -> None:
    with served(model.path) as url:
        right = run_client(model, "--golden", "--url", url)
    assert right.returncode == 0, right.stdout + right.stderr
    assert right.stdout.count("ok") == len(read_config(model.path).output)
    with served(model.path, lambda f: {**f, "heatmaps": f["heatmaps"][..., ::-1]}) as url:
        wrong = run_client(model, "--golden", "--url", url)
    assert wrong.returncode == 1 and wrong.stdout.count("FAIL") == 1, wrong.stdout
    gone = run_client(model, "--golden", "--url", url)
    assert gone.returncode == 1 and gone.stderr.startswith(f"client: {url}: ")


def test_the_client_stands_alone(planet: ServedModel) -> None:
    source = (planet.path / "client.py").read_text()
    tree = ast.walk(ast.parse(source))
    found = {
        name.partition(".")[0]
        for node in tree
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert found - sys.stdlib_module_names == {"numpy", "PIL", "tritonclient"}


def sampled(values: list[float], kind: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.array([values], kind)).save(file, options.pop("format", "TIFF"), **options)
    return file.getvalue()


_RANGE = {340: 10.0, 341: 30.0}  # SMinSampleValue, SMaxSampleValue


@pytest.mark.parametrize(
    "data",
    [
        sampled([0, 128, 129, 65535], np.uint16, format="PNG"),
        sampled([0, 128, 129, 65535], np.uint16),
        sampled([0, 10, 20, 40], np.uint16, tiffinfo=_RANGE),
        sampled([0, 10, 20, 40], np.int32, tiffinfo=_RANGE),
        sampled([0, 10.5, 20, np.nan], np.float32, tiffinfo=_RANGE),
        sampled([0, 1, 2, 200], np.int32),
        sampled([0, 0.5, 1, 2], np.float32),
        sampled([-1, 0, 1, 2], np.int32),
    ],
)
def test_deep_samples_are_scaled_or_refused_as_in_a_run(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "photo").write_bytes(data)
    settings = {
        "input_size": [1, 4],
        "resize": "squash",
        "interpolation": "bilinear",
        "channels": 3,
    }
    try:
        expected = decode_image(data, Preprocess((1, 4), resize="squash")).pixels
    except DecodeError as error:
        with pytest.raises(ValueError, match="samples of known range"):
            client.decode(tmp_path / "photo", settings)
        assert "samples of known range" in str(error)
    else:
        assert np.array_equal(client.decode(tmp_path / "photo", settings), expected)
