"""Transforms of pairs: an image, its labels and all frames of a clip are transformed alike.

The training transforms choose the crop first and resample only the pixels in it. For a 769x769 crop of a Cityscapes
image at scale 2, that takes about a tenth of the work of resizing the whole image before cropping.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from .dataset import IGNORE_INDEX
from .letterbox import Placement, resample
from .reading.size_limit import checked_crop_size

MEAN_COLOUR = (124, 116, 104)  # padding that normalises to about zero, as in the authors' code

Pair = tuple[tv_tensors.Image, tv_tensors.Mask]


class ScaleCrop:
    """Random resize and crop in one step, bilinear for images and nearest-neighbour for labels.

    The crops are distributed as after a random resize followed by torchvision's ``RandomCrop``, except that their edges
    are rounded to whole source pixels.

    Args:
        crop_size: (H, W) in pixels. Smaller images are padded at random on all sides, labels with ``IGNORE_INDEX``.
        scale: the range from which the scale factor is drawn uniformly.
        short_sides: instead of ``scale``, candidate lengths of the short side in pixels, one of which is drawn
            uniformly.

    Raises:
        ValueError: both ``scale`` and ``short_sides`` are set, or a value is out of range.
    """

    def __init__(
        self,
        crop_size: Sequence[int],
        *,
        scale: Sequence[float] | None = None,
        short_sides: Sequence[int] | None = None,
    ):
        if scale is not None and short_sides is not None:
            raise ValueError(f"set either scale or short_sides, not both: got {list(scale)} and {list(short_sides)}")
        self.crop_size, self.scale, self.short_sides = checked_crop_size(crop_size), scale, short_sides
        if short_sides is not None and not (short_sides and min(short_sides) >= 1):
            raise ValueError(f"short_sides is {list(short_sides)}: set it to one or more lengths in pixels")
        if scale is not None and not (len(scale) == 2 and 0 < scale[0] <= scale[1]):
            raise ValueError(f"scale is {list(scale)}: set it to [smallest, largest], both above 0")
        self._blank = torch.tensor(MEAN_COLOUR, dtype=torch.uint8).expand(*crop_size, 3).contiguous()

    def __call__(self, image: Tensor, labels: Tensor) -> Pair:
        """Resize and crop a uint8 image (..., C, H, W) and its labels (..., H, W) to ``crop_size``."""
        sides = image.shape[-2:]
        factor = self._factor(sides)
        windows = [
            _window(side, max(round(side * factor), 1), crop) for side, crop in zip(sides, self.crop_size, strict=True)
        ]
        (rows, to_rows), (columns, to_columns) = windows
        size = [part.stop - part.start for part in (to_rows, to_columns)]
        # Channels-last in memory, as decoded, so that torch resizes without rearranging the pixels.
        part = _plain(image)[..., rows, columns].movedim(-3, -1).contiguous().movedim(-1, -3)
        cropped = v2.functional.resize(part, size, antialias=True)
        cropped_labels = _resize_labels(_plain(labels)[..., rows, columns], size)
        if tuple(size) != self.crop_size:
            blank = self._blank_of(image.shape[-3])
            padded = blank.expand(*image.shape[:-3], *blank.shape).clone(memory_format=torch.contiguous_format)
            padded[..., to_rows, to_columns, :] = cropped.movedim(-3, -1)
            padded_labels = cropped_labels.new_full((*labels.shape[:-2], *self.crop_size), IGNORE_INDEX)
            padded_labels[..., to_rows, to_columns] = cropped_labels
            cropped, cropped_labels = padded.movedim(-1, -3), padded_labels
        return tv_tensors.Image(cropped), tv_tensors.Mask(cropped_labels)

    def _blank_of(self, channels: int) -> Tensor:
        """Return a crop that consists of padding only, uint8 (H, W, C)."""
        if channels == len(MEAN_COLOUR):
            return self._blank
        return torch.tensor(mean_colour(channels), dtype=torch.uint8).expand(*self.crop_size, channels)

    def _factor(self, sides: Sequence[int]) -> float:
        if self.scale is not None:
            low, high = self.scale
            return low + (high - low) * torch.rand(()).item()
        if self.short_sides is not None:
            return self.short_sides[int(torch.randint(len(self.short_sides), ()))] / min(sides)
        return 1.0


def _window(side: int, scaled: int, crop: int) -> tuple[slice, slice]:
    """Draw a random crop along one axis; return the range of source pixels, and the range of the crop that they fill.

    Args:
        side: the length of the source image in pixels.
        scaled: the length of the image after scaling.
        crop: the length of the crop.
    """
    free = scaled - crop
    offset = min(free, 0) + int(torch.randint(abs(free) + 1, ()))
    start, stop = max(offset, 0), min(offset + crop, scaled)
    first = min(round(start * side / scaled), side - 1)
    return slice(first, max(round(stop * side / scaled), first + 1)), slice(start - offset, stop - offset)


def _plain(x: Tensor) -> Tensor:
    """Return ``x`` as a plain tensor, which avoids the dispatch overhead of torchvision's subclasses."""
    return x.as_subclass(Tensor)


def _resize_labels(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Resize labels by nearest neighbour, with pixel centres aligned as in the resized image."""
    rows, columns = (
        ((np.arange(length, dtype=np.float32) + 0.5) * (side / length)).astype(np.intp)
        for side, length in zip(labels.shape[-2:], size, strict=True)
    )
    # Faster than torch's index_select and interpolate, and than indexing with both. Unlike indexing of the last axis,
    # `take` returns rows that are contiguous, as the next copy needs them.
    return torch.from_numpy(labels.numpy()[..., rows, :].take(columns, axis=-1, mode="clip"))


class Flip:
    """Random horizontal flip that also swaps left and right classes.

    Args:
        probability: the probability of a flip.
        pairs: pairs of classes to swap, such as left and right arm; none by default.
    """

    def __init__(self, probability: float, pairs: Sequence[Sequence[int]] | None = None):
        if not 0 <= probability <= 1:
            raise ValueError(f"flip is {probability}: set it to a probability from 0 to 1")
        self.probability = probability
        self.swap = swapped_classes(256, pairs).to(torch.uint8) if pairs else None

    def __call__(self, image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Flip an image (..., C, H, W) and its labels (..., H, W), or return them unchanged."""
        if torch.rand(()).item() >= self.probability:
            return image, labels
        labels = _plain(labels).flip(-1)
        if self.swap is not None:
            labels = self.swap[labels.long()]
        return tv_tensors.Image(_plain(image).flip(-1)), tv_tensors.Mask(labels)


def swapped_classes(number: int, pairs: Sequence[Sequence[int]]) -> Tensor:
    """Return the class that replaces each class when the image is flipped, int64 (number,).

    Args:
        number: the number of classes.
        pairs: pairs of classes to swap.

    Raises:
        ValueError: a class is out of range or in several pairs, or a pair is not of two classes.
    """
    named = [index for pair in pairs for index in pair]
    if any(len(pair) != 2 for pair in pairs) or len(set(named)) < len(named):
        raise ValueError(
            f"flip_pairs is {[list(pair) for pair in pairs]}: set pairs of two classes, each class in one pair only"
        )
    swap = torch.arange(number)
    for first, second in pairs:
        if not (0 <= first < number and 0 <= second < number):
            raise ValueError(
                f"flip_pairs contains {[first, second]}: set pairs of class numbers from 0 to {number - 1}"
            )
        swap[first], swap[second] = second, first
    return swap


class RandomWarp:
    """Places the whole image in a frame of fixed size at a random scale and angle (CE2P's augmentation for LIP).

    Args:
        size: size of the frame, (H, W) in pixels. Around the image, it is filled with the mean colour, and the labels
            with ``IGNORE_INDEX``.
        scale_std: standard deviation of the factor by which images are shrunk, which is normally distributed around 1
            and clipped at one standard deviation.
        angle_std: standard deviation of the angle in degrees, which is normally distributed around 0 and clipped at
            two standard deviations.
        angle_share: the probability that an image is rotated.
    """

    def __init__(self, size: Sequence[int], *, scale_std: float, angle_std: float, angle_share: float):
        self.size = checked_crop_size(size)
        if not (0 <= scale_std < 1 and 0 <= angle_share <= 1):
            raise ValueError(
                f"scale_std is {scale_std} and angle_share {angle_share}: set numbers from 0 to 1, scale_std below 1"
            )
        self.scale_std, self.angle_std, self.angle_share = scale_std, angle_std, angle_share

    def __call__(self, image: Tensor, labels: Tensor) -> Pair:
        """Warp a uint8 image (..., C, H, W) and its labels (..., H, W) to ``size``."""
        scale = 1 + self.scale_std * float(torch.randn(()).clamp(-1, 1))
        angle = self.angle_std * float(torch.randn(()).clamp(-2, 2))
        if torch.rand(()).item() >= self.angle_share:
            angle = 0.0
        height, width = image.shape[-2:]
        placement = Placement((height, width), self.size, scale, angle)
        mean = torch.tensor(mean_colour(image.shape[-3]), dtype=torch.float32).view(-1, 1, 1)
        # The frames of a clip become channels of one image.
        frames = (_plain(image) - mean).reshape(1, -1, height, width)
        warped = resample(frames, placement).view(*image.shape[:-2], *self.size) + mean
        # resample pads with zeros; shifting the labels turns that padding into IGNORE_INDEX.
        shifted = (_plain(labels).float() - IGNORE_INDEX).reshape(1, -1, height, width)
        warped_labels = resample(shifted, placement, mode="nearest").view(*labels.shape[:-2], *self.size) + IGNORE_INDEX
        return tv_tensors.Image(warped.round().to(torch.uint8)), tv_tensors.Mask(warped_labels.to(torch.uint8))


class Jitter:
    """torchvision's ``ColorJitter`` for RGB; for other images, brightness and contrast only, equal for all channels.

    Args:
        brightness, contrast, saturation, hue: see torchvision.
    """

    def __init__(self, brightness: float = 0, contrast: float = 0, saturation: float = 0, hue: float = 0):
        self.rgb = v2.ColorJitter(brightness, contrast, saturation, hue)
        self.brightness, self.contrast = brightness, contrast

    def __call__(self, image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Jitter a uint8 image (..., C, H, W); labels are unchanged."""
        if image.shape[-3] == 3:
            return self.rgb(image, labels)
        brighter, stronger = map(_factor_around_one, (self.brightness, self.contrast))
        values = _plain(image).float() * brighter
        mean = values.mean()
        return tv_tensors.Image((mean + stronger * (values - mean)).clamp(0, 255).round().to(torch.uint8)), labels


def _factor_around_one(spread: float) -> float:
    """Draw a factor uniformly from [1 - spread, 1 + spread], but not below 0, as torchvision does."""
    low = max(1 - spread, 0)
    return low + (1 + spread - low) * torch.rand(()).item()


def mean_colour(channels: int) -> list[int]:
    """Return ``MEAN_COLOUR`` for any number of channels: averaged for one, else truncated or repeated."""
    return [sum(MEAN_COLOUR) // 3] if channels == 1 else [MEAN_COLOUR[index % 3] for index in range(channels)]


def train_transform(
    *,
    crop_size: Sequence[int],
    scale: Sequence[float] | None = None,
    short_sides: Sequence[int] | None = None,
    flip: float = 0.5,
    flip_pairs: Sequence[Sequence[int]] | None = None,
    color_jitter: Sequence[float] | None = None,
) -> v2.Compose:
    """Return the training transform of uint8 images and labels: random scale, padded crop, flip and colour jitter.

    Args:
        crop_size, scale, short_sides: see :class:`ScaleCrop`; without the last two, images are not resized.
        flip: the probability of a horizontal flip.
        flip_pairs: the ``pairs`` of :class:`Flip`.
        color_jitter: brightness, contrast, saturation and hue; see :class:`Jitter`. None to disable.

    Raises:
        ValueError: a value is out of range.
    """
    steps: list[Callable] = [ScaleCrop(crop_size, scale=scale, short_sides=short_sides), Flip(flip, flip_pairs)]
    if color_jitter is not None:
        if len(color_jitter) > 4 or min(color_jitter, default=0) < 0 or max(color_jitter[3:], default=0) > 0.5:
            raise ValueError(
                f"color_jitter is {list(color_jitter)}: set brightness, contrast, saturation and hue, all of at least "
                "0, and hue of at most 0.5"
            )
        steps.append(Jitter(*color_jitter))
    return v2.Compose([*steps, v2.ToPureTensor()])


def warp_transform(
    *,
    crop_size: Sequence[int],
    scale_std: float,
    angle_std: float,
    angle_share: float,
    flip: float = 0.5,
    flip_pairs: Sequence[Sequence[int]] | None = None,
) -> v2.Compose:
    """Return the training transform of uint8 images and labels for LIP: random warp of the whole image and flip.

    Args:
        crop_size, scale_std, angle_std, angle_share: see :class:`RandomWarp`.
        flip, flip_pairs: see :class:`Flip`.
    """
    warp = RandomWarp(crop_size, scale_std=scale_std, angle_std=angle_std, angle_share=angle_share)
    return v2.Compose([warp, Flip(flip, flip_pairs), v2.ToPureTensor()])


def eval_transform() -> v2.Compose:
    """Return the evaluation transform: the whole image at its own size, float32 in [0, 1], and int64 labels."""
    return v2.Compose([_as_float_and_index])


def _as_float_and_index(image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return as_float(_plain(image)), _plain(labels).long()


def as_float(images: Tensor) -> Tensor:
    """Return uint8 images as float32 in [0, 1], and other images unchanged.

    The training transforms return uint8, so that only a quarter of the memory moves from the workers to the device.
    """
    if images.dtype != torch.uint8:
        return images
    return images.to(torch.float32).mul_(1 / 255)  # a uint8-float product is slower
