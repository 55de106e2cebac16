"""Layer maps: activations weighted by what their gradients say.

``weigh_reference`` is plain torch with float32 accumulation: the path of CPUs and of portable
artifacts, and the oracle that kernels are tested against.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

EPS = 1e-8


def _spatial(x: Tensor) -> Tensor:
    """Sum over the layer grid: [..., h, w] -> [...]."""
    return x.sum((-2, -1))


def _weighted(weights: Tensor, acts: Tensor) -> Tensor:
    """relu(sum_c w_c A_c) as one matrix product, so that w*A is never materialised."""
    flat = torch.bmm(weights, acts.flatten(2))  # [B,K,C] @ [B,C,h*w] -> [B,K,h*w]
    return flat.unflatten(-1, acts.shape[-2:]).relu()


def _gradcam(acts: Tensor, grads: Tensor, eps: float) -> Tensor:
    return _weighted(grads.mean((-2, -1)), acts)


def _gradcam_pp(acts: Tensor, grads: Tensor, eps: float) -> Tensor:
    square = grads * grads
    total = _spatial(acts)[:, None, :, None, None]  # [B,1,C,1,1]
    alpha = square / (2 * square + square * grads * total + eps)
    alpha = torch.where(grads != 0, alpha, torch.zeros_like(alpha))
    return _weighted(_spatial(alpha * grads.relu()), acts)


def _xgradcam(acts: Tensor, grads: Tensor, eps: float) -> Tensor:
    weights = _spatial(grads * acts[:, None]) / (_spatial(acts)[:, None] + eps)
    return _weighted(weights, acts)


def _hirescam(acts: Tensor, grads: Tensor, eps: float) -> Tensor:
    return (grads * acts[:, None]).sum(2).relu()


def _elementwise(acts: Tensor, grads: Tensor, eps: float) -> Tensor:
    return (grads * acts[:, None]).relu().sum(2)


def _layercam(acts: Tensor, grads: Tensor, eps: float) -> Tensor:
    return (grads.relu() * acts[:, None]).sum(2).relu()


METHODS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "gradcam": _gradcam,
    "gradcam++": _gradcam_pp,
    "xgradcam": _xgradcam,
    "hirescam": _hirescam,
    "elementwise": _elementwise,
    "layercam": _layercam,
}


def weigh_reference(acts: Tensor, grads: Tensor, method: str, eps: float = EPS) -> Tensor:
    """One layer's class activation maps.

    With A = acts and G = grads (mean and sum without index run over the grid):

    * ``gradcam``: relu(sum_c mean(G_c) A_c)                                    (1610.02391)
    * ``gradcam++``: relu(sum_c w_c A_c), w_c = sum(a relu(G_c)),
      a = G^2 / (2 G^2 + G^3 sum(A_c) + eps) where G != 0, else 0               (1710.11063)
    * ``xgradcam``: relu(sum_c w_c A_c), w_c = sum(G_c A_c) / (sum(A_c) + eps)  (2008.02312)
    * ``hirescam``: relu(sum_c G_c A_c)                                         (2011.08891)
    * ``elementwise``: sum_c relu(G_c A_c)
    * ``layercam``: relu(sum_c relu(G_c) A_c)              (10.1109/TIP.2021.3089943)

    Args:
        acts: activations, [B,C,h,w], any float dtype.
        grads: gradients of the K scores with respect to ``acts``, [B,K,C,h,w].
        method: a key of ``METHODS``.
        eps: of the two formulas that divide.

    Returns:
        float32 [B,K,h,w], never negative.
    """
    return METHODS[method](acts.float(), grads.float(), eps)
