"""Online hard example mining, by the rule of the CCNet authors' code."""

from collections.abc import Sequence

from einops import rearrange

from .torch_and_jax import Array, constant, kth_smallest, namespace, of_class, resized, softmax, widened
from .cross_entropy_loss import CrossEntropy, cross_entropy
from .all_reduce import gather_from_processes
from .label_resizing import nearest_labels

# The threshold is found on maps an eighth of the size in each direction, as the authors do.
_REDUCTION = 8
_IGNORED = 2.0  # above every probability


def ohem_cross_entropy(
    logits: Array,
    labels: Array,
    *,
    ignore_index: int = 255,
    threshold: float = 0.7,
    min_kept: int = 100_000,
    class_weights: Array | None = None,
    sync: bool = True,
) -> Array:
    """:func:`losses.cross_entropy` over the pixels whose true class has a low probability.

    Kept are pixels with p(true class) <= max(threshold, p_k), p_k the k-th smallest such probability in the
    batch and k = ``min_kept``: at least about that many pixels stay, and all of them where there are fewer.
    p_k is looked up on probabilities and labels reduced 8 times, with k / 64. Without a host synchronisation.

    Args:
        logits: (N, K, H, W); of clips (N, K, T, H, W), whose frames count as so many images.
        labels: (N, H, W) or (N, T, H, W) integers, int64 in torch, in [0, K) or ``ignore_index``.
        ignore_index: label that does not count.
        threshold: probability above which a pixel counts as easy.
        min_kept: pixels of the batch to keep at least.
        class_weights: (K,) factors.
        sync: "the batch" is that of all processes together; else each finds its own p_k, and keeps ``min_kept``.

    Returns:
        A scalar in float32 (float64 for float64 logits).
    """
    if logits.ndim == 5:
        logits, labels = rearrange(logits, "n k t h w -> (n t) k h w"), rearrange(labels, "n t h w -> (n t) h w")
    xp = namespace(logits)
    probabilities = softmax(widened(constant(logits)), axis=1)
    limit = _threshold(probabilities, labels, ignore_index, threshold, min_kept, sync)
    easy = _true_class(probabilities, labels, ignore_index) > limit
    kept = xp.where(easy, ignore_index, labels)
    return cross_entropy(logits, kept, ignore_index=ignore_index, class_weights=class_weights)


def _threshold(
    probabilities: Array, labels: Array, ignore_index: int, threshold: float, min_kept: int, sync: bool
) -> Array:
    xp = namespace(probabilities)
    size = [max(round(length / _REDUCTION), 1) for length in labels.shape[-2:]]
    small_labels = nearest_labels(labels, size)
    valid = small_labels != ignore_index
    true = _true_class(resized(probabilities, size), small_labels, ignore_index)
    # Ignored pixels sort behind every probability; past them nothing is left to mine and all is kept.
    true = xp.where(valid, true, _IGNORED).reshape(-1)
    if sync:
        true = gather_from_processes(true)
    k = min_kept // _REDUCTION**2
    if k >= len(true):
        return xp.ones_like(probabilities.sum())
    limit = kth_smallest(true, k).clip(min=threshold) if k else xp.full_like(true[0], threshold)
    return xp.where((true < _IGNORED).sum() > k, limit, 1.0)


def _true_class(probabilities: Array, labels: Array, ignore_index: int) -> Array:
    return of_class(probabilities, namespace(labels).where(labels == ignore_index, 0, labels))


class OhemCrossEntropy(CrossEntropy):
    """:func:`ohem_cross_entropy` of one of the network's outputs.

    Args:
        threshold, min_kept, sync: of :func:`ohem_cross_entropy`.
        **cross_entropy: arguments of :class:`losses.CrossEntropy`.
    """

    def __init__(
        self,
        *,
        threshold: float = 0.7,
        min_kept: int = 100_000,
        output: str = "out",
        ignore_index: int = 255,
        class_weights: Sequence[float] | None = None,
        sync: bool = True,
    ):
        super().__init__(output=output, ignore_index=ignore_index, class_weights=class_weights)
        self.threshold = threshold
        self.min_kept = min_kept
        self.sync = sync

    def forward(self, output: dict[str, Array], labels: Array) -> Array:
        """Output of the network, labels (N, H, W) -> scalar."""
        return ohem_cross_entropy(
            output[self.output],
            labels,
            ignore_index=self.ignore_index,
            threshold=self.threshold,
            min_kept=self.min_kept,
            class_weights=self.class_weights,
            sync=self.sync,
        )
