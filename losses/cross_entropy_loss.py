"""Cross entropy averaged over the valid pixels."""

import math
from collections.abc import Sequence

from .all_reduce import sum_over_processes
from .label_resizing import check_label_size
from .network_outputs import output_named
from .torch_and_jax import Array, Module, at_least_float32, cast, float_array, pixel_cross_entropy


def cross_entropy(
    logits: Array, labels: Array, *, ignore_index: int = 255, class_weights: Array | None = None
) -> Array:
    """Return the mean of -class_weights[y] * log softmax(logits)[y] over the valid pixels.

    The divisor is the number of valid pixels, even with class weights, so the loss does not depend on how the ignored
    pixels are distributed over the batch. Without valid pixels, the loss is zero with zero gradients. The ranks of
    torch.distributed share one global batch: the sum and the count are all-reduced.

    Args:
        logits: (N, K, *S).
        labels: (N, *S) integers of any dtype in [0, K) or ``ignore_index``. Others are an error in torch, and the
            loss is NaN in JAX.
        ignore_index: label of the pixels to ignore.
        class_weights: (K,) weights, or None.

    Returns:
        A scalar in float32 (float64 for float64 logits).

    Raises:
        ValueError: the labels do not have the size of the logits, or there is not one weight per class.
    """
    check_label_size(labels, logits, "logits")
    if class_weights is not None and class_weights.shape != logits.shape[1:2]:
        shape = tuple(class_weights.shape)
        raise ValueError(f"class_weights has shape {shape}: pass one weight for each of the {logits.shape[1]} classes")
    losses = pixel_cross_entropy(at_least_float32(logits), labels, class_weights, ignore_index)
    valid = sum_over_processes((labels != ignore_index).sum())
    return sum_over_processes(losses.sum()) / cast(valid.clip(min=1), losses.dtype)


class CrossEntropy(Module):
    """:func:`cross_entropy` of one of the network's outputs.

    Args:
        output: the name of the output, such as "out" or "aux".
        ignore_index: label of the pixels to ignore.
        class_weights: one weight per class, or None.

    Raises:
        ValueError: a weight is negative, infinite or NaN.
    """

    class_weights: Array | None

    def __init__(self, *, output: str = "out", ignore_index: int = 255, class_weights: Sequence[float] | None = None):
        super().__init__()
        self.output = output
        self.ignore_index = ignore_index
        if class_weights is not None and not all(0 <= weight < math.inf for weight in class_weights):
            raise ValueError(f"class_weights is {list(class_weights)}: set finite numbers of at least 0")
        self.register_buffer("class_weights", float_array(class_weights), persistent=False)

    def forward(self, output: dict[str, Array], labels: Array) -> Array:
        """Return the scalar loss of the network output for labels (N, H, W)."""
        logits = output_named(output, self.output)
        return cross_entropy(logits, labels, ignore_index=self.ignore_index, class_weights=self.class_weights)
