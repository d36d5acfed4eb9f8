"""Test protocols, which turn an image into logits: whole image, sliding windows, multiple scales and flipping.

Each protocol is called with a network, which returns its logits as "out" and has the mean colour, used for padding, as
its buffer ``mean``, and with images (N, C, H, W) in [0, 1]. It returns logits or probabilities (N, K, H, W); clips
(N, C, T, H, W) keep their T. Sums are accumulated in-place, so the peak memory is two score maps of the image's size
plus the memory of a single pass, however many passes there are. Sliding windows need less memory: see :func:`tiles`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from ...data.letterbox import Placement, resample, restore
from ...data.reading.size_limit import check_size, checked_crop_size
from ...data.transforms import swapped_classes

Protocol = Callable[[nn.Module, Tensor], Tensor]


class Tile(NamedTuple):
    """The scores of a rectangle of an image.

    Attributes:
        rows, columns: the position of the rectangle in the image.
        scores: logits or probabilities (N, K, h, w).
    """

    rows: slice
    columns: slice
    scores: Tensor


def tiles(protocol: Protocol, model: nn.Module, images: Tensor) -> Iterator[Tile]:
    """Yield the scores of images (N, C, H, W) in rectangles that cover each pixel once.

    :class:`Slide` yields several rectangles, every other protocol a single one.
    """
    if isinstance(protocol, Slide):
        yield from protocol.tiles(model, images)
    else:
        height, width = images.shape[-2:]
        yield Tile(slice(0, height), slice(0, width), protocol(model, images))


class Whole:
    """Process the whole image in one pass."""

    def __call__(self, model: nn.Module, images: Tensor) -> Tensor:
        """Return the logits (N, K, H, W) of images (N, C, H, W)."""
        return model(images)["out"]

    def passes(self, size: Sequence[int]) -> int:
        """Return the number of forward passes for an image of size (H, W)."""
        return 1


class Slide:
    """Process sliding windows of the training crop size; logits are averaged where windows overlap.

    As in the CCNet authors' evaluation, the stride is two thirds of the window, rounded up, and the last window of a
    row or column is shifted back inside the image. An image smaller than the window is padded with the mean colour.

    Args:
        crop_size: the window size (H, W) in pixels.
        stride: the stride as a fraction of the window size.
    """

    def __init__(self, crop_size: Sequence[int], *, stride: float = 2 / 3):
        if not 0 < stride <= 1:
            raise ValueError(f"stride is {stride}: set a fraction of the window size in (0, 1]")
        self.crop_size, self.stride = _recorded_crop_size(crop_size), stride

    def __call__(self, model: nn.Module, images: Tensor) -> Tensor:
        """Return the logits (N, K, H, W) of images (N, C, H, W)."""
        logits = None
        for tile in self.tiles(model, images):
            if logits is None:
                logits = tile.scores.new_empty(*tile.scores.shape[:-2], *images.shape[-2:])
            logits[..., tile.rows, tile.columns] = tile.scores
        assert logits is not None  # there is at least one window
        return logits

    def passes(self, size: Sequence[int]) -> int:
        """Return the number of windows in an image of size (H, W)."""
        return math.prod(len(self._windows(side, crop)) for side, crop in zip(size, self.crop_size, strict=True))

    def tiles(self, model: nn.Module, images: Tensor) -> Iterator[Tile]:
        """Yield the averaged logits of each rectangle once no further window overlaps it, row by row.

        Apart from the images, only the overlap between two rows of windows is kept in memory: K logits per pixel, over
        the width of the image and, at the default stride, a third of the window's height.

        Args:
            model: the network.
            images: (N, C, H, W) in [0, 1], or uint8, which is converted window by window on the network's device.
        """
        height, width = images.shape[-2:]
        row_windows, column_windows = self._windows(height, self.crop_size[0]), self._windows(width, self.crop_size[1])
        row_counts, column_counts = _coverage(row_windows, height), _coverage(column_windows, width)
        above: Tensor | None = None  # the sums of the rows that the next row of windows overlaps, over the full width
        for rows, bottom in zip(row_windows, _finished(row_windows), strict=True):
            below: Tensor | None = None
            left: Tensor | None = None  # the sums of the columns that the next window overlaps
            added = 0  # the end of the columns to which ``above`` has been added
            for columns, right in zip(column_windows, _finished(column_windows), strict=True):
                logits = self._window(model, images[..., rows, columns])
                if above is not None:  # before ``left``: floating-point sums depend on the order of the windows
                    sums = above[..., max(added, columns.start) : columns.stop]
                    overlap = logits[..., : above.shape[-2], logits.shape[-1] - sums.shape[-1] :]
                    overlap.copy_(sums + overlap)
                if left is not None:
                    logits[..., : left.shape[-1]] += left
                tile_height, tile_width = bottom - rows.start, right - columns.start
                if tile_height < logits.shape[-2]:
                    if below is None:
                        below = logits.new_empty(*logits.shape[:-2], logits.shape[-2] - tile_height, width)
                    below[..., columns.start : right] = logits[..., tile_height:, :tile_width]
                left, added = logits[..., tile_width:].clone(), columns.stop
                tile_rows, tile_columns = slice(rows.start, bottom), slice(columns.start, right)
                count = torch.outer(row_counts[tile_rows], column_counts[tile_columns]).to(logits)
                yield Tile(tile_rows, tile_columns, logits[..., :tile_height, :tile_width].div_(count))
            above = below

    def _window(self, model: Any, window: Tensor) -> Tensor:
        """Return the logits of a window, which is padded to the window size if the image is smaller."""
        height, width = window.shape[-2:]
        if window.dtype == torch.uint8:
            window = window.to(model.mean.device) / 255
        padding = [crop - side for side, crop in zip((height, width), self.crop_size, strict=True)]
        if any(padding):
            mean = _mean(model, window)
            window = pad(window - mean, (0, padding[1], 0, padding[0])) + mean
        return model(window)["out"].float()[..., :height, :width].clone()

    def _windows(self, side: int, crop: int) -> list[slice]:
        step = math.ceil(crop * self.stride)
        ends = [min(index * step + crop, side) for index in range(math.ceil(max(side - crop, 0) / step) + 1)]
        return [slice(max(end - crop, 0), end) for end in ends]


def _coverage(windows: Sequence[slice], side: int) -> Tensor:
    """Return the number of windows that cover each pixel along one side."""
    count = torch.zeros(side)
    for window in windows:
        count[window] += 1
    return count


def _finished(windows: Sequence[slice]) -> list[int]:
    """Return, for each window along one side, the first pixel of the next window; for the last one, its own end."""
    return [window.start for window in windows[1:]] + [windows[-1].stop]


class Letterbox:
    """Process the whole image scaled to fit a frame of fixed size, as in CE2P's evaluation on LIP.

    The image is centred and padded with the mean colour. Logits are resampled to the image's size by nearest
    neighbour, so that each pixel takes the class predicted for a frame pixel.

    Args:
        crop_size: the frame size (H, W) in pixels.
    """

    def __init__(self, crop_size: Sequence[int]):
        self.crop_size = _recorded_crop_size(crop_size)

    def __call__(self, model: nn.Module, images: Tensor) -> Tensor:
        """Return the logits (N, K, H, W) of images (N, C, H, W)."""
        placement = Placement((images.shape[-2], images.shape[-1]), self.crop_size)
        mean = _mean(model, images)
        frames = (images - mean).flatten(1, -3)  # the frames of a clip become channels
        framed = resample(frames, placement).view(*images.shape[:-2], *self.crop_size) + mean
        return restore(model(framed)["out"], placement)

    def passes(self, size: Sequence[int]) -> int:
        """Return the number of forward passes for an image of size (H, W)."""
        return 1


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
        """Return the mean logits or probabilities (N, K, H, W) of images (N, C, H, W)."""
        total = None
        for scale in self.scales:
            size = _scaled(images.shape[-2:], scale)
            check_size(size[0], size[1], f"an image at scale {scale:g}")
            scaled = _resized(images, size)
            for mirrored in (False, True) if self.flip else (False,):
                try:
                    logits = self.protocol(model, scaled.flip(-1) if mirrored else scaled).float()
                except ValueError as error:
                    raise ValueError(f"at scale {scale:g}: {error}") from error
                logits = _resized(logits, images.shape[-2:])
                if mirrored:
                    logits = self._unmirrored(logits)
                if self.average == "probabilities":
                    logits = logits.softmax(dim=1)
                total = logits if total is None else total.add_(logits)
        assert total is not None  # there is at least one scale
        return total.div_(len(self.scales) * (1 + self.flip))

    def passes(self, size: Sequence[int]) -> int:
        """Return the number of forward passes for an image of size (H, W)."""
        return (1 + self.flip) * sum(passes(self.protocol, _scaled(size, scale)) for scale in self.scales)

    def _unmirrored(self, logits: Tensor) -> Tensor:
        logits = logits.flip(-1)
        if self.flip_pairs:
            logits = logits[:, swapped_classes(logits.shape[1], self.flip_pairs).to(logits.device)]
        return logits


def passes(protocol: Protocol, size: Sequence[int]) -> int:
    """Return the number of forward passes of a protocol for an image of size (H, W)."""
    return protocol.passes(size) if isinstance(protocol, (Whole, Slide, Letterbox, MultiScale)) else 1


def check_protocol(protocol: Protocol, *, classes: int, stride: int) -> None:
    """Raise ValueError for a protocol that would fail on every image.

    Args:
        protocol: the protocol.
        classes: the network's number of classes.
        stride: its output stride, the smallest side of an image that it takes.
    """
    if isinstance(protocol, MultiScale):
        if protocol.flip:
            swapped_classes(classes, protocol.flip_pairs or ())
        check_protocol(protocol.protocol, classes=classes, stride=stride)
    elif isinstance(protocol, (Slide, Letterbox)) and min(protocol.crop_size) < stride:
        raise ValueError(
            f"protocol.crop_size={list(protocol.crop_size)} is smaller than the network's output stride {stride}: set "
            "a size of several times the stride"
        )


def averages_probabilities(protocol: Protocol) -> bool:
    """Return whether the scores of a protocol are probabilities instead of logits."""
    return isinstance(protocol, MultiScale) and protocol.average == "probabilities"


def _scaled(size: Sequence[int], scale: float) -> list[int]:
    return [max(round(side * scale), 1) for side in size]


def _recorded_crop_size(crop_size: Sequence[int] | None) -> tuple[int, int]:
    if crop_size is None:
        raise ValueError("the checkpoint does not record its training crop size: set protocol.crop_size=[H,W]")
    return checked_crop_size(crop_size)


def _mean(model: Any, images: Tensor) -> Tensor:
    """Return the network's channel means in a shape that broadcasts over images or clips."""
    return model.mean.to(images.dtype).view(-1, *[1] * (images.ndim - 2))


def _resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize images, or each frame of clips, to (H, W)."""
    if list(x.shape[-2:]) == list(size):
        return x
    frames = x.flatten(1, -3)  # no-op for images
    return interpolate(frames, torch.Size(size), mode="bilinear", align_corners=True).view(*x.shape[:-2], *size)
