"""``combicam layers``: list the layers that can be explained."""

from __future__ import annotations

from dataclasses import dataclass, replace

from combicam.errors import LayerError
from combicam.export.models.models import LoadedModel, ModelConfig, load_model
from combicam.export.trace.layers import select_layers
from combicam.export.trace.output import attach
from combicam.export.trace.probe import LayerInfo, probe
from combicam.export.trace.snapshot import snapshot


@dataclass(frozen=True)
class Config:
    """List the layers that can be explained, and which ones the rules select.

    Args:
        model: which model; no weights are needed.
        all: list every module with a 4-D output, not only the blocks.
    """

    model: ModelConfig
    all: bool = False


def main(config: Config) -> None:
    """Print the table."""
    wanted = config.model
    by_name = wanted.model.startswith(("timm:", "torchvision:"))
    if by_name and wanted.checkpoint is None and not wanted.pretrained:
        wanted = replace(wanted, random_weights=True)
    for line in layer_table(load_model(wanted), config.all):
        print(line)


def layer_table(loaded: LoadedModel, everything: bool = False) -> list[str]:
    """One line per layer: its shape, and the rules that select it."""
    model = snapshot(loaded.module)
    attach(model, loaded.output, loaded.inputs)
    size, channels = loaded.preprocess.input_size, loaded.preprocess.channels
    probed = probe(model, size, channels=channels)
    rules: dict[str, list[str]] = {}
    for rule in ("blocks", "stages", "last"):
        try:
            selected = select_layers(model, probed, rule)
        except LayerError:  # the rule matches no layer; layers can still be named
            selected = ()
        for info in selected:
            rules.setdefault(info.name, []).append(rule)
    everything = everything or not rules
    shown: list[LayerInfo] = [i for i in probed.layers.values() if everything or i.name in rules]
    width = max(len(info.name) for info in shown)
    kind = max(len(info.kind) for info in shown)
    lines = [f"{'layer':<{width}}  {'module':<{kind}}  {'C':>5} {'h':>4} {'w':>4}  selected by"]
    for info in shown:
        lines.append(
            f"{info.name:<{width}}  {info.kind:<{kind}}  {info.channels:>5} {info.height:>4} "
            f"{info.width:>4}  {' '.join(rules.get(info.name, []))}"
        )
    return lines
