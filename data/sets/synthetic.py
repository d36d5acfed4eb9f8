"""Beacons, a synthetic task that cannot be solved without context from the whole image.

Several similar shapes lie on a textured background. The colour of one small beacon somewhere in the image determines
the class of every shape. A network that only sees the neighbourhood of a shape has to guess. One pass of criss-cross
attention propagates the colour along the beacon's row and column, and two passes propagate it everywhere.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from ..dataset import IGNORE_INDEX
from ..image_pairs import PairTransform
from ..reading.size_limit import check_size

_SPLITS = {"train": 0, "val": 1}  # part of each image's seed


class Beacons(Dataset[tuple[Tensor, Tensor]]):
    """Images drawn on the fly; seed, split and index determine an image, on every machine.

    Args:
        split: "train" or "val".
        length: the number of images.
        size: the side of the square images in pixels.
        shapes: the number of shapes in an image.
        beacon: the diameter of the beacon in pixels.
        seed: the seed of the data set.
        transform: see :class:`~ccnet.data.image_pairs.ImagePairs`.
    """

    classes = ("background", "red beacon", "green beacon", "blue beacon")
    palette = ((40, 40, 48), (228, 64, 58), (64, 178, 84), (66, 110, 228))
    ignore_index = IGNORE_INDEX
    has_labels = True
    result_values = tuple(range(len(classes)))

    def __init__(
        self,
        *,
        split: str,
        transform: PairTransform | None,
        length: int,
        size: int = 121,
        shapes: int = 9,
        beacon: int = 17,
        seed: int = 0,
    ):
        if split not in _SPLITS:
            raise ValueError(f"split is {split!r}: choose one of {', '.join(_SPLITS)}")
        check_size(size, size, f"size={size}")
        if not (1 <= length < 2**31 and 0 <= shapes <= 1000 and 1 <= beacon <= size):
            raise ValueError(
                f"length is {length}, shapes {shapes} and beacon {beacon} in images of {size} pixels: use at least 1 "
                "image, at most 1000 shapes and a beacon that fits into the image"
            )
        self.split, self.length, self.seed = split, length, seed
        self.size, self.shapes, self.beacon = size, shapes, beacon
        self.transform = transform

    def __len__(self) -> int:
        return self.length

    def name(self, index: int) -> str:
        """Return the name of image ``index``, used for saved predictions."""
        return f"beacons_{self.split}_{index:05d}"

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        pair = self.read(index)
        return self.transform(*pair) if self.transform else pair

    def read(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        """Return the image, uint8 (3, H, W), and its labels, uint8 (H, W), before the transform."""
        if not 0 <= index < self.length:
            raise IndexError(index)
        image, label = _draw(
            np.random.default_rng([self.seed, _SPLITS[self.split], index]),
            size=self.size,
            shapes=self.shapes,
            beacon=self.beacon,
            colours=self.palette[1:],
        )
        return (
            tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1)),
            tv_tensors.Mask(torch.from_numpy(label)),
        )

    def read_labels(self, index: int) -> Tensor:
        """Return the labels, uint8 (H, W), before the transform."""
        return self.read(index)[1]


def _draw(
    rng: np.random.Generator, *, size: int, shapes: int, beacon: int, colours: Sequence[Sequence[int]]
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a uint8 image (size, size, 3) and its uint8 labels (size, size)."""
    coarse = np.kron(rng.uniform(70, 150, (8, 8)), np.ones((math.ceil(size / 8),) * 2))[:size, :size]
    image = coarse[..., None] + rng.normal(0, 12, (size, size, 3))
    label = np.zeros((size, size), dtype=np.uint8)
    colour = int(rng.integers(len(colours)))

    for _ in range(shapes):
        radius = rng.uniform(0.09, 0.15) * size
        window, mask = _shape(rng, size, rng.uniform(0, size, 2), radius, square=rng.random() < 0.5)
        image[window][mask] = rng.uniform(185, 235) + rng.normal(0, 6, (mask.sum(), 1))
        label[window][mask] = 1 + colour

    window, mask = _shape(rng, size, rng.uniform(beacon / 2, size - beacon / 2, 2), beacon / 2, square=False)
    image[window][mask] = np.array(colours[colour]) + rng.normal(0, 6, (mask.sum(), 3))
    label[window][mask] = 0
    return image.clip(0, 255).astype(np.uint8), label


def _shape(
    rng: np.random.Generator, size: int, centre: np.ndarray, radius: float, *, square: bool
) -> tuple[tuple[slice, slice], np.ndarray]:
    """Return a window of the image and the mask, in this window, of a disc or of a randomly rotated square."""
    low = np.maximum(np.floor(centre - radius), 0).astype(int)
    high = np.minimum(np.ceil(centre + radius), size).astype(int)
    window = slice(low[0], high[0]), slice(low[1], high[1])
    y, x = np.mgrid[window] + 0.5 - centre[:, None, None]
    if not square:
        return window, x**2 + y**2 <= radius**2
    angle, half = rng.uniform(0, math.pi / 2), radius / math.sqrt(2)
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    return window, np.maximum(abs(along), abs(across)) <= half
