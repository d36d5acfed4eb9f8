"""The edge loss of human parsing: Ruan et al., CE2P, AAAI 2019, arXiv:1809.05996, and the authors' code."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, max_pool2d

from .all_reduce import sum_over_processes

_GROWN = 3  # side of the square that a marked pixel grows to


def edge_targets(labels: Tensor, *, ignore_index: int = 255) -> Tensor:
    """Where the label changes from a pixel to its neighbour: 1 on edges, 0 elsewhere, ``ignore_index`` on void.

    As in the authors' code: neighbours in a column, in a row and along both diagonals are compared, the lower of
    two in a column, the left of two in a row and the upper of two on a diagonal is marked, and each mark grows to
    3x3 pixels: a straight edge is four pixels wide. A change between a class and void is no edge. Void pixels
    themselves do not count here, whereas that code takes them for "no edge": whether an edge runs through them is
    unknown.

    Args:
        labels: (N, H, W) integers, or ``ignore_index``.
        ignore_index: label of void pixels.

    Returns:
        (N, H, W) int64, made where ``labels`` are, without a host synchronisation.
    """
    valid = labels != ignore_index

    def changes(one: tuple[slice, slice], other: tuple[slice, slice]) -> Tensor:
        one, other = (slice(None), *one), (slice(None), *other)
        return (labels[one] != labels[other]) & valid[one] & valid[other]

    every, after, before = slice(None), slice(1, None), slice(None, -1)
    marked = torch.zeros_like(valid)
    for one, other in (
        ((after, every), (before, every)),
        ((every, before), (every, after)),
        ((before, before), (after, after)),
        ((before, after), (after, before)),
    ):
        marked[:, *one] |= changes(one, other)
    grown = max_pool2d(marked.float(), _GROWN, stride=1, padding=_GROWN // 2).long()
    return grown.masked_fill(~valid, ignore_index)


def balanced_edge_loss(logits: Tensor, edges: Tensor, *, ignore_index: int = 255) -> Tensor:
    """Cross entropy in which edge pixels and the others count for one half each, however few edges there are.

    With N+ edge pixels and N- others in the batch, an edge pixel weighs N- / (N+ + N-) and another N+ / (N+ + N-);
    the sum is divided by the sum of the weights. A batch with pixels of one kind only, or none, has no balance:
    its weights sum to zero, and the loss is a zero that still back-propagates. Several processes share one batch.

    Args:
        logits: (N, 2, H, W), no edge and edge.
        edges: (N, H, W) int64, 0, 1 or ``ignore_index``; see :func:`edge_targets`.
        ignore_index: label that does not count.

    Returns:
        A scalar in float32 (float64 for float64 logits).
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    counts = sum_over_processes(torch.stack([(edges == kind).sum() for kind in (0, 1)])).to(logits.dtype)
    weights = counts.flip(0) / counts.sum().clamp(min=1)
    losses = cross_entropy(logits, edges, weight=weights, ignore_index=ignore_index, reduction="none")
    # 2 N+ N- / (N+ + N-) is at least 1 where it is not 0.
    return sum_over_processes(losses.sum()) / (weights * counts).sum().clamp(min=1)


class EdgeCrossEntropy(nn.Module):
    """:func:`balanced_edge_loss` of one of the network's outputs, against the edges of the labels.

    Args:
        output: which one.
        ignore_index: label that does not count.
    """

    def __init__(self, *, output: str = "edge", ignore_index: int = 255):
        super().__init__()
        self.output = output
        self.ignore_index = ignore_index

    def forward(self, output: dict[str, Tensor], labels: Tensor) -> Tensor:
        """Output of the network, labels (N, H, W) -> scalar."""
        edges = edge_targets(labels, ignore_index=self.ignore_index)
        return balanced_edge_loss(output[self.output], edges, ignore_index=self.ignore_index)
