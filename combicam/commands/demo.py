"""``combicam demo``: run the whole workflow on the built-in demo planet, or on photographs."""

from __future__ import annotations

from combicam.commands.printing import print_table, summary_rows
from combicam.demo.photo_tour import by_hand, photo_demo
from combicam.demo.tour import DemoConfig, demo
from combicam.engine.drawing.notebook import probability

Config = DemoConfig


def main(config: DemoConfig) -> None:
    """Explain postcards, and print how well the maps point at the evidence; or photographs."""
    if config.photos:
        _explain_photographs(config)
    else:
        _explain_postcards(config)


def _explain_postcards(config: DemoConfig) -> None:
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
    rows += [("comparison", str(result.picture)), ("photos", str(config.folder / "photos"))]
    print_table(rows)


def _explain_photographs(config: DemoConfig) -> None:
    result = photo_demo(config)
    rows = [
        (file, ", ".join(f"{name} {probability(score)}" for name, score in answers))
        for file, answers in result.answers.items()
    ]
    print_table([*rows, *summary_rows(result.summary), ("picture", str(result.picture))])
    print("\nThe same by hand, with your photographs in the place of these:\n")
    for command in by_hand(config.folder):
        print(f"  {command}")
