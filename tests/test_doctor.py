"""What the doctor says is tried, and a failure is told and not raised."""

from __future__ import annotations

import json
from typing import Any

import pytest

from combicam import cli, doctor
from combicam.doctor import FAILED, MISSING, OK, diagnose


def states(**changes: Any) -> dict[str, str]:
    return {finding.name: finding.state for finding in diagnose(**changes)}


@pytest.mark.long
def test_what_works_and_what_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "QUICK", ("eager", "torchscript"))
    monkeypatch.setattr(doctor, "_POSTCARDS", 4)
    monkeypatch.setattr(doctor, "EXTRAS", {"models": "timm", "nothing": "no-such-thing"})
    found = states()
    assert found["eager, cpu"] == found["torchscript, cpu"] == found["JPEG, auto"] == OK
    assert (found["extra models"], found["extra nothing"]) == (OK, MISSING)


def test_how_fast_a_run_is_and_what_is_slowest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_POSTCARDS", 12)
    found = {finding.name: finding for finding in doctor._speeds()}
    assert list(found) == [
        *("speed of reading", "speed of explaining", "speed of storing"),
        "speed of a run",
    ]
    assert all(finding.state == OK for finding in found.values())
    speed = {n: float(f.detail.split()[0].replace(",", "")) for n, f in found.items()}
    slowest = min(list(speed)[:3], key=speed.__getitem__).removeprefix("speed of ")
    assert f"{slowest} is slowest: " in found["speed of a run"].detail
    assert 0 < speed["speed of a run"] < speed["speed of reading"]
    for step in ("reading", "explaining", "storing"):
        assert doctor._advice(step)


def test_a_run_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(config: Any) -> Any:
        raise OSError("no space left")

    monkeypatch.setattr(doctor, "run", broken)
    (finding,) = doctor._speeds()
    assert (finding.state, finding.detail) == (FAILED, "OSError: no space left")


@pytest.mark.long
def test_a_backend_that_fails_or_differs_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = doctor.Explainer

    def broken(model: Any, backend: str, device: str) -> Any:
        if backend == "onnxruntime":
            raise RuntimeError("no such runtime\nwith a stack")
        explainer = real(
            model, device=device, method="layercam" if backend == "aoti" else "gradcam"
        )
        return explainer

    monkeypatch.setattr(doctor, "QUICK", ("eager", "onnxruntime", "aoti"))
    monkeypatch.setattr(doctor, "_POSTCARDS", 4)
    monkeypatch.setattr(doctor, "Explainer", broken)
    with pytest.raises(SystemExit) as ended:
        cli.main(["doctor", "--json"])
    assert ended.value.code == 1
    found = {f["name"]: f for f in json.loads(capsys.readouterr().out)}
    assert found["eager, cpu"]["state"] == OK
    assert found["onnxruntime, cpu"] == {
        "name": "onnxruntime, cpu",
        "state": FAILED,
        "detail": "RuntimeError: no such runtime",
    }
    assert "differ by" in found["aoti, cpu"]["detail"] and found["aoti, cpu"]["state"] == FAILED
