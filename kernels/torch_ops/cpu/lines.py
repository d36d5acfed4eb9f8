"""Criss-cross attention over one block of images on a CPU, as matrix products along the lines of each axis.

Arrays are held as rows of channels, (R, C), one row per pixel. Their lines along any axis are strided views, which
batched matrix products read in place. The scores along all axes share one array, (R, K) with K keys per pixel, and one
softmax normalises its rows.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .products import multiply, multiply_precisely, steps


class Axis(NamedTuple):
    """The lines along one spatial axis.

    Attributes:
        length: the number L of positions on a line.
        inner: the product of the sizes of the later spatial axes.
        start: index of this axis's first key among the K keys of a pixel.
        has_itself: whether a position is one of its own keys on this axis.
    """

    length: int
    inner: int
    start: int
    has_itself: bool

    @property
    def has_keys(self) -> bool:
        """Whether a position has any keys on this axis."""
        return self.has_itself or self.length > 1

    def lines(self, rows: Tensor) -> Iterator[Tensor]:
        """Yield views of ``rows`` (R, C), in batches of shape (lines, L, C) that together cover every line once."""
        grid = rows.view(-1, self.length, self.inner, rows.shape[-1])
        # Whichever gives fewer batches.
        yield from (grid.movedim(2, 0) if self.inner < len(grid) else grid.transpose(1, 2))

    def parts(self, *arrays: Tensor) -> Iterator[list[Tensor]]:
        """Yield views of a few lines of each array (R, C), (lines, L, C), so few that they stay in cache together."""
        for batches in zip(*map(self.lines, arrays), strict=True):
            widest = max(self.length, *(batch.shape[-1] for batch in batches))
            for part in steps(len(batches[0]), self.length * widest):
                yield [batch[part] for batch in batches]

    def scores(self, joint: Tensor) -> Iterator[Tensor]:
        """Yield views of this axis's columns of ``joint`` (R, K), as batches (lines, L, L) ordered as ``lines``."""
        return self.lines(joint.narrow(1, self.start, self.length))


def axes_of(spatial: Sequence[int], axes: Sequence[int]) -> list[Axis]:
    """Return the axes to attend along, in the order of their keys; a position is its own key only on the last one."""
    lines: list[Axis] = []
    start = 0
    for axis in axes:
        lines.append(Axis(spatial[axis], math.prod(spatial[axis + 1 :]), start, axis == axes[-1]))
        start += spatial[axis]
    return lines


def softmax_weights(query: Tensor, key: Tensor, axes: Sequence[Axis], scale: float, weights: Tensor) -> None:
    """Write the joint softmax over the keys of all axes to ``weights``, (R, K); query and key are (R, D)."""
    for axis in axes:
        for q, k, scores in zip(axis.lines(query), axis.lines(key), axis.scores(weights), strict=True):
            _write_scores(q, k, axis, scale, scores)
    torch.softmax(weights, -1, out=weights)


def weighted_sum(
    weights: Tensor, values: Tensor, axes: Sequence[Axis], out: Tensor,
    *, factor: float = 1, residual: Tensor | None = None, to_keys: bool = False,
) -> None:  # fmt: skip
    """Write ``factor * weights @ values``, plus the residual if there is one, to ``out``.

    Args:
        weights: (R, K), or gradients of the scores.
        values: (R, C), in the dtype in which to multiply.
        axes: the axes to attend along.
        out: (R, C).
        factor: scales the sums.
        residual: (R, C).
        to_keys: multiply by ``weights^T`` instead, which sums, for each key, over the pixels that attend to it.
    """
    for axis in axes:
        added = axis.lines(out if residual is None else residual)
        for w, v, o, a in zip(axis.scores(weights), axis.lines(values), axis.lines(out), added, strict=True):
            multiply(w.mT if to_keys else w, v, o, factor=factor, add=None if residual is None else a)
        residual = out


def weights_gradient(grad: Tensor, value: Tensor, axes: Sequence[Axis], dweights: Tensor) -> None:
    """Write the gradient of the weights to ``dweights``, (R, K).

    Grad and value, (R, C), have its dtype or are both in bfloat16.
    """
    product = multiply if grad.dtype == dweights.dtype else multiply_precisely
    for axis in axes:
        for g, v, d in zip(axis.lines(grad), axis.lines(value), axis.scores(dweights), strict=True):
            product(g, v.mT, d)


def attend_by_axis(
    query: Tensor, key: Tensor, value: Tensor, axes: Sequence[Axis], scale: float, out: Tensor,
    *, factor: float = 1, residual: Tensor | None = None,
) -> None:  # fmt: skip
    """Write ``factor`` times the attention, plus the residual if there is one, to ``out``, a few lines at a time.

    As in the Triton kernels, the softmax of each axis is merged with those of the earlier ones, by the largest score
    and the sum of the exponentials so far. No array holds all the scores.

    Args:
        query, key: (R, D), in the dtype of the scores.
        value: (R, C), in the dtype in which to multiply.
        axes: the axes to attend along.
        scale: scales the scores.
        out: (R, C).
        factor: scales the attention.
        residual: (R, C).
    """
    axes = [axis for axis in axes if axis.has_keys]
    largest = query.new_full((len(query), 1), float("-inf"))
    totals = query.new_zeros((len(query), 1))
    for axis in axes:
        is_last = axis is axes[-1]
        arrays = query, key, value, out, largest, totals, out if residual is None else residual
        for q, k, v, o, maximum, total, r in axis.parts(*arrays):
            weights = q.new_empty((len(q), axis.length, axis.length))
            _write_scores(q, k, axis, scale, weights)
            joint = torch.maximum(maximum, weights.amax(-1, keepdim=True))
            shift = joint.clamp(min=torch.finfo(joint.dtype).min)  # finite even if all scores so far are -inf
            weights.sub_(shift).exp_()
            before = total * (maximum - shift).exp_()
            maximum.copy_(joint)
            torch.add(before, weights.sum(-1, keepdim=True), out=total)
            # A sum that includes the exponential of the largest score is at least 1. Without any finite score it is 0,
            # and like a joint softmax, the last axis divides by it.
            divisor = total if is_last else total.clamp(min=1)
            weights /= divisor
            added = r if is_last and residual is not None else None
            if axis is not axes[0]:
                share = (before / divisor).to(o.dtype)
                added = o.mul_(share) if added is None else torch.addcmul(added, o, share, out=o)
            multiply(weights, v, o, factor=factor, add=added)


def _write_scores(query: Tensor, key: Tensor, axis: Axis, scale: float, scores: Tensor) -> None:
    """Write the scores of lines, (lines, L, L); query and key are (lines, L, D)."""
    multiply(query, key.mT, scores, factor=scale)
    if not axis.has_itself:
        scores.diagonal(dim1=-2, dim2=-1).fill_(float("-inf"))
