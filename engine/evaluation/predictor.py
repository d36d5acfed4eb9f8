"""Predict the label map of an image that belongs to no data set."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...data.reading.image_files import read_image
from .protocols import Protocol
from .segmentation import predict


class Predictor:
    """A network with its test protocol; calling it with an image returns the label map.

    Args:
        network: the torch network, or a :class:`JaxNetwork`.
        protocol: the test protocol.
        device: the device of the torch network.
        frames: the clip length T that the network was trained with; 1 for images.
        bf16: run under bfloat16 autocast.
    """

    def __init__(self, network: Any, protocol: Protocol, *, device: torch.device, frames: int = 1, bf16: bool = False):
        self.network, self.protocol = network, protocol
        self.device, self.frames, self.bf16 = device, frames, bf16

    def __call__(self, picture: Tensor, before: Sequence[Path] = ()) -> np.ndarray:
        """Return the class indices (H, W) of an image.

        Args:
            picture: RGB uint8 (3, H, W); for a network trained on clips, the last frame of the clip.
            before: the files of the preceding frames, which complete the clip; if there are too few, the first one is
                repeated.
        """
        image = self.batch(picture)
        if self.frames == 1:
            return predict(self.network, image, self.protocol, bf16=self.bf16)[0].cpu().numpy()
        clip = [*(self.batch(read_image(path)) for path in before[-(self.frames - 1) :]), image]
        clip = [clip[0]] * (self.frames - len(clip)) + clip
        labels = predict(self.network, torch.stack(clip, dim=2), self.protocol, bf16=self.bf16)
        return labels[0, -1].cpu().numpy()

    def batch(self, picture: Tensor) -> Tensor:
        """Convert an RGB uint8 image (3, H, W) to a batch (1, 3, H, W) in [0, 1] on the device."""
        return picture.unsqueeze(0).to(self.device) / 255
