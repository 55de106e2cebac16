"""The modules of web sites that Node.js runs, too, against Python."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from combicam import Explainer, LoadedModel, Preprocess, export_web_site
from combicam.engine.images.channels import image_channels
from combicam.engine.images.decode import decode_image
from combicam.engine.images.resize import resize, visible_box
from combicam.engine.serving.web_runtime import FILES

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="needs Node.js")
SITE = Path(str(files("combicam.engine.serving").joinpath("site")))
EXAMPLE = Path(__file__).parents[3] / "examples" / "node"
SCRIPT = """
import fs from 'node:fs';
const { resize, normalize, seenBox } = await import(process.argv[1]);
const folder = process.argv[2], photos = JSON.parse(fs.readFileSync(`${folder}/photos.json`));
const boxes = photos.map(({ width, height, preprocess }, i) => {
  const all = fs.readFileSync(`${folder}/${i}`), photo = { width, height,
    rows: (top, bottom) => all.subarray(4 * width * top, 4 * width * bottom) };
  const pixels = resize(photo, preprocess);
  fs.writeFileSync(`${folder}/${i}.pixels`, pixels);
  fs.writeFileSync(`${folder}/${i}.images`, new Uint8Array(normalize(pixels, preprocess).buffer));
  return seenBox(photo, preprocess);
});
fs.writeFileSync(`${folder}/boxes.json`, JSON.stringify(boxes));
"""
Photo = tuple[NDArray[np.uint8], Preprocess]
Prepared = tuple[NDArray[np.uint8], NDArray[np.float32], list[float]]
InNode = Callable[[list[Photo]], list[Prepared]]


@pytest.fixture
def in_node(
    tmp_path: Path,
) -> InNode:
    """Pixels, normalised images and boxes of RGB photos, by one process of Node.js."""

    def run(
        photos: list[Photo],
    ) -> list[Prepared]:
        jobs = []
        for i, (pixels, preprocess) in enumerate(photos):
            opaque = np.full(pixels.shape[:2], 255, np.uint8)
            (tmp_path / str(i)).write_bytes(np.dstack([pixels, opaque]).tobytes())
            height, width = pixels.shape[:2]
            jobs.append({"width": width, "height": height, "preprocess": preprocess.to_dict()})
        (tmp_path / "photos.json").write_text(json.dumps(jobs))
        # As a module: beside the site's scripts lies a package.json that says so.
        module = tmp_path / "preprocess.mjs"
        shutil.copyfile(SITE / "preprocess.js", module)
        command = [str(NODE), "--input-type=module", "-e", SCRIPT, module.as_uri(), str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        boxes = json.loads((tmp_path / "boxes.json").read_text())
        results = []
        for i, (_, preprocess) in enumerate(photos):
            (height, width), channels = preprocess.input_size, preprocess.channels
            made = np.fromfile(tmp_path / f"{i}.pixels", np.uint8)
            images = np.fromfile(tmp_path / f"{i}.images", np.float32)
            results.append(
                (
                    made.reshape(height, width, channels),
                    images.reshape(channels, height, width),
                    boxes[i],
                )
            )
        return results

    return run


def noise(width: int, height: int, block: int = 1) -> NDArray[np.uint8]:
    """Uniform noise in blocks, whose edges show every error of a filter."""
    rng = np.random.default_rng([width, height])
    coarse = rng.integers(0, 256, (-(-height // block), -(-width // block), 3), dtype=np.uint8)
    return np.repeat(np.repeat(coarse, block, 0), block, 1)[:height, :width].copy()


SIZES = ((1, 1), (7, 63), (224, 224), (300, 200), (640, 481), (3000, 40), (33, 300), (1, 900))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_pixels_are_those_of_python(
    interpolation: str,
    in_node: InNode,
) -> None:
    """To the bit: enlarged, reduced, cropped, thin, grey."""
    photos = [
        (
            noise(width, height, block),
            Preprocess(size, resize=how, interpolation=interpolation, channels=channels),
        )
        for width, height in SIZES
        for block in (1, 8)
        for how in ("squash", "crop")
        for size, channels in (((224, 224), 3), ((63, 41), 1))
    ]
    for (pixels, preprocess), (made, images, box) in zip(photos, in_node(photos), strict=True):
        height, width = pixels.shape[:2]
        source = np.ascontiguousarray(image_channels(pixels, preprocess.channels))
        expected = resize(source, 1, (width, height), preprocess)
        # A photo this thin is cropped first, by Pillow, whose order of passes is its version's.
        if preprocess.resize == "squash" or max(width, height) <= 9 * min(width, height):
            np.testing.assert_array_equal(made, expected)
        normal = preprocess.normalize(torch.from_numpy(made.copy())[None])[0]
        np.testing.assert_allclose(images, normal, rtol=0, atol=1e-6)
        left, top, right, bottom = visible_box((width, height), preprocess)
        shares = [left / width, top / height, (right - left) / width, (bottom - top) / height]
        # Python's box ends with the photo.
        np.testing.assert_allclose(box, shares, atol=1 / min(preprocess.input_size))


@pytest.mark.parametrize("interpolation", ["lanczos", "nearest"])
def test_pillows_other_filters(
    interpolation: str,
    in_node: InNode,
) -> None:
    """Lanczos within a level, the nearest pixels themselves."""
    photos = [
        (noise(width, height, 8), Preprocess((90, 64), resize=how, interpolation=interpolation))
        for width, height in ((300, 200), (640, 481), (50, 60))
        for how in ("squash", "crop")
    ]
    for (pixels, preprocess), (made, _, _) in zip(photos, in_node(photos), strict=True):
        height, width = pixels.shape[:2]
        expected = resize(pixels, 1, (width, height), preprocess)
        difference = np.abs(made.astype(int) - expected)
        if interpolation == "nearest":
            assert difference.max() == 0
        else:
            assert difference.max() <= 1


def test_what_browsers_cannot_prepare(tmp_path: Path) -> None:
    module = tmp_path / "preprocess.mjs"
    shutil.copyfile(SITE / "preprocess.js", module)
    script = (
        "const { resize } = await import(process.argv[1]); "
        "resize({ width: 1, height: 1 }, JSON.parse(process.argv[2]))"
    )
    for changes, words in (
        ({"channels": 4, "mean": []}, "4 channels"),
        ({"resize": "cover"}, "'cover'"),
    ):
        settings = {**Preprocess((8, 8)).to_dict(), **changes}
        command = [
            str(NODE),
            "--input-type=module",
            "-e",
            script,
            module.as_uri(),
            json.dumps(settings),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode != 0 and words in done.stderr


ANSWER = """
const { best, explain, probabilities } = await import(process.argv[1]);
const { model, target, logits } = JSON.parse(process.argv[2]), fed = {};
class Tensor {
  constructor(type, data, dims) { Object.assign(this, { type, data, dims, size: data.length }); }
}
const range = (dims) => {
  const size = dims.reduce((a, b) => a * b);
  return new Tensor('float32', Float32Array.from({ length: size }, (_, i) => i), dims);
};
const session = { run: async (feeds) => {
  for (const [name, { type, dims }] of Object.entries(feeds)) fed[name] = [type, dims];
  fed.classes = Array.from(feeds.targets.data, Number);
  return { logits: new Tensor('float32', Float32Array.from(logits), [1, logits.length]),
    classes: feeds.targets, scores: range([1, 2]), heatmaps: range([1, 2, 3, 4]),
    'map:b': range([1, 2, 1, 2]) };
} };
const found = await explain({ Tensor }, session, model, new Float32Array(36), target);
const plain = (key, value) => (ArrayBuffer.isView(value) ? [...value] : value);
console.log(JSON.stringify({ fed, best: best(found.probabilities, 2), ...found }, plain));
"""


@pytest.mark.parametrize(("score", "target"), [("logprob", None), ("sigmoid", 2)])
def test_answers(score: str, target: int | None, tmp_path: Path) -> None:
    """Two targets of a network whose second layer was kept."""
    module = tmp_path / "explain.mjs"
    shutil.copyfile(SITE / "explain.js", module)
    model = {
        "spec": {"targets": 2, "score": score},
        "signature": {"input_size": [3, 4]},
        "layers": [{"name": "a"}, {"name": "b"}],
        "outputs": ["logits", "map:b"],
    }
    logits = [1.0, -2.0, 3.0]
    given = json.dumps({"model": model, "target": target, "logits": logits})
    command = [str(NODE), "--input-type=module", "-e", ANSWER, module.as_uri(), given]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["fed"]["images"] == ["float32", [1, 3, 3, 4]]
    assert found["fed"]["targets"] == ["int64", [1, 2]]
    assert found["fed"]["classes"] == ([-1, -2] if target is None else [2, 2])
    values = torch.tensor(logits, dtype=torch.float64)
    expected = torch.softmax(values, 0) if score == "logprob" else torch.sigmoid(values)
    np.testing.assert_allclose(found["probabilities"], expected, rtol=1e-12)
    assert found["best"] == [[2, found["probabilities"][2]], [0, found["probabilities"][0]]]
    first, *others = found["explained"]
    assert len(others) == (1 if target is None else 0)
    assert first["heatmap"] == list(range(12))
    assert first["layers"] == [{"h": 1, "w": 2, "values": [0, 1]}]
    for other in others:
        assert other["score"] == 1 and other["heatmap"] == list(range(12, 24))
        assert other["layers"][0]["values"] == [2, 3]


def test_one_logit_has_a_sigmoid() -> None:
    script = (
        "const { probabilities } = await import(process.argv[1]); "
        "console.log(probabilities(Float32Array.of(2), 'logit')[0])"
    )
    module = (SITE / "explain.js").read_text(encoding="utf-8")
    data = f"data:text/javascript,{quote(module)}"
    command = [str(NODE), "--input-type=module", "-e", script, data]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(1 / (1 + np.exp(-2)))


@pytest.mark.slow
@pytest.mark.skipif(
    not (EXAMPLE / "node_modules").is_dir(), reason="needs npm install in examples/node"
)
def test_the_example(demo_model: LoadedModel, tmp_path: Path) -> None:
    explainer = Explainer(demo_model, layers="stages")
    (tmp_path / "ort").mkdir()
    for name in FILES:
        (tmp_path / "ort" / name).touch()
    export_web_site(explainer, tmp_path / "site", runtime=tmp_path / "ort", verify=0)
    photo = tmp_path / "photo.png"
    Image.fromarray(noise(200, 150, 30)).save(photo)
    command = [str(NODE), str(EXAMPLE / "explain.mjs"), str(tmp_path / "site"), str(photo)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pixels = decode_image(photo.read_bytes(), explainer.preprocess).pixels[None]
    share, index = torch.softmax(explainer(pixels).logits[0], 0).max(0)
    assert done.stdout.split()[:3] == [f"{100 * float(share):.1f}", "%", str(int(index))]
    with Image.open(tmp_path / "photo.heatmap.png") as drawn:
        assert drawn.size == explainer.preprocess.input_size[::-1]
    refused = subprocess.run([*command[:-1], "no.png"], capture_output=True, text=True, check=False)
    assert refused.returncode == 1 and len(refused.stderr.splitlines()) == 1
