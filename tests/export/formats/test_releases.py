"""Files of earlier releases open and give the numbers of their release; newer ones are refused."""

from __future__ import annotations

import importlib.util
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from cam_oracle import combi_cam

from combicam import ArtifactError, CamSpec, Explainer
from combicam.export.formats.artifact import Description, read_description

FOLDER = Path(__file__).parent / "releases"
FILES = sorted(p for p in FOLDER.iterdir() if p.suffix in (".onnx", ".ts"))
FORMATS = {"0.1.0": 1, "0.2.0": 2}


def writer() -> Any:
    spec = importlib.util.spec_from_file_location("releases_write", FOLDER / "write.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


WRITE = writer()


def numbers(path: Path) -> dict[str, np.ndarray]:
    return dict(np.load(path.with_name(f"{path.name}.npz")))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_files_of_releases_open_and_give_their_numbers(path: Path) -> None:
    release, stem = path.stem.rsplit("-", 1)
    explainer, expected = Explainer.load(path, device="cpu"), numbers(path)
    assert explainer.description.format == FORMATS[release]
    assert explainer.description.signature.target_input == WRITE.FILES[stem + path.suffix][1]
    images = WRITE.images()
    for part in (slice(None), slice(1, 2)):
        targets = expected["targets"][part] if "targets" in expected else None
        found = explainer(images[part], targets)
        outputs = {
            "logits": found.logits,
            "classes": found.targets,
            "scores": found.scores,
            "heatmaps": found.heatmaps,
            "ranges": found.ranges,
            **{f"map:{name}": values for name, values in found.layer_maps.items()},
        }
        assert outputs.keys() == expected.keys() - {"targets"}
        for name, values in outputs.items():
            scale = max(1.0, np.abs(expected[name]).max())
            error = np.abs(values.numpy() - expected[name][part]).max() / scale
            assert error < 2e-5, (name, error)


def test_every_release_has_its_files() -> None:
    names = {f"{release}-{name}" for release in FORMATS for name in WRITE.FILES}
    assert {path.name for path in FILES} == names


@pytest.mark.parametrize("release", FORMATS)
def test_kept_numbers_are_those_of_autograd(release: str) -> None:
    kept = numbers(FOLDER / f"{release}-classes.onnx")
    model = WRITE.network().double()
    explainer = Explainer.load(FOLDER / f"{release}-classes.onnx", device="cpu")
    images = explainer.preprocess.normalize(torch.from_numpy(WRITE.images())).double()
    for k in range(2):
        classes = torch.from_numpy(kept["classes"][:, k])
        maps = combi_cam(model, ["0", "1"], images, classes, score="logprob")
        assert np.abs(maps.numpy() - kept["heatmaps"][:, k]).max() < 1e-4


def edited(path: Path, folder: Path, **changes: Any) -> Path:
    """The file with other values in its description."""
    copy = folder / path.name
    if path.suffix == ".onnx":
        model = onnx.load(path)
        (entry,) = (e for e in model.metadata_props if e.key == "combicam")
        entry.value = json.dumps({**json.loads(entry.value), **changes})
        onnx.save(model, copy)
        return copy
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(copy, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("extra/combicam.json"):
                data = json.dumps({**json.loads(data), **changes}).encode()
            new.writestr(name, data)
    return copy


@pytest.mark.parametrize("name", ["0.2.0-classes.onnx", "0.2.0-classes.ts"])
def test_newer_files(name: str, tmp_path: Path) -> None:
    path = FOLDER / name
    with pytest.raises(ArtifactError, match=rf"{name}: expected format <= 3, got 4, .*update"):
        Explainer.load(edited(path, tmp_path, format=4, combicam="9.0"))
    # New keys at the top only tell more.
    assert Explainer.load(edited(path, tmp_path, licence="CC0"), device="cpu").num_classes == 5
    # What is inside of the others changes the meaning.
    values = json.loads(read_description(path).to_json())
    for key in ("spec", "signature", "preprocess"):
        newer = {key: {**values[key], "twist": 2}, "combicam": "9.0"}
        with pytest.raises(ArtifactError, match=rf"{name}: .*combicam 9\.0 .*twist.*update"):
            read_description(edited(path, tmp_path, **newer))
    with pytest.raises(ArtifactError, match=r"an unknown version .KeyError: 'signature'"):
        Description.from_json('{"format": 2}')


def test_new_fields_are_written_where_they_say_something() -> None:
    """Readers of 0.2.0 refuse fields of specs that they do not know."""
    metadata = onnx.load(FOLDER / "0.2.0-classes.onnx").metadata_props
    known = set(json.loads(metadata[0].value)["spec"])
    plain = read_description(FOLDER / "0.2.0-classes.onnx")
    for spec in (CamSpec(), CamSpec(finer=3), CamSpec(smooth="flips")):
        written = json.loads(replace(plain, spec=spec).to_json())["spec"]
        values, usual = spec.to_dict(), CamSpec().to_dict()
        assert set(written) == known | {name for name in values if values[name] != usual[name]}
        assert CamSpec.from_dict(written) == spec
