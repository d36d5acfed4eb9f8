"""Load a trained network in Python and segment images with it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ...data.reading.bands import drawn_channels, pillow_channels
from ...data.reading.image_files import read_image
from ..checkpoints import networks, reading
from ..checkpoints.record import Checkpoint
from ..drawing.label_images import blend
from ..drawing.objects import draw_objects
from ..runtime.devices import choose_device
from .average_precision import MASK_THRESHOLD
from .detection import detect, likely_objects
from .predictor import Predictor, channels_of, drawn_channels_of, value_range_of
from .protocols import Tile, averages_probabilities
from .tasks import task_of


class Prediction(NamedTuple):
    """The prediction of a semantic segmentation network for one image, upright if the file has an EXIF orientation.

    Attributes:
        labels: the class of every pixel, uint8 (H, W).
        probabilities: of every class, float32 (K, H, W).
        overlay: the image with the class colours blended over it, RGB uint8 (H, W, 3).
    """

    labels: np.ndarray
    probabilities: np.ndarray
    overlay: np.ndarray


class DetectedObjects(NamedTuple):
    """The objects that a detection network finds in one image, the most likely first.

    Attributes:
        labels: class indices, int64 (n,).
        scores: in [0, 1], float32 (n,).
        boxes: x1, y1, x2, y2 in pixels, float32 (n, 4).
        masks: bool (n, H, W).
        overlay: the image with the likely objects drawn over it, RGB uint8 (H, W, 3).
    """

    labels: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    masks: np.ndarray
    overlay: np.ndarray


class TrainedNetwork:
    """A trained network with its classes; calling it is calling the torch network.

    Args:
        saved: the checkpoint.
        device: the name of a torch device; "auto" for a GPU if there is one and the CPU otherwise.

    Attributes:
        module: the torch network, in eval mode, on its device.
        device: its device.
        classes: the names of the K classes.
        palette: the RGB colours of the K classes.
    """

    def __init__(self, saved: Checkpoint, *, device: str = "auto"):
        self.device = choose_device(device)
        self.module: nn.Module = networks.network(saved).to(self.device)
        self.classes, self.palette = list(saved.classes), [list(colour) for colour in saved.palette]
        self._value_range, self._rgb = value_range_of(saved), drawn_channels_of(saved)
        self._channels = channels_of(saved)
        semantic = task_of(saved.config).predicts_label_maps
        self._predictor = Predictor.of(saved, self.module, device=self.device) if semantic else None

    def __call__(self, *inputs: Any) -> Any:
        """Return the outputs of the torch network; see :class:`models.segmentor.Segmentor`."""
        return self.module(*inputs)

    def predict(self, image: str | Path | np.ndarray | Image.Image) -> Prediction | DetectedObjects:
        """Predict one image with the protocol that the run was validated with.

        Args:
            image: the path of an image file, RGB or grey uint8 (H, W, 3) or (H, W), or a Pillow image; for a network of
                C channels, uint8 (H, W, C). OpenCV's arrays are BGR: pass ``array[..., ::-1]``.

        Returns:
            A :class:`Prediction`, or :class:`DetectedObjects` if the network detects objects.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the file is not an image, or the array is not one that this network can take.
            MemoryError: the device ran out of memory.
        """
        pixels = _pixels(image, self._value_range, self._channels)
        return self._detected(pixels) if self._predictor is None else self._segmented(pixels, self._predictor)

    def _segmented(self, pixels: Tensor, predictor: Predictor) -> Prediction:
        probabilities = np.empty((len(self.classes), *pixels.shape[1:]), dtype=np.float32)
        normalised = averages_probabilities(predictor.protocol)

        def add(tile: Tile) -> None:
            scores = tile.scores[0].float()
            probabilities[:, tile.rows, tile.columns] = (scores if normalised else scores.softmax(dim=0)).cpu()

        labels = predictor(pixels, on_tile=add)
        return Prediction(
            labels, probabilities, blend(_last_axis(drawn_channels(pixels, self._rgb)), labels, self.palette)
        )

    def _detected(self, pixels: Tensor) -> DetectedObjects:
        objects = detect(self.module, pixels.to(self.device) / 255)
        drawn = draw_objects(drawn_channels(pixels, self._rgb), likely_objects(objects), self.classes)
        found = {name: value.cpu().numpy() for name, value in objects.items()}
        masks = found["masks"][:, 0] > MASK_THRESHOLD
        return DetectedObjects(found["labels"] - 1, found["scores"], found["boxes"], masks, _last_axis(drawn))


def load(path: str | Path, *, device: str = "auto", **published: Any) -> TrainedNetwork:
    """Load the network of a training run, or of a published checkpoint.

    Args:
        path: the folder of a run (its best weights), ``RUN/last``, or a file.
        device: the name of a torch device; "auto" for a GPU if there is one and the CPU otherwise.
        **published: what cannot be inferred from a published checkpoint; see :func:`models.import_checkpoint`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a checkpoint, is damaged, or references code that is not allowed.

    Example:
        >>> network = ccnet.load("outputs/ccnet_folder/2026-11-26_10-00-00")
        >>> labels, probabilities, overlay = network.predict("photo.jpg")
    """
    return TrainedNetwork(reading.load(reading.find(path), **published), device=device)


def _pixels(image: Any, value_range: Sequence[float] | None, channels: int) -> Tensor:
    """Return an image as uint8 (C, H, W), RGB if C is 3."""
    if isinstance(image, (str, Path)):
        return read_image(Path(image).expanduser(), value_range, channels)
    if isinstance(image, Image.Image):
        if channels == 3:
            image = np.array(image if image.mode in ("RGB", "L") else image.convert("RGB"))
        else:
            image = pillow_channels(image, channels, Path("this image"))
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim not in (2, 3):
        found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"expected a path, a Pillow image, or a uint8 array (H, W, {channels}) or (H, W), got {found}")
    if image.ndim == 2 and channels in (1, 3):
        image = np.repeat(image[..., None], channels, axis=2)
    if image.ndim != 3 or image.shape[2] != channels:
        raise ValueError(f"expected an array (H, W, {channels}), or a grey one for RGB, got {image.shape}")
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)


def _last_axis(pixels: Tensor) -> np.ndarray:
    return np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())
