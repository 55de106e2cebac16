"""Preprocess and ClassTable."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from combicam import ClassTable, Preprocess


def test_normalisation_is_that_of_torchvision() -> None:
    from torchvision.transforms.functional import normalize, to_tensor

    images = torch.randint(0, 256, (2, 5, 7, 3), dtype=torch.uint8)
    ours = Preprocess((5, 7)).normalize(images)
    theirs = torch.stack(
        [
            normalize(to_tensor(i.numpy()), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
            for i in images
        ]
    )
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"input_size": (0, 3)}, "input_size"),
        ({"std": (1, 0, 1)}, "std"),
        ({"mean": (1, 0)}, "2 values of std, one per channel"),
        ({"resize": "pad"}, "resize"),
        ({"interpolation": "area"}, "interpolation"),
        ({"crop_pct": 0}, "crop_pct"),
    ],
)
def test_preprocess_refuses(values: dict[str, object], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Preprocess(**{"input_size": (8, 8), **values})  # type: ignore[arg-type]


def test_preprocess_round_trip() -> None:
    preprocess = Preprocess((3, 4), resize="squash", crop_pct=0.5, interpolation="lanczos")
    assert Preprocess.from_dict(preprocess.to_dict()) == preprocess


def test_class_table_from_csv(tmp_path: Path) -> None:
    path = tmp_path / "cells.csv"
    path.write_text("class,name,latitude,longitude\n1,Suva,-18.14,178.44\n0,Oslo,59.91,10.75\n")
    table = ClassTable.from_csv(path)
    assert table == ClassTable(("Oslo", "Suva"), (59.91, -18.14), (10.75, 178.44))
    assert ClassTable.from_dict(table.to_dict()) == table and len(table) == 2


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("name\nOslo\n", "columns"),
        ("class,name\n0,Oslo\n2,Suva\n", "0..1"),
        ("class,latitude,longitude\n0,north,3\n", "a number"),
        ("class,latitude,longitude\n0,91,3\n", "latitude"),
    ],
)
def test_damaged_class_tables(tmp_path: Path, text: str, word: str) -> None:
    (tmp_path / "cells.csv").write_text(text)
    with pytest.raises(ValueError, match=word):
        ClassTable.from_csv(tmp_path / "cells.csv")


def test_columns_of_two_lengths() -> None:
    with pytest.raises(ValueError, match="equal length"):
        ClassTable(names=("a", "b"), s2_tokens=("x",))
