"""Online hard example mining (OHEM), as in the CCNet authors' code."""

from collections.abc import Sequence
from numbers import Integral

from einops import rearrange

from .all_reduce import gather_from_processes
from .cross_entropy_loss import CrossEntropy, cross_entropy
from .label_resizing import check_label_size, nearest_labels
from .network_outputs import output_named
from .torch_and_jax import (
    Array,
    at_least_float32,
    gather_class,
    kth_smallest,
    namespace,
    resize_bilinear,
    softmax,
    stop_gradient,
)

# As in the authors' code, the threshold is computed on maps downsampled by 8 in each direction.
_REDUCTION = 8
_IGNORED = 2.0  # greater than any probability


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
    """Return :func:`ccnet.losses.cross_entropy` over the hard pixels, whose true class has a low probability.

    A pixel is kept if p(true class) <= max(threshold, p_k), where p_k is the k-th smallest such probability in the
    batch and k = ``min_kept``. This keeps at least about ``min_kept`` pixels, or all if there are fewer. p_k is
    estimated as the (k / 64)-th smallest value on probabilities and labels downsampled by 8 in each direction, without
    a device synchronisation.

    Args:
        logits: (N, K, H, W), or (N, K, T, H, W) for clips, whose frames are treated as images.
        labels: (N, H, W) or (N, T, H, W) integers in [0, K) or ``ignore_index``; see
            :func:`ccnet.losses.cross_entropy`.
        ignore_index: label of the pixels to ignore.
        threshold: probability above which a pixel is easy.
        min_kept: minimum number of pixels to keep in the batch.
        class_weights: (K,) weights, or None.
        sync: treat the batches of all ranks, which must have the same shape, as one; otherwise each rank has its own
            p_k and keeps ``min_kept`` pixels.

    Returns:
        A scalar in float32 (float64 for float64 logits).

    Raises:
        ValueError: as for :func:`ccnet.losses.cross_entropy`.
    """
    check_label_size(labels, logits, "logits")
    if logits.ndim == 5:
        logits, labels = rearrange(logits, "n k t h w -> (n t) k h w"), rearrange(labels, "n t h w -> (n t) h w")
    xp = namespace(logits)
    probabilities = softmax(at_least_float32(stop_gradient(logits)), axis=1)
    limit = _threshold(probabilities, labels, ignore_index, threshold, min_kept, sync)
    easy = _true_class(probabilities, labels, ignore_index) > limit
    kept = xp.where(easy, ignore_index, labels)
    return cross_entropy(logits, kept, ignore_index=ignore_index, class_weights=class_weights)


def _threshold(
    probabilities: Array, labels: Array, ignore_index: int, threshold: float, min_kept: int, sync: bool
) -> Array:
    """Return the largest probability of the true class at which a pixel is kept, a scalar."""
    xp = namespace(probabilities)
    size = [max(round(length / _REDUCTION), 1) for length in labels.shape[-2:]]
    small_labels = nearest_labels(labels, size)
    valid = small_labels != ignore_index
    true = _true_class(resize_bilinear(probabilities, size), small_labels, ignore_index)
    # Ignored pixels sort after all probabilities. If the k-th smallest is one of them, too few are valid: keep all.
    true = xp.where(valid, true, _IGNORED).reshape(-1)
    if sync:
        true = gather_from_processes(true)
    k = min_kept // _REDUCTION**2
    if k >= len(true):
        return xp.ones_like(probabilities.sum())
    limit = kth_smallest(true, k).clip(min=threshold) if k else xp.full_like(true[0], threshold)
    return xp.where((true < _IGNORED).sum() > k, limit, 1.0)


def _true_class(probabilities: Array, labels: Array, ignore_index: int) -> Array:
    return gather_class(probabilities, namespace(labels).where(labels == ignore_index, 0, labels))


class OhemCrossEntropy(CrossEntropy):
    """:func:`ohem_cross_entropy` of one of the network's outputs.

    Args:
        threshold, min_kept, sync: see :func:`ohem_cross_entropy`.
        output, ignore_index, class_weights: see :class:`ccnet.losses.CrossEntropy`.

    Raises:
        ValueError: ``threshold`` is not a probability, or ``min_kept`` is not a whole number of at least 0.
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
        if not (0 <= threshold <= 1 and isinstance(min_kept, Integral) and min_kept >= 0):
            raise ValueError(
                f"OHEM's threshold is {threshold} and its min_kept {min_kept!r}: set a probability from 0 to 1, such "
                "as 0.7, and a whole number of pixels of at least 0, such as 100000"
            )
        self.threshold = threshold
        self.min_kept = min_kept
        self.sync = sync

    def forward(self, output: dict[str, Array], labels: Array) -> Array:
        """Return the scalar loss of the network output for labels (N, H, W), or (N, T, H, W) for clips."""
        return ohem_cross_entropy(
            output_named(output, self.output),
            labels,
            ignore_index=self.ignore_index,
            threshold=self.threshold,
            min_kept=self.min_kept,
            class_weights=self.class_weights,
            sync=self.sync,
        )
