"""Measure deletion and insertion: the score as pixels are removed or restored in a map's order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

# Normalised images [N,C,H,W] -> logits [N,n].
Network = Callable[[Tensor], Tensor]
# Logits [N,n] and the image of the batch each belongs to, int64 [N] -> values [N].
Quantity = Callable[[Tensor, Tensor], Tensor]
RULES = ("trapezoid", "mean")


@dataclass(frozen=True)
class Curves:
    """How quantities change while pixels are removed or restored.

    Attributes:
        fractions: float32 [S+1], share of the pixels removed or restored, from 0 to 1.
        deletion: name -> float32 [B,S+1], the highest pixels are removed first.
        insertion: name -> float32 [B,S+1], the highest pixels are restored first.
    """

    fractions: Tensor
    deletion: Mapping[str, Tensor]
    insertion: Mapping[str, Tensor]


def pixel_ranks(maps: Tensor) -> Tensor:
    """Rank of every pixel, 0 for the largest value; ties are ranked in reading order.

    Args:
        maps: float [B,H,W].

    Returns:
        int32 [B,H*W].
    """
    order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
    places = torch.arange(order.shape[1], device=maps.device, dtype=torch.int32).expand_as(order)
    return torch.empty_like(places).scatter_(1, order, places)


def removal_curves(
    network: Network,
    images: Tensor,
    blank: Tensor,
    maps: Tensor,
    quantities: Mapping[str, Quantity],
    steps: int = 20,
    batch_size: int = 64,
    ends: tuple[Tensor, Tensor] | None = None,
) -> Curves:
    """Replace pixels in the map's order, in S steps of the same size.

    Args:
        network: normalised images to logits.
        images: float [B,C,H,W], normalised.
        blank: float [B,C,H,W], what replaces them.
        maps: float [B,H,W].
        quantities: computed from the logits.
        steps: S; the ends are shared, so this takes 2 (S - 1) forward passes per image.
        batch_size: of these passes.
        ends: logits of ``images`` and of ``blank`` [B,n], if known.

    Raises:
        ValueError: maps of the wrong shape, or more steps than pixels.

    Source: RISE, arXiv 1806.07421.
    """
    count, pixels = len(images), images.shape[2] * images.shape[3]
    if maps.shape != (count, *images.shape[2:]):
        raise ValueError(
            f"removal_curves: expected maps {(count, *images.shape[2:])} like the images, "
            f"got {tuple(maps.shape)}"
        )
    if not 1 <= steps <= pixels:
        raise ValueError(f"removal_curves: expected steps in 1..{pixels} (pixels), got {steps}")
    taken = torch.linspace(0, pixels, steps + 1, dtype=torch.float64).round().long()
    everyone = torch.arange(count, device=images.device)
    whole, empty = ends or (network(images), network(blank))
    inner = _perturbed(network, images, blank, pixel_ranks(maps), quantities, taken, batch_size)
    deletion, insertion = {}, {}
    for name, quantity in quantities.items():
        first, last = quantity(whole, everyone)[:, None], quantity(empty, everyone)[:, None]
        deletion[name] = torch.cat([first, inner[name][:, 0], last], 1)
        insertion[name] = torch.cat([last, inner[name][:, 1], first], 1)
    return Curves((taken / pixels).float().to(images.device), deletion, insertion)


def _perturbed(
    network: Network,
    images: Tensor,
    blank: Tensor,
    ranks: Tensor,
    quantities: Mapping[str, Quantity],
    taken: Tensor,
    batch_size: int,
) -> dict[str, Tensor]:
    """The quantities between the ends, [B,2,S-1]: deletion, insertion."""
    shape = (len(images), 2, len(taken) - 2)
    values = {name: images.new_empty(shape, dtype=torch.float32) for name in quantities}
    jobs = torch.cartesian_prod(
        torch.arange(shape[0]), torch.arange(2), torch.arange(1, len(taken) - 1)
    ).reshape(-1, 3)
    for job in jobs.split(batch_size) if len(jobs) else ():
        owners, direction, step = job.to(images.device).unbind(1)
        first = ranks[owners] < taken.to(images.device)[step][:, None]  # [N,HW]
        keep = first ^ (direction == 0)[:, None]
        keep = keep.unflatten(1, images.shape[2:])[:, None]
        logits = network(torch.where(keep, images[owners], blank[owners]))
        for name, quantity in quantities.items():
            values[name][owners, direction, step - 1] = quantity(logits, owners).float()
    return values


def area(curve: Tensor, fractions: Tensor, rule: str = "trapezoid") -> Tensor:
    """Area under a curve [B,S+1], over fractions [S+1]: [B].

    Args:
        curve: of :class:`Curves`.
        fractions: of the same curves.
        rule: ``trapezoid``, as in RISE and torchcam; ``mean`` of the S + 1 points.

    Raises:
        ValueError: an unknown rule.
    """
    if rule == "trapezoid":
        return torch.trapezoid(curve, fractions, dim=1)
    if rule == "mean":
        return curve.mean(1)
    raise ValueError(f"area: expected rule in {RULES}, got {rule!r}")
