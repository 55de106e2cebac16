"""Select the layers to explain: ``blocks``, ``stages``, ``last``, or names and globs."""

from __future__ import annotations

import difflib
import fnmatch
import warnings
from collections.abc import Iterator

import torch
from torch import nn

from combicam.errors import LayerError
from combicam.export.trace.checkpointing import plain_forward
from combicam.export.trace.output import find_logits
from combicam.export.trace.probe import LayerInfo, Probe, capturing, module_name
from combicam.export.trace.snapshot import another
from combicam.export.trace.watch import Marks

ROWS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
CONVS = (nn.Conv2d, nn.ConvTranspose2d)


def select_layers(
    model: nn.Module, probed: Probe, layers: str | tuple[str, ...]
) -> tuple[LayerInfo, ...]:
    """The target layers in order of execution.

    Args:
        model: the probed module.
        probed: the result of :func:`~combicam.export.trace.probe.probe`.
        layers: as in :class:`~combicam.export.spec.CamSpec`.

    Raises:
        LayerError: a name that matches nothing, a module that returns no grid, or one that the
            score does not depend on.
    """
    if not isinstance(layers, str):
        names = {name for pattern in layers for name in _matches(pattern, probed)}
        for name in sorted(names):
            calls = probed.calls.get(name, 1)
            if calls > 1 and not any(f"{name}@{i}" in names for i in range(2, calls + 1)):
                warnings.warn(
                    f"layer {name!r} is called {calls} times, and this explains its first call; "
                    f"the others are {name}@2 and so on",
                    UserWarning,
                    stacklevel=2,
                )
        return tuple(info for name, info in probed.layers.items() if name in names)
    blocks = _read_blocks(model, probed, find_blocks(model, probed))
    if not blocks:
        because = f" ({probed.cut})" if probed.cut else ""
        raise LayerError(
            f"layers={layers!r}: found no repeated block and no convolution on the path to the "
            f"score in {type(model).__name__}{because}; name the layers instead; 'combicam layers' "
            "lists them"
        )
    if layers == "blocks":
        return blocks
    return blocks[-1:] if layers == "last" else _stage_ends(blocks)


def _stage_ends(blocks: tuple[LayerInfo, ...]) -> tuple[LayerInfo, ...]:
    last = {(info.height, info.width): info for info in blocks}
    return tuple(info for info in blocks if last[info.height, info.width] is info)


def _read_blocks(
    model: nn.Module, probed: Probe, blocks: tuple[LayerInfo, ...]
) -> tuple[LayerInfo, ...]:
    """The blocks; one whose grid has no gradient is replaced by the first norm in it that has.

    If a head reads only the class token, the image tokens of the last block have no gradient; the
    block's attention reads them last, after its first norm. A block without such a norm is left
    out.
    """
    doubtful = [info for info in blocks if info.prefix]
    if not doubtful:
        return blocks
    norms = {info.name: _norms(info, probed) for info in doubtful}
    names = [info.name for info in doubtful] + [n for found in norms.values() for n in found]
    read = _with_gradient(model, probed, names)
    kept = set()
    for info in blocks:
        if info not in doubtful or info.name in read:
            kept.add(info.name)
        else:
            kept.update([n for n in norms[info.name] if n in read][:1])
    return tuple(info for name, info in probed.layers.items() if name in kept)


def _norms(block: LayerInfo, probed: Probe) -> list[str]:
    shape = (block.channels, block.height, block.width, block.prefix)
    owner = module_name(block.name)
    call = block.name.removeprefix(owner)  # "" or "@2"
    return [
        name
        for name, info in probed.layers.items()
        if name.startswith(f"{owner}.")
        and name.removeprefix(module_name(name)) == call
        and "Norm" in info.kind
        and (info.channels, info.height, info.width, info.prefix) == shape
    ]


def _with_gradient(model: nn.Module, probed: Probe, names: list[str]) -> set[str]:
    """The layers whose grids affect the logits of a random image; all, if there are none.

    This depends on the architecture, not on weights: heads of zeros get other weights.
    """
    model = another(model)
    like = next(model.parameters(), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, probed.channels, *probed.input_size, generator=generator).to(like)
    mixture = torch.randn(1, probed.classes, generator=generator).to(like)
    zeros = [(n, p) for n, p in model.named_parameters() if not bool(p.any())]
    noise = {n: 0.02 * torch.randn(p.shape, generator=generator).to(p) for n, p in zeros}
    acts: dict[str, torch.Tensor] = {}
    with torch.inference_mode(False), torch.enable_grad(), plain_forward(like.device):
        with capturing(model, names, acts):
            logits = find_logits(torch.func.functional_call(model, noise, (images,)))
        grads = torch.autograd.grad((logits * mixture).sum(), [acts[n] for n in names])
    found = zip(names, grads, strict=True)
    read = {n for n, g in found if bool((probed.layers[n].as_grid(g) != 0).any())}
    return read or set(names)


def _matches(pattern: str, probed: Probe) -> list[str]:
    if pattern in probed.layers:
        return [pattern]
    found = [name for name in probed.layers if fnmatch.fnmatchcase(name, pattern)]
    if found:
        return found
    if pattern in probed.off_path:
        raise LayerError(
            f"layer {pattern!r}: expected a layer on the path to the score, got one that the "
            f"score does not depend on{f' ({probed.cut})' if probed.cut else ''}; "
            f"{_near(pattern, probed)}"
        )
    if pattern in probed.other:
        raise LayerError(
            f"layer {pattern!r}: expected a module that returns one 4-D tensor [B,C,h,w] or the "
            f"tokens of one grid, got {probed.other[pattern]}; {_near(pattern, probed)}; pass "
            "tokens=combicam.tokens(h, w, prefix) if their grid is not detected automatically"
        )
    if pattern in probed.idle:
        raise LayerError(
            f"layer {pattern!r}: the module exists but was not called in eval mode; "
            f"{_near(pattern, probed)}"
        )
    raise LayerError(f"layer {pattern!r}: no module has that name; {_near(pattern, probed)}")


def _near(pattern: str, probed: Probe) -> str:
    near = difflib.get_close_matches(pattern, list(probed.layers), n=5, cutoff=0.4)
    near = near or list(probed.layers)[-3:]
    return f"near misses: {', '.join(near)} ('combicam layers' lists all)"


def find_blocks(model: nn.Module, probed: Probe) -> tuple[LayerInfo, ...]:
    """Every repeated unit of the backbone, in order of execution.

    A block is a module that sits in a Sequential, ModuleList or ModuleDict (or among siblings of
    its own class, or is applied to its own output), has children, at least two weighted layers, and
    returned one grid (4-D, or tokens) with more than one cell on the path to the score. Of nested
    blocks the outer one counts, unless it is a stage: a module that contains a row of equal blocks.
    If there are no blocks (VGG, AlexNet), every convolution counts, after its normalisation and
    activation if these are modules. Every call of a module counts.
    """
    blocks = set(_blocks(model, "", probed))
    if blocks:
        return tuple(info for n, info in probed.layers.items() if module_name(n) in blocks)
    names = {n for n in _chain(model, probed) if _cells(probed.layers[n]) > 1}
    return tuple(info for name, info in probed.layers.items() if name in names)


def _cells(info: LayerInfo) -> int:
    return info.height * info.width


def _convs(module: nn.Module) -> int:
    return sum(isinstance(m, CONVS) for m in module.modules())


def _mixers(module: nn.Module) -> int:
    """Count layers that mix channels; a depthwise convolution counts with its pointwise one."""
    return sum(
        isinstance(m, nn.Linear) or (isinstance(m, CONVS) and m.groups < m.in_channels)
        for m in module.modules()
    )


def _is_row(module: nn.Module) -> bool:
    # A subclass with its own forward is a unit (torchvision's Conv2dNormActivation is not:
    # it inherits Sequential's); a ModuleDict or ModuleList never is.
    if isinstance(module, nn.Sequential):
        return type(module).forward is nn.Sequential.forward
    return isinstance(module, ROWS)


def _is_unit(name: str, module: nn.Module, probed: Probe) -> bool:
    has_children = any(True for _ in module.children())
    weighted = _convs(module) + sum(isinstance(m, nn.Linear) for m in module.modules())
    grid = name in probed.layers and _cells(probed.layers[name]) > 1
    return grid and has_children and weighted >= 2 and not _is_row(module)


def _is_applied_again(name: str, module: nn.Module, probed: Probe) -> bool:
    """Whether a module is called several times, and fits what it returns (twins do not)."""
    first = next((m for m in module.modules() if isinstance(m, CONVS)), None)
    if first is None or name not in probed.layers:
        return False
    return probed.calls.get(name, 1) > 1 and first.in_channels == probed.layers[name].channels


def _blocks(parent: nn.Module, prefix: str, probed: Probe) -> Iterator[str]:
    """Names of the blocks below ``parent``, outermost first."""
    children = [(f"{prefix}{n}", m) for n, m in parent.named_children()]
    in_row = isinstance(parent, ROWS)
    kinds = [type(m) for name, m in children if _is_unit(name, m, probed)]
    for name, module in children:
        if in_row:
            found = _is_unit(name, module, probed)
        else:
            repeated = kinds.count(type(module)) > 1 or _is_applied_again(name, module, probed)
            found = repeated and _is_unit(name, module, probed)
        if found and not _is_stage(module, name + ".", probed, siblings=not in_row):
            yield name
        else:
            yield from _blocks(module, name + ".", probed)


def _is_stage(module: nn.Module, prefix: str, probed: Probe, siblings: bool) -> bool:
    """Whether a module contains a row of equal blocks, like the stages of ConvNeXt and RegNet."""
    rows: list[tuple[str, nn.Module]] = [
        (prefix + n + ".", m) for n, m in module.named_modules() if n and isinstance(m, ROWS)
    ]
    for row_prefix, row in rows:
        children = [(row_prefix + n, m) for n, m in row.named_children()]
        units = [c for c in children if _convs(c[1])] or [c for c in children if _mixers(c[1])]
        equal = len({type(m) for _, m in units}) == 1
        if equal and all(_is_unit(n, m, probed) and _mixers(m) >= 2 for n, m in units):
            return True
    if not siblings:
        return False
    units = [(prefix + n, m) for n, m in module.named_children()]
    kinds = [type(m) for n, m in units if _is_unit(n, m, probed)]
    return any(kinds.count(kind) > 1 for kind in kinds)


def _chain(model: nn.Module, probed: Probe) -> Iterator[str]:
    """For each convolution, the layer that ends with its activation; cases:

    1. a module that is an activation, of whatever class: see :class:`Marks`;
    2. one of the same shape after operators outside of modules, such as a functional activation;
    3. without an activation: the last of the same shape (a normalisation), or the convolution.
    """
    modules = dict(model.named_modules())
    acting = {n for n in probed.layers if _is_activation(n, modules, probed)}
    outer = {module_name(n) for n in acting}
    chosen, is_bent, start = "", True, Marks()
    for name, info in probed.layers.items():
        owner = module_name(name)
        if isinstance(modules[owner], CONVS):
            if chosen:
                yield chosen
            chosen, is_bent, start = name, False, probed.spans[name][1]
        elif chosen and not is_bent and not any(owner.startswith(f"{o}.") for o in outer):
            since = probed.spans[name][1].since(probed.spans[chosen][1])
            if name in acting:  # case 1
                chosen, is_bent = name, True
            elif since.every and _shape(info) == _shape(probed.layers[chosen]):  # cases 2 and 3
                chosen, is_bent = name, probed.spans[name][1].since(start).bent > 0
    if chosen:
        yield chosen


def _shape(info: LayerInfo) -> tuple[int, int, int]:
    return info.channels, info.height, info.width


def _is_activation(name: str, modules: dict[str, nn.Module], probed: Probe) -> bool:
    start, end = probed.spans[name]
    return end.since(start).is_activation and not _is_row(modules[module_name(name)])
