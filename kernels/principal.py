"""Project activations onto their first principal component."""

from __future__ import annotations

from torch import Tensor, where

EIGEN = ("eigencam", "eigengradcam")
GRADIENT_FREE = ("eigencam",)  # of the gradients, only the shape is read
# The largest eigenvalue gains on the second by the power 2^18: singular values that differ by a
# ten-thousandth are told apart; float32 tells no closer ones apart in the Gram matrix.
SQUARINGS = 18
FLAT = 1e-6
TINY = 1e-30  # keeps 0 / 0 away where nothing varies; what it is added to is of order 1


def principal_projection(x: Tensor) -> Tensor:
    """X v, with X [P,C] the pixels' channels minus their mean, and v its first singular vector.

    v is an eigenvector of the smaller one of the Gram matrices X'X and XX'. Squaring that matrix
    again and again leaves its largest eigenvalue alone, whatever the start, in a fixed number of
    matrix products, which every runtime has. The sign of v is that of sum_c v_c >= 0: the
    projection is positive where the sum over channels is larger than its mean (an SVD leaves the
    sign to chance).

    Where the two largest singular values differ by a share d, the error is about 1e-7 / d of the
    map's size; below 1e-5 the result is a mixture of the two vectors, whose variance is still the
    largest.

    Args:
        x: float32 [N,C,P].

    Returns:
        float32 [N,P]; zeros where nothing varies.
    """
    largest = x.abs().amax((-2, -1), keepdim=True)  # [N,1,1]
    x = x - x.mean(-1, keepdim=True)
    size = x.abs().amax((-2, -1), keepdim=True)
    size = where(size <= FLAT * largest, 0.0, size)  # rounding is no variation
    x = x / where(size > 0, size, 1.0)
    is_wide = x.shape[-2] <= x.shape[-1]  # C <= P
    gram = x.bmm(x.mT) if is_wide else x.mT.bmm(x)
    for i in range(SQUARINGS):
        if i % 3 == 0:  # entries of at most 1 grow to n^7 in three squarings
            gram = gram / (gram.amax((-2, -1), keepdim=True) + TINY)
        gram = gram.bmm(gram)
    longest = (gram * gram).sum(-1).argmax(-1)  # any row but those that v has no share in
    index = longest[:, None, None].expand(-1, 1, gram.shape[-1])
    v = gram.gather(1, index)  # [N,1,C], or [N,1,P]
    v = _unit(v) if is_wide else _unit(_unit(v).bmm(x.mT))
    v = where(v.sum(-1, keepdim=True) < 0, -v, v)
    return (v.bmm(x) * size)[:, 0]


def _unit(v: Tensor) -> Tensor:
    """Vectors of length 1, or 0."""
    v = v / (v.abs().amax(-1, keepdim=True) + TINY)
    return v / ((v * v).sum(-1, keepdim=True) + TINY).sqrt()
