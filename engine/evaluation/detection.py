"""Evaluating and predicting with networks that find objects."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset
from tqdm import tqdm

from ...data.build import build_dataset
from ...data.image_files import read_image
from ...data.loader import Loader
from ...data.sets.coco import instances_transform
from ..checkpoints.networks import network
from ..checkpoints.record import Checkpoint
from ..drawing import objects as instances
from ..drawing.tables import write_csv
from ..runtime.atomic_files import given_path, write_text
from ..runtime.devices import choose_device
from ..runtime.distributed import from_all, processes, rank, world_size
from .average_precision import MASK_THRESHOLD, DetectionScores, average_precision, coco_results
from .tasks import score_table

_SHOWN = 0.5  # score from which an object is drawn


class DetectionEvaluation(NamedTuple):
    """Scores, how fast they came, samples for a picture (image, target, found objects), and COCO's result format."""

    scores: DetectionScores
    images_per_s: float
    samples: list[tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]]
    results: list[dict]


def finds_objects(saved: Checkpoint) -> bool:
    """Whether the network of a checkpoint finds objects, where others label pixels."""
    return saved.config.get("task", {}).get("_target_") == "ccnet.engine.evaluation.tasks.detection.Detection"


def collate(samples: Sequence[tuple[Tensor, dict]]) -> tuple[list[Tensor], list[dict]]:
    """Images differ in size: lists, not stacks."""
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)


@torch.inference_mode()
def detect(model: nn.Module, image: Tensor, *, bf16: bool = False) -> dict[str, Tensor]:
    """RGB (3, H, W) in [0, 1] -> "boxes", "labels", "scores" and "masks" of torchvision's detection API."""
    with torch.autocast(image.device.type, torch.bfloat16, enabled=bf16):
        return model([image])[0]


def evaluate_objects(
    model: nn.Module,
    dataset: Dataset,
    *,
    device: torch.device,
    bf16: bool = False,
    num_workers: int = 0,
    keep_samples: int = 0,
) -> DetectionEvaluation:
    """Average precision over every image of ``dataset``, one image at a time.

    Several processes take every n-th image each and put together what they found, in the order of one process alone.
    """
    was_training = model.training
    model.eval()
    own = range(rank(), len(dataset), world_size())
    loader = Loader(
        Subset(dataset, own),
        batch_size=1,
        num_workers=num_workers,
        collate_fn=collate,
    )
    found, samples, apart = {}, [], max(len(own) // max(keep_samples, 1), 1)
    start = time.perf_counter()
    bar = tqdm(loader, desc="validate", leave=False, dynamic_ncols=True, disable=rank() > 0)
    for number, ((image,), (target,)) in enumerate(bar):
        output = detect(model, image.to(device, non_blocking=True), bf16=bf16)
        found[own[number]] = coco_results(output, target["image_id"].item(), dataset.category_ids)
        if number % apart == 0 and len(samples) < keep_samples:
            samples.append((image, target, _likely(output)))
    found = {index: objects for part in from_all(found) for index, objects in part.items()}
    seconds = time.perf_counter() - start
    model.train(was_training)
    results = [entry for index in sorted(found) for entry in found[index]]
    return DetectionEvaluation(
        average_precision(dataset.ground_truth(), results), len(dataset) / seconds, samples, results
    )


def evaluate(config: DictConfig, path: Path, saved: Checkpoint) -> float:
    """``evaluate.py`` for a checkpoint that finds objects: tables, results and a picture; returns the mask AP."""
    choice = HydraConfig.get().runtime.choices.protocol
    if choice != "whole":
        raise ValueError(f"protocol={choice}: Mask R-CNN sees whole images, resized as in training; leave it out")
    dataset = build_dataset(config.dataset, config.split, instances_transform())
    if list(dataset.classes) != list(saved.classes):
        raise ValueError(
            f"{path} finds other objects than the data set has ({len(saved.classes)} kinds and {len(dataset.classes)}):"
            " evaluate it on a data set with its own kinds"
        )
    folder = given_path(config.output or path.parent)
    folder.mkdir(parents=True, exist_ok=True)
    with processes(choose_device(config.device)) as device:
        result = evaluate_objects(
            network(saved).to(device),
            dataset,
            device=device,
            bf16=saved.setting("bf16"),
            num_workers=config.num_workers,
            keep_samples=4,
        )
        if not rank():
            about = {"checkpoint": str(path), "iteration": saved.iteration, "images": len(dataset)}
            _report(folder / f"{path.stem}_{config.split}", result, dataset, about)
    return result.scores.headline


def _report(stem: Path, result: DetectionEvaluation, dataset: Dataset, about: dict[str, Any]) -> None:
    """Print the scores and write ``stem`` with .csv, .json, .png, and the results in COCO's format."""
    write_csv(Path(f"{stem}.csv"), *result.scores.table(dataset.classes))
    measured = {"images_per_s": result.images_per_s} | result.scores.summary() | result.scores._asdict()
    write_text(Path(f"{stem}.json"), json.dumps(about | measured, indent=1) + "\n")
    write_text(Path(f"{stem}_results.json"), json.dumps(result.results))
    instances.save_panel(Path(f"{stem}.png"), result.samples, dataset.classes)
    print(f"\n{about['checkpoint']}, iteration {about['iteration']}, on {about['images']} images\n")
    print(score_table(result.scores, dataset.classes))
    print(f"\n{result.images_per_s:.1f} images/s\n")
    print(f"table        {stem}.csv, .json\nresults      {stem}_results.json\npredictions  {stem}.png")


def predict(config: DictConfig, saved: Checkpoint, paths: Sequence[Path], output: Path) -> None:
    """``predict.py`` for a checkpoint that finds objects: NAME.json and NAME_overlay.png of each picture."""
    device = choose_device(config.device)
    model = network(saved).to(device)
    output.mkdir(parents=True, exist_ok=True)
    for path in tqdm(paths, desc="predict", dynamic_ncols=True):
        picture = read_image(path)
        objects = detect(model, picture.to(device) / 255, bf16=config.bf16)
        found = [
            {"category": entry.pop("category_id")} | {key: value for key, value in entry.items() if key != "image_id"}
            for entry in coco_results(objects, 0, saved.classes)
        ]
        write_text(output / f"{path.stem}.json", json.dumps(found, indent=1) + "\n")
        drawn = instances.draw(picture.permute(1, 2, 0).numpy(), _likely(objects), saved.classes)
        instances.save(output / f"{path.stem}_overlay.png", drawn)
    print(f"objects of {len(paths)} pictures in {output}, those with a score of at least {_SHOWN} drawn")


def _likely(output: dict[str, Tensor]) -> dict[str, Tensor]:
    """The objects with a score that is worth a picture, on the host, their masks in {0, 1}."""
    likely = output["scores"] >= _SHOWN
    found = {key: value[likely].cpu() for key, value in output.items()}
    return found | {"masks": (found["masks"][:, 0] > MASK_THRESHOLD).byte()}
