"""Test protocols, which turn an image into logits: whole image, sliding windows, multiple scales and flipping.

Each protocol is called with a network and images (N, 3, H, W) in [0, 1] and returns logits or probabilities
(N, K, H, W); clips (N, 3, T, H, W) keep their T. Sums are accumulated in-place, so however many passes there are, peak
memory is two maps of the image's size plus the memory of a single pass.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from ...data.letterbox import Placement, resample, restore
from ...data.reading.size_limit import check_size
from ...data.transforms import swapped_classes

Protocol = Callable[[nn.Module, Tensor], Tensor]


class Whole:
    """Process the whole image in one pass."""

    def __call__(self, model: nn.Module, images: Tensor) -> Tensor:
        """Return the logits (N, K, H, W) of images (N, 3, H, W)."""
        return model(images)["out"]


class Slide:
    """Process sliding windows of the training crop size; logits are averaged where windows overlap.

    As in the CCNet authors' evaluation, the stride is two thirds of the window, rounded up, and the last window of a
    row or column is shifted back inside the image. An image smaller than the window is padded with the mean colour.

    Args:
        crop_size: the window size (H, W) in pixels.
        stride: the stride as a fraction of the window size.
    """

    def __init__(self, crop_size: Sequence[int], *, stride: float = 2 / 3):
        _check_crop_size(crop_size)
        if not 0 < stride <= 1:
            raise ValueError(f"stride is {stride}: set a fraction of the window size in (0, 1]")
        self.crop_size = (crop_size[0], crop_size[1])
        self.stride = stride

    def __call__(self, model: nn.Module, images: Tensor) -> Tensor:
        """Return the logits (N, K, H, W) of images (N, 3, H, W)."""
        size = images.shape[-2:]
        padding = [max(side, crop) - side for side, crop in zip(size, self.crop_size, strict=True)]
        if any(padding):
            mean = _mean(model, images)
            images = pad(images - mean, (0, padding[1], 0, padding[0])) + mean
        total, count = None, images.new_zeros(images.shape[-2:])
        for rows in self._windows(images.shape[-2], self.crop_size[0]):
            for columns in self._windows(images.shape[-1], self.crop_size[1]):
                logits = model(images[..., rows, columns])["out"].float()
                if total is None:
                    total = logits.new_zeros(*logits.shape[:-2], *images.shape[-2:])
                total[..., rows, columns] += logits
                count[rows, columns] += 1
        assert total is not None  # there is at least one window
        return total.div_(count)[..., : size[0], : size[1]]

    def _windows(self, side: int, crop: int) -> Iterator[slice]:
        step = math.ceil(crop * self.stride)
        for index in range(math.ceil((side - crop) / step) + 1):
            end = min(index * step + crop, side)
            yield slice(end - crop, end)


class Letterbox:
    """Process the whole image scaled to fit a frame of fixed size, as in CE2P's evaluation on LIP.

    The image is centred and padded with the mean colour. Logits are resampled to the image's size by nearest
    neighbour, so that each pixel takes the predicted class of a frame pixel.

    Args:
        crop_size: the frame size (H, W) in pixels.
        protocol: the protocol applied to the frame; :class:`Whole` by default.
    """

    def __init__(self, crop_size: Sequence[int], *, protocol: Protocol | None = None):
        _check_crop_size(crop_size)
        self.crop_size = (crop_size[0], crop_size[1])
        self.protocol = protocol or Whole()

    def __call__(self, model: nn.Module, images: Tensor) -> Tensor:
        """Return the logits (N, K, H, W) of images (N, 3, H, W)."""
        placement = Placement((images.shape[-2], images.shape[-1]), self.crop_size)
        mean = _mean(model, images)
        return restore(self.protocol(model, resample(images - mean, placement) + mean), placement)


class MultiScale:
    """Average the predictions over several image scales, each also horizontally flipped if `flip` is set.

    Args:
        protocol: the protocol applied at each scale.
        scales: the scale factors of height and width.
        flip: include the flipped image.
        average: what to average, "logits" or "probabilities" (after the softmax).
        flip_pairs: pairs of classes to swap when flipping, such as left and right arm.
    """

    def __init__(
        self,
        protocol: Protocol,
        *,
        scales: Sequence[float],
        flip: bool = True,
        average: str = "logits",
        flip_pairs: Sequence[Sequence[int]] | None = None,
    ):
        if not scales or min(scales) <= 0:
            raise ValueError(f"scales is {list(scales)}: set one or more positive factors")
        if average not in ("logits", "probabilities"):
            raise ValueError(f"average is {average!r}: choose 'logits' or 'probabilities'")
        self.protocol, self.scales, self.flip, self.average = protocol, tuple(scales), flip, average
        self.flip_pairs = flip_pairs

    def __call__(self, model: nn.Module, images: Tensor) -> Tensor:
        """Return the mean logits or probabilities (N, K, H, W) of images (N, 3, H, W)."""
        total = None
        for scale in self.scales:
            size = [max(round(side * scale), 1) for side in images.shape[-2:]]
            check_size(size[0], size[1], f"an image at scale {scale:g}")
            scaled = _resized(images, size)
            for mirrored in (False, True) if self.flip else (False,):
                logits = self.protocol(model, scaled.flip(-1) if mirrored else scaled).float()
                logits = _resized(logits, images.shape[-2:])
                if mirrored:
                    logits = self._unmirrored(logits)
                if self.average == "probabilities":
                    logits = logits.softmax(dim=1)
                total = logits if total is None else total.add_(logits)
        assert total is not None  # there is at least one scale
        return total.div_(len(self.scales) * (1 + self.flip))

    def _unmirrored(self, logits: Tensor) -> Tensor:
        logits = logits.flip(-1)
        if self.flip_pairs:
            logits = logits[:, swapped_classes(logits.shape[1], self.flip_pairs).to(logits.device)]
        return logits


def _check_crop_size(crop_size: Sequence[int] | None) -> None:
    if crop_size is None:
        raise ValueError("the checkpoint does not record its training crop size: set protocol.crop_size=[H,W]")
    if len(crop_size) != 2:
        raise ValueError(f"crop_size is {list(crop_size)}: set it to [height, width]")
    check_size(crop_size[0], crop_size[1], f"crop_size={list(crop_size)}")


def _mean(model: Any, images: Tensor) -> Tensor:
    """Return the network's mean colour in a shape that broadcasts over images or clips."""
    return model.mean.to(images.dtype).view(3, *[1] * (images.ndim - 2))


def _resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize images, or each frame of clips, to (H, W)."""
    if list(x.shape[-2:]) == list(size):
        return x
    frames = x.flatten(1, -3) if x.ndim > 4 else x
    frames = interpolate(frames, torch.Size(size), mode="bilinear", align_corners=True)
    return frames.view(*x.shape[:-2], *size)
