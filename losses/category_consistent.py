"""The category consistent loss: Huang et al., CCNet, TPAMI 2020, arXiv:1811.11721, section 3.4.

Shapes: N images, E embedding channels, P = N * h * w pixels, K = 256 label values.
"""

from typing import NamedTuple

from einops import rearrange

from .torch_and_jax import Array, Module, arange, as_index, cast, is_readable, namespace, sum_by_index, widened
from .all_reduce import mean_over_processes, sum_over_processes
from .label_resizing import nearest_labels

# One bin for each value of an 8-bit label: a fixed size needs no look at the labels, so nothing waits for the
# device and compilers see static shapes. Bins without a pixel count nowhere.
_BINS = 256


class CategoryConsistentLoss(NamedTuple):
    """``total = alpha * variance + beta * distance + gamma * regularization``, four scalars."""

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
    """Pull pixels of one class together and push the classes apart.

        variance       = mean over classes of mean over their pixels of phi(|h - mu|)
        distance       = mean over pairs of classes of max(2 delta_d - |mu_a - mu_b|, 0)^2
        regularization = mean over classes of |mu|

        phi(d) = 0                                       d <= delta_v
                 (d - delta_v)^2               delta_v < d <= delta_d
                 d - delta_d + (delta_d - delta_v)^2     delta_d < d

    mu is a class's mean over the whole mini-batch (equations 3 to 8). "Quadratic" keeps the middle branch for
    every d > delta_v: the loss of De Brabandere et al. (2017) that the paper starts from, and which its
    Table 3 shows to diverge more often. Gradients also flow through mu, and are finite everywhere: a norm's
    gradient at zero distance, where a class with a single pixel sits, is taken as zero.

    Args:
        embedding: (N, E, h, w).
        labels: (N, h, w) integers in [0, 255] at the embedding's size, or ``ignore_index``.
        ignore_index: label that does not count.
        delta_v, delta_d: distances at which phi starts and at which it turns linear; classes further apart
            than 2 delta_d are left alone.
        alpha, beta, gamma: weights of the three terms in the total.
        distance: "piecewise" (the paper's) or "quadratic".
        sync: the mini-batch is that of all processes together; else each has its own means, and the mean of their
            losses counts.

    Returns:
        The total and its terms, unweighted, in float32 (float64 for float64 input). Nothing valid gives zeros
        that still back-propagate.

    Raises:
        ValueError: sizes that differ, an unknown ``distance``; on the CPU also labels outside [0, 255].
    """
    if labels.shape != embedding.shape[:1] + embedding.shape[2:]:
        raise ValueError(
            f"labels {tuple(labels.shape)} must have the size of the embedding {tuple(embedding.shape)}: "
            "bring them there with losses.label_resizing.nearest_labels"
        )
    if distance not in ("piecewise", "quadratic"):
        raise ValueError(f"distance is {distance!r}: choose 'piecewise' or 'quadratic'")

    xp = namespace(embedding)
    pixels = widened(rearrange(embedding, "n e ... -> (n ...) e"))
    labels = labels.reshape(-1)
    valid = labels != ignore_index
    index = as_index(xp.where(valid, labels, 0))
    if is_readable(index) and len(index) and not 0 <= index.min() <= index.max() < _BINS:
        raise ValueError(f"labels reach from {index.min()} to {index.max()}: give values in [0, {_BINS - 1}]")
    weight = cast(valid, pixels.dtype)

    total = sum_over_processes if sync else (lambda own: own)
    counts = total(sum_by_index(weight, index, _BINS))
    present = cast(counts > 0, pixels.dtype)
    number = present.sum()
    per_pixel = weight / counts.clip(min=1)[index]  # sums to 1 over each class
    means = total(sum_by_index(pixels * per_pixel[:, None], index, _BINS))

    to_mean = _norm(pixels - means[index])
    spread = (to_mean - delta_v).clip(min=0) ** 2
    if distance == "piecewise":
        linear = to_mean - delta_d + (delta_d - delta_v) ** 2
        spread = xp.where(to_mean > delta_d, linear, spread)
    variance = total((spread * per_pixel).sum()) / number.clip(min=1)

    apart = _norm(means[:, None] - means[None])  # (K, K)
    classes = arange(_BINS, like=pixels)
    pairs = present[:, None] * present[None] * (classes[:, None] != classes[None])
    push = (2 * delta_d - apart).clip(min=0) ** 2
    between = (push * pairs).sum() / (number * (number - 1)).clip(min=1)

    size = (_norm(means) * present).sum() / number.clip(min=1)
    terms = alpha * variance + beta * between + gamma * size, variance, between, size
    return CategoryConsistentLoss(*(terms if sync else map(mean_over_processes, terms)))


def _norm(vectors: Array) -> Array:
    """Length along the last dimension, with gradient zero where the length is zero."""
    xp = namespace(vectors)
    squared = (vectors * vectors).sum(-1)
    nonzero = squared > 0
    return xp.where(nonzero, xp.sqrt(xp.where(nonzero, squared, 1)), 0)


class CategoryConsistent(Module):
    """:func:`category_consistent_loss` of the network's embedding, labels sampled at its size.

    Args:
        **options: of :func:`category_consistent_loss`.
    """

    def __init__(self, **options):
        super().__init__()
        self.options = options

    def forward(self, output: dict[str, Array], labels: Array) -> CategoryConsistentLoss:
        """Output of the network, labels (N, H, W) -> the total and its terms."""
        embedding = output["embedding"]
        return category_consistent_loss(embedding, nearest_labels(labels, embedding.shape[-2:]), **self.options)
