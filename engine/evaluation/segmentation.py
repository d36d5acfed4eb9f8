"""Scores of a network on a data set."""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset
from tqdm import tqdm

from ...data.loader import Loader
from ..runtime.distributed import rank, world_size
from ..runtime.memory import enough_memory
from .confusion import ConfusionMatrix, Scores
from .protocols import Protocol


class Evaluation(NamedTuple):
    """Scores, how fast they came, a few samples for a picture, and the counts that the scores come from.

    Attributes:
        scores: over all processes.
        images_per_s: likewise.
        samples: (image (3, H, W), labels (H, W), prediction (H, W)) on the host; of a clip, its supervised frame.
        confusion: int64 (K, K), true class by predicted class, on the host.
    """

    scores: Scores
    images_per_s: float
    samples: list[tuple[Tensor, Tensor, Tensor]]
    confusion: Tensor


@torch.inference_mode()
def predict(model: nn.Module, images: Tensor, protocol: Protocol, *, bf16: bool = False) -> Tensor:
    """Images (N, 3, H, W) in [0, 1] -> class indices (N, H, W); clips (N, 3, T, H, W) -> (N, T, H, W).

    Raises:
        MemoryError: out of memory, with what to turn down.
    """
    size = "x".join(map(str, images.shape[-2:]))
    with (
        enough_memory(f"a picture of {size} pixels", "give protocol=slide, which cuts it up, or bf16=true"),
        torch.autocast(images.device.type, torch.bfloat16, enabled=bf16),
    ):
        return protocol(model, images).argmax(dim=1)


def evaluate(
    model: nn.Module,
    dataset: Dataset,
    protocol: Protocol,
    *,
    device: torch.device,
    bf16: bool = False,
    num_workers: int = 0,
    keep_samples: int = 0,
    on_prediction: Callable[[int, Tensor], None] | None = None,
) -> Evaluation:
    """Evaluate ``model`` on every image of ``dataset`` at the image's own size, one image at a time.

    One at a time, because pictures differ in size, and so that a figure never depends on a batch size. Several
    processes take every n-th image each and add up their counts: no image counts twice, and none is left out. The
    ``keep_samples`` samples are evenly spread: the neighbours in a video look alike.

    Args:
        on_prediction: called with the index of each image of this process and its prediction (H, W) on the host.
    """
    was_training = model.training
    model.eval()
    confusion = ConfusionMatrix(len(dataset.classes), ignore_index=dataset.ignore_index, device=device)
    own = range(rank(), len(dataset), world_size())
    loader = Loader(
        Subset(dataset, own),
        batch_size=1,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
    )
    samples, apart = [], max(len(own) // max(keep_samples, 1), 1)
    start = time.perf_counter()
    bar = tqdm(loader, desc="validate", leave=False, dynamic_ncols=True, disable=rank() > 0)
    for number, (image, labels) in enumerate(bar):
        prediction = predict(model, image.to(device, non_blocking=True), protocol, bf16=bf16)
        confusion.update(prediction, labels.to(device, non_blocking=True))
        kept = number % apart == 0 and len(samples) < keep_samples
        if kept or on_prediction:
            shown = _supervised(image[0], labels[0], prediction[0].cpu())
            if kept:
                samples.append(shown)
            if on_prediction:
                on_prediction(own[number], shown[2])
    confusion.reduce()
    scores = confusion.scores()
    model.train(was_training)
    return Evaluation(scores, len(dataset) / (time.perf_counter() - start), samples, confusion.counts.cpu())


def _supervised(image: Tensor, labels: Tensor, prediction: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A picture as it is; of a clip, the last frame, which is the one with labels."""
    return (image, labels, prediction) if labels.ndim == 2 else (image[:, -1], labels[-1], prediction[-1])
