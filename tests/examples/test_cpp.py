"""The C++ example is built, and gives the numbers of Python on real photos."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import combicam
from combicam import Explainer, export
from combicam.demo.model import load
from combicam.demo.planet import CELLS, postcard

ROOT = Path(__file__).parents[2]
ORIENTATION, TURNED = 0x0112, 6
SCORE, HEAT = 1e-4, 2  # largest differences; of heat in levels of 255

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@dataclass(frozen=True)
class Printed:
    """What the program says: class -> probability of the best, and of the explained classes."""

    best: dict[int, float]
    explained: dict[int, float]
    heatmaps: list[np.ndarray]


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, built in a temporary folder."""
    if shutil.which("cmake") is None or shutil.which("g++") is None:
        pytest.skip("needs cmake and g++")
    folder = tmp_path_factory.mktemp("build")
    settings = f"-DTORCH_ROOT={Path(torch.__file__).parent}"
    for command in (
        ["cmake", "-S", ROOT / "examples/cpp", "-B", folder, settings],
        ["cmake", "--build", folder, "--parallel", "2"],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        for library in ("JPEG", "PNG"):
            if f"Could NOT find {library}" in done.stderr:
                pytest.skip(f"needs the headers of lib{library.lower()}")
        assert done.returncode == 0, done.stderr
    return folder / "explain"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Postcards as PNG, PPM and turned JPEG, and the photographs of scikit-image if it is there."""
    folder = tmp_path_factory.mktemp("photos")
    cards = [Image.fromarray(postcard(cell % len(CELLS), cell).image) for cell in (3, 11, 26)]
    cards[0].save(folder / "card.png")
    cards[1].save(folder / "card.ppm")
    exif = Image.Exif()
    exif[ORIENTATION] = TURNED
    cards[2].save(folder / "turned.jpg", quality=92, exif=exif)
    with suppress(combicam.MissingExtra):
        from combicam.demo.photographs import write_photographs

        write_photographs(folder, folder / "photographs.csv")
    return sorted(p for p in folder.iterdir() if p.suffix != ".csv")


def program(path: Path, model: Path, photo: Path, output: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [path, model, photo, output], capture_output=True, text=True, cwd=output.parent
    )


def explained(path: Path, model: Path, photo: Path, output: Path) -> Printed:
    done = program(path, model, photo, output)
    assert done.returncode == 0, done.stderr
    lines = [line.split(maxsplit=3) for line in done.stdout.splitlines()]
    scores = {
        kind: {int(line[1]): float(line[2]) for line in lines if line[0] == kind}
        for kind in ("best", "explained")
    }
    files = [output.with_suffix(".pgm"), output.with_name(f"{output.name}-2.pgm")]
    heatmaps = [np.asarray(Image.open(file)).astype(int) for file in files if file.exists()]
    return Printed(scores["best"], scores["explained"], heatmaps)


def assert_like_python(path: Path, model: Path, photos: Sequence[Path], folder: Path) -> None:
    explainer = Explainer.load(model, device="cpu")
    for photo in photos:
        # The photo's pixels by Pillow: the program decodes it with other libraries.
        upright = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")
        expected = explainer(explainer.prepare([upright]))
        found = explained(path, model, photo, folder / photo.stem)
        chances = expected.logits[0].double().softmax(0)
        best = chances.topk(5)
        assert list(found.best) == best.indices.tolist(), photo.name
        assert np.allclose(list(found.best.values()), best.values, atol=SCORE, rtol=0), photo.name
        assert list(found.explained) == expected.targets[0].tolist(), photo.name
        scores = list(found.explained.values())
        assert np.allclose(scores, expected.scores[0], atol=SCORE, rtol=0), photo.name
        assert len(found.heatmaps) == expected.targets.shape[1]
        for heat, values in zip(found.heatmaps, expected.heatmaps[0].numpy(), strict=True):
            assert np.abs(heat - values * 255).max() <= HEAT, photo.name
        assert np.asarray(Image.open(folder / f"{photo.stem}.ppm")).shape == (*heat.shape, 3)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's network, which crops; a network of scikit-image's photographs if it is there."""
    folder = tmp_path_factory.mktemp("models")
    planet = Explainer(load(), layers="stages", targets=2)
    for suffix in (".ts", ".pt2"):
        export(planet, folder / f"planet{suffix}", verify=2)
    export(Explainer(load(), layers="last"), folder / "none.ts", target_input="none", verify=2)
    return folder


@pytest.mark.parametrize("name", ["planet.ts", "planet.pt2", "none.ts"])
def test_torch(binary: Path, models: Path, pictures: list[Path], tmp_path: Path, name: str) -> None:
    assert_like_python(binary, models / name, pictures, tmp_path)


def test_a_network_of_imagenet(binary: Path, pictures: list[Path], tmp_path: Path) -> None:
    """Bicubic, of 1000 classes with names."""
    pytest.importorskip("efficientnet_lite_pytorch")
    from combicam.demo.photo_models import lite0

    model = tmp_path / "lite0.ts"
    export(Explainer(lite0(), layers="last"), model, verify=1)
    photos = [photo for photo in pictures if photo.suffix == ".jpg"]
    assert_like_python(binary, model, photos, tmp_path)
    if (cat := photos[0].with_name("chelsea.jpg")).exists():
        assert "cat" in program(binary, model, cat, tmp_path / "cat").stdout


def test_squashed_and_grey(binary: Path, pictures: list[Path], tmp_path: Path) -> None:
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 5, 3),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 6),
    )
    preprocess = combicam.Preprocess((60, 100), resize="squash", channels=1)
    explainer = Explainer(network, preprocess=preprocess, layers="0", targets=2)
    export(explainer, tmp_path / "grey.ts", verify=2)
    assert_like_python(binary, tmp_path / "grey.ts", pictures, tmp_path)


def test_errors_are_one_line(binary: Path, models: Path, tmp_path: Path) -> None:
    card = postcard(0, 0).image
    Image.fromarray(card).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("no photo")
    (tmp_path / "huge.ppm").write_text("P6 999999 999999 255\n")
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), tmp_path / "other.ts")
    planet = models / "planet.ts"
    for model, photo, words in (
        (planet, "cut.jpg", "damaged JPEG"),
        (planet, "text.jpg", "expected a JPEG, PNG, PPM or PGM"),
        (planet, "huge.ppm", "200 million pixels"),
        (planet, "none.jpg", "cannot open"),
        (tmp_path / "planet.onnx", "whole.jpg", "expected a .ts or .pt2 file"),
        (tmp_path / "other.ts", "whole.jpg", "expected a file that combicam exported"),
    ):
        done = program(binary, model, tmp_path / photo, tmp_path / "out")
        assert done.returncode == 1 and words in done.stderr, done.stderr
        assert done.stderr.count("\n") == 1
