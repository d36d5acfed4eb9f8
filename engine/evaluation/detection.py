"""Detect objects and score the detections on a data set."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ...data.reading.bands import drawn_channels
from ...data.reading.image_files import as_stored
from ..runtime.distributed import from_all
from .average_precision import MASK_THRESHOLD, DetectionScores, average_precision, coco_results
from .eval_mode import in_eval_mode
from .own_samples import own_samples

DRAWN_SCORE = 0.5  # the minimum score of the objects that are drawn


class DetectionEvaluation(NamedTuple):
    """The result of a validation.

    Attributes:
        scores: the scores over the whole data set.
        images_per_s: the images evaluated per second, over all processes.
        samples: (image (3, H, W), true objects, detected objects) of a few samples to draw, on the host.
        results: every detection in COCO's results format.
    """

    scores: DetectionScores
    images_per_s: float
    samples: list[tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]]
    results: list[dict]


def collate(samples: Sequence[tuple[Tensor, dict]]) -> tuple[list[Tensor], list[dict]]:
    """Collate samples into a list of images and a list of targets, because images differ in size."""
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)


@torch.inference_mode()
def detect(model: nn.Module, image: Tensor, *, bf16: bool = False) -> dict[str, Tensor]:
    """Return "boxes", "labels", "scores" and "masks" of an image (C, H, W) in [0, 1], in torchvision's format."""
    with torch.autocast(image.device.type, torch.bfloat16, enabled=bf16):
        return model([image])[0]


def as_stored_objects(objects: dict[str, Tensor], orientation: int) -> dict[str, Tensor]:
    """Map the objects of an upright image back to the pixel orientation stored in its file.

    Args:
        objects: "boxes" (n, 4) and "masks" (n, 1, H, W); any other entries are passed through unchanged.
        orientation: the EXIF orientation of the image.
    """
    if orientation == 1:
        return objects
    height, width = objects["masks"].shape[-2:]
    x, y = objects["boxes"][:, 0::2], objects["boxes"][:, 1::2]  # (n, 2): both corners
    left, up = width - x, height - y
    corners = {2: (left, y), 3: (left, up), 4: (x, up), 5: (y, x), 6: (y, left), 7: (up, left), 8: (up, x)}
    x, y = corners.get(orientation, (x, y))
    boxes = torch.stack([x.amin(dim=1), y.amin(dim=1), x.amax(dim=1), y.amax(dim=1)], dim=1)
    masks = torch.from_numpy(np.ascontiguousarray(as_stored(objects["masks"].cpu().numpy(), orientation)))
    return objects | {"boxes": boxes, "masks": masks}


def evaluate_objects(
    model: nn.Module,
    dataset: Any,
    *,
    device: torch.device,
    bf16: bool = False,
    num_workers: int = 0,
    keep_samples: int = 0,
) -> DetectionEvaluation:
    """Compute a network's average precision on a data set, one image at a time.

    With n processes, each takes every n-th image; the detections are gathered in the order of the data set.

    Args:
        model: the network.
        dataset: the data set, with ``category_ids`` and ``ground_truth()``.
        device: the device of the network.
        bf16: run under bfloat16 autocast.
        num_workers: the number of processes that load images.
        keep_samples: the number of samples to keep for drawing, evenly spaced over the data set.
    """
    found, samples = {}, []
    start = time.perf_counter()
    with in_eval_mode(model):
        for index, ((image,), (target,)), keep in own_samples(
            dataset, num_workers=num_workers, keep_samples=keep_samples, collate_fn=collate
        ):
            output = detect(model, image.to(device, non_blocking=True), bf16=bf16)
            found[index] = coco_results(output, target["image_id"].item(), dataset.category_ids)
            if keep:
                samples.append((drawn_channels(image, getattr(dataset, "rgb", None)), target, likely_objects(output)))
    found = {index: objects for part in from_all(found) for index, objects in part.items()}
    seconds = time.perf_counter() - start
    results = [entry for index in sorted(found) for entry in found[index]]
    return DetectionEvaluation(
        average_precision(dataset.ground_truth(), results), len(dataset) / seconds, samples, results
    )


def likely_objects(output: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the objects whose scores are high enough to draw, on the host, with masks (n, H, W) in {0, 1}."""
    likely = output["scores"] >= DRAWN_SCORE
    found = {key: value[likely].cpu() for key, value in output.items()}
    return found | {"masks": (found["masks"][:, 0] > MASK_THRESHOLD).byte()}
