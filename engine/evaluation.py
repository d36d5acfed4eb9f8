"""Scores of a network on a data set."""

import time
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from engine.metrics import ConfusionMatrix, Scores
from engine.protocols import Protocol


class Evaluation(NamedTuple):
    """Scores, how fast they came, and a few samples for a picture: (image, labels, prediction)."""

    scores: Scores
    images_per_s: float
    samples: list[tuple[Tensor, Tensor, Tensor]]


@torch.inference_mode()
def predict(model: nn.Module, images: Tensor, protocol: Protocol, *, bf16: bool = False) -> Tensor:
    """Images (N, 3, H, W) in [0, 1] -> class indices (N, H, W)."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
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
) -> Evaluation:
    """Evaluate ``model`` on every image of ``dataset`` at the image's own size, one image at a time.

    One at a time, because pictures differ in size, and so that a figure never depends on a batch size. The
    ``keep_samples`` samples are evenly spread: the neighbours in a video look alike.
    """
    was_training = model.training
    model.eval()
    confusion = ConfusionMatrix(len(dataset.classes), ignore_index=dataset.ignore_index, device=device)
    loader = DataLoader(
        dataset,
        batch_size=1,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # else a validation would move the generator that dropout uses
    )
    samples, apart = [], max(len(dataset) // max(keep_samples, 1), 1)
    start = time.perf_counter()
    for index, (image, labels) in enumerate(tqdm(loader, desc="validate", leave=False, dynamic_ncols=True)):
        prediction = predict(model, image.to(device, non_blocking=True), protocol, bf16=bf16)
        confusion.update(prediction, labels.to(device, non_blocking=True))
        if index % apart == 0 and len(samples) < keep_samples:
            samples.append((image[0], labels[0], prediction[0].cpu()))
    scores = confusion.scores()
    model.train(was_training)
    return Evaluation(scores, len(dataset) / (time.perf_counter() - start), samples)
