"""Draw detected objects over an image: masks, boxes, class names and scores."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.ops import box_iou
from torchvision.transforms.v2.functional import InterpolationMode, resize
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from ...data.sets.colours import distinct_colours
from .fonts import text_font
from .panels import column_pixels, save_grid
from .png_files import write_png

_OPACITY = 0.45  # opacity of the masks over an image
_SAME_OBJECT = 0.5  # minimum box IoU of a prediction and a true object with the same colour
_PANEL_LINE = 16  # height of a caption in a panel, in pixels


def draw_objects(
    image: Tensor,
    objects: Mapping[str, Tensor],
    classes: Sequence[str],
    *,
    colours: Sequence[tuple[int, int, int]] | None = None,
    line: int | None = None,
) -> Tensor:
    """Return a copy of an image with masks, boxes, class names and scores drawn over it, one colour per object.

    Args:
        image: RGB uint8 (3, H, W).
        objects: "boxes" (n, 4) x1, y1, x2, y2 in pixels; "labels" (n,) from 1; "masks" (n, H, W) in {0, 1}; and
            optionally "scores" (n,) in [0, 1] and "crowds" (n,), bool.
        classes: the names of the labels 1 to K.
        colours: n RGB triples; distinct ones by default.
        line: the height of a caption in pixels; by default, one that is legible when the image fills a screen.

    Returns:
        RGB uint8 (3, H, W).
    """
    if not len(objects["labels"]):
        return image.clone()
    colours = colours or distinct_colours(len(objects["labels"]))
    drawn = image
    for mask, colour in zip(objects["masks"].bool(), colours, strict=True):  # one by one, so that overlaps stay visible
        drawn = draw_segmentation_masks(drawn, mask, alpha=_OPACITY, colors=colour)
    line = line or max(11, round(math.sqrt(image.shape[1] * image.shape[2]) / 30))  # pixels
    drawn = draw_bounding_boxes(drawn, objects["boxes"], colors=[*colours], width=max(1, line // 8))
    return _with_captions(drawn, objects["boxes"].tolist(), _captions(objects, classes), colours, line)


def _with_captions(
    image: Tensor,
    boxes: Sequence[Sequence[float]],
    captions: Sequence[str],
    colours: Sequence[tuple[int, int, int]],
    line: int,
) -> Tensor:
    """Return a copy of an image with a caption at each box, above it if there is room."""
    canvas = Image.fromarray(_pixels(image))
    draw = ImageDraw.Draw(canvas)
    font = text_font(round(0.75 * line), captions)
    taken: list[tuple[int, int, int, int]] = []
    for box, caption, colour in zip(boxes, captions, colours, strict=True):
        size = round(font.getlength(caption)) + line // 2, line
        left, top = _free_place(box, size, canvas.size, taken)
        taken.append((left, top, left + size[0], top + size[1]))
        draw.rectangle((left, top, left + size[0] - 1, top + size[1] - 1), fill=colour)
        text = "black" if np.dot(colour, (0.299, 0.587, 0.114)) > 140 else "white"
        draw.text((left + line // 4, top + line / 2), caption, fill=text, font=font, anchor="lm")
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1)


def _free_place(
    box: Sequence[float], size: tuple[int, int], limits: tuple[int, int], taken: Sequence[tuple[int, int, int, int]]
) -> tuple[int, int]:
    """Return the upper left corner of a caption: the first candidate where it overlaps no other caption.

    The candidates are above the box, where a caption does not hide a small object, inside it, below it, further up and
    further down.

    Args:
        box: x1, y1, x2, y2 of the object in pixels.
        size: (width, height) of the caption.
        limits: (width, height) of the image.
        taken: x1, y1, x2, y2 of the other captions.
    """
    (width, height), (right, bottom) = size, limits
    x1, y1, x2, y2 = (round(side) for side in box)
    rows = [y1 - height, y1, y2, *range(y1 - 2 * height, -1, -height), *range(y1 + height, bottom, height)]
    places = [(x, y) for y in rows for x in (x1, x2 - width)]
    # Keep the captions of boxes at the edge inside the image.
    places = [(max(min(x, right - width), 0), max(min(y, bottom - height), 0)) for x, y in places]

    def free(place: tuple[int, int]) -> bool:
        x, y = place
        return all(x >= t[2] or t[0] >= x + width or y >= t[3] or t[1] >= y + height for t in taken)

    return next(filter(free, places), places[0])


def matched_colours(
    truth: Mapping[str, Tensor], prediction: Mapping[str, Tensor]
) -> tuple[list[tuple[int, int, int]], list[tuple[int, int, int]]]:
    """Return colours for true and predicted objects, so that a prediction has the colour of the object it matches.

    Predictions and objects of the same class are matched greedily, in descending order of box IoU, down to an IoU of
    0.5. Unmatched predictions get colours of their own.
    """
    number = len(truth["labels"])
    colours = distinct_colours(number + len(prediction["labels"]))
    overlaps = box_iou(truth["boxes"].float(), prediction["boxes"].float())
    overlaps = overlaps * (truth["labels"][:, None] == prediction["labels"])
    own = colours[number:]
    matched: set[int] = set()
    order = overlaps.flatten().argsort(descending=True, stable=True).tolist()
    for true, predicted in (divmod(place, overlaps.shape[1]) for place in order):
        if overlaps[true, predicted] < _SAME_OBJECT:
            break
        if true not in matched and own[predicted] in colours[number:]:
            own[predicted] = colours[true]
            matched.add(true)
    return colours[:number], own


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
    rows = []
    for image, truth, prediction in samples:
        # Captions would be illegible if the drawing were scaled down to the panel.
        picture, truth, prediction = _resized(image, truth, prediction, width=column_pixels(3))
        shown = [picture]
        for objects, colours in zip((truth, prediction), matched_colours(truth, prediction), strict=True):
            shown.append(draw_objects(picture, objects, classes, colours=colours, line=_PANEL_LINE))
        rows.append([_pixels(part) for part in shown])
    save_grid(path, rows, ("image", "truth", "prediction"))


def _resized(image: Tensor, *objects: Mapping[str, Tensor], width: int) -> tuple[Any, ...]:
    """Scale an image (3, H, W) in [0, 1] and the objects in it to `width` pixels; return the image as uint8."""
    factor = width / image.shape[-1]
    size = [max(round(image.shape[-2] * factor), 1), width]
    scaled = [
        {
            **those,
            "boxes": those["boxes"] * factor,
            "masks": resize(those["masks"].to(torch.uint8), size, InterpolationMode.NEAREST),
        }
        for those in objects
    ]
    return resize((image * 255).round().to(torch.uint8), size, antialias=True), *scaled


def _captions(objects: Mapping[str, Tensor], classes: Sequence[str]) -> list[str]:
    names = [str(classes[label - 1]) for label in objects["labels"].tolist()]
    if "crowds" in objects:  # regions of many objects, which no detection is expected to match
        crowds = objects["crowds"].tolist()
        names = [f"{name} (crowd)" if crowd else name for name, crowd in zip(names, crowds, strict=True)]
    if "scores" not in objects:
        return names
    return [f"{name} {100 * score:.0f}%" for name, score in zip(names, objects["scores"].tolist(), strict=True)]


def _pixels(image: Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()
