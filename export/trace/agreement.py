"""Compare a traced graph with the model: the same logits, for every image by itself."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

from combicam.errors import TraceError
from combicam.export.trace.checkpointing import plain_forward
from combicam.export.trace.hooks import own_logits
from combicam.export.trace.output import find_logits
from combicam.export.trace.watch import reason

# Largest difference of a logit, relative to the largest logit: a few roundings, TF32 included.
TOLERANCES = {
    torch.float64: 1e-4,
    torch.float32: 1e-2,
    torch.float16: 5e-2,
    torch.bfloat16: 2e-1,
}
# In a batch the operators of a network round differently, on GPUs above all. Each may move the
# logits as a rounding of the pixels does; those of some 250 operators add up to their square root.
_ROUNDINGS = 16


class Agreement:
    """The logits of a snapshot for two images, run one by one before it is traced.

    Its forward hooks run; those that return nothing are removed, since they change nothing.

    Args:
        model: a snapshot.
        input_size: (H, W), pixels.
        channels: C of the images.
    """

    def __init__(self, model: nn.Module, input_size: tuple[int, int], channels: int = 3) -> None:
        self.model = model
        self.failure: Exception | None = None
        self.images = _two_images(model, (channels, *input_size))
        try:
            with plain_forward(self.images.device):
                self.logits = torch.cat(own_logits(model, self.images, find_logits))
        except Exception as error:  # tracing may tell more about it
            self.failure = error

    def check(self, graph: Callable[[Tensor], Tensor]) -> None:
        """Check that a graph gives these logits for both images in one batch.

        Args:
            graph: images [B,C,H,W] -> logits float32 [B,n].

        Raises:
            TraceError: it does not; the message names the module that mixes images or is random.
        """
        name = type(self.model).__name__
        if isinstance(self.failure, TraceError):
            raise self.failure
        if self.failure is not None and "not implemented for" in str(self.failure):
            return  # this device has no such operator in 16 bit; a file may still be written
        if self.failure is not None:
            raise TraceError(
                f"trace: {name} does not run on an image of shape "
                f"{tuple(self.images[:1].shape)} ({reason(self.failure)})"
            ) from self.failure
        if not self.logits.isfinite().all():
            return
        with torch.no_grad(), plain_forward(self.images.device):
            found = graph(self.images.float())
            error, tolerance = self._difference(found, self.logits), TOLERANCES[self.images.dtype]
            if error <= tolerance:
                return
            first, twice = self.images[:1], self.images[[0, 0]]
            place = self._first_change(first, first)
            if place:
                raise TraceError(
                    f"trace: {place} gives random outputs in eval mode; fix its random numbers"
                )
            # Batches of one size are rounded alike.
            if self._difference(graph(twice.float())[:1], found[:1]) > tolerance:
                place = self._first_change(twice, self.images) or f"{name}'s forward"
                raise TraceError(
                    f"trace: {place} mixes the images of a batch, so an image's map would depend "
                    "on its neighbours; use statistics of single images (instance or group norm) "
                    "or running ones"
                )
            rounding = self._rounding()
            if math.isfinite(rounding) and error <= _ROUNDINGS * rounding:
                return
        raise TraceError(
            f"trace: expected a graph with the logits of {name}, got logits that differ by "
            f"{error:.3g} of the largest; something in its forward is not a function of the image: "
            "a hook that changes tensors in place, or state that a call leaves behind; make it "
            "return what it computes"
        )

    @staticmethod
    def _difference(found: Tensor, expected: Tensor) -> float:
        size = expected.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
        return float(((found - expected).abs().max() / size).nan_to_num(torch.inf))

    def _rounding(self) -> float:
        """How far the logits of single images move if their pixels move by one rounding: untrained
        networks may magnify it until it is all that is left of small differences."""
        images = self.images.cpu()  # not every device has the next number in 16 bit
        up = images.nextafter(torch.full_like(images, torch.inf))
        coins = torch.rand(images.shape, generator=torch.Generator().manual_seed(0)) < 0.5
        moved = torch.where(coins, images, up).to(self.images)
        logits, others = (
            torch.cat(own_logits(self.model, x, find_logits)) for x in (self.images, moved)
        )
        return self._difference(others, logits)

    def _first_change(self, images: Tensor, others: Tensor) -> str:
        """The first module to end whose output for the first image differs between two calls, which
        that image is the first of; empty if there is none."""
        tolerance = TOLERANCES[self.images.dtype]
        calls = zip(self._outputs(images), self._outputs(others), strict=False)
        for (name, one), (_, other) in calls:
            if one.shape[1:] != other.shape[1:] or len(other) < 1:
                continue
            if self._difference(other[:1].float(), one[:1].float()) > tolerance / 10:
                module = self.model.get_submodule(name)
                kind = type(module).__name__
                return f"module {name!r} ({kind})" if name else kind
        return ""

    def _outputs(self, images: Tensor) -> list[tuple[str, Tensor]]:
        kept: list[tuple[str, Tensor]] = []

        def keeper(name: str) -> Callable[..., None]:
            def keep(_module: nn.Module, _args: object, output: object) -> None:
                if isinstance(output, Tensor) and output.ndim and output.is_floating_point():
                    kept.append((name, output.detach().clone()))

            return keep

        handles = [m.register_forward_hook(keeper(n)) for n, m in self.model.named_modules()]
        try:
            self.model(images)
        finally:
            for handle in handles:
                handle.remove()
        return kept


def _two_images(model: nn.Module, shape: tuple[int, int, int]) -> Tensor:
    """Two images with very different statistics, in the model's type."""
    like = next(model.parameters(), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, *shape, generator=generator)
    ramp = torch.linspace(-2, 2, shape[2]).expand(shape[1], -1)
    images[1] = 0.2 * images[1] + ramp + 1
    return images.to(like)


def logits_only(module: fx.GraphModule) -> fx.GraphModule:
    """A joint graph that stops at the logits, its first output; weights are shared."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.graph_copy(module.graph, copies)
    graph.output(copies[module.graph.output_node().args[0][0]])  # type: ignore[index]
    graph.eliminate_dead_code()
    return fx.GraphModule(module, graph)
