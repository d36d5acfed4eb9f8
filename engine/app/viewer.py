"""Compute what the page shows for an image, independently of Gradio."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw

from ...data.reading.image_files import read_image, size_of
from ..drawing import attention_title, blend, draw_attention, save_mask, save_overlay
from ..prediction import Prediction, TrainedNetwork, attention_of_point, criss_cross_of
from .legend_html import legend_html

# Maximum length in pixels of an overlay's longer side on the page. Smaller images are enlarged here, because Gradio
# reports wrong positions for clicks on an image that the browser has enlarged. Downloads keep the image's size.
_LARGEST_SHOWN = 1800
_LARGEST_ATTENTION = 640  # the same limit for attention maps
_MARK = (0, 230, 118)


@dataclass
class Answer:
    """The predictions for one image.

    Attributes:
        name: the name of the image file, without the suffix.
        pixels: the upright image, RGB uint8 (H, W, 3).
        labels: the class indices (H, W) that each network predicts.
    """

    name: str
    pixels: np.ndarray
    labels: list[np.ndarray]


class AttentionMap(NamedTuple):
    """The attention of a point after a number of loops, drawn over the image: RGB uint8 (h, w, 3), with a title."""

    image: np.ndarray
    title: str


class Viewer:
    """One or two networks, and the views of their predictions that the page shows.

    If the shorter side of an image exceeds that of a network's training crops, the image is downscaled to match it, and
    the predicted probabilities are upscaled.

    Args:
        networks: title -> network; at most two.
        max_megapixels: the maximum size of an image, in 10^6 pixels.

    Raises:
        ValueError: there are more than two networks, one of them detects objects or does not take RGB images, or they
            scale images of more than 8 bits differently.
    """

    def __init__(self, networks: dict[str, TrainedNetwork], *, max_megapixels: float = 24):
        if len(networks) > 2:
            raise ValueError(f"{len(networks)} checkpoints are set, but the page compares at most two")
        for title, network in networks.items():
            if not network.segments:
                raise ValueError(f"{title} detects objects, but the page shows label maps: use predict.py")
            if network.channels != 3:
                raise ValueError(
                    f"{title} takes images of {network.channels} channel{'s' * (network.channels > 1)}, but the page "
                    "reads RGB: use predict.py"
                )
        self.titles, self.networks = [*networks], [*networks.values()]
        self.max_megapixels = max_megapixels
        ranges = [network.value_range for network in self.networks]
        if any(value_range != ranges[0] for value_range in ranges):
            raise ValueError(
                f"the networks have dataset.value_range={ranges[0]} and {ranges[1]}, but the page reads each image "
                "once: serve them one at a time"
            )
        self._value_range = ranges[0]

    def answer(self, path: Path) -> Answer:
        """Read an image and segment it with every network.

        Raises:
            ValueError: the file is not an image, or is too large; the message is meant for the user of the page.
        """
        try:
            height, width = size_of(path)
            if height * width > 1e6 * self.max_megapixels:
                raise ValueError(
                    f"{path.name} has {width} x {height} pixels, {height * width / 1e6:.0f} megapixels, and this page "
                    f"accepts up to {self.max_megapixels:g}: scale the image down and try again"
                )
            pixels = np.ascontiguousarray(read_image(path, self._value_range).permute(1, 2, 0).numpy())
        except (ValueError, OSError) as error:
            raise ValueError(str(error).replace(str(path), path.name)) from error
        return self.predict(path.stem, pixels)

    def predict(self, name: str, pixels: np.ndarray) -> Answer:
        """Segment an RGB uint8 image (H, W, 3) with every network; for `name`, see :class:`Answer`."""
        return Answer(name, pixels, [self._labels(network, pixels) for network in self.networks])

    def overlay(self, answer: Answer, index: int, opacity: float) -> np.ndarray:
        """Blend the colours of the classes predicted by network `index` over the image, scaled for the page."""
        step = _step(answer.pixels, _LARGEST_SHOWN)
        labels = np.ascontiguousarray(answer.labels[index][::step, ::step])
        overlay = blend(_reduced(answer.pixels, step), labels, self.networks[index].palette, opacity=opacity)
        zoom = _zoom(answer.pixels)
        return overlay.repeat(zoom, axis=0).repeat(zoom, axis=1)

    def legend(self, answer: Answer, index: int) -> str:
        """Return the legend of a prediction as HTML: the predicted classes and the percentage of pixels of each."""
        network = self.networks[index]
        return legend_html(answer.labels[index], network.classes, network.palette)

    def files(self, answer: Answer, index: int, folder: Path) -> tuple[Path, Path]:
        """Write the mask and the overlay in the same form as predict.py; return their paths."""
        network, labels = self.networks[index], answer.labels[index]
        folder = folder / str(index)
        folder.mkdir(parents=True, exist_ok=True)
        mask, overlay = folder / f"{answer.name}.png", folder / f"{answer.name}_overlay.png"
        save_mask(mask, labels, network.palette)
        save_overlay(overlay, answer.pixels, labels, network.classes, network.palette)
        return mask, overlay

    def point_of(self, answer: Answer, clicked: Sequence[int]) -> tuple[int, int]:
        """Convert the position (x, y) of a click on the page's overlay to a point (y, x) in the image."""
        scale = _step(answer.pixels, _LARGEST_SHOWN) / _zoom(answer.pixels)
        height, width = answer.pixels.shape[:2]
        return min(max(int(clicked[1] * scale), 0), height - 1), min(max(int(clicked[0] * scale), 0), width - 1)

    def attention(self, answer: Answer, index: int, point: Sequence[int]) -> list[AttentionMap]:
        """Return the attention of a point after R = 1, 2, 3 loops; [] if the network has no or several such modules.

        Args:
            answer: the prediction.
            index: the index of the network.
            point: (y, x) in pixels of the image.
        """
        network = self.networks[index]
        if criss_cross_of(network.module) is None:
            return []
        (y, x), (height, width) = point, answer.pixels.shape[:2]
        scaled = self._scaled(network, answer.pixels)
        batch = torch.from_numpy(scaled).permute(2, 0, 1)[None].to(network.device) / 255
        at = [y * scaled.shape[0] // height, x * scaled.shape[1] // width]
        maps = [weights.cpu().numpy() for weights in attention_of_point(network.module, batch, at)]
        step = _step(answer.pixels, _LARGEST_ATTENTION)
        shown = _reduced(answer.pixels, step)
        return [
            AttentionMap(_marked(draw_attention(shown, weights), x // step, y // step), attention_title(loop, weights))
            for loop, weights in enumerate(maps, 1)
        ]

    def _labels(self, network: TrainedNetwork, pixels: np.ndarray) -> np.ndarray:
        prediction = network.predict(self._scaled(network, pixels))
        assert isinstance(prediction, Prediction)
        size = pixels.shape[:2]
        return prediction.labels if prediction.labels.shape == size else _enlarged(prediction, size)

    def _scaled(self, network: TrainedNetwork, pixels: np.ndarray) -> np.ndarray:
        if network.crop_size is None or min(pixels.shape[:2]) <= min(network.crop_size):
            return pixels
        factor = min(network.crop_size) / min(pixels.shape[:2])
        size = round(pixels.shape[1] * factor), round(pixels.shape[0] * factor)
        return np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0))


def _enlarged(prediction: Prediction, size: tuple[int, ...]) -> np.ndarray:
    """Upscale a prediction to (H, W): the most probable class of each pixel, among the classes that were predicted."""
    labels, most = np.zeros(size, dtype=np.uint8), np.full(size, -1, dtype=np.float32)
    for index in np.unique(prediction.labels):
        small = Image.fromarray(prediction.probabilities[index])
        probability = np.asarray(small.resize((size[1], size[0]), Image.Resampling.BILINEAR))
        labels[probability > most] = index
        np.maximum(most, probability, out=most)
    return labels


def _step(pixels: np.ndarray, largest: int) -> int:
    """Return the smallest stride at which no side of the subsampled image exceeds `largest`."""
    return -(-max(pixels.shape[:2]) // largest)


def _zoom(pixels: np.ndarray) -> int:
    """Return the factor by which a small image is enlarged on the page; 1 for a large one."""
    return max(_LARGEST_SHOWN // max(pixels.shape[:2]), 1)


def _reduced(pixels: np.ndarray, step: int) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).reduce(step)) if step > 1 else pixels


def _marked(image: np.ndarray, x: int, y: int) -> np.ndarray:
    """Return the image with a cross drawn at (x, y)."""
    picture = Image.fromarray(image)
    draw, arm = ImageDraw.Draw(picture), max(round(max(image.shape) / 50), 4)
    for width, colour in ((max(arm // 2, 3), (0, 0, 0)), (max(arm // 4, 1), _MARK)):
        draw.line((x - arm, y, x + arm, y), fill=colour, width=width)
        draw.line((x, y - arm, x, y + arm), fill=colour, width=width)
    return np.asarray(picture)
