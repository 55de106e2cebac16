"""Names of classes in the forms in which people keep them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from combicam.export.classes.cell_files import read_classes


@pytest.mark.parametrize(
    "content",
    [
        ["tench", "goldfish", "12"],
        {"0": "tench", "2": "12", "1": "goldfish"},
        {"0": ["n1", "tench"], "1": ["n2", "goldfish"], "2": ["n3", "12"]},
        {"tench": 0, "12": 2, "goldfish": 1},
        {"model_type": "resnet", "id2label": {"0": "tench", "1": "goldfish", "2": "12"}},
    ],
)
def test_json(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "names.json"
    path.write_text(json.dumps(content), encoding="utf-8-sig")
    assert read_classes(path).names == ("tench", "goldfish", "12")


@pytest.mark.parametrize("name", ["names.txt", "coco.names"])
def test_a_name_a_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text("tench\r\n  goldfish, Carassius\nÅland\n\n", encoding="utf-8")
    assert read_classes(path).names == ("tench", "goldfish, Carassius", "Åland")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{", "expected JSON in .*a.json, got Expecting"),
        ("a.json", "[]", "name the classes 0, 1, … each once"),
        ("a.json", '{"0": "a", "2": "b"}', "each once"),
        ("a.json", '{"a": 0, "b": 0}', "each once"),
        ("a.json", '{"0": 1.5}', "each once"),
        ("a.json", '{"0": "a", "x": "b"}', "each once"),
        ("a.json", '{"0": true}', "each once"),
        ("a.json", "3", "each once, .*got '3'"),
        ("a.txt", "a\n\nb\n", "a name in each line of .*, got line 2 empty"),
        ("a.txt", "\n \n", "got no line"),
    ],
)
def test_refused(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_classes(tmp_path / name)


def test_imagenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = read_classes("imagenet").names
    assert len(names) == 1000 and names[1] == "goldfish" and names[-1] == "toilet tissue"
    Path("imagenet").write_text("class,name\n0,mine\n")  # a file of that name goes first
    assert read_classes("imagenet").names == ("mine",)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_classes(tmp_path / "gone.json")
