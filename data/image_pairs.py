"""The base class of data sets whose images and label images are files."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from .contents import with_sizes
from .dataset import IGNORE_INDEX
from .reading.bands import check_channels
from .reading.grey_levels import check_value_range
from .reading.image_files import read_image
from .reading.label_files import LabelFormat, LabelReader, check_label_size
from .reading.label_values import Value

# Maps uint8 image (C, H, W) and labels (H, W) to a transformed pair; clips are (T, 3, H, W) and (T, H, W).
PairTransform = Callable[[tv_tensors.Image, tv_tensors.Mask], tuple[Tensor, Tensor]]


class ImagePairs(Dataset[tuple[Tensor, Tensor]]):
    """A :class:`~ccnet.data.dataset.SegmentationDataset` of image files and their label images.

    Args:
        pairs: paths of each image and its label image; the latter is None in a split without labels.
        classes: K names, in label order.
        palette: K RGB triples.
        label_ids: see :class:`~ccnet.data.reading.label_files.LabelReader`; those of :meth:`label_format` by default.
        value_range: the values of black and white in images of more than 8 bits; see
            :func:`~ccnet.data.reading.grey_levels.rgb_pixels`.
        channels: the number of channels C of the images; see :func:`~ccnet.data.reading.image_files.read_image`.
        rgb: the channels that are drawn; see :func:`~ccnet.data.reading.bands.drawn_channels`.
        result_values: the K pixel values of the classes in the benchmark's result files; the class indices by default.
        result_folder: the folder in which the benchmark's server expects palette images in a tar archive; "" for
            greyscale images in a zip archive without folders.
        transform: applied to the pair that ``read`` returns; None returns it unchanged.

    Attributes:
        label_reader: reads the label images of this data set.
    """

    ignore_index = IGNORE_INDEX

    def __init__(
        self,
        pairs: Sequence[tuple[Path, Path | None]],
        *,
        classes: Sequence[str],
        palette: Sequence[Sequence[int]],
        transform: PairTransform | None,
        label_ids: Mapping[int, int] | Mapping[tuple[int, int, int], int] | Mapping[Value, int] | None = None,
        value_range: Sequence[float] | None = None,
        channels: int = 3,
        rgb: Sequence[int] | None = None,
        result_values: Sequence[int] | None = None,
        result_folder: str = "",
    ):
        self.pairs = list(pairs)
        self.classes = tuple(classes)
        self.palette = tuple(tuple(colour) for colour in palette)
        self.transform = transform
        check_value_range(value_range)
        check_channels(channels, rgb)
        self.channels, self.rgb = channels, rgb and list(rgb)
        self.value_range = value_range and tuple(value_range)
        self.result_values = tuple(result_values or range(len(self.classes)))
        self.result_folder = result_folder
        stored = self.label_format(self.classes) if label_ids is None else LabelFormat(label_ids)
        self.label_reader = LabelReader(stored.label_ids, stored.smoothed)

    @classmethod
    def label_format(cls, classes: Sequence[str], **options: Any) -> LabelFormat:
        """Return the format of the label images, without accessing the files of the data set.

        By default, they contain class indices, with 255 for ignored pixels.

        Args:
            classes: the names of the K classes.
            **options: arguments of the data set's constructor.
        """
        return LabelFormat({index: index for index in (*range(len(classes)), IGNORE_INDEX)})

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        pair = self.read(index)
        return self.transform(*pair) if self.transform else pair

    @property
    def has_labels(self) -> bool:
        """Whether every image has a label image."""
        return all(label is not None for _, label in self.pairs)

    def read(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        """Return the image and its labels before the transform; labels without a file are all ``IGNORE_INDEX``."""
        image_path, label_path = self.pairs[index]
        image = read_image(image_path, self.value_range, self.channels)
        if label_path is None:
            label = torch.full(image.shape[1:], IGNORE_INDEX, dtype=torch.uint8)
        else:
            label = self.label_reader(label_path)
            check_label_size(label_path, label.shape, image_path, image.shape[1:], self.channels)
        return tv_tensors.Image(image), tv_tensors.Mask(label)

    def read_labels(self, index: int) -> Tensor:
        """Return the labels before the transform, uint8 (H, W); the image is only read if it has no label image."""
        label_path = self.pairs[index][1]
        return self.read(index)[1] if label_path is None else self.label_reader(label_path)

    def image_path(self, index: int) -> Path:
        """Return the path of the image."""
        return self.pairs[index][0]

    def name(self, index: int) -> str:
        """Return the file name of the image without its suffix."""
        return self.pairs[index][0].stem

    def stamp(self, index: int) -> str:
        """Return the name of the image and the sizes of its files; see :func:`~ccnet.data.contents.contents_of`."""
        return with_sizes(self.name(index), filter(None, self.pairs[index]))
