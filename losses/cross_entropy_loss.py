"""Cross entropy, averaged over the valid pixels."""

from collections.abc import Sequence

from .all_reduce import sum_over_processes
from .torch_and_jax import Array, Module, at_least_float32, float_array, pixel_cross_entropy


def cross_entropy(
    logits: Array, labels: Array, *, ignore_index: int = 255, class_weights: Array | None = None
) -> Array:
    """Return the mean over the valid pixels of -class_weights[y] log softmax(logits)[y].

    The divisor is the number of valid pixels, also with class weights, so the loss of a batch does not depend on where
    its ignored pixels fall. Without a valid pixel the loss is a zero that still back-propagates. The ranks of
    torch.distributed share one batch: sum and count run over all of them.

    Args:
        logits: (N, K, *S).
        labels: (N, *S) integers, int64 in torch, in [0, K) or ``ignore_index``.
        ignore_index: the label of pixels to leave out.
        class_weights: (K,) factors.

    Returns:
        A scalar in float32 (float64 for float64 logits).
    """
    losses = pixel_cross_entropy(at_least_float32(logits), labels, class_weights, ignore_index)
    valid = sum_over_processes((labels != ignore_index).sum())
    return sum_over_processes(losses.sum()) / valid.clip(min=1)


class CrossEntropy(Module):
    """:func:`cross_entropy` of one of the network's outputs.

    Args:
        output: the name of the output, such as "out" or "aux".
        ignore_index: the label of pixels to leave out.
        class_weights: one factor per class, or None.
    """

    class_weights: Array | None

    def __init__(self, *, output: str = "out", ignore_index: int = 255, class_weights: Sequence[float] | None = None):
        super().__init__()
        self.output = output
        self.ignore_index = ignore_index
        self.register_buffer("class_weights", float_array(class_weights), persistent=False)

    def forward(self, output: dict[str, Array], labels: Array) -> Array:
        """Network output, labels (N, H, W) -> scalar."""
        return cross_entropy(
            output[self.output], labels, ignore_index=self.ignore_index, class_weights=self.class_weights
        )
