"""Input pipelines of other projects for the recipes that ``benchmark.py mode=input`` measures.

Each loader reads an image and its labels, resizes, crops and flips them at random, and returns a uint8 image and its
labels: these projects normalise on the device, too, or can do so. The pipelines directly call the functions that these
projects use, so that one version of OpenCV serves them all; a peer whose library is not installed is skipped.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from ..data import IGNORE_INDEX
from ..data.transforms import MEAN_COLOUR

Loader = Callable[[Path, Path], tuple[Tensor, Tensor]]


class Recipe(NamedTuple):
    """The part of a training recipe that the input pipeline implements.

    Attributes:
        name: name of the data set.
        size: (H, W) of the images, pixels.
        crop: (H, W) of the crops.
        scale: the range of the scale factor; None if ``short_sides`` are given.
        short_sides: candidate lengths of the short side after resizing, one of which is drawn at random.
    """

    name: str
    size: tuple[int, int]
    crop: tuple[int, int]
    scale: tuple[float, float] | None = None
    short_sides: Sequence[int] | None = None

    def scaled(self) -> tuple[int, int]:
        """Draw a scale and return the (H, W) of the resized image."""
        if self.scale is not None:
            factor = np.random.uniform(*self.scale)
        else:
            factor = np.random.choice(self.short_sides or [1]) / min(self.size)
        return round(self.size[0] * factor), round(self.size[1] * factor)


def torchvision_loader(recipe: Recipe, decode: Callable[[Path], Tensor]) -> Loader:
    """Return a loader that transforms full images with torchvision; ``decode`` returns uint8 (C, H, W)."""
    fill: dict[Any, Any] = {tv_tensors.Image: list(MEAN_COLOUR), tv_tensors.Mask: IGNORE_INDEX}
    chain = v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.RandomCrop(recipe.crop, pad_if_needed=True, fill=fill),
            v2.ToPureTensor(),
        ]
    )

    def load(image: Path, label: Path) -> tuple[Tensor, Tensor]:
        """Return a training sample with the image in RGB."""
        size = list(recipe.scaled())
        pixels = v2.functional.resize(tv_tensors.Image(decode(image)), size, antialias=True)
        labels = v2.functional.resize(
            tv_tensors.Mask(decode(label)[0]), size, interpolation=v2.InterpolationMode.NEAREST
        )
        return chain(pixels, labels)

    return load


def pillow(path: Path) -> Tensor:
    """Return a uint8 image (C, H, W) decoded by Pillow."""
    return v2.functional.pil_to_tensor(Image.open(path))


def torchvision_io(recipe: Recipe) -> Loader | None:
    """Return torchvision's pipeline with its own decoders, which torchvision 0.29 deprecates for removal."""
    try:
        from torchvision.io import decode_image
    except ImportError:
        return None
    return torchvision_loader(recipe, lambda path: decode_image(str(path)))


def mmsegmentation(recipe: Recipe) -> Loader | None:
    """Return mmsegmentation's pipeline: OpenCV decodes and resizes images, Pillow decodes labels.

    Source: mmsegmentation 1.2, LoadImageFromFile, LoadAnnotations, RandomResize, RandomCrop, RandomFlip and
    PackSegInputs; without its colour jitter and its retries for crops dominated by one class, neither of which is part
    of the paper's recipes.
    """
    try:
        import cv2
    except ImportError:
        return None
    cv2.setNumThreads(1)

    def load(image: Path, label: Path) -> tuple[Tensor, Tensor]:
        """Return a training sample with the image in BGR; the channels are swapped on the device."""
        pixels = cv2.imdecode(np.frombuffer(image.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
        labels = np.array(Image.open(label)).astype(np.uint8)
        height, width = recipe.scaled()
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)
        labels = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST)
        top = np.random.randint(0, max(height - recipe.crop[0], 0) + 1)
        left = np.random.randint(0, max(width - recipe.crop[1], 0) + 1)
        window = np.s_[top : top + recipe.crop[0], left : left + recipe.crop[1]]
        pixels, labels = pixels[window], labels[window]
        if np.random.random() < 0.5:
            pixels, labels = np.flip(pixels, axis=1), np.flip(labels, axis=1)
        below, right = (side - here for side, here in zip(recipe.crop, labels.shape, strict=True))
        if below or right:  # in mmsegmentation, the data preprocessor pads the batch instead
            pixels = cv2.copyMakeBorder(np.ascontiguousarray(pixels), 0, below, 0, right, cv2.BORDER_CONSTANT)
            labels = cv2.copyMakeBorder(
                np.ascontiguousarray(labels), 0, below, 0, right, cv2.BORDER_CONSTANT, value=IGNORE_INDEX
            )
        packed = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        return packed, torch.from_numpy(labels.astype(np.int64))

    return load


def albumentations(recipe: Recipe) -> Loader | None:
    """Return an albumentations pipeline with OpenCV, as its documentation recommends."""
    try:
        import albumentations as A
        import cv2
    except ImportError:
        return None
    cv2.setNumThreads(1)
    if recipe.scale is not None:
        resize: Any = A.RandomScale(scale_limit=(recipe.scale[0] - 1, recipe.scale[1] - 1), p=1)
    else:
        resize = A.SmallestMaxSize(max_size=list(recipe.short_sides or []), p=1)
    pad = A.PadIfNeeded(*recipe.crop, border_mode=cv2.BORDER_CONSTANT, fill=MEAN_COLOUR, fill_mask=IGNORE_INDEX)
    chain = A.Compose([resize, pad, A.RandomCrop(*recipe.crop), A.HorizontalFlip(p=0.5)])

    def load(image: Path, label: Path) -> tuple[Tensor, Tensor]:
        """Return a training sample with the image in RGB."""
        pixels = cv2.cvtColor(cv2.imread(str(image)), cv2.COLOR_BGR2RGB)
        found = chain(image=pixels, mask=cv2.imread(str(label), cv2.IMREAD_UNCHANGED))
        # Like ToTensorV2, which does not copy.
        return torch.from_numpy(found["image"].transpose(2, 0, 1)), torch.from_numpy(found["mask"])

    return load
