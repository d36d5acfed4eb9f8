"""Objects with boxes and masks."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import Dataset

from ....data.sets.coco import instances_transform
from ....models.mask_rcnn import MaskRCNN
from ...drawing import objects as instances
from ..average_precision import DetectionScores
from ..detection import DetectionEvaluation, collate, evaluate_objects
from ..protocols import Protocol


class Detection:
    """Lists of images and of targets, as in :mod:`data.coco`; scored by mask AP. See :class:`engine.tasks.Task`."""

    scores = DetectionScores
    collate = staticmethod(collate)

    def check(self, config: DictConfig, model: nn.Module) -> None:
        """A network that finds objects, and that can learn."""
        if not isinstance(model, MaskRCNN):
            raise ValueError("this data set has objects, which model=mask_rcnn finds: give that, or another data set")
        backbone = config.model.backbone
        if config.model.frozen and not backbone.pretrained and backbone.weights is None:
            raise ValueError(
                "model.frozen=true keeps the backbone's first layers and its batch norm as they start, and they start "
                "at random: give pretrained weights with backbone.weights=FILE, or model.frozen=false"
            )

    def eval_transform(self) -> Callable:
        """The picture and its objects as they are."""
        return instances_transform()

    def to_device(
        self, images: list[Tensor], targets: list[dict], device: torch.device, memory_format: torch.memory_format
    ) -> tuple[list[Tensor], list[dict]]:
        """Both where the network is, which pads the images into one batch of its own."""
        images = [image.to(device, non_blocking=True) for image in images]
        return images, [{key: value.to(device, non_blocking=True) for key, value in t.items()} for t in targets]

    def forward(self, model: nn.Module, images: list[Tensor], targets: list[dict]) -> dict[str, Tensor]:
        """The network's own losses."""
        return model(images, targets)

    def cost(self, model: nn.Module, config: DictConfig) -> dict[str, float]:
        """Parameters, in millions; the rest depends on what the network finds."""
        return {"parameters": sum(parameter.numel() for parameter in model.parameters()) / 1e6}

    def evaluate(self, model: nn.Module, dataset: Dataset, protocol: Protocol, **options: Any) -> DetectionEvaluation:
        """Average precision; the network sees whole images, whatever the protocol."""
        return evaluate_objects(model, dataset, **options)

    def save_panel(self, path: Path, samples: Sequence, classes: Sequence[str], palette: Sequence) -> None:
        """Rows of picture, truth and prediction."""
        instances.save_panel(path, samples, classes)

    def wandb_panels(self, samples: Sequence, classes: Sequence[str]) -> list[tuple[np.ndarray, dict]]:
        """Boxes, which W&B draws with the class names."""
        names = {index + 1: name for index, name in enumerate(classes)}
        panels = []
        for image, *found in samples:
            boxes = {
                kind: {"box_data": [_wandb_box(*item) for item in _items(objects, names)], "class_labels": names}
                for kind, objects in zip(("truth", "prediction"), found, strict=True)
            }
            panels.append(((image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8), {"boxes": boxes}))
        return panels


def _items(objects: dict[str, Tensor], names: dict[int, str]) -> list[tuple[list[float], int, str]]:
    scores = objects["scores"].tolist() if "scores" in objects else [None] * len(objects["labels"])
    return [
        (box, label, names[label] if score is None else f"{names[label]} {score:.2f}")
        for box, label, score in zip(objects["boxes"].tolist(), objects["labels"].tolist(), scores, strict=True)
    ]


def _wandb_box(box: list[float], label: int, caption: str) -> dict[str, Any]:
    position = dict(zip(("minX", "minY", "maxX", "maxY"), box, strict=True))
    return {"position": position, "domain": "pixel", "class_id": label, "box_caption": caption}
