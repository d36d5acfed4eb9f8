"""Predict label maps and score them on a data set."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...data.reading.bands import drawn_channels
from ..runtime.memory import enough_memory
from .confusion import ConfusionMatrix, Scores
from .eval_mode import in_eval_mode
from .own_samples import own_samples
from .protocols import Protocol, Tile, tiles

_MOST_CLASSES = 256  # in a label map of uint8


class Evaluation(NamedTuple):
    """The result of a validation.

    Attributes:
        scores: the scores over the whole data set.
        images_per_s: the images evaluated per second, over all processes.
        samples: a few (image (3, H, W), labels (H, W), prediction (H, W)) on the host; for clips, the supervised frame.
        confusion: the pixel counts by true and predicted class, int64 (K, K), on the host.
    """

    scores: Scores
    images_per_s: float
    samples: list[tuple[Tensor, Tensor, Tensor]]
    confusion: Tensor


@torch.inference_mode()
def predict(
    model: Any,
    images: Tensor,
    protocol: Protocol,
    *,
    bf16: bool = False,
    device: torch.device | None = None,
    on_tile: Callable[[Tile], None] | None = None,
) -> Tensor:
    """Predict class indices: images (N, C, H, W) -> uint8 (N, H, W), clips (N, C, T, H, W) -> (N, T, H, W).

    Args:
        model: the network; a torch module or a :class:`JaxNetwork`.
        images: in [0, 1], on the network's device; :class:`Slide` also accepts uint8 on the CPU.
        protocol: the test protocol.
        bf16: run under bfloat16 autocast.
        device: the network's device; that of the images by default.
        on_tile: called with the scores of each tile of the image; see :func:`tiles`.

    Raises:
        ValueError: the network has more than 256 classes.
        MemoryError: the device ran out of memory; the message lists the settings that reduce memory use.
    """
    size = "x".join(map(str, images.shape[-2:]))
    labels = torch.empty(images.shape[:1] + images.shape[2:], dtype=torch.uint8, device=images.device)
    with (
        enough_memory(f"an image of {size} pixels", "set protocol=slide, which splits it into windows, or bf16=true"),
        torch.autocast((device or images.device).type, torch.bfloat16, enabled=bf16),
    ):
        for tile in tiles(protocol, model, images):
            if (number := tile.scores.shape[1]) > _MOST_CLASSES:
                raise ValueError(
                    f"the network has {number} classes, more than the {_MOST_CLASSES} of a uint8 label map: call the "
                    "protocol itself and take the argmax of its scores"
                )
            labels[..., tile.rows, tile.columns] = tile.scores.argmax(dim=1)
            if on_tile:
                on_tile(tile)
    return labels


def evaluate(
    model: Any,
    dataset: Any,
    protocol: Protocol,
    *,
    device: torch.device,
    bf16: bool = False,
    num_workers: int = 0,
    keep_samples: int = 0,
    on_prediction: Callable[[int, Tensor], None] | None = None,
) -> Evaluation:
    """Evaluate a network on every image of a data set, one image at a time and at its original size.

    Images are not batched: they differ in size, and scores must not depend on the batch size. With several processes,
    each takes a part of the images, and the counts are summed, so that every image is counted exactly once.

    Args:
        model: the network; a torch module or a :class:`JaxNetwork`.
        dataset: the data set.
        protocol: the test protocol.
        device: the device of the torch network.
        bf16: run under bfloat16 autocast.
        num_workers: the number of processes that load images.
        keep_samples: the number of samples to keep for drawing, evenly spaced over the data set.
        on_prediction: called with the index of each image that this process evaluates and the prediction (H, W), on
            the host.

    Raises:
        ValueError: the network and the data set differ in the number of classes, or an image or its labels do not fit;
            the message names the image.
    """
    number = len(dataset.classes)

    def check(tile: Tile) -> None:
        if (outputs := tile.scores.shape[1]) != number:
            raise ValueError(
                f"the network predicts {outputs} classes, but the data set has {number}: evaluate it on a data set "
                "with the same classes"
            )

    confusion = ConfusionMatrix(number, ignore_index=dataset.ignore_index, device=device)
    samples = []
    start = time.perf_counter()
    with in_eval_mode(model):
        for index, (image, labels), keep in own_samples(
            dataset, num_workers=num_workers, keep_samples=keep_samples, pin_memory=device.type == "cuda"
        ):
            try:
                prediction = predict(model, image.to(device, non_blocking=True), protocol, bf16=bf16, on_tile=check)
                confusion.update(prediction, labels.to(device, non_blocking=True))
            except ValueError as error:
                raise ValueError(f"image {dataset.name(index)}: {error}") from error
            if keep or on_prediction:
                picture = drawn_channels(image[0], getattr(dataset, "rgb", None))
                sample = _supervised_frame(picture, labels[0], prediction[0].cpu())
                if keep:
                    samples.append(sample)
                if on_prediction:
                    on_prediction(index, sample[2])
    confusion.reduce()
    scores = confusion.scores()
    return Evaluation(scores, len(dataset) / (time.perf_counter() - start), samples, confusion.counts.cpu())


def _supervised_frame(image: Tensor, labels: Tensor, prediction: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sample of an image unchanged; for a clip, return only its last frame, the supervised one."""
    return (image, labels, prediction) if labels.ndim == 2 else (image[:, -1], labels[-1], prediction[-1])
