"""Paired transforms: what happens to a picture happens to its labels. Built on torchvision's v2."""

from collections.abc import Sequence

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from data import IGNORE_INDEX

# Padding in the colour that normalises to about zero, as in the authors' code.
_MEAN_COLOUR = [124, 116, 104]


class RandomScale(v2.Transform):
    """Resize by a random factor: pictures bilinearly, labels to the nearest pixel.

    Args:
        scale: smallest and largest factor, drawn evenly between.
        short_sides: alternatively, lengths of the short side in pixels, one of which is drawn.
    """

    def __init__(self, scale: Sequence[float] | None = None, short_sides: Sequence[int] | None = None):
        super().__init__()
        if (scale is None) == (short_sides is None):
            raise ValueError(f"give either scale or short_sides, got {scale} and {short_sides}")
        self.scale, self.short_sides = scale, short_sides

    def make_params(self, flat_inputs: list) -> dict:
        """Draw the size (H, W) for one sample."""
        height, width = v2.functional.get_size(flat_inputs[0])
        if self.short_sides is None:
            low, high = self.scale
            factor = low + (high - low) * torch.rand(()).item()
        else:
            factor = self.short_sides[int(torch.randint(len(self.short_sides), ()))] / min(height, width)
        return {"size": [max(round(height * factor), 1), max(round(width * factor), 1)]}

    def transform(self, inpt, params: dict):
        """Called by v2 for each of picture and labels, with the same size."""
        return self._call_kernel(v2.functional.resize, inpt, size=params["size"], antialias=True)


def train_transform(
    *,
    crop_size: Sequence[int],
    scale: Sequence[float] | None = None,
    short_sides: Sequence[int] | None = None,
    flip: float = 0.5,
    color_jitter: Sequence[float] | None = None,
) -> v2.Compose:
    """Random scale, random crop with padding, flip, colour jitter; then RGB in [0, 1].

    Args:
        crop_size: (H, W) in pixels. Smaller pictures are padded, labels with ``IGNORE_INDEX``.
        scale, short_sides: of :class:`RandomScale`; neither leaves the size alone.
        flip: probability of a horizontal flip.
        color_jitter: brightness, contrast, saturation and hue of torchvision's ``ColorJitter``.
    """
    steps = []
    if scale is not None or short_sides is not None:
        steps.append(RandomScale(scale, short_sides))
    fill = {tv_tensors.Image: _MEAN_COLOUR, tv_tensors.Mask: IGNORE_INDEX}
    steps.append(v2.RandomCrop(tuple(crop_size), pad_if_needed=True, fill=fill))
    if flip:
        steps.append(v2.RandomHorizontalFlip(flip))
    if color_jitter is not None:
        steps.append(v2.ColorJitter(*color_jitter))
    return v2.Compose([*steps, *_to_float()])


def eval_transform() -> v2.Compose:
    """The whole picture at its own size; RGB in [0, 1]."""
    return v2.Compose(_to_float())


def _to_float() -> list[v2.Transform]:
    # Labels keep their integers: only pictures are scaled and cast.
    dtype = {tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64, "others": None}
    return [v2.ToDtype(dtype, scale=True), v2.ToPureTensor()]
