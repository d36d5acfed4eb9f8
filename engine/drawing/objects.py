"""Draw detected objects over an image: masks, boxes, class names and scores."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from ...data.sets.folder import distinct_colours
from .png_files import write_figure, write_png

_OPACITY = 0.45  # opacity of the masks over an image
_FONT = "fonts/ttf/DejaVuSans.ttf"  # ships with matplotlib; torchvision's default font has a single, small size


def draw_objects(image: Tensor, objects: Mapping[str, Tensor], classes: Sequence[str]) -> Tensor:
    """Return a copy of an image with masks, boxes, names and scores drawn over it, one colour per object.

    Args:
        image: RGB uint8 (3, H, W).
        objects: "boxes" (n, 4) x1, y1, x2, y2 in pixels; "labels" (n,) from 1; "masks" (n, H, W) in {0, 1}; and
            optionally "scores" (n,) in [0, 1].
        classes: the names of the labels 1 to K.

    Returns:
        RGB uint8 (3, H, W).
    """
    if not len(objects["labels"]):
        return image.clone()
    colours = [(red, green, blue) for red, green, blue in distinct_colours(len(objects["labels"]))]
    drawn = image
    for mask, colour in zip(objects["masks"].bool(), colours, strict=True):  # one by one, so that overlaps stay visible
        drawn = draw_segmentation_masks(drawn, mask, alpha=_OPACITY, colors=colour)
    line = max(10, min(24, image.shape[1] // 24))  # pixels
    drawn = draw_bounding_boxes(drawn, objects["boxes"], colors=[*colours], width=max(1, line // 8))
    # Captions go above the boxes, where they do not hide small objects. torchvision draws them inside a box, so each
    # gets a box of its own, without area or outline.
    corners = objects["boxes"][:, :2] - torch.tensor([1, line])
    return draw_bounding_boxes(
        drawn,
        corners.clamp(min=0).repeat(1, 2),
        _captions(objects, classes),
        colors=[*colours],
        width=0,
        font=str(Path(matplotlib.get_data_path()) / _FONT),
        font_size=round(0.75 * line),
        label_colors=["black" if np.dot(colour, (0.299, 0.587, 0.114)) > 140 else "white" for colour in colours],
        fill_labels=True,
    )


def save_objects(path: Path, image: Tensor, objects: Mapping[str, Tensor], classes: Sequence[str]) -> None:
    """Save an image with its objects drawn over it; see :func:`draw_objects`."""
    write_png(path, Image.fromarray(_pixels(draw_objects(image, objects, classes))))


def save_object_panel(
    path: Path, samples: Sequence[tuple[Tensor, Mapping[str, Tensor], Mapping[str, Tensor]]], classes: Sequence[str]
) -> None:
    """Save a panel with one row of image, ground truth and prediction per sample.

    Args:
        path: the PNG file.
        samples: (image (3, H, W) in [0, 1], true objects, predicted objects); see :func:`draw_objects`.
        classes: the names of the labels 1 to K.
    """
    height, width = samples[0][0].shape[1:]
    figure = Figure(figsize=(12, 0.3 + len(samples) * 4.0 * height / width), layout="constrained")
    for row, (image, truth, prediction) in zip(figure.subplots(len(samples), 3, squeeze=False), samples, strict=True):
        picture = (image * 255).round().to(torch.uint8)
        columns = (picture, draw_objects(picture, truth, classes), draw_objects(picture, prediction, classes))
        for axis, shown in zip(row, columns, strict=True):
            axis.imshow(_pixels(shown))
            axis.set_axis_off()
    for axis, title in zip(figure.axes, ("image", "truth", "prediction"), strict=False):
        axis.set_title(title, fontsize=10)
    write_figure(path, figure)


def _captions(objects: Mapping[str, Tensor], classes: Sequence[str]) -> list[str]:
    names = [str(classes[label - 1]) for label in objects["labels"].tolist()]
    if "scores" not in objects:
        return names
    return [f"{name} {100 * score:.0f}%" for name, score in zip(names, objects["scores"].tolist(), strict=True)]


def _pixels(image: Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()
