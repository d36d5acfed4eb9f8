"""Predict the label map of an image outside any data set."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from torch import Tensor

from ..checkpoints.record import Checkpoint
from ..evaluation.cost import peak_bytes
from ..evaluation.protocols import Protocol, Slide, Tile, Whole, passes
from ..evaluation.segmentation import predict
from ..runtime.memory import available_memory
from ..runtime.progress import Progress

_SAFETY = 1.3  # factor on the estimated peak memory, which does not include the workspaces of libraries
_MANY_PASSES = 4  # minimum number of passes for a progress bar, which would otherwise only flicker
_ALWAYS_FITS = 4  # images of up to this many times the area of a training crop are processed without an estimate


class Predictor:
    """A network with its test protocol; calling it with an image returns the label map.

    Args:
        network: the torch network, or a :class:`JaxNetwork`.
        protocol: the test protocol.
        device: the device of the torch network.
        frames: the clip length T that the network was trained with; 1 for images.
        bf16: run under bfloat16 autocast.
        windows: the sliding windows to fall back to if an image is too large for :class:`Whole`; None to disable.
    """

    def __init__(
        self,
        network: Any,
        protocol: Protocol,
        *,
        device: torch.device,
        frames: int = 1,
        bf16: bool = False,
        windows: Slide | None = None,
    ):
        self.network, self.protocol = network, protocol
        self.device, self.frames, self.bf16 = device, frames, bf16
        self._channels: int = network.mean.shape[1]
        self.windows = windows if isinstance(protocol, Whole) else None
        self._needed: dict[tuple[int, int], int] = {}  # bytes for an image of size (H, W)

    @classmethod
    def of(
        cls,
        saved: Checkpoint,
        network: Any,
        *,
        device: torch.device,
        protocol: Protocol | None = None,
        bf16: bool = False,
    ) -> "Predictor":
        """Return the predictor of a checkpoint's network, with the protocol and the image format of its run.

        Args:
            saved: the checkpoint.
            network: its network, in either framework.
            device: the device of a torch network.
            protocol: the test protocol. None uses the run's own, or else :class:`Whole`; in that case, images that are
                too large for the available memory when processed whole are split into windows.
            bf16: run under bfloat16 autocast.
        """
        crop, own = saved.setting("recipe.train_transform.crop_size"), saved.config.get("protocol")
        return cls(
            network,
            protocol or (instantiate(own) if own else Whole()),
            device=device,
            frames=saved.dataset.get("frames", 1),
            bf16=bf16,
            windows=None if protocol or crop is None else Slide(crop),
        )

    def __call__(
        self,
        picture: Tensor,
        before: Sequence[Tensor] = (),
        *,
        on_tile: Callable[[Tile], None] | None = None,
        bar: str | None = None,
    ) -> np.ndarray:
        """Return the class indices (H, W) of an image, uint8.

        Args:
            picture: uint8 (C, H, W), RGB if C is 3; for a network trained on clips, the last frame of the clip.
            before: the preceding frames of the clip, in the same format; if there are too few, the first is repeated.
            on_tile: called with the scores (1, K, h, w) of each tile of the image.
            bar: the title of a progress bar over the forward passes, shown if there are many; None to disable it.
        """
        protocol = self.protocol_for(picture.shape[-2:])
        images = self._clip(picture, before) if self.frames > 1 else picture.unsqueeze(0)
        if not isinstance(protocol, Slide):
            images = images.to(self.device) / 255
        if on_tile is not None and self.frames > 1:
            on_tile = _of_last_frame(on_tile)
        with self._counted(bar, passes(protocol, picture.shape[-2:])) as network:
            labels = predict(network, images, protocol, bf16=self.bf16, device=self.device, on_tile=on_tile)
        return (labels[0] if self.frames == 1 else labels[0, -1]).cpu().numpy()

    def protocol_for(self, size: Sequence[int]) -> Protocol:
        """Return the protocol for an image of size (H, W): sliding windows if the whole image needs too much memory.

        Memory is estimated for torch networks only. A JAX network, or one whose protocol was chosen by the user, always
        runs with the protocol it was given.
        """
        if self.windows is None or not isinstance(self.network, torch.nn.Module):
            return self.protocol
        height, width = size
        if height * width <= _ALWAYS_FITS * self.windows.crop_size[0] * self.windows.crop_size[1]:
            return self.protocol
        available = available_memory(self.device)
        larger = [bytes_ for (h, w), bytes_ in self._needed.items() if h >= height and w >= width]
        if min(larger, default=available + 1) <= available:
            return self.protocol
        if (height, width) not in self._needed:
            frames = () if self.frames == 1 else (self.frames,)
            self._needed[height, width] = round(
                _SAFETY * peak_bytes(self.network, (self._channels, *frames, height, width))
            )
        return self.protocol if self._needed[height, width] <= available else self.windows

    def about_memory(self, size: Sequence[int]) -> str | None:
        """Return why an image of size (H, W) is split into windows; None if it is not, or if this was chosen."""
        windows = self.protocol_for(size)
        if windows is self.protocol or self.windows is None:
            return None
        needed, available = (
            f"{number / 1e9:.1f} GB" for number in (self._needed[size[0], size[1]], available_memory(self.device))
        )
        return (
            f"an image of {size[1]}x{size[0]} pixels needs about {needed} in one pass and {available} are free: it is "
            f"split into windows of {self.windows.crop_size[1]}x{self.windows.crop_size[0]} (protocol=slide)"
        )

    def batch(self, picture: Tensor) -> Tensor:
        """Convert a uint8 image (C, H, W) to a batch (1, C, H, W) in [0, 1] on the device."""
        return picture.unsqueeze(0).to(self.device) / 255

    @contextmanager
    def _counted(self, title: str | None, number: int) -> Generator[Any]:
        """Yield the network, wrapped so that it shows its progress if there are many passes."""
        if title is None or number < _MANY_PASSES:
            yield self.network
            return
        with Progress(title, f"{title}: pass", number, leave=False) as progress:
            yield _Counted(self.network, progress)

    def _clip(self, picture: Tensor, before: Sequence[Tensor]) -> Tensor:
        """Return the frames (1, C, T, H, W), uint8."""
        clip = [*before[-(self.frames - 1) :], picture]
        for frame in clip:
            if frame.shape != picture.shape:
                raise ValueError(
                    f"the frame has {picture.shape[2]}x{picture.shape[1]} pixels and one before it {frame.shape[2]}x"
                    f"{frame.shape[1]}: the frames of a clip must have the same size"
                )
        return torch.stack([clip[0]] * (self.frames - len(clip)) + clip, dim=1).unsqueeze(0)


class _Counted:
    """A network that shows the progress of its forward passes."""

    def __init__(self, network: Any, progress: Progress):
        self._network, self._progress = network, progress
        self.mean = network.mean

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        outputs = self._network(images)
        self._progress.advance()
        self._progress.show()
        return outputs


def _of_last_frame(on_tile: Callable[[Tile], None]) -> Callable[[Tile], None]:
    """Return a function that calls `on_tile` with the scores of the last frame of a tile of a clip."""
    return lambda tile: on_tile(tile._replace(scores=tile.scores[:, :, -1]))
