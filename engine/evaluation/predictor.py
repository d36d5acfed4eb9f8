"""Predict the label map of a picture outside of any data set."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...data.image_files import read_image
from .protocols import Protocol
from .segmentation import predict


class Predictor:
    """A network with its protocol; called with a picture, it returns the label map.

    Args:
        network: the torch network, or a :class:`JaxNetwork`.
        protocol: how an image becomes logits.
        device: the device of the torch network.
        frames: the T of the clips that the network was trained on, 1 for pictures.
        bf16: run under autocast to bfloat16.
    """

    def __init__(self, network: Any, protocol: Protocol, *, device: torch.device, frames: int = 1, bf16: bool = False):
        self.network, self.protocol = network, protocol
        self.device, self.frames, self.bf16 = device, frames, bf16

    def __call__(self, picture: Tensor, before: Sequence[Path] = ()) -> np.ndarray:
        """Return the class indices (H, W) of a picture.

        Args:
            picture: RGB uint8 (3, H, W); for a network that was trained on clips, the last frame of a clip.
            before: the files of the frames before it, which fill the clip; the first frame is repeated if there are
                too few.
        """
        image = self.batch(picture)
        if self.frames == 1:
            return predict(self.network, image, self.protocol, bf16=self.bf16)[0].cpu().numpy()
        clip = [*(self.batch(read_image(path)) for path in before[-(self.frames - 1) :]), image]
        clip = [clip[0]] * (self.frames - len(clip)) + clip
        labels = predict(self.network, torch.stack(clip, dim=2), self.protocol, bf16=self.bf16)
        return labels[0, -1].cpu().numpy()

    def batch(self, picture: Tensor) -> Tensor:
        """Return a picture RGB uint8 (3, H, W) as (1, 3, H, W) in [0, 1] on the device."""
        return picture.unsqueeze(0).to(self.device) / 255
