"""Names of masks."""

from __future__ import annotations

from pathlib import Path

import pytest

from combicam.engine.inputs.masks import find_mask, read_mask
from combicam.errors import DecodeError


@pytest.mark.parametrize(
    ("identity", "names"),
    [
        ("b.jpg", ["b.jpg.png", "b.png"]),
        ("a/b.jpg", ["a/b.jpg.png", "a/b.png"]),
        ("/data/a/b.jpg", ["data/a/b.jpg.png", "data/a/b.png"]),
        ("x.tar::b.jpg", ["x.tar/b.jpg.png", "x.tar/b.png"]),
        ("x.tar::c/b.v2.jpg", ["x.tar/c/b.v2.jpg.png", "x.tar/c/b.v2.png"]),
        ("007", ["007.png"]),
    ],
)
def test_masks_are_named_by_ids_and_the_full_name_wins(
    identity: str, names: list[str], tmp_path: Path
) -> None:
    assert find_mask(tmp_path, identity) is None
    for name in names[::-1]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        assert find_mask(tmp_path, identity) == path


def test_what_is_no_png_is_named(tmp_path: Path) -> None:
    path = tmp_path / "b.png"
    path.write_bytes(b"no png")
    with pytest.raises(DecodeError, match=r"mask: expected a PNG, got .*b\.png"):
        read_mask(path)
