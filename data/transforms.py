"""Paired transforms: what happens to a picture happens to its labels, and to every frame of a clip.

The training transforms choose the crop first and touch only the pixels that it shows: a crop of 769 pixels out of a
Cityscapes frame enlarged twice needs a tenth of what a chain of resize and crop would compute.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from .dataset import IGNORE_INDEX
from .letterbox import Placement, resample
from .size_limit import check_size

# Padding in the colour that normalises to about zero, as in the authors' code.
MEAN_COLOUR = (124, 116, 104)

Pair = tuple[tv_tensors.Image, tv_tensors.Mask]


class ScaleCrop:
    """Resize by a random factor and cut out a random window: pictures bilinearly, labels to the nearest pixel.

    The same distribution of windows as a random resize followed by torchvision's ``RandomCrop``; the window's edges
    are rounded to whole pixels of the source.

    Args:
        crop_size: (H, W) in pixels. Smaller pictures are padded around, labels with ``IGNORE_INDEX``.
        scale: smallest and largest factor, drawn evenly between.
        short_sides: alternatively, lengths of the short side in pixels, one of which is drawn.
    """

    def __init__(
        self,
        crop_size: Sequence[int],
        *,
        scale: Sequence[float] | None = None,
        short_sides: Sequence[int] | None = None,
    ):
        if scale is not None and short_sides is not None:
            raise ValueError(f"give either scale or short_sides, got {list(scale)} and {list(short_sides)}")
        _check(crop_size, short_sides, scale)
        self.crop_size, self.scale, self.short_sides = tuple(crop_size), scale, short_sides

    def __call__(self, image: Tensor, labels: Tensor) -> Pair:
        """(..., 3, H, W) and (..., H, W), uint8 -> the same of ``crop_size``."""
        sides = image.shape[-2:]
        factor = self._factor(sides)
        windows = [
            _window(side, max(round(side * factor), 1), crop) for side, crop in zip(sides, self.crop_size, strict=True)
        ]
        (rows, to_rows), (columns, to_columns) = windows
        size = [part.stop - part.start for part in (to_rows, to_columns)]
        shown = v2.functional.resize(image[..., rows, columns].as_subclass(Tensor), size, antialias=True)
        label = _nearest(labels[..., rows, columns].as_subclass(Tensor), size)
        if tuple(size) != self.crop_size:
            whole = image.new_tensor(MEAN_COLOUR).as_subclass(Tensor).view(3, 1, 1)
            whole = whole.expand(*image.shape[:-2], *self.crop_size).clone()
            whole[..., to_rows, to_columns] = shown
            void = label.new_full((*labels.shape[:-2], *self.crop_size), IGNORE_INDEX)
            void[..., to_rows, to_columns] = label
            shown, label = whole, void
        return tv_tensors.Image(shown), tv_tensors.Mask(label)

    def _factor(self, sides: Sequence[int]) -> float:
        if self.scale is not None:
            low, high = self.scale
            return low + (high - low) * torch.rand(()).item()
        if self.short_sides is not None:
            return self.short_sides[int(torch.randint(len(self.short_sides), ()))] / min(sides)
        return 1.0


def _check(crop_size: Sequence[int], short_sides: Sequence[int] | None, scale: Sequence[float] | None) -> None:
    if len(crop_size) != 2:
        raise ValueError(f"crop_size is {list(crop_size)}: give height and width")
    check_size(*crop_size, f"crop_size={list(crop_size)}")
    if short_sides is not None and not (short_sides and min(short_sides) >= 1):
        raise ValueError(f"short_sides is {list(short_sides)}: give lengths in pixels")
    if scale is not None and not (len(scale) == 2 and 0 < scale[0] <= scale[1]):
        raise ValueError(f"scale is {list(scale)}: give the smallest and the largest factor, above 0")


def _window(side: int, scaled: int, crop: int) -> tuple[slice, slice]:
    """What of a side a random crop of the scaled side shows: source pixels, and where in the crop they go."""
    free = scaled - crop
    offset = min(free, 0) + int(torch.randint(abs(free) + 1, ()))
    start, stop = max(offset, 0), min(offset + crop, scaled)
    first = min(round(start * side / scaled), side - 1)
    return slice(first, max(round(stop * side / scaled), first + 1)), slice(start - offset, stop - offset)


def _nearest(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Labels at another size; pixel centres meet, as they do in the picture."""
    for dim, length in zip((-2, -1), size, strict=True):
        if labels.shape[dim] != length:
            index = ((torch.arange(length) + 0.5) * (labels.shape[dim] / length)).long()
            labels = labels.index_select(dim, index)
    return labels


class Flip:
    """Mirror left and right with a probability, and exchange classes that have a side.

    Args:
        probability: of a flip.
        pairs: classes that become each other, such as left and right arm; none by default.
    """

    def __init__(self, probability: float, pairs: Sequence[Sequence[int]] | None = None):
        self.probability = probability
        self.swap = swapped_classes(256, pairs).to(torch.uint8) if pairs else None

    def __call__(self, image: Tensor, labels: Tensor) -> Pair:
        """(..., 3, H, W), (..., H, W) -> the same."""
        if torch.rand(()).item() >= self.probability:
            return image, labels
        labels = labels.flip(-1)
        if self.swap is not None:
            labels = self.swap[labels.long()]
        return tv_tensors.Image(image.flip(-1)), tv_tensors.Mask(labels)


def swapped_classes(number: int, pairs: Sequence[Sequence[int]]) -> Tensor:
    """Class -> class in the mirror, int64 (number,).

    Args:
        number: of classes.
        pairs: classes that become each other.
    """
    swap = torch.arange(number)
    for one, other in pairs:
        if not (0 <= one < number and 0 <= other < number):
            raise ValueError(f"flip_pairs has {one} and {other}: give classes from 0 to {number - 1}")
        swap[one], swap[other] = other, one
    return swap


class RandomWarp:
    """Fit the whole picture into a fixed size, at a random scale and angle (CE2P's augmentation for LIP).

    Args:
        size: (H, W) in pixels. What lies beside the picture has the mean colour, labels ``IGNORE_INDEX``.
        scale_std: of the factor by which the picture's frame grows, normal around 1, cut off at one deviation.
        angle_std: of the angle in degrees, normal around 0, cut off at two deviations.
        angle_share: of the pictures that are turned at all.
    """

    def __init__(self, size: Sequence[int], *, scale_std: float, angle_std: float, angle_share: float):
        _check(size, None, None)
        self.size, self.scale_std, self.angle_std, self.angle_share = tuple(size), scale_std, angle_std, angle_share

    def __call__(self, image: Tensor, labels: Tensor) -> Pair:
        """(3, H, W) and (H, W), uint8 -> the same of ``size``."""
        grown = 1 + self.scale_std * float(torch.randn(()).clamp(-1, 1))
        angle = self.angle_std * float(torch.randn(()).clamp(-2, 2))
        if torch.rand(()).item() >= self.angle_share:
            angle = 0.0
        placement = Placement(tuple(image.shape[-2:]), self.size, grown, angle)
        mean = torch.tensor(MEAN_COLOUR, dtype=torch.float32).view(3, 1, 1)
        shown = resample((image.as_subclass(Tensor) - mean).unsqueeze(0), placement)[0] + mean
        # Outside, zeros are read: shifted, they mean the label to ignore.
        label = (labels.as_subclass(Tensor).float() - IGNORE_INDEX).view(1, 1, *labels.shape)
        label = resample(label, placement, mode="nearest")[0, 0] + IGNORE_INDEX
        return tv_tensors.Image(shown.round().to(torch.uint8)), tv_tensors.Mask(label.to(torch.uint8))


def train_transform(
    *,
    crop_size: Sequence[int],
    scale: Sequence[float] | None = None,
    short_sides: Sequence[int] | None = None,
    flip: float = 0.5,
    flip_pairs: Sequence[Sequence[int]] | None = None,
    color_jitter: Sequence[float] | None = None,
) -> v2.Compose:
    """Random scale, random crop with padding, flip, colour jitter; then RGB in [0, 1].

    Args:
        crop_size, scale, short_sides: of :class:`ScaleCrop`; neither of the last two leaves the size alone.
        flip: probability of a horizontal flip.
        flip_pairs: of :class:`Flip`.
        color_jitter: brightness, contrast, saturation and hue of torchvision's ``ColorJitter``.
    """
    steps = [ScaleCrop(crop_size, scale=scale, short_sides=short_sides), Flip(flip, flip_pairs)]
    if color_jitter is not None:
        steps.append(v2.ColorJitter(*color_jitter))
    return v2.Compose([*steps, *_to_float()])


def warp_transform(
    *,
    crop_size: Sequence[int],
    scale_std: float,
    angle_std: float,
    angle_share: float,
    flip: float = 0.5,
    flip_pairs: Sequence[Sequence[int]] | None = None,
) -> v2.Compose:
    """The whole picture in a fixed size at a random scale and angle, flip; then RGB in [0, 1].

    Args:
        crop_size, scale_std, angle_std, angle_share: of :class:`RandomWarp`.
        flip, flip_pairs: of :class:`Flip`.
    """
    warp = RandomWarp(crop_size, scale_std=scale_std, angle_std=angle_std, angle_share=angle_share)
    return v2.Compose([warp, Flip(flip, flip_pairs), *_to_float()])


def eval_transform() -> v2.Compose:
    """The whole picture at its own size; RGB in [0, 1]."""
    return v2.Compose(_to_float())


def _to_float() -> list[v2.Transform]:
    # Labels keep their integers: only pictures are scaled and cast.
    dtype = {tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64, "others": None}
    return [v2.ToDtype(dtype, scale=True), v2.ToPureTensor()]
