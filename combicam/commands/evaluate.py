"""``combicam evaluate``: measure how faithful the heatmaps are."""

from __future__ import annotations

from combicam.commands.printing import print_table
from combicam.engine.evaluation.config import EvaluateConfig
from combicam.engine.evaluation.evaluate import evaluate
from combicam.engine.run.status import rate_words

Config = EvaluateConfig


def main(config: EvaluateConfig) -> None:
    """Evaluate, and print means with 95 % intervals beside those of the baseline maps."""
    evaluation = evaluate(config)
    print("\n".join(evaluation.lines()))
    found = evaluation.summary
    failed = ", ".join(f"{n} {status}" for status, n in found["failures"].items())
    rows = [
        ("images", str(found["images"])),
        ("failures", f"{sum(found['failures'].values())}" + (f" ({failed})" if failed else "")),
    ]
    if config.masks is not None:
        rows.append(("with a mask", f"{found['with_mask']} (see evaluate --help for their names)"))
    if config.grid:
        side, least = config.grid, config.grid_confidence
        rows.append(
            ("mosaics", f"{len(found['mosaics'])} of {side} x {side} images with p >= {least}")
        )
    flat = ", ".join(f"{n} {name}" for name, n in found["flat"].items() if n)
    if flat:
        rows.append(("constant maps", flat))
    settings = found["settings"]["metrics"]
    rows += [
        ("images/s", rate_words(found["images_per_s"])),
        (
            "settings",
            f"{settings['steps']} steps, baseline {settings['baseline']}, rule {settings['rule']}, "
            "means with 95 % intervals",
        ),
        ("rows", str(evaluation.rows)),
        ("summary", str(evaluation.record)),
    ]
    print_table(rows)
