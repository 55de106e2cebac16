"""``combicam recommend``: find the method, layers and fusion that suit a model and its images."""

from __future__ import annotations

from combicam.commands.printing import print_table
from combicam.engine.evaluation.recommend import RecommendConfig, recommend

Config = RecommendConfig


def main(config: RecommendConfig) -> None:
    """Print the candidates, best first, and how to use the best one."""
    found = recommend(config)
    print("\n".join(found.lines()) + "\n")
    mosaics = len(found.evaluation.summary["mosaics"])
    print_table(
        [
            ("images", f"{found.evaluation.summary['images']}, and {mosaics} mosaics"),
            ("figures", str(config.output / "recommend.json")),
            ("best", f"{found.ranked[0].name}; use it with --spec {found.spec_file}"),
        ]
    )
