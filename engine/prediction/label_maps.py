"""Predict label maps with segmentation networks, and write the files that show them."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor
from tqdm import tqdm

from ...data.reading.bands import drawn_channels
from ...data.reading.frames import FrameReader
from .. import drawing
from ..checkpoints.record import Checkpoint
from ..drawing.video import Video
from ..evaluation.protocols import averages_probabilities
from .attention_maps import attention_of_point
from .ground_truth import GroundTruth
from .inputs import COMPARISON, InputImage, frames_before
from .predictor import Predictor
from .score_files import wanted_scores


class Predicted(NamedTuple):
    """An image and its predictions.

    Attributes:
        picture: the upright image, uint8 (C, H, W).
        orientation: the EXIF orientation of the file.
        labels: the label maps (H, W): the first network's and, if the image is part of the comparison, the others'.
        truth: the ground truth (H, W) if the image is part of the comparison and label images are available.
        attention: the attention maps (h, w) of the point after 1, 2, ... loops; empty if not requested.
    """

    picture: Tensor
    orientation: int
    labels: list[np.ndarray]
    truth: np.ndarray | None
    attention: list[np.ndarray]


class LabelMaps:
    """Predicts label maps and writes masks, overlays and any other requested files.

    All networks appear in the comparison; every other file shows the first network only.

    Args:
        predictors: the networks, which must have the same classes and read images in the same way.
        saved: the checkpoint of the first network.
        images: the images.
        output: the output folder.
        probabilities: the format of the probabilities to write, a key of ``FORMATS``; None to write none.
        logits: write the logits.
        attention: the point (y, x) whose attention to draw; None to draw none.
        compare_rows: the number of images to compare the networks on; 0 for no comparison.
        truth: the ground truth to show in the comparison, if any.
    """

    def __init__(
        self,
        predictors: Sequence[Predictor],
        saved: Checkpoint,
        images: Sequence[InputImage],
        output: Path,
        *,
        probabilities: str | None,
        logits: bool,
        attention: Sequence[int] | None,
        compare_rows: int,
        truth: GroundTruth | None,
    ):
        self.first, *self.others = predictors
        self.images, self.output = images, output
        self.classes, self.palette = saved.classes, saved.palette
        self.probabilities, self.logits, self.attention = probabilities, logits, attention
        self.compare_rows, self.truth = compare_rows, truth
        self._rows: list[tuple[np.ndarray, np.ndarray | None, list[np.ndarray]]] = []
        self._reduced = 0
        self._legend = drawing.VideoLegend(self.classes, self.palette)
        self._rgb = saved.drawn_channels
        self._frames = max(predictor.frames for predictor in predictors)
        self._read = FrameReader(saved.value_range, channels=saved.channels, keep=self._frames)
        self._said: set[str] = set()

    def predicted(self, index: int) -> Predicted:
        """Read image `index` and make its predictions; write the class scores if they are requested."""
        image = self.images[index]
        picture, orientation = self._read(image.path, image.frame)
        before = self._before(index, picture.shape)
        self._say(self.first.about_memory(picture.shape[-2:]))
        scores = wanted_scores(
            self.output / image.name,
            (picture.shape[-2], picture.shape[-1]),
            self.classes,
            probabilities=self.probabilities,
            logits=self.logits,
            normalised=averages_probabilities(self.first.protocol),
            orientation=orientation,
        )
        with scores as add:  # written only if everything else of this image succeeds
            labels = [self.first(picture, before, bar=image.name.name, on_tile=add)]
            truth = None
            if self._is_compared:
                labels += [other(picture, before, bar=image.name.name) for other in self.others]
                truth = self.truth.of(index, labels[0].shape) if self.truth else None
            return Predicted(picture, orientation, labels, truth, self._attention(picture))

    def _before(self, index: int, shape: Sequence[int]) -> list[Tensor]:
        """Return the frames before image `index` in its clip, back to one that is unreadable or of another shape."""
        found: list[Tensor] = []
        for frame in reversed(frames_before(self.images, index, self._frames - 1)):
            try:
                picture, _ = self._read(frame.path, frame.frame)
            except (OSError, ValueError):  # reported as a skipped image
                break
            if picture.shape != shape:
                break
            found.insert(0, picture)
        return found

    def write(self, image: InputImage, predicted: Predicted, video: Video | None) -> None:
        """Write the files of an image, and add it to the comparison and the video if there are any."""
        name, labels = image.name, predicted.labels[0]
        pixels = drawn_channels(predicted.picture, self._rgb).permute(1, 2, 0).numpy()
        drawing.save_mask(self.output / f"{name}.png", labels, self.palette, orientation=predicted.orientation)
        overlay = self.output / f"{name}_overlay.png"
        self._reduced += drawing.save_overlay(overlay, pixels, labels, self.classes, self.palette) > 1
        if self.attention is not None:
            drawing.save_attention(self.output / f"{name}_attention.png", pixels, predicted.attention, self.attention)
        if self._is_compared:
            truth = [] if predicted.truth is None else [predicted.truth]
            shown, *small = drawing.thumbnails([pixels, *predicted.labels, *truth])
            self._rows.append((shown, small.pop() if truth else None, small))
        if video:
            video.add(drawing.blend(pixels, labels, self.palette), self._legend.of(labels))

    def finish(self, names: Sequence[str]) -> list[str]:
        """Save the comparison, titled with the names of the networks, and return the summary lines to print."""
        lines: list[str] = []
        if self._rows:
            path = self.output / COMPARISON
            drawing.save_side_by_side(path, self._rows, names, self.classes, self.palette)
            lines.append(f"comparison in {path}")
        if self._reduced:
            lines.append(
                f"overlays of {self._reduced} large images are reduced to at most 33 megapixels; the masks are not"
            )
        return lines

    def _attention(self, picture: Tensor) -> list[np.ndarray]:
        if self.attention is None:
            return []
        maps = attention_of_point(self.first.network, self.first.batch(picture), self.attention)
        return [weights.cpu().numpy() for weights in maps]

    @property
    def _is_compared(self) -> bool:
        """Whether the next image will be part of the comparison."""
        return len(self._rows) < self.compare_rows

    def _say(self, reason: str | None) -> None:
        """Print a line above the progress bar, once."""
        if reason and reason not in self._said:
            tqdm.write(reason)
            self._said.add(reason)
