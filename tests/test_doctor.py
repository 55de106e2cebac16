"""What the doctor says is tried, and a failure is told and not raised."""

from __future__ import annotations

import json
from typing import Any

import pytest

from combicam import cli, doctor
from combicam.doctor import FAILED, MISSING, OK, diagnose


def states(**changes: Any) -> dict[str, str]:
    return {finding.name: finding.state for finding in diagnose(**changes)}


def test_what_works_and_what_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "QUICK", ("eager", "torchscript"))
    monkeypatch.setattr(doctor, "EXTRAS", {"models": "timm", "nothing": "no-such-thing"})
    found = states()
    assert found["eager, cpu"] == found["torchscript, cpu"] == found["JPEG, auto"] == OK
    assert (found["extra models"], found["extra nothing"]) == (OK, MISSING)


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
