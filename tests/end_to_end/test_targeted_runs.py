"""Runs that are asked for places, regions and contrasts, from their input to their rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import combicam
from combicam import CellTable, Explainer, LoadedModel, ModelConfig, RunConfig, contrast, read_shard
from combicam.engine.runner import run_images
from combicam.errors import ArtifactError, RunError
from combicam.export.spec import CamSpec

COUNT = 5


@pytest.fixture(scope="module")
def explainer(demo_model: LoadedModel) -> Explainer:
    return Explainer(demo_model, layers="last", targets=2)


@pytest.fixture(scope="module")
def cards(postcards: Callable[[int, int], Tensor]) -> Tensor:
    return postcards(COUNT, 5_000_000)


@pytest.fixture(scope="module")
def photos(cards: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i, card in enumerate(cards.numpy()):
        Image.fromarray(card).save(folder / f"{i}.png")
    (folder / "2b.png").write_text("no picture")
    return folder


def config(photos: Path, output: Path, *explain: str, **changes: object) -> RunConfig:
    options = {"batch_size": 4, "shard_size": 4, "progress": False} | changes
    return RunConfig(str(photos), output, ModelConfig("demo"), explain=explain, **options)  # type: ignore[arg-type]


def rows(run: Path) -> tuple[Tensor, Tensor, list[list[int]]]:
    """Heatmaps of the rows that are ok, their scores, and their targets."""
    shards = [read_shard(run, 0), read_shard(run, 1)]
    heatmaps = np.concatenate([shard.heatmaps[shard.ok] for shard in shards])
    scores = np.concatenate([shard.scores[shard.ok] for shard in shards])
    targets = np.concatenate([shard.targets[shard.ok] for shard in shards])
    return torch.from_numpy(heatmaps), torch.from_numpy(scores), targets.tolist()


@pytest.mark.long
def test_rows_are_what_the_explainer_answers(
    explainer: Explainer, cards: Tensor, photos: Path, tmp_path: Path
) -> None:
    assert explainer.classes is not None
    cells = CellTable.from_classes(explainer.classes)
    porto, perth = cells.holding(41, -8), cells.holding(-32, 116)
    region = torch.from_numpy(cells.within(2500, 50, 10))
    signed = contrast(porto, perth).weights(1, len(cells))[0, 0]
    one = torch.nn.functional.one_hot(torch.tensor(porto), len(cells)).float()
    for explain, asked, named in (
        (("top", "41,-8"), torch.tensor([[-1, porto]] * COUNT), porto),
        (("within:2500km@50,10", "41,-8"), torch.stack([region, one]).repeat(COUNT, 1, 1), porto),
        (
            ("within:2500km@50,10", "41,-8-not--32,116"),
            torch.stack([region, signed]).repeat(COUNT, 1, 1),
            -1,
        ),
    ):
        output = tmp_path / explain[0][:3] / str(named)
        summary = run_images(config(photos, output, *explain), explainer)
        assert summary.images == COUNT + 1 and summary.failures == {"decode_error": 1}
        heatmaps, scores, targets = rows(output)
        expected = explainer(cards, asked)
        difference = (heatmaps.float() / 255 - expected.heatmaps).abs()
        assert difference.max() < 0.005 and expected.heatmaps.amax((2, 3)).sum() > 7  # few are flat
        torch.testing.assert_close(scores, expected.scores, rtol=1e-4, atol=1e-9)
        assert [target[1] for target in targets] == [named] * COUNT
        metadata = read_shard(output, 0).table.schema.metadata
        assert json.loads(metadata[b"combicam.explain"]) == list(explain)


def test_the_truth_of_every_photo(
    explainer: Explainer, cards: Tensor, photos: Path, tmp_path: Path
) -> None:
    assert explainer.classes is not None
    cells = CellTable.from_classes(explainer.classes)
    places = [(41.0, -8.0), (-32.0, 116.0), (64.0, -22.0), (4.0, -74.0), (43.0, 141.0)]
    true = cells.classes_at(*zip(*places, strict=True))
    lines = [f"{photos}/{i}.png,{lat},{lon}" for i, (lat, lon) in enumerate(places)]
    lines.insert(3, f"{photos}/2b.png,0,0")  # fails, and must not shift the others
    table = tmp_path / "list.csv"
    table.write_text("path,latitude,longitude\n" + "\n".join(lines))
    run_images(config(table, tmp_path / "run", "top", "truth"), explainer)
    heatmaps, scores, targets = rows(tmp_path / "run")
    assert [target[1] for target in targets] == true.tolist()
    # What the model says is told beside what it was asked.
    run_images(config(table, tmp_path / "reversed", "17", "truth"), explainer)
    said = combicam.open_run(tmp_path / "reversed").table(["class_name", "lat", "targets"])
    told = [row for row in said.to_pylist() if row["targets"] is not None]
    best = explainer(cards).targets[:, 0].tolist()
    assert [row["class_name"] for row in told] == [cells.names[c] for c in best]
    assert [row["lat"] for row in told] == [cells.latitudes[c] for c in best]
    assert [row["targets"] for row in told] == [[17, int(c)] for c in true]
    expected = explainer(cards, torch.tensor([[-1, int(c)] for c in true]))
    assert (heatmaps.float() / 255 - expected.heatmaps).abs().max() < 0.005
    torch.testing.assert_close(scores, expected.scores, rtol=1e-4, atol=1e-9)
    table.write_text("path,latitude,longitude\n" + "\n".join([*lines[1:], f"{photos}/0.png,,"]))
    with pytest.raises(ValueError, match=r"ground truth for every input.*got none for '.*/0\.png'"):
        run_images(config(table, tmp_path / "other", "top", "truth"), explainer)
    assert not (tmp_path / "other" / "manifest.parquet").exists()


def test_a_run_is_continued_with_the_same_question_alone(
    explainer: Explainer, photos: Path, tmp_path: Path
) -> None:
    run_images(config(photos, tmp_path / "run", "top", "17"), explainer)
    assert run_images(config(photos, tmp_path / "run", "top", "17"), explainer).images == COUNT + 1
    with pytest.raises(RunError, match=r'explain: \["top", "17"\] there, \["top", "18"\] now'):
        run_images(config(photos, tmp_path / "run", "top", "18"), explainer)
    with pytest.raises(RunError, match=r'explain: \["top", "17"\] there, null now'):
        run_images(config(photos, tmp_path / "run"), explainer)
    with pytest.raises(ValueError, match="an explainer with 1 targets"):
        run_images(config(photos, tmp_path / "other", "17"), explainer)
    assert not (tmp_path / "other").exists()


def test_the_configuration_makes_its_explainer(photos: Path, tmp_path: Path) -> None:
    combicam.run(config(photos, tmp_path / "run", "3", "41,-8", cam=CamSpec(layers="last")))
    *_, targets = rows(tmp_path / "run")
    assert targets == [[3, 17]] * COUNT
    assert read_shard(tmp_path / "run", 0).table["class_name"][0].as_py()


def test_files_answer_what_they_were_exported_for(
    explainer: Explainer, photos: Path, tmp_path: Path
) -> None:
    combicam.export(explainer, tmp_path / "m.ts", verify=0)

    def asked(*explain: str) -> RunConfig:
        options = config(photos, tmp_path / "run", *explain)
        return RunConfig(
            options.input, options.output, ModelConfig(str(tmp_path / "m.ts")), explain=explain,
            shard_size=4, progress=False,
        )  # fmt: skip

    with pytest.raises(ArtifactError, match=r"target_input='weights' and targets=2"):
        combicam.run(asked("within:2500km@50,10", "17"))
    with pytest.raises(ValueError, match="or export it with targets=1"):
        combicam.run(asked("17"))
    combicam.run(asked("top", "17"))
    *_, targets = rows(tmp_path / "run")
    assert [target[1] for target in targets] == [17] * COUNT


def test_configurations_that_ask_two_things(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="explain or targets"):
        config(photos, tmp_path, "17", cam=CamSpec(targets=2))
    with pytest.raises(ValueError, match="explain or cuda_graphs"):
        config(photos, tmp_path, "17", compute=combicam.ComputeConfig(cuda_graphs=True))
    assert config(photos, tmp_path, "1").explain == ("1",)
