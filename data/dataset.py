"""The data-set interface that training, evaluation and drawing rely on. Imports no torch."""

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
        """Return the name of image ``index`` without suffix, used to name output files."""
        ...

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, Any]:
        """Return the image, RGB (3, H, W), uint8 or float32 in [0, 1], and its annotations."""
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
        """False for a test split whose labels are not public: every pixel is then ``ignore_index``."""
        ...

    @property
    def result_values(self) -> Sequence[int]:
        """The K pixel values that represent the classes in the benchmark's result files."""
        ...

    def read(self, index: int, /) -> tuple[Tensor, Tensor]:
        """Return the image and its labels as stored, before the transform: uint8 (3, H, W) and (H, W).

        Clips are uint8 (T, 3, H, W) and (T, H, W).

        Raises:
            OSError: a file is missing.
            ValueError: a file cannot be read, or the labels do not fit the image or the classes.
        """
        ...

    def read_labels(self, index: int, /) -> Tensor:
        """Return the labels that :meth:`read` returns, uint8 (H, W); of a clip, those of its last frame."""
        ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, Tensor]:
        """Return the image and its labels after the transform.

        The image is RGB (3, H, W), uint8 from the training transforms and float32 in [0, 1] from the evaluation
        transform; the labels are uint8 or int64 (H, W) in [0, K) or ``ignore_index``. Clips are (3, T, H, W) and
        (T, H, W), and only the last frame is labelled.
        """
        ...
