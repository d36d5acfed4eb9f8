"""Load a trained network in Python, segment images with it, and share it."""

import reprlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from huggingface_hub import ModelHubMixin
from PIL import Image
from torch import Tensor, nn

from ...data.reading.bands import drawn_channels
from ...data.reading.grey_levels import sample_format
from ...data.reading.image_files import array_image, in_channels, read_image
from ..checkpoints import networks, reading
from ..checkpoints.folders import write_folder
from ..checkpoints.model_card import model_card
from ..checkpoints.pretrained import DOWNLOAD_OPTIONS, PACKAGED, download
from ..checkpoints.record import Checkpoint
from ..drawing.label_images import blend
from ..drawing.objects import draw_objects
from ..evaluation.average_precision import MASK_THRESHOLD
from ..evaluation.detection import detect, likely_objects
from ..evaluation.eval_mode import in_eval_mode
from ..evaluation.protocols import Tile, averages_probabilities
from ..evaluation.tasks import task_of
from ..runtime.atomic_files import given_path, write_text
from ..runtime.devices import choose_device
from ..runtime.run_folder import holds_run
from .predictor import Predictor

CARD = "README.md"


class Prediction(NamedTuple):
    """The prediction of a semantic segmentation network for one image, in upright orientation.

    Attributes:
        labels: the class of every pixel, uint8 (H, W).
        probabilities: the probability of every class at every pixel, float32 (K, H, W).
        overlay: the image with the class colours blended over it, RGB uint8 (H, W, 3).
    """

    labels: np.ndarray
    probabilities: np.ndarray
    overlay: np.ndarray


class DetectedObjects(NamedTuple):
    """The objects that a detection network finds in one image, in descending order of their scores.

    Attributes:
        labels: class indices, int64 (n,).
        scores: confidences in [0, 1], float32 (n,).
        boxes: x1, y1, x2, y2 in pixels, float32 (n, 4).
        masks: the pixels of each object, bool (n, H, W).
        overlay: the image with the likely objects drawn over it, RGB uint8 (H, W, 3).
    """

    labels: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    masks: np.ndarray
    overlay: np.ndarray


class TrainedNetwork(ModelHubMixin, library_name="ccnet"):
    """A trained network with its classes; calling it runs the torch network.

    ``save_pretrained(FOLDER)`` writes config.json, model.safetensors and a model card, which
    ``push_to_hub("OWNER/NAME")`` uploads to Hugging Face; see ``huggingface_hub.ModelHubMixin`` for their options. The
    weights are in float32, and the card lacks the run's records, unlike those of publish.py.

    Args:
        saved: the checkpoint.
        device: the name of a torch device; "auto" for a GPU if there is one and the CPU otherwise.

    Attributes:
        module: the torch network, in eval mode, on its device.
        device: its device.
        classes: the names of the K classes.
        palette: the RGB colours of the K classes.
        crop_size: the size (H, W) of the training crops; None if a published checkpoint does not record it.
        dataset: the configuration of the data set that the network was trained on.
        segments: whether it predicts label maps; False if it detects objects.
        channels: the number of input channels C.
        value_range: the values of black and white in images of more than 8 bits; None for the full range of 16 bits.
    """

    _hub_mixin_config = {}  # noqa: RUF012, else the mixin would copy the arguments of __init__, tensors included

    def __init__(self, saved: Checkpoint, *, device: str = "auto"):
        self._saved = replace(saved, weights={}, training={})
        self.device = choose_device(device)
        self.module: nn.Module = networks.network(saved).to(self.device)
        self._loaded = _structure(self.module)
        self.classes, self.palette = list(saved.classes), [list(colour) for colour in saved.palette]
        self.crop_size = saved.config.get("recipe", {}).get("train_transform", {}).get("crop_size")
        self.dataset, self.channels, self.value_range = saved.dataset, saved.channels, saved.value_range
        self._rgb = saved.drawn_channels
        self.segments = task_of(saved.config).predicts_label_maps
        self._predictor = Predictor.of(saved, self.module, device=self.device) if self.segments else None

    def __call__(self, *inputs: Any) -> Any:
        """Return the outputs of the torch network; see :class:`ccnet.models.segmentor.Segmentor`."""
        return self.module(*inputs)

    def __repr__(self) -> str:
        classes = reprlib.repr(self.classes)  # shortened if there are many
        return f"TrainedNetwork(source={self._saved.source}, classes={classes}, device={self.device})"

    def predict(self, image: str | Path | np.ndarray | Image.Image) -> Prediction | DetectedObjects:
        """Predict one image with the protocol that the run was validated with, in eval mode.

        Args:
            image: the path of an image file, a Pillow image, or an array (H, W, C) or (C, H, W) of the C channels that
                the network takes, or (H, W) if C is 1 or 3. A file is turned upright as its EXIF orientation says; a
                Pillow image is not, but ``PIL.ImageOps.exif_transpose`` does it. An array is treated like one in a
                ``.npy`` file: uint8 values are used as is, and other types are scaled as in training. Three channels
                are RGB; OpenCV's arrays are BGR, so pass ``array[..., ::-1]``.

        Returns:
            A :class:`Prediction`, or :class:`DetectedObjects` if the network detects objects.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the file is not an image, or this network cannot take the array.
            MemoryError: the device ran out of memory.
        """
        pixels = _pixels(image, self.value_range, self.channels)
        with in_eval_mode(self.module):
            return self._detect(pixels) if self._predictor is None else self._segment(pixels, self._predictor)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> "TrainedNetwork":
        """Load a network; see :func:`from_pretrained`."""
        return from_pretrained(pretrained_model_name_or_path, **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        if holds_run(save_directory):
            raise ValueError(
                f"{save_directory} holds a run, whose folder would no longer stand for its best weights: choose another"
            )
        if changed := [name for name, _ in self._loaded.items() ^ _structure(self.module).items()]:
            raise ValueError(
                f"config.json would not describe this network, because {min(changed)} was changed after it was loaded: "
                "save module.state_dict() instead"
            )
        saved = replace(self._saved, weights=self.module.state_dict())
        write_folder(saved, save_directory)
        if not (card := save_directory / CARD).exists():
            write_card(saved, save_directory)
        elif card.read_text(encoding="utf-8", errors="replace") != _card(saved, save_directory):
            warnings.warn(
                f"{card} is kept, although it may describe another network: delete it to write a new one", stacklevel=3
            )

    def _segment(self, pixels: Tensor, predictor: Predictor) -> Prediction:
        probabilities = np.empty((len(self.classes), *pixels.shape[1:]), dtype=np.float32)
        normalised = averages_probabilities(predictor.protocol)

        def add(tile: Tile) -> None:
            if (number := tile.scores.shape[1]) != len(self.classes):
                raise ValueError(
                    f"the network returns {number} classes, but has {len(self.classes)} names: set the attributes "
                    "classes and palette to those of the replaced classifier"
                )
            scores = tile.scores[0].float()
            probabilities[:, tile.rows, tile.columns] = (scores if normalised else scores.softmax(dim=0)).cpu()

        labels = predictor(pixels, on_tile=add)
        return Prediction(
            labels, probabilities, blend(_last_axis(drawn_channels(pixels, self._rgb)), labels, self.palette)
        )

    def _detect(self, pixels: Tensor) -> DetectedObjects:
        objects = detect(self.module, pixels.to(self.device) / 255)
        drawn = draw_objects(drawn_channels(pixels, self._rgb), likely_objects(objects), self.classes)
        arrays = {name: value.cpu().numpy() for name, value in objects.items()}
        masks = arrays["masks"][:, 0] > MASK_THRESHOLD
        return DetectedObjects(arrays["labels"] - 1, arrays["scores"], arrays["boxes"], masks, _last_axis(drawn))


def _structure(network: nn.Module) -> dict[str, Any]:
    """Return what the configuration fixes but a user can change: the shapes of the weights, and every R."""
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    modules = [(name, module) for name, module in network.named_modules() if hasattr(module, "recurrence")]
    return shapes | {f"{name}.recurrence": module.recurrence for name, module in modules}


def load(path: str | Path, *, device: str = "auto", **published: Any) -> TrainedNetwork:
    """Load the network of a training run or of a published checkpoint.

    Args:
        path: the folder of a run (its best weights), ``RUN/last``, or a file.
        device: the name of a torch device; "auto" for a GPU if there is one and the CPU otherwise.
        **published: what cannot be inferred from a published checkpoint; see :func:`ccnet.import_checkpoint`.

    Returns:
        A :class:`TrainedNetwork`: ``predict(IMAGE)`` segments an image, ``module`` is the torch network in eval mode.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a checkpoint, is damaged, or references code that is not allowed; or ``published``
            is set for the checkpoint of a run.

    Example:
        >>> network = ccnet.load("outputs/ccnet_folder/2026-11-26_10-00-00")
        >>> labels, probabilities, overlay = network.predict("photo.jpg")
    """
    saved = reading.load(reading.find(path), **published)
    reading.check_published([saved], [*published])
    return TrainedNetwork(saved, device=device)


def from_pretrained(name: str | Path, *, device: str = "auto", **options: Any) -> TrainedNetwork:
    """Load a pretrained network; packaged and local networks need no internet access.

    The configurations of folders and repositories may only reference the classes that checkpoints may reference.

    Args:
        name: "ccnet_mobilenetv2_camvid"; a folder written by ``save_pretrained``, or anything else that :func:`load`
            accepts; or a Hugging Face repository "OWNER/NAME", unless there is a folder of this name.
        device: the name of a torch device; "auto" for a GPU if there is one and the CPU otherwise.
        **options: options of the download, which local networks ignore: ``revision``, ``token``, ``cache_dir``,
            ``local_files_only`` and ``force_download``; or those of :func:`load` for a published checkpoint.

    Returns:
        A :class:`TrainedNetwork`, as from :func:`load`.

    Raises:
        FileNotFoundError: there is no such network.
        ValueError: its files are damaged, or reference code that is not allowed.
        OSError: it cannot be downloaded.

    Example:
        >>> network = ccnet.from_pretrained("ccnet_mobilenetv2_camvid")
        >>> labels, probabilities, overlay = network.predict("photo.jpg")
    """
    downloading = {key: options.pop(key) for key in DOWNLOAD_OPTIONS if key in options}
    is_local = name in PACKAGED or given_path(name).exists()
    return load(name if is_local else download(str(name), **downloading), device=device, **options)


def write_card(
    saved: Checkpoint, folder: Path, *, scored_on: str = "", record: Mapping[str, Any] | None = None
) -> None:
    """Write the model card of a network to README.md in its folder; see :func:`model_card`."""
    write_text(folder / CARD, _card(saved, folder, scored_on=scored_on, record=record))


def _card(saved: Checkpoint, folder: Path, *, scored_on: str = "", record: Mapping[str, Any] | None = None) -> str:
    """Return the text of the model card of a network in a folder; see :func:`model_card`."""
    try:
        scores = task_of(saved.config).scores(**saved.scores).table(saved.classes)
    except (TypeError, ValueError):  # a published checkpoint has none, and those of an untrusted one may be invalid
        scores = None
    return model_card(saved, folder.resolve().name, scores=scores, scored_on=scored_on, record=record or {})


def _pixels(image: Any, value_range: Sequence[float] | None, channels: int) -> Tensor:
    """Return an image as uint8 (C, H, W), RGB if C is 3, as :func:`read_image` returns it from a file."""
    if isinstance(image, (str, Path)):
        return read_image(given_path(image), value_range, channels)
    if isinstance(image, np.ndarray):
        return array_image(image, value_range, channels, "this array")
    if not isinstance(image, Image.Image):
        raise ValueError(f"expected a path, a Pillow image, or an array (H, W, {channels}), got {type(image).__name__}")
    samples = sample_format(image)
    pixels = in_channels(image.copy(), samples, value_range, channels, Path("this image"))
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)


def _last_axis(pixels: Tensor) -> np.ndarray:
    return np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())
