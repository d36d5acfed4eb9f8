"""Datasets of (image, label) pairs, and the transforms that treat both alike.

A dataset is any ``torch.utils.data.Dataset`` with ``classes`` (names), ``palette`` (one RGB triple per class),
``ignore_index``, ``has_labels``, ``result_values`` (of a benchmark's result files), ``name(i)`` and
``dataset[i] -> (image, label)``: RGB float32 (3, H, W) in [0, 1], and int64 (H, W) in [0, K) or ``ignore_index``.
Clips have a T before H. ``read(i)`` gives the pair as it lies on the disk, uint8, for ``python check_data.py``.
"""

IGNORE_INDEX = 255
