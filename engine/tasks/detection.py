"""Objects with boxes and masks."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from data.coco import instances_transform
from engine import instances
from engine.average_precision import DetectionScores, average_precision, coco_results
from engine.checkpoint import Checkpoint
from engine.evaluation import Evaluation
from engine.protocols import Whole
from models.mask_rcnn import MaskRCNN

_SHOWN = 0.5  # score from which an object is drawn


class Detection:
    """Lists of images and of targets, as in :mod:`data.coco`; scored by mask AP. See :class:`engine.tasks.Task`."""

    scores = DetectionScores

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

    @staticmethod
    def collate(samples: Sequence[tuple[Tensor, dict]]) -> tuple[list[Tensor], list[dict]]:
        """Images differ in size: lists, not stacks."""
        images, targets = zip(*samples, strict=True)
        return list(images), list(targets)

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

    def protocol(self, config: DictConfig, saved: Checkpoint) -> Whole:
        """Whole images; there is nothing else here."""
        if config.protocol._target_ != f"{Whole.__module__}.{Whole.__name__}":
            raise ValueError("Mask R-CNN sees whole images, resized as in training: leave protocol at whole")
        return Whole()

    def evaluate(
        self,
        model: nn.Module,
        dataset: Dataset,
        protocol: Whole,
        *,
        device: torch.device,
        bf16: bool = False,
        num_workers: int = 0,
        keep_samples: int = 0,
    ) -> Evaluation:
        """Average precision over all images, one at a time, and the detections in COCO's result format."""
        was_training = model.training
        model.eval()
        loader = DataLoader(
            dataset,
            batch_size=1,
            num_workers=num_workers,
            collate_fn=self.collate,
            generator=torch.Generator(),  # else a validation would move the generator that training uses
        )
        results, samples, apart = [], [], max(len(dataset) // max(keep_samples, 1), 1)
        start = time.perf_counter()
        for index, ((image,), (target,)) in enumerate(tqdm(loader, desc="validate", leave=False, dynamic_ncols=True)):
            output = _detect(model, image.to(device), bf16=bf16)
            results += coco_results(output, target["image_id"].item(), dataset.category_ids)
            if index % apart == 0 and len(samples) < keep_samples:
                samples.append((image, target, _shown(output)))
        seconds = time.perf_counter() - start
        model.train(was_training)
        scores = average_precision(dataset.ground_truth(), results)
        return Evaluation(scores, len(dataset) / seconds, samples, results)

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

    def predict(
        self, model: nn.Module, picture: Tensor, protocol: Whole, stem: Path, saved: Checkpoint, *, bf16: bool
    ) -> None:
        """Write STEM.json, the objects in COCO's result format, and STEM_overlay.png, the likely ones drawn."""
        output = _detect(model, picture.to(next(model.parameters()).device) / 255, bf16=bf16)
        found = coco_results(output, 0, range(len(saved.classes)))
        for entry in found:
            del entry["image_id"]
            entry["category"] = saved.classes[entry.pop("category_id")]
        stem.with_name(f"{stem.name}.json").write_text(json.dumps(found, indent=1) + "\n")
        drawn = instances.draw(picture.permute(1, 2, 0).numpy(), _shown(output), saved.classes)
        instances.save(stem.with_name(f"{stem.name}_overlay.png"), drawn)


@torch.inference_mode()
def _detect(model: nn.Module, image: Tensor, *, bf16: bool) -> dict[str, Tensor]:
    with torch.autocast(image.device.type, torch.bfloat16, enabled=bf16):
        return model([image])[0]


def _shown(output: dict[str, Tensor]) -> dict[str, Tensor]:
    """The objects with a score that is worth a picture, on the host, their masks in {0, 1}."""
    likely = output["scores"] >= _SHOWN
    found = {key: value[likely].cpu() for key, value in output.items()}
    return found | {"masks": (found["masks"][:, 0] > 0.5).byte()}


def _items(objects: dict[str, Tensor], names: dict[int, str]) -> list[tuple[list[float], int, str]]:
    scores = objects["scores"].tolist() if "scores" in objects else [None] * len(objects["labels"])
    return [
        (box, label, names[label] if score is None else f"{names[label]} {score:.2f}")
        for box, label, score in zip(objects["boxes"].tolist(), objects["labels"].tolist(), scores, strict=True)
    ]


def _wandb_box(box: list[float], label: int, caption: str) -> dict[str, Any]:
    position = dict(zip(("minX", "minY", "maxX", "maxY"), box, strict=True))
    return {"position": position, "domain": "pixel", "class_id": label, "box_caption": caption}
