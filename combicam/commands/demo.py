"""``combicam demo``: the main job on the embedded planet."""

from __future__ import annotations

from combicam.commands.printing import print_table, summary_rows
from combicam.demo.tour import DemoConfig, demo

Config = DemoConfig


def main(config: DemoConfig) -> None:
    """Draw, explain, and print how well the maps point."""
    found = demo(config)
    rows = summary_rows(found.summary)
    rows[3:3] = [
        ("right cell", f"{found.accuracy:.1%}"),
        (
            "pointing accuracy",
            f"{found.pointing:.1%} of maxima on the planted evidence (chance {found.chance:.1%}, "
            f"Grad-CAM of the last block {found.pointing_last:.1%})",
        ),
    ]
    rows += [("comparison", str(found.picture)), ("photos", str(config.output / "photos"))]
    print_table(rows)
