"""Reading runs back: as tables, as arrays, as WebDataset; the examples of the documentation."""

from __future__ import annotations

import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
from PIL import Image

import combicam
from combicam.cli import main
from combicam.demo.planet import CELLS, postcard
from combicam.engine.run.config import RunConfig
from combicam.engine.runner import run_images
from combicam.errors import RunError

DOCUMENT = Path(__file__).parents[3] / "docs" / "reading.md"


def made(tmp_path: Path, photos: Any, fake: Any, **options: Any) -> Path:
    photos(tmp_path / "in", 20)[3].write_bytes(b"")
    config = RunConfig(
        str(tmp_path / "in"),
        tmp_path / "run",
        "fake",
        shard_size=8,
        progress=False,
        **options,  # type: ignore[arg-type]
    )
    run_images(config, fake(targets=2))
    return tmp_path / "run"


def test_tables_are_in_the_order_of_the_inputs(tmp_path: Path, photos: Any, fake: Any) -> None:
    run = combicam.open_run(made(tmp_path, photos, fake))
    assert len(run) == 20 and run.shards == (0, 1, 2) and run.spec.targets == 2
    table = run.table()
    assert table["id"].to_pylist() == [f"p{i:03d}.jpg" for i in range(20)]
    assert "heatmap" not in table.column_names
    bad = run.table(["id", "status"], where=pc.field("status") != "ok").to_pylist()
    assert bad == [{"id": "p003.jpg", "status": "decode_error"}]
    shard, row = run.find("p017.jpg")
    assert row == 1 and np.array_equal(shard.heatmaps[1], run.shard(2).heatmaps[1])
    with pytest.raises(KeyError):
        run.find("none.jpg")
    with pytest.raises(RunError, match="one of the 3 committed shards, got 7"):
        run.shard(7)
    (run.path / "shards/00001.parquet").unlink()
    assert combicam.open_run(run.path).shards == (0, 2)
    with pytest.raises(RunError, match="with committed shards"):
        combicam.open_run(tmp_path / "in")


def test_webdataset(tmp_path: Path, photos: Any, fake: Any, capsys: Any) -> None:
    run = made(tmp_path, photos, fake)
    main(["convert", str(run), str(tmp_path / "tars"), "--photos"])
    assert "19" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "tars").iterdir()) == [
        "00000.tar",
        "00001.tar",
        "00002.tar",
    ]
    shard = combicam.read_shard(run, 0)
    with tarfile.open(tmp_path / "tars/00000.tar") as tar:
        files = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
    keys = [name for name in files if name.endswith(".json")]
    assert keys == [f"00000{row:06d}.json" for row in range(8) if row != 3]
    assert json.loads(files["00000000004.json"])["id"] == "p004.jpg"
    assert files["00000000004.jpg"] == (tmp_path / "in/p004.jpg").read_bytes()
    for k in range(2):
        image = Image.open(io.BytesIO(files[f"00000000004.heatmap{k}.png"]))
        assert np.array_equal(np.asarray(image), shard.heatmaps[4][k])
    before = (tmp_path / "tars/00001.tar").read_bytes()
    (tmp_path / "tars/00001.tar").unlink()
    (tmp_path / "in/p009.jpg").unlink()
    assert combicam.write_webdataset(run, tmp_path / "tars", photos=True) == 8
    after = (tmp_path / "tars/00001.tar").read_bytes()
    assert b"00001000001.jpg" in before and b"00001000001.jpg" not in after  # gone since
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.txt").touch()
    with pytest.raises(RunError, match=r"got x\.txt"):
        combicam.write_webdataset(run, tmp_path / "other")


def test_tables_of_many_shards_and_of_columns(tmp_path: Path, photos: Any, fake: Any) -> None:
    path = made(tmp_path, photos, fake)
    for number, name in ((1, "10001"), (2, "100000")):
        (path / f"shards/{number:05d}.parquet").rename(path / f"shards/{name}.parquet")
    run = combicam.open_run(path)
    assert run.shards == (0, 10001, 100000)
    assert run.table(["id"])["id"].to_pylist() == [f"p{i:03d}.jpg" for i in range(20)]
    for wrong in ("id", ["id", "label"]):
        with pytest.raises(ValueError, match=r"list of columns, of \['id', .*, got .*; take some"):
            run.table(wrong)


def test_a_damaged_shard_is_named(tmp_path: Path, photos: Any, fake: Any) -> None:
    run = made(tmp_path, photos, fake)
    path = run / "shards/00001.parquet"
    data = path.read_bytes()
    for damaged in (b"", data[:-100], data[:200] + bytes(400) + data[600:]):
        path.write_bytes(damaged)
        with pytest.raises(RunError, match=r"00001\.parquet to be an intact .*delete it"):
            combicam.open_run(run).shard(1)


def test_a_run_whose_name_looks_like_a_url(
    tmp_path: Path, photos: Any, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos(tmp_path / "in", 2)
    monkeypatch.chdir(tmp_path)
    config = RunConfig("in", Path("run-2026-01-31T10:00"), "fake", progress=False)  # type: ignore[arg-type]
    run_images(config, fake())
    run = combicam.open_run("run-2026-01-31T10:00")
    assert run.table(["id"])["id"].to_pylist() == ["p000.jpg", "p001.jpg"]
    assert run.shard(0).ok.all()
    assert combicam.run_status("run-2026-01-31T10:00").state == "finished"


def test_tars_of_photos_with_ids_of_their_own(tmp_path: Path, photos: Any, fake: Any) -> None:
    photos(tmp_path / "in", 1)
    (tmp_path / "list.csv").write_text("id,path\nv1.7,in/p000.jpg\n")
    config = RunConfig(str(tmp_path / "list.csv"), tmp_path / "run", "fake", progress=False)  # type: ignore[arg-type]
    run_images(config, fake())
    combicam.write_webdataset(tmp_path / "run", tmp_path / "tars", photos=True)
    with tarfile.open(tmp_path / "tars/00000.tar") as tar:
        assert [name.partition(".")[2] for name in tar.getnames()] == [
            "json",
            "heatmap0.png",
            "jpg",
        ]
    for folder in (tmp_path / "list.csv", "s3://bucket/tars"):
        with pytest.raises(RunError, match=r"a folder on this machine, got .*(csv|tars); choose"):
            combicam.write_webdataset(tmp_path / "run", folder)


def test_examples_of_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    for i in range(6):
        Image.fromarray(postcard(i % len(CELLS), i).image).save(tmp_path / "in" / f"{i}.png")
    explainer = combicam.make_explainer(combicam.ModelConfig("demo"), keep_layers=True)
    truth = tmp_path / "truth.csv"
    places = [f"{i}.png,{cell.latitude},{cell.longitude}\n" for i, cell in enumerate(CELLS[:6])]
    truth.write_text("id,latitude,longitude\n" + "".join(places))
    for name, store in (("run", "full"), ("layers", "layers"), ("placed", "grid")):
        config = RunConfig(
            str(tmp_path / "in"),
            tmp_path / name,
            "demo",
            store=store,
            truth=truth if name == "placed" else None,
            progress=False,  # type: ignore[arg-type]
        )
        run_images(config, explainer)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.S)
    assert len(blocks) == 6
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(DOCUMENT), "exec"), names)
    assert len(names["run"]) == 6 and len(names["failed"]) == 0 and len(names["sure"]) == 6
    assert len(names["rows"].collect()) == 6
    assert names["accuracy"].images == 6 == len(names["second"])
    assert all(m.ndim == 3 for m in names["maps"].values()) and len(names["maps"]) > 3
