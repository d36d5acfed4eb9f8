"""Datasets of (image, label) pairs, and the transforms that treat both alike.

A dataset is any ``torch.utils.data.Dataset`` with ``classes`` (names), ``palette`` (one RGB triple per class),
``ignore_index``, ``name(i)`` and ``dataset[i] -> (image, label)``: RGB float32 (3, H, W) in [0, 1], and int64
(H, W) in [0, K) or ``ignore_index``.
"""

IGNORE_INDEX = 255
