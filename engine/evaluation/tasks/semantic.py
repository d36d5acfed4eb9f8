"""A class for every pixel."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import Dataset

from ....data import IGNORE_INDEX
from ....data.transforms import eval_transform
from ....models.mask_rcnn import MaskRCNN
from ...drawing import label_images as figures
from .. import segmentation
from ..confusion import Scores
from ..cost import network_cost
from ..protocols import Protocol


class Semantic:
    """Images (N, 3, H, W) and labels (N, H, W); scored by mIoU. See :class:`engine.tasks.Task`."""

    scores = Scores
    collate = None

    def check(self, config: DictConfig, model: nn.Module) -> None:
        """A network that classifies pixels, and crops that it can take."""
        if isinstance(model, MaskRCNN):
            raise ValueError(
                "model=mask_rcnn finds objects and this data set labels pixels: give dataset=coco, or another model"
            )
        crop, stride = config.recipe.train_transform.crop_size, config.model.backbone.output_stride
        if min(crop) < stride:
            raise ValueError(
                f"recipe.train_transform.crop_size={list(crop)} is smaller than the network's output stride {stride}: "
                "give a crop of several times the stride"
            )

    def eval_transform(self) -> Callable:
        """The whole picture at its own size."""
        return eval_transform()

    def to_device(
        self, images: Tensor, labels: Tensor, device: torch.device, memory_format: torch.memory_format
    ) -> tuple[Tensor, Tensor]:
        """Both where the network is."""
        layout = memory_format if images.ndim == 4 else torch.preserve_format  # clips have five axes
        images = images.to(device, memory_format=layout, non_blocking=True)
        return images, labels.to(device, non_blocking=True)

    def forward(self, model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The network's outputs."""
        return model(images)

    def cost(self, model: nn.Module, config: DictConfig) -> dict[str, float]:
        """Parameters, GFLOPs, memory: see :class:`engine.cost.Cost`."""
        return network_cost(model, (3, *config.recipe.train_transform.crop_size))._asdict()

    def evaluate(
        self, model: nn.Module, dataset: Dataset, protocol: Protocol, **options: Any
    ) -> segmentation.Evaluation:
        """Scores over all pixels."""
        return segmentation.evaluate(model, dataset, protocol, **options)

    def save_panel(self, path: Path, samples: Sequence, classes: Sequence[str], palette: Sequence) -> None:
        """Rows of picture, truth, prediction and errors."""
        figures.save_panel(path, samples, classes, palette)

    def wandb_panels(self, samples: Sequence, classes: Sequence[str]) -> list[tuple[np.ndarray, dict]]:
        """Label maps, which W&B shows with the class names."""
        names = dict(enumerate(classes)) | {IGNORE_INDEX: "ignored"}
        return [
            (
                (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8),
                {
                    "masks": {
                        "truth": {"mask_data": labels.numpy(), "class_labels": names},
                        "prediction": {"mask_data": prediction.numpy(), "class_labels": names},
                    }
                },
            )
            for image, labels, prediction in samples
        ]
