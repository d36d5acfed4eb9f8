"""CamVid as clips: T consecutive frames of a sequence, of which the last is labelled."""

import math
from collections.abc import Sequence
from itertools import groupby, pairwise
from pathlib import Path
from statistics import mode
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from ..dataset import IGNORE_INDEX
from ..image_pairs import PairTransform
from ..reading.label_files import LabelFormat
from .camvid import CamVid, CamVidFull, frame_of


class CamVidVideo(Dataset[tuple[Tensor, Tensor]]):
    """Clips of T consecutive labelled frames, one for each labelled frame of a split.

    Only the last frame of a clip is supervised and scored, as in streaming video, and thus each frame exactly once. A
    clip never crosses a sequence boundary or a gap (an interval more than 1.5 times the usual one in the sequence: 30
    frames or 1 s in training, 2 frames or 1/15 s in validation). If fewer than T - 1 frames precede the last one, the
    first of them is repeated.

    Args:
        root: see :class:`~ccnet.data.sets.camvid.CamVid`, or with ``full`` ``CamVidFull``.
        split: "train", "val" or "test".
        frames: number of frames per clip, T.
        full: use frames of 720x960 instead of 360x480 pixels.
        transform: maps tv_tensors.Image (T, 3, H, W) and tv_tensors.Mask (T, H, W), both uint8, to a pair with the same
            axes; None returns them unchanged.
    """

    ignore_index = IGNORE_INDEX
    has_labels = True

    def __init__(
        self,
        root: str | Path | None,
        *,
        split: str,
        frames: int,
        transform: PairTransform | None,
        full: bool = False,
    ):
        if frames < 1:
            raise ValueError(f"frames is {frames}: set it to the length of a clip, 1 or more")
        self._stills = (CamVidFull if full else CamVid)(root, split=split, transform=None)
        self.classes, self.palette = self._stills.classes, self._stills.palette
        self.result_values = self._stills.result_values
        self.transform = transform
        self.clips = [_clip(run, place, frames) for run in self._runs() for place in range(len(run))]

    @classmethod
    def label_format(cls, classes: Sequence[str], *, full: bool = False, **options: Any) -> LabelFormat:
        """Return the format of the label images; see :meth:`~ccnet.data.image_pairs.ImagePairs.label_format`."""
        return (CamVidFull if full else CamVid).label_format(classes)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return an RGB clip (3, T, H, W) and its labels (T, H, W), the last frame's only, after the transform."""
        pair = self.read(index)
        images, labels = self.transform(*pair) if self.transform else pair
        return images.transpose(0, 1), labels

    def read(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        """Return uint8 frames (T, 3, H, W) and uint8 labels (T, H, W), before the transform."""
        *before, last = self.clips[index]
        image, label = self._stills.read(last)
        images = torch.stack([*(self._stills.read(still)[0] for still in before), image])
        labels = torch.full((len(images), *label.shape), IGNORE_INDEX, dtype=torch.uint8)
        labels[-1] = label
        return tv_tensors.Image(images), tv_tensors.Mask(labels)

    def read_labels(self, index: int) -> Tensor:
        """Return the labels of the last frame, uint8 (H, W), before the transform."""
        return self._stills.read_labels(self.clips[index][-1])

    def image_path(self, index: int) -> Path:
        """Return the path of the labelled frame."""
        return self._stills.image_path(self.clips[index][-1])

    def name(self, index: int) -> str:
        """Return the file name of the labelled frame without its suffix."""
        return self._stills.name(self.clips[index][-1])

    def stamp(self, index: int) -> str:
        """Return the name of the labelled frame and the sizes of its files, which determine the clip."""
        return self._stills.stamp(self.clips[index][-1])

    def masks_without_image(self) -> list[Path]:
        """Return the label images of the split whose frame is missing; SegNet's lists name those to use."""
        return getattr(self._stills, "masks_without_image", list)()

    def _runs(self) -> list[list[int]]:
        """Split the frames into runs without gaps; return the frame indices of each run."""
        frames = sorted((*frame_of(path), index) for index, (path, _) in enumerate(self._stills.pairs))
        runs: list[list[int]] = []
        for _, sequence in groupby(frames, key=lambda frame: frame[0]):
            _, numbers, indices = zip(*sequence, strict=True)
            steps = [after - before for before, after in pairwise(numbers)]
            longest = 1.5 * mode(steps or [0])
            for step, index in zip([math.inf, *steps], indices, strict=True):
                if step > longest:
                    runs.append([])
                runs[-1].append(index)
        return runs


def _clip(run: list[int], place: int, frames: int) -> list[int]:
    return [run[max(place - back, 0)] for back in reversed(range(frames))]
