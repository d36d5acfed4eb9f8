"""The detection task: objects with boxes and masks."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from ....data.label_checks import differing_classes
from ....data.sets.coco import instances_transform
from ....models.mask_rcnn import MaskRCNN
from ...drawing.objects import save_object_panel
from ...runtime.atomic_files import write_json, write_text
from ..average_precision import DetectionScores
from ..detection import DetectionEvaluation, collate, evaluate_objects
from ..protocols import Protocol, Whole
from .task import score_table


class Detection:
    """Lists of images and of targets (see :mod:`ccnet.data.sets.coco`), scored by mask AP.

    See :class:`ccnet.engine.evaluation.tasks.Task`.
    """

    scores = DetectionScores
    collate = staticmethod(collate)
    predicts_label_maps = False
    eval_transform = staticmethod(instances_transform)

    def check(self, config: DictConfig, model: nn.Module) -> None:
        """Raise ValueError unless the network detects objects and every setting has an effect on it.

        Its frozen layers need pretrained weights, and the loss and the protocol are always its own.
        """
        if not isinstance(model, MaskRCNN):
            raise ValueError("this data set is for detection: set model=mask_rcnn, or choose another data set")
        if set(config.loss) != {"_target_"}:
            raise ValueError(
                "Mask R-CNN computes its own losses, to which no terms can be added: set loss=detection, and remove "
                "loss/term and loss.weights"
            )
        protocol = str(config.protocol.get("_target_")).rpartition(".")[2]
        if protocol != Whole.__name__:
            raise ValueError(
                f"Mask R-CNN processes whole images, resized as in training, which protocol={protocol.lower()} would "
                "not change: remove protocol"
            )
        backbone = config.model.backbone
        pretrained = backbone.pretrained or backbone.weights is not None or config.init is not None
        if config.model.frozen and not pretrained:
            raise ValueError(
                "model.frozen=true freezes the backbone's first layers and its batch norm, which are not pretrained "
                "here: load pretrained weights with backbone.weights=FILE, or set model.frozen=false"
            )

    def check_classes(self, known: Sequence[str], dataset: Any) -> None:
        """Raise ValueError unless the network and the data set have the same object classes."""
        if differing := differing_classes({"the checkpoint": known, "the data set": dataset.classes}):
            raise ValueError(differing[0])

    def to_device(
        self, images: list[Tensor], targets: list[dict], device: torch.device, memory_format: torch.memory_format
    ) -> tuple[list[Tensor], list[dict]]:
        """Move images and targets to the device; the network itself pads the images to form a batch."""
        images = [image.to(device, non_blocking=True) for image in images]
        return images, [{key: value.to(device, non_blocking=True) for key, value in t.items()} for t in targets]

    def forward(self, model: nn.Module, images: list[Tensor], targets: list[dict]) -> dict[str, Tensor]:
        """Return the losses, which the network computes itself."""
        return model(images, targets)

    def cost(self, model: nn.Module, config: DictConfig) -> dict[str, float]:
        """Return the number of parameters, in millions; all other costs depend on the objects in an image."""
        return {"parameters": sum(parameter.numel() for parameter in model.parameters()) / 1e6}

    def evaluate(
        self,
        model: nn.Module,
        dataset: Any,
        protocol: Protocol,
        *,
        on_prediction: Callable | None = None,
        **options: Any,
    ) -> DetectionEvaluation:
        """Score the network by average precision on whole images; `protocol` and `on_prediction` are not used."""
        return evaluate_objects(model, dataset, **options)

    def save_panel(self, path: Path, samples: Sequence, classes: Sequence[str], palette: Sequence) -> None:
        """Save a panel with one row of image, ground truth and prediction per sample."""
        save_object_panel(path, samples, classes)

    def report(self, result: DetectionEvaluation, dataset: Any, about: Mapping[str, Any]) -> str:
        """Return the scores as text."""
        return (
            f"\n{about['checkpoint']}, iteration {about['iteration']}, on {about['images']} images\n"
            f"\n{score_table(result.scores, dataset.classes)}\n\n{result.images_per_s:.1f} images/s\n"
        )

    def write_report(self, stem: Path, result: DetectionEvaluation, dataset: Any, about: Mapping[str, Any]) -> str:
        """Write the scores as .csv and .json, with a panel and the detections in COCO's results format.

        Returns:
            The names of the files.
        """
        result.scores.table(dataset.classes).write_csv(Path(f"{stem}.csv"))
        measured = {"images_per_s": result.images_per_s} | result.scores.summary() | result.scores._asdict()
        write_json(Path(f"{stem}.json"), {**about, **measured})
        write_text(Path(f"{stem}_results.json"), json.dumps(result.results))
        save_object_panel(Path(f"{stem}.png"), result.samples, dataset.classes)
        return f"table        {stem}.csv, .json\nresults      {stem}_results.json\npredictions  {stem}.png"

    def wandb_panels(self, samples: Sequence, classes: Sequence[str]) -> list[dict[str, Any]]:
        """Return the boxes of each sample, which W&B draws with the class names."""
        names = dict(enumerate(classes, 1))
        return [
            {
                "boxes": {
                    "truth": {"box_data": _wandb_boxes(truth, names), "class_labels": names},
                    "prediction": {"box_data": _wandb_boxes(prediction, names), "class_labels": names},
                }
            }
            for _, truth, prediction in samples
        ]


def _wandb_boxes(objects: dict[str, Tensor], names: dict[int, str]) -> list[dict[str, Any]]:
    """Return the boxes in W&B's format, with the class name and, for predictions, the score as the caption."""
    scores = objects["scores"].tolist() if "scores" in objects else [None] * len(objects["labels"])
    return [
        {
            "position": dict(zip(("minX", "minY", "maxX", "maxY"), box, strict=True)),
            "domain": "pixel",
            "class_id": label,
            "box_caption": names[label] if score is None else f"{names[label]} {score:.2f}",
        }
        for box, label, score in zip(objects["boxes"].tolist(), objects["labels"].tolist(), scores, strict=True)
    ]
