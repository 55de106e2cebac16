"""All benchmarks within a budget: what was not begun says so, and is a row in the record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.peers import PeersConfig
from benchmarks.rounds import AllConfig, run_all


def test_a_spent_budget_is_in_every_record(tmp_path: Path) -> None:
    run_all(AllConfig(budget=0.0, output=tmp_path))
    records = {path.name: json.loads(path.read_text()) for path in tmp_path.iterdir()}
    assert set(records) == {"kernels-cpu.json", "graph-cpu.json", "peers-cpu.json"}
    for record in records.values():
        errors = [row["error"] for row in record["cases"]]
        assert errors and all(error.startswith("not begun: ") for error in errors)
        assert record["env"]["versions"]["torch"]


def test_unknown_cases_are_refused() -> None:
    with pytest.raises(ValueError, match=r"peers: expected cases of .*got \['vgg'\]"):
        PeersConfig(cases=("vgg",))
    with pytest.raises(ValueError, match=r"peers: expected cases of"):
        PeersConfig(peers=("lime",))
