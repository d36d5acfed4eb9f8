"""Criss-cross attention on a CPU, one block of images at a time: memory layouts, precision and scratch buffers.

Shapes: N images, S spatial sizes, D query channels, C value channels, K keys per pixel.
"""

import math
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from ...call import Call
from .lines import attend_by_axis, axes_of, softmax_weights, weighted_sum, weights_gradient
from .products import multiplies_natively

SCORES_PER_BLOCK = 2**21  # upper limit, unless a single image exceeds it
# Without gradients, an image whose scores take more bytes is computed axis by axis and never stores all of them.
# Smaller arrays, by glibc's limit, are reused from call to call, and one joint softmax is faster then.
LARGEST_SCORES = 2**25
# Lines with fewer multiplications are faster in float32, even if they must be converted from bfloat16.
NATIVE_WORK = 2**18
# NCHW arrays are copied this many channels at a time. Their channels lie far apart: at many sizes, such as 97x97 and
# 128x256, reading more of them at once takes up to twice as long.
CHANNELS_PER_COPY = 8


class Blocks:
    """A call on channels-last arrays with arbitrary strides, computed in blocks of images that share scratch buffers.

    As in the reference, half-precision inputs are converted to float32, and only the results are rounded. On processors
    with bfloat16 instructions, however, large products stay in bfloat16: those of the weights, which are rounded as in
    the Triton kernels, and those of the upstream gradient and the value, whose rounding is corrected. Scores and their
    gradients are in float32 everywhere.
    """

    def __init__(self, call: Call[Tensor]):
        self.call = call
        self.images, *spatial = call.query.shape[:-1]
        self.axes = axes_of(spatial, call.options.axes)
        self.keys = sum(axis.length for axis in self.axes)
        self.pixels = math.prod(spatial)
        self.dtype = wide_dtype(call.query)
        self.product_dtype = torch.bfloat16 if self._multiplies_natively() else self.dtype
        self.images_per_block = max(1, min(self.images, SCORES_PER_BLOCK // (self.pixels * self.keys)))
        self.gamma = 1.0 if call.gamma is None else call.gamma.item()

    def forward(self, result: Tensor, kept: Tensor | None) -> None:
        """Write the result of the call.

        Args:
            result: (N, *S, C), contiguous.
            kept: (N, *S, K), contiguous, in the dtype of the sums; receives the attention weights. None discards them.
        """
        query, key, value, options, residual, _ = self.call
        by_axis = kept is None and self._is_faster_by_axis()
        scratch = self._scores_of_a_block() if kept is None and not by_axis else query.new_empty(0)
        for block in self._blocks():
            q, k = (self._rows(array[block], self.dtype) for array in (query, key))
            v = self._rows(value[block], self.product_dtype)
            if by_axis:
                attend = partial(attend_by_axis, q, k, v, self.axes, options.scale)
            else:
                weights = scratch[: len(q)] if kept is None else self._rows(kept[block], self.dtype)
                softmax_weights(q, k, self.axes, options.scale, weights)
                attend = partial(weighted_sum, weights, v, self.axes)
            target = result[block]
            if torch.promote_types(target.dtype, self.product_dtype) == target.dtype:
                added = None if residual is None else self._rows(residual[block], target.dtype)
                attend(target.view(v.shape), factor=self.gamma, residual=added)
                continue
            wide = torch.empty_like(v)
            attend(wide)
            if residual is None:
                target.copy_(wide.view(target.shape))
            else:
                torch.add(residual[block], wide.view(target.shape), alpha=self.gamma, out=target)

    def backward(self, weights: Tensor, grad: Tensor, gradients: Sequence[Tensor]) -> Tensor:
        """Write the gradients of query, key and value; return the gradient of gamma, a 0-d tensor.

        Args:
            weights: (N, *S, K), as :meth:`forward` wrote them.
            grad: (N, *S, C), the gradient of the result.
            gradients: arrays for the gradients of query, key and value, contiguous or slices of a contiguous one.
        """
        query, key, value, options, *_ = self.call
        product_dtype = self.product_dtype if grad.dtype == query.dtype else self.dtype  # a wider one is not rounded
        scratch = self._scores_of_a_block()
        # Gradients of another dtype than that of their products are rounded at the end of a block.
        buffers = [
            None if array.dtype == dtype else scratch.new_empty((len(scratch), array.shape[-1]), dtype=dtype)
            for array, dtype in zip(gradients, (self.dtype, self.dtype, product_dtype), strict=True)
        ]
        scale = self.gamma * options.scale
        dgamma = scratch.new_zeros(())
        for block in self._blocks():
            q, k, w = (self._rows(array[block], self.dtype) for array in (query, key, weights))
            targets = [array[block].view(len(q), array.shape[-1]) for array in gradients]
            rows = [
                target if buffer is None else buffer[: len(q)] for target, buffer in zip(targets, buffers, strict=True)
            ]
            dquery, dkey, dvalue = rows
            g = self._rows(grad[block], product_dtype)
            # If the value must be copied, its gradient's memory serves: page faults of new memory cost as much time.
            v = self._rows(value[block], product_dtype, copy=dvalue)
            # The softmax gradient, w * (d - sum(w * d)), in-place; the sums also add up to the gradient of gamma.
            dscores = scratch[: len(q)]
            weights_gradient(g, v, self.axes, dscores)
            sums = dscores.mul_(w).sum(-1, keepdim=True)
            dscores.addcmul_(w, sums, value=-1)
            dgamma += sums.sum()
            weighted_sum(w, g, self.axes, dvalue, factor=self.gamma, to_keys=True)
            weighted_sum(dscores, k, self.axes, dquery, factor=scale)
            weighted_sum(dscores, q, self.axes, dkey, factor=scale, to_keys=True)
            for target, row in zip(targets, rows, strict=True):
                if row is not target:
                    target.copy_(row)
        return dgamma

    def _multiplies_natively(self) -> bool:
        """Return whether bfloat16 is multiplied natively: if that is faster, and its temporaries stay small."""
        lengths = [axis.length for axis in self.axes]
        work = (sum(lengths) / len(lengths)) ** 2 * self.call.value.shape[-1]
        small = max(lengths) ** 2 <= SCORES_PER_BLOCK
        return work >= NATIVE_WORK and small and multiplies_natively(self.call.query.dtype)

    def _is_faster_by_axis(self) -> bool:
        """Return whether an image has many scores, on more than one line: a line's scores are one array either way."""
        is_line = self.pixels == max(axis.length for axis in self.axes)
        return not is_line and self.pixels * self.keys * self.dtype.itemsize > LARGEST_SCORES

    def _blocks(self) -> Iterator[slice]:
        """Yield the range of images of each block."""
        for first in range(0, self.images, self.images_per_block):
            yield slice(first, min(first + self.images_per_block, self.images))

    def _scores_of_a_block(self) -> Tensor:
        """Return an uninitialised buffer for the scores of the largest block, (images * pixels, K)."""
        return self.call.query.new_empty((self.images_per_block * self.pixels, self.keys), dtype=self.dtype)

    def _rows(self, array: Tensor, dtype: torch.dtype, copy: Tensor | None = None) -> Tensor:
        """Return (n, *S, C) as (n * pixels, C) in a dtype: a view if the dtype and the memory layout permit, or a copy.

        Args:
            array: (n, *S, C).
            dtype: that of the result.
            copy: (n * pixels, C), memory for the copy; allocated if None.
        """
        if array.dtype != dtype or array.stride(-1) != 1:
            target = array.new_empty(array.shape, dtype=dtype) if copy is None else copy.view(array.shape)
            # Conversion is the bottleneck if the dtypes differ, and narrow pieces slow it down.
            channels = CHANNELS_PER_COPY if array.dtype == dtype else array.shape[-1]
            for destination, source in zip(target.split(channels, -1), array.split(channels, -1), strict=True):
                destination.copy_(source)
            array = target
        return array.reshape(-1, array.shape[-1])


def wide_dtype(array: Tensor) -> torch.dtype:
    """Return the dtype of scores, weights and sums: at least float32."""
    return torch.promote_types(array.dtype, torch.float32)
