"""``combicam doctor``: test what works on this machine."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from combicam.doctor import FAILED, diagnose


@dataclass(frozen=True)
class Config:
    """Test what a run may need on this machine: backends, devices, decoders, extras.

    Args:
        compile: also test the backends that call a compiler; takes a minute or more.
        json: print JSON.
    """

    compile: bool = False
    json: bool = False


def main(config: Config) -> None:
    """Print each result as it comes; exit with code 1 if a check failed."""
    findings = []
    for finding in diagnose(config.compile):
        findings.append(finding)
        if not config.json:
            print(f"  {finding.state:<8}{finding.name:<20}  {finding.detail}", flush=True)
    if config.json:
        print(json.dumps([asdict(finding) for finding in findings]))
    if any(finding.state == FAILED for finding in findings):
        raise SystemExit(1)
