"""Pictures of objects: masks, boxes and names drawn over the image."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ...data.sets.folder import distinct_colours
from .label_images import write_figure, write_png

_OPACITY = 0.45  # of a mask over the picture


def draw(image: np.ndarray, objects: dict[str, Tensor], classes: Sequence[str]) -> np.ndarray:
    """Masks, boxes and names over a picture, one colour per object.

    Args:
        image: RGB uint8 (H, W, 3).
        objects: "boxes" (n, 4) x1, y1, x2, y2; "labels" (n,) from 1; "masks" (n, H, W) in {0, 1}; and "scores"
            (n,), if there are any.
        classes: names of the labels 1 to K.
    """
    blended = image.astype(np.float32)
    colours = distinct_colours(len(objects["labels"]))
    for mask, colour in zip(objects["masks"].numpy().astype(bool), colours, strict=True):
        blended[mask] = (1 - _OPACITY) * blended[mask] + _OPACITY * np.float32(colour)
    picture = Image.fromarray(blended.round().astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    line = max(10, min(24, image.shape[0] // 24))
    font = ImageFont.load_default(size=0.85 * line)
    scores = objects["scores"].tolist() if "scores" in objects else [None] * len(colours)
    for box, label, score, colour in zip(
        objects["boxes"].tolist(), objects["labels"].tolist(), scores, colours, strict=True
    ):
        text = classes[label - 1] + ("" if score is None else f" {100 * score:.0f}%")
        pen.rectangle(box, outline=colour, width=max(1, line // 8))
        left, top = box[0], max(box[1] - line, 0)
        pen.rectangle((left, top, left + font.getlength(text) + 4, top + line), fill=colour)
        light = np.dot(colour, (0.299, 0.587, 0.114)) > 140
        pen.text((left + 2, top + line // 2), text, fill="black" if light else "white", font=font, anchor="lm")
    return np.asarray(picture)


def save(path: Path, image: np.ndarray) -> None:
    """Write RGB uint8 (H, W, 3)."""
    write_png(path, Image.fromarray(image))


def save_panel(path: Path, samples: Sequence[tuple[Tensor, dict, dict]], classes: Sequence[str]) -> None:
    """Write rows of picture, truth and prediction.

    Args:
        samples: (image (3, H, W) in [0, 1], true objects, found objects); see :func:`draw`.
        classes: names of the labels 1 to K.
    """
    titles = ("image", "truth", "prediction")
    height, width = samples[0][0].shape[1:]
    figure = Figure(figsize=(12, 0.3 + len(samples) * 4.0 * height / width), layout="constrained")
    for line, (image, *found) in zip(figure.subplots(len(samples), 3, squeeze=False), samples, strict=True):
        pixels = (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        for axis, shown in zip(line, (pixels, *(draw(pixels, objects, classes) for objects in found)), strict=True):
            axis.imshow(shown)
            axis.set_axis_off()
    for axis, title in zip(figure.axes[:3], titles, strict=True):
        axis.set_title(title, fontsize=10)
    write_figure(path, figure)
