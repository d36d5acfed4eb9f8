"""The category consistent loss: Huang et al., CCNet, TPAMI 2020, arXiv:1811.11721, section 3.4.

Shapes: N images, E embedding channels, P = N * h * w pixels, K = 256 label values.
"""

import math
from typing import Any, NamedTuple

from einops import rearrange

from .all_reduce import mean_over_processes, sum_over_processes
from .label_resizing import check_label_size, nearest_labels
from .network_outputs import output_named
from .torch_and_jax import Array, Module, arange, as_index, at_least_float32, cast, is_readable, namespace, segment_sum

# One bin per value of an 8-bit label. The fixed number keeps shapes static for compilers and avoids a device
# synchronisation to find the labels that occur. Empty bins do not contribute to the loss.
_BINS = 256


class CategoryConsistentLoss(NamedTuple):
    """The loss and its terms: ``total = alpha * variance + beta * distance + gamma * regularization``."""

    total: Array
    variance: Array
    distance: Array
    regularization: Array


def category_consistent_loss(
    embedding: Array,
    labels: Array,
    *,
    ignore_index: int = 255,
    delta_v: float = 0.5,
    delta_d: float = 1.5,
    alpha: float = 1.0,
    beta: float = 1.0,
    gamma: float = 0.001,
    distance: str = "piecewise",
    sync: bool = True,
) -> CategoryConsistentLoss:
    """Compute the loss that pulls pixels of the same class together and pushes the class means apart.

        variance       = mean over classes of the mean over their pixels of phi(|h - mu|)
        distance       = mean over pairs of classes of max(2 delta_d - |mu_a - mu_b|, 0)^2
        regularization = mean over classes of |mu|

        phi(d) = 0                                       d <= delta_v
                 (d - delta_v)^2               delta_v < d <= delta_d
                 d - delta_d + (delta_d - delta_v)^2     delta_d < d

    h is the embedding of a pixel and mu the mean embedding of its class over the mini-batch (equations 3 to 8). With
    "quadratic", the middle branch applies to every d > delta_v, as in De Brabandere et al. (2017), on which the paper
    builds; this variant diverges more often in the paper's Table 3. Gradients also flow through mu and are finite
    everywhere: the gradient of a norm is defined as zero where the norm is zero, as it is for the distance to the mean
    in a class with only one pixel.

    Args:
        embedding: (N, E, h, w), or (N, E, T, h, w) for clips.
        labels: (N, h, w) or (N, T, h, w) integers in [0, 255] or ``ignore_index``, at the embedding's resolution.
        ignore_index: label of the pixels to ignore.
        delta_v, delta_d: distances above which phi is positive and above which it is linear; class means further
            apart than 2 delta_d do not repel each other.
        alpha, beta, gamma: weights of the three terms in the total.
        distance: "piecewise" (the paper's) or "quadratic".
        sync: compute the means over the batches of all ranks; otherwise, each rank uses only its own batch, and the
            losses are averaged over the ranks.

    Returns:
        The total and its unweighted terms in float32 (float64 for float64 input). Without valid pixels, they are zero
        with zero gradients.

    Raises:
        ValueError: the sizes differ or ``distance`` is unknown; on the CPU and outside compiled functions, also if a
            label is outside [0, 255].
    """
    check_label_size(labels, embedding, "embedding")
    _check_distance(distance)
    pixels = at_least_float32(rearrange(embedding, "n e ... -> (n ...) e"))
    labels = labels.reshape(-1)
    valid = labels != ignore_index
    index = _bins(labels, valid)
    weight = cast(valid, pixels.dtype)

    def total(own: Array) -> Array:
        return sum_over_processes(own) if sync else own

    counts = total(segment_sum(weight, index, _BINS))
    present = cast(counts > 0, pixels.dtype)
    number = present.sum().clip(min=1)
    share = weight / counts.clip(min=1)[index]  # sums to 1 over each class
    means = total(segment_sum(pixels * share[:, None], index, _BINS))

    to_mean = _norm(pixels - means[index])
    variance = total((_phi(to_mean, distance, delta_v, delta_d) * share).sum()) / number
    repulsion = _repulsion(means, present, 2 * delta_d)
    regularization = (_norm(means) * present).sum() / number
    loss = alpha * variance + beta * repulsion + gamma * regularization
    terms = loss, variance, repulsion, regularization
    return CategoryConsistentLoss(*(terms if sync else map(mean_over_processes, terms)))


def _check_distance(distance: str) -> None:
    if distance not in ("piecewise", "quadratic"):
        raise ValueError(f"distance is {distance!r}: choose 'piecewise' or 'quadratic'")


def _bins(labels: Array, valid: Array) -> Array:
    """Return the bin of each pixel (P,): its label, or 0 for ignored pixels.

    Raises:
        ValueError: on the CPU and outside compiled functions, if a valid label is outside [0, 255].
    """
    index = as_index(namespace(labels).where(valid, labels, 0))
    if is_readable(index) and len(index) and not 0 <= index.min() <= index.max() < _BINS:
        raise ValueError(f"labels range from {index.min()} to {index.max()}: expected values in [0, {_BINS - 1}]")
    return index


def _phi(to_mean: Array, distance: str, delta_v: float, delta_d: float) -> Array:
    """Return phi of :func:`category_consistent_loss` for the distances (P,) of the pixels to their class means."""
    quadratic = (to_mean - delta_v).clip(min=0) ** 2
    if distance == "quadratic":
        return quadratic
    linear = to_mean - delta_d + (delta_d - delta_v) ** 2
    return namespace(to_mean).where(to_mean > delta_d, linear, quadratic)


def _repulsion(means: Array, present: Array, margin: float) -> Array:
    """Return the mean of max(margin - |mu_a - mu_b|, 0)^2 over the pairs of classes that are present."""
    distances = _norm(means[:, None] - means[None])  # (K, K)
    classes = arange(_BINS, like=means)
    pairs = present[:, None] * present[None] * cast(classes[:, None] != classes[None], present.dtype)
    return ((margin - distances).clip(min=0) ** 2 * pairs).sum() / pairs.sum().clip(min=1)


def _norm(vectors: Array) -> Array:
    """Return the Euclidean norm along the last axis, with gradient zero where the norm is zero."""
    xp = namespace(vectors)
    squared = (vectors * vectors).sum(-1)
    nonzero = squared > 0
    return xp.where(nonzero, xp.sqrt(xp.where(nonzero, squared, 1)), 0)


class CategoryConsistent(Module):
    """:func:`category_consistent_loss` of the network's "embedding" output, with the labels resized to match it.

    Args:
        ignore_index, delta_v, delta_d, alpha, beta, gamma, distance, sync: see :func:`category_consistent_loss`.

    Raises:
        ValueError: ``distance`` is unknown, a number is negative, infinite or NaN, or phi would not be continuous.
    """

    output = "embedding"

    def __init__(
        self,
        *,
        ignore_index: int = 255,
        delta_v: float = 0.5,
        delta_d: float = 1.5,
        alpha: float = 1.0,
        beta: float = 1.0,
        gamma: float = 0.001,
        distance: str = "piecewise",
        sync: bool = True,
    ):
        super().__init__()
        _check_distance(distance)
        numbers = {"delta_v": delta_v, "delta_d": delta_d, "alpha": alpha, "beta": beta, "gamma": gamma}
        valid = all(0 <= number < math.inf for number in numbers.values())
        if not valid or (distance == "piecewise" and delta_v > delta_d):
            raise ValueError(
                f"the category consistent loss has {numbers}: set finite numbers of at least 0, and for the "
                "piecewise distance delta_v <= delta_d"
            )
        self.options: dict[str, Any] = {"ignore_index": ignore_index, "distance": distance, "sync": sync, **numbers}

    def forward(self, output: dict[str, Array], labels: Array) -> CategoryConsistentLoss:
        """Return the loss and its terms for labels (N, H, W), or (N, T, H, W) for clips."""
        embedding = output_named(output, self.output)
        return category_consistent_loss(embedding, nearest_labels(labels, embedding.shape[-2:]), **self.options)
