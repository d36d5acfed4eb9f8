"""Criss-cross attention on a CPU, one block of images after the other: layouts, precision and temporary arrays.

Shapes: N images, S spatial sizes, D query channels, C value channels, K keys per pixel.
"""

# pyright: reportUnknownMemberType=false
# torch leaves Tensor.split untyped.

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..call import Call
from .cpu_lines import axes_of, softmax_weights, weighted_sum, weights_gradient

SCORES_PER_BLOCK = 2**21  # a block has at most as many scores, or consists of one image


class Blocks:
    """A call on channels-last arrays of any strides, split into blocks of images that share temporary arrays.

    Half precision is computed in float32, as in the reference.
    """

    def __init__(self, call: Call[Tensor]):
        self.call = call
        self.images, *spatial = call.query.shape[:-1]
        self.axes = axes_of(spatial, call.options.axes)
        self.keys = sum(axis.length for axis in self.axes)
        self.pixels = math.prod(spatial)
        self.dtype = wide_dtype(call.query)
        self.step = max(1, min(self.images, SCORES_PER_BLOCK // (self.pixels * self.keys)))
        self.factor = 1.0 if call.gamma is None else call.gamma.item()

    def forward(self, result: Tensor, kept: Tensor | None) -> None:
        """Write the result of the call.

        Args:
            result: (N, *S, C), contiguous.
            kept: (N, *S, K) in the dtype of the sums, to receive the attention weights; None to discard them.
        """
        query, key, value, options, residual, _ = self.call
        scratch = self._rows_like_scores() if kept is None else None
        for block in self._slices():
            weights = self._rows(kept[block]) if kept is not None else scratch[: self.pixels * len(query[block])]
            softmax_weights(self._rows(query[block]), self._rows(key[block]), self.axes, options.scale, weights)
            values, target = self._rows(value[block]), result[block]
            if result.dtype == self.dtype:
                added = None if residual is None else self._rows(residual[block])
                weighted_sum(weights, values, self.axes, target.view(values.shape), factor=self.factor, residual=added)
                continue
            wide = torch.empty_like(values)
            weighted_sum(weights, values, self.axes, wide)
            if residual is None:
                target.copy_(wide.view(target.shape))
            else:
                torch.add(residual[block], wide.view(target.shape), alpha=self.factor, out=target)

    def backward(self, weights: Tensor, grad: Tensor, gradients: Sequence[Tensor]) -> Tensor:
        """Write the gradients of query, key and value; return that of gamma, without dimensions.

        Args:
            weights: (N, *S, K), as :meth:`forward` wrote them.
            grad: (N, *S, C), the gradient of the result.
            gradients: arrays of the shapes of query, key and value; their rows are views.
        """
        query, key, value, options, *_ = self.call
        widths = [array.shape[-1] for array in gradients]
        scratch = self._rows_like_scores()
        wide = scratch.new_empty(len(scratch), sum(widths)) if query.dtype != self.dtype else None
        dgamma = scratch.new_zeros(())
        for block in self._slices():
            w, g = self._rows(weights[block]), self._rows(grad[block])
            dscores = scratch[: len(w)]
            weights_gradient(g, self._rows(value[block]), self.axes, dscores)
            dscores.mul_(w)
            delta = dscores.sum(-1, keepdim=True)
            dscores.addcmul_(w, delta, value=-1)
            dgamma += delta.sum()

            targets = [array[block] for array in gradients]
            rows = [array.view(-1, array.shape[-1]) for array in targets] if wide is None else wide[: len(w)].split(widths, dim=1)
            dquery, dkey, dvalue = rows
            factor = self.factor * options.scale
            weighted_sum(dscores, self._rows(key[block]), self.axes, dquery, factor=factor)
            weighted_sum(dscores, self._rows(query[block]), self.axes, dkey, factor=factor, to_keys=True)
            weighted_sum(w, g, self.axes, dvalue, factor=self.factor, to_keys=True)
            if wide is not None:
                for target, row in zip(targets, rows, strict=True):
                    target.copy_(row.view(target.shape))
        return dgamma

    def _slices(self) -> Iterator[slice]:
        """Yield the images of each block."""
        for first in range(0, self.images, self.step):
            yield slice(first, min(first + self.step, self.images))

    def _rows_like_scores(self) -> Tensor:
        """Return uninitialised rows for the scores of a block."""
        return self.call.query.new_empty((self.step * self.pixels, self.keys), dtype=self.dtype)

    def _rows(self, array: Tensor) -> Tensor:
        """Return (n, *S, C) as (n * pixels, C) in the dtype of the sums, as a view if the memory layout permits."""
        if array.dtype != self.dtype or array.stride(-1) != 1:
            array = array.new_empty(array.shape, dtype=self.dtype).copy_(array)
        return array.reshape(-1, array.shape[-1])


def wide_dtype(array: Tensor) -> torch.dtype:
    """Return the dtype of scores, weights and sums."""
    return torch.promote_types(array.dtype, torch.float32)
