"""``combicam doctor``: what works on this machine."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from combicam.doctor import FAILED, diagnose


@dataclass(frozen=True)
class Config:
    """Try what a run may need on this machine: backends, devices, decoders, extras.

    Args:
        compile: also try the backends that call a compiler; takes a minute or more.
        json: print JSON.
    """

    compile: bool = False
    json: bool = False


def main(config: Config) -> None:
    """Print each finding when it is made; exit code 1 where something failed."""
    findings = []
    for finding in diagnose(config.compile):
        findings.append(finding)
        if not config.json:
            print(f"  {finding.state:<8}{finding.name:<20}  {finding.detail}", flush=True)
    if config.json:
        print(json.dumps([asdict(finding) for finding in findings]))
    if any(finding.state == FAILED for finding in findings):
        raise SystemExit(1)
