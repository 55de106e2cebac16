"""``combicam demo``: run the whole workflow on the built-in demo planet."""

from __future__ import annotations

from combicam.commands.printing import print_table, summary_rows
from combicam.demo.tour import DemoConfig, demo

Config = DemoConfig


def main(config: DemoConfig) -> None:
    """Draw and explain images, and print how well the maps point at the evidence."""
    result = demo(config)
    rows = summary_rows(result.summary)
    rows[3:3] = [
        ("right cell", f"{result.accuracy:.1%}"),
        (
            "pointing accuracy",
            f"{result.pointing:.1%} of maxima on the planted evidence (chance {result.chance:.1%}, "
            f"Grad-CAM of the last block {result.pointing_last:.1%})",
        ),
    ]
    rows += [("comparison", str(result.picture)), ("photos", str(config.output / "photos"))]
    print_table(rows)
