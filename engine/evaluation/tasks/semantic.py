"""The semantic segmentation task: a class for every pixel."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from ....data import IGNORE_INDEX
from ....data.loader import stack_pairs
from ....data.transforms import as_float, eval_transform
from ....models.mask_rcnn import MaskRCNN
from ....models.parser import Parser
from ...checkpoints.networks import reordered
from ...drawing.charts import save_confusion
from ...drawing.panels import save_panel
from ...drawing.tables import Table
from ...runtime.atomic_files import write_json
from ..confusion import Scores
from ..cost import network_cost
from ..segmentation import Evaluation, evaluate
from .task import score_table


class Semantic:
    """Images (N, C, H, W) and labels (N, H, W), scored by mIoU; see :class:`ccnet.engine.evaluation.tasks.Task`."""

    scores = Scores
    collate = staticmethod(stack_pairs)
    predicts_label_maps = True
    eval_transform = staticmethod(eval_transform)
    evaluate = staticmethod(evaluate)
    save_panel = staticmethod(save_panel)

    def check(self, config: DictConfig, model: nn.Module) -> None:
        """Raise ValueError unless the network labels pixels and the recipe and the loss are valid for it."""
        if isinstance(model, MaskRCNN):
            raise ValueError(
                "model=mask_rcnn detects objects but this data set labels pixels: set dataset=coco or another model"
            )
        crop, stride = config.recipe.train_transform.get("crop_size"), config.model.backbone.output_stride
        if not crop:
            raise ValueError(
                "recipe.train_transform has no crop_size=[H,W], which the network's cost and protocol=slide need: give "
                "your transform this argument"
            )
        if min(crop) < stride:
            raise ValueError(
                f"recipe.train_transform.crop_size={list(crop)} is smaller than the network's output stride {stride}: "
                "set a crop of several times the stride"
            )
        if "terms" not in config.loss:
            raise ValueError("loss=detection is for model=mask_rcnn: set another loss, such as loss=ce")
        if isinstance(model, Parser) and "edge" not in config.loss.terms:
            raise ValueError(
                "CE2P predicts edges, which this loss would not train: set loss=parsing or loss=parsing_ccl, and also "
                "loss.weights.edge=0 to train without edges"
            )

    def check_classes(self, known: Sequence[str], dataset: Any) -> None:
        """Raise ValueError if the network and the data set differ in the number or order of their classes."""
        if len(dataset.classes) != len(known):
            raise ValueError(
                f"the checkpoint has {len(known)} classes ({_few(known)}) but the data set has "
                f"{len(dataset.classes)} ({_few(dataset.classes)}): evaluate it on a data set with the same classes"
            )
        if names := reordered(known, dataset.classes):
            raise ValueError(
                f"the checkpoint and the data set order their classes differently ({', '.join(known)} and "
                f"{', '.join(dataset.classes)}), so that predictions of {names[0]} would be scored as another class: "
                "list the classes of the data set in the order of the checkpoint"
            )

    def to_device(
        self, images: Tensor, labels: Tensor, device: torch.device, memory_format: torch.memory_format
    ) -> tuple[Tensor, Tensor]:
        """Move images and labels to the device; there, uint8 images become float32 in [0, 1]."""
        layout = memory_format if images.ndim == 4 else torch.preserve_format  # channels_last requires four axes
        images = as_float(images.to(device, memory_format=layout, non_blocking=True))
        return images, labels.to(device, non_blocking=True).long()

    def forward(self, model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the network's outputs."""
        return model(images)

    def cost(self, model: nn.Module, config: DictConfig) -> dict[str, float]:
        """Return parameters, GFLOPs and memory; see :class:`ccnet.engine.evaluation.cost.Cost`."""
        return network_cost(
            model, (config.model.backbone.get("in_channels", 3), *config.recipe.train_transform.crop_size)
        )._asdict()

    def report(self, result: Evaluation, dataset: Any, about: Mapping[str, Any]) -> str:
        """Return the scores as text; for a data set without labels, only the speed."""
        trained = "" if about["iteration"] is None else f", iteration {about['iteration']}"
        header = (
            f"\n{about['checkpoint']}{trained}, on {about['images']} images, {about['protocol']}\n"
            f"{result.images_per_s:.1f} images/s\n"
        )
        return f"{header}\n{score_table(result.scores, dataset.classes)}\n" if dataset.has_labels else header

    def write_report(self, stem: Path, result: Evaluation, dataset: Any, about: Mapping[str, Any]) -> str:
        """Write the scores as .csv and .json, with a panel and the confusion matrix, and return the names of the files.

        For a data set without labels, only the .json file is written.
        """
        measured = {"images_per_s": result.images_per_s} | (result.scores._asdict() if dataset.has_labels else {})
        write_json(Path(f"{stem}.json"), {**about, **measured})
        if not dataset.has_labels:
            return f"speed        {stem}.json"
        result.scores.table(dataset.classes).write_csv(Path(f"{stem}.csv"))
        counts = [[name, *row] for name, row in zip(dataset.classes, result.confusion.tolist(), strict=True)]
        Table(("true / predicted", *dataset.classes), counts).write_csv(Path(f"{stem}_confusion.csv"))
        save_confusion(Path(f"{stem}_confusion.png"), result.confusion.numpy(), dataset.classes)
        save_panel(Path(f"{stem}.png"), result.samples, dataset.classes, dataset.palette)
        return f"table        {stem}.csv, .json\npredictions  {stem}.png\nconfusion    {stem}_confusion.csv, .png"

    def wandb_panels(self, samples: Sequence, classes: Sequence[str]) -> list[dict[str, Any]]:
        """Return the label maps of each sample, which W&B shows with the class names."""
        names = dict(enumerate(classes)) | {IGNORE_INDEX: "ignored"}
        return [
            {
                "masks": {
                    "truth": {"mask_data": labels.numpy(), "class_labels": names},
                    "prediction": {"mask_data": prediction.numpy(), "class_labels": names},
                }
            }
            for _, labels, prediction in samples
        ]


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
