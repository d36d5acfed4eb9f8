"""The data set interface used by training, evaluation and drawing. Does not import torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

IGNORE_INDEX = 255  # the label of pixels excluded from training and scoring


@runtime_checkable
class ImageDataset(Protocol):
    """A map-style data set of images with annotations of any kind."""

    @property
    def classes(self) -> Sequence[str]:
        """The names of the K classes, in label order."""
        ...

    @property
    def palette(self) -> Sequence[Sequence[int]]:
        """One RGB triple per class, 0 to 255."""
        ...

    def name(self, index: int, /) -> str:
        """Return the name of image ``index`` without its suffix; output files are named after it."""
        ...

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, Any]:
        """Return the image (C, H, W), uint8 or float32 in [0, 1], RGB by default, and its annotations."""
        ...


@runtime_checkable
class SegmentationDataset(ImageDataset, Protocol):
    """A map-style data set of images, or of clips of T frames, with a class label for every pixel."""

    @property
    def ignore_index(self) -> int:
        """The label of pixels excluded from training and scoring."""
        ...

    @property
    def has_labels(self) -> bool:
        """Whether the split has labels; without them, as in some test splits, every pixel is ``ignore_index``."""
        ...

    @property
    def result_values(self) -> Sequence[int]:
        """The K pixel values of the classes in the benchmark's result files."""
        ...

    def read(self, index: int, /) -> tuple[Tensor, Tensor]:
        """Return the image (C, H, W) and its labels (H, W), both uint8, before the transform.

        Clips are (T, 3, H, W) with labels (T, H, W).

        Raises:
            OSError: a file is missing.
            ValueError: a file cannot be read, or the labels do not fit the image or the classes.
        """
        ...

    def read_labels(self, index: int, /) -> Tensor:
        """Return only the labels before the transform, uint8 (H, W); for a clip, those of its last frame."""
        ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, Tensor]:
        """Return the image and its labels after the transform.

        The image is (C, H, W), RGB by default: uint8 from the training transforms, float32 in [0, 1] from the
        evaluation transform. The labels (H, W) are uint8 or int64, in [0, K) or ``ignore_index``. Clips are
        (3, T, H, W) with labels (T, H, W), of which only the last frame is labelled.
        """
        ...
