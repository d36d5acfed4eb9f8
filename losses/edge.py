"""The edge loss for human parsing: Ruan et al., CE2P, AAAI 2019, arXiv:1809.05996, and the authors' code."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, max_pool2d

from .all_reduce import sum_over_processes
from .network_outputs import output_named
from .torch_and_jax import at_least_float32

_DILATION = 3  # side of the square structuring element, pixels


def edge_targets(labels: Tensor, *, ignore_index: int = 255) -> Tensor:
    """Return the edge map of labels: 1 where neighbouring pixels differ, 0 elsewhere, ``ignore_index`` on void.

    As in the authors' code, each pixel is compared with its vertical, horizontal and diagonal neighbours. Of two pixels
    that differ, the lower one in a column, the left one in a row or the upper one on a diagonal is marked, and the
    marks are dilated to 3x3 pixels, so a straight edge is four pixels wide. A change between a class and void is not an
    edge. Void pixels are ignored, because they may or may not lie on an edge; the authors' code labels them "no edge".

    Args:
        labels: (N, H, W) integer class labels or ``ignore_index``.
        ignore_index: the label of void pixels.

    Returns:
        (N, H, W) int64 on the device of ``labels``, computed without a device synchronisation.
    """
    valid = labels != ignore_index
    edges = torch.zeros_like(valid)
    every, after, before = slice(None), slice(1, None), slice(None, -1)
    for pixel, neighbour in (
        ((after, every), (before, every)),
        ((every, before), (every, after)),
        ((before, before), (after, after)),
        ((before, after), (after, before)),
    ):
        differ = labels[:, *pixel] != labels[:, *neighbour]
        edges[:, *pixel] |= differ & valid[:, *pixel] & valid[:, *neighbour]
    dilated = max_pool2d(edges[:, None].float(), _DILATION, stride=1, padding=_DILATION // 2)[:, 0].long()
    return dilated.masked_fill(~valid, ignore_index)


def balanced_edge_loss(logits: Tensor, edges: Tensor, *, ignore_index: int = 255) -> Tensor:
    """Return the class-balanced cross entropy, in which edge and non-edge pixels have the same total weight.

    With N+ edge and N- non-edge pixels in the batch, an edge pixel has the weight N- / (N+ + N-) and a non-edge pixel
    N+ / (N+ + N-); the sum is divided by the sum of the weights. If the batch lacks either kind, the weights sum to
    zero and the loss is zero with zero gradients. The ranks of torch.distributed share one global batch.

    Args:
        logits: (N, 2, H, W) logits of "no edge" and "edge".
        edges: (N, H, W) int64 with values 0, 1 or ``ignore_index``; see :func:`edge_targets`.
        ignore_index: label of the pixels to ignore.

    Returns:
        A scalar in float32 (float64 for float64 logits).
    """
    logits = at_least_float32(logits)
    counts = sum_over_processes(torch.stack([(edges == kind).sum() for kind in (0, 1)])).to(logits.dtype)
    weights = counts.flip(0) / counts.sum().clamp(min=1)
    losses = cross_entropy(logits, edges, weight=weights, ignore_index=ignore_index, reduction="none")
    # The divisor 2 N+ N- / (N+ + N-) is either 0 or at least 1.
    return sum_over_processes(losses.sum()) / (weights * counts).sum().clamp(min=1)


class EdgeCrossEntropy(nn.Module):
    """:func:`balanced_edge_loss` of one of the network's outputs, with the edges of the labels as targets.

    Args:
        output: the name of the output.
        ignore_index: label of the pixels to ignore.
    """

    def __init__(self, *, output: str = "edge", ignore_index: int = 255):
        super().__init__()
        self.output = output
        self.ignore_index = ignore_index

    def forward(self, output: dict[str, Tensor], labels: Tensor) -> Tensor:
        """Return the scalar loss of the network output for labels (N, H, W)."""
        edges = edge_targets(labels, ignore_index=self.ignore_index)
        return balanced_edge_loss(output_named(output, self.output), edges, ignore_index=self.ignore_index)
