"""Cross entropy per valid pixel."""

from collections.abc import Sequence

from .torch_and_jax import Array, Module, numbers, pixel_cross_entropy, widened
from .all_reduce import sum_over_processes


def cross_entropy(
    logits: Array, labels: Array, *, ignore_index: int = 255, class_weights: Array | None = None
) -> Array:
    """Mean over the valid pixels of -class_weights[y] log softmax(logits)[y].

    The divisor is the number of pixels that are not ignored, also with class weights, so that a batch's loss
    does not depend on how its ignored pixels fall. Nothing valid gives a zero that still back-propagates. Several
    processes share one batch: pixels are summed and counted over all of them.

    Args:
        logits: (N, K, *S).
        labels: (N, *S) integers, int64 in torch, in [0, K) or ``ignore_index``.
        ignore_index: label that does not count.
        class_weights: (K,) factors.

    Returns:
        A scalar in float32 (float64 for float64 logits).
    """
    losses = pixel_cross_entropy(widened(logits), labels, class_weights, ignore_index)
    valid = sum_over_processes((labels != ignore_index).sum())
    return sum_over_processes(losses.sum()) / valid.clip(min=1)


class CrossEntropy(Module):
    """:func:`cross_entropy` of one of the network's outputs.

    Args:
        output: which one.
        ignore_index: label that does not count.
        class_weights: one factor per class, or None.
    """

    def __init__(self, *, output: str = "out", ignore_index: int = 255, class_weights: Sequence[float] | None = None):
        super().__init__()
        self.output = output
        self.ignore_index = ignore_index
        self.register_buffer("class_weights", numbers(class_weights), persistent=False)

    def forward(self, output: dict[str, Array], labels: Array) -> Array:
        """Output of the network, labels (N, H, W) -> scalar."""
        return cross_entropy(
            output[self.output], labels, ignore_index=self.ignore_index, class_weights=self.class_weights
        )
