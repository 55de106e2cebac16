"""Find the layers of FullGrad: the image, and every layer with a bias."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from combicam.errors import LayerError
from combicam.export.trace.probe import LayerInfo, Probe, module_name

INPUT = "input"  # the image among the layers


def bias_layers(model: nn.Module, probed: Probe, channels: int = 3) -> tuple[LayerInfo, ...]:
    """The image, and the convolutions and batch normalisations that add a bias.

    Grids of one pixel are left out: nothing varies on them, so they add nothing to a map.

    Args:
        model: in eval mode.
        probed: its modules on the path to the score.
        channels: C of the image.

    Raises:
        LayerError: a batch normalisation that does more than normalise, so that the gradient of
            its output is not that of its bias.
    """
    found = [LayerInfo(INPUT, "Image", channels, *probed.input_size)]
    for name, info in probed.layers.items():
        module = model.get_submodule(module_name(name))
        if isinstance(module, nn.BatchNorm2d):
            if type(module).forward is not nn.BatchNorm2d.forward:
                raise LayerError(
                    f"fullgrad: expected batch normalisations that only normalise, got {name!r} "
                    f"({type(module).__name__}), behind whose activation the gradient of its bias "
                    "cannot be read; choose another method"
                )
            has_bias = module.running_mean is not None
        else:
            has_bias = isinstance(module, nn.Conv2d) and module.bias is not None
        if has_bias and info.height * info.width > 1:
            found.append(info)
    return tuple(found)


def bias_of(model: nn.Module, layer: str, state: Mapping[str, Tensor]) -> Tensor:
    """What a layer adds to every pixel whatever its input, [C].

    Of a batch normalisation: beta - gamma mean / sqrt(variance + eps).

    Args:
        model: whose module it is.
        layer: name of the layer.
        state: the model's parameters and buffers, by name.
    """
    name = module_name(layer)
    module = model.get_submodule(name)
    bias = state.get(f"{name}.bias")
    if not isinstance(module, nn.BatchNorm2d):
        assert bias is not None
        return bias
    scale = (state[f"{name}.running_var"] + module.eps).rsqrt()
    if f"{name}.weight" in state:
        scale = scale * state[f"{name}.weight"]
    offset = -state[f"{name}.running_mean"] * scale
    return offset if bias is None else offset + bias
