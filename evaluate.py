"""Evaluate a checkpoint on a data set.

python evaluate.py checkpoint=RUN/best                                    the one it was trained on
python evaluate.py checkpoint=RUN/best protocol=slide                     whole | slide | ms_flip | slide_ms_flip
python evaluate.py checkpoint=RUN/best root=DIR                           the data set is elsewhere now
python evaluate.py checkpoint=RUN/best dataset=camvid dataset.root=DIR    another one with the same classes
python evaluate.py checkpoint=RUN/best split=test submission=true         a zip for the benchmark's server
torchrun --nproc-per-node=8 evaluate.py checkpoint=RUN/best               shared out; the figures are the same
python evaluate.py checkpoint=FILE.pth dataset=camvid dataset.root=DIR    published weights: models/published

A network that finds objects is scored by COCO's AP, and its detections are saved in COCO's result format.
"""

import json
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import Dataset

from ccnet.conf import CONF
from ccnet.data.build import build_dataset
from ccnet.data.transforms import eval_transform
from ccnet.engine import checkpoints
from ccnet.engine.checkpoints import Checkpoint
from ccnet.engine.drawing import charts
from ccnet.engine.drawing import label_images as figures
from ccnet.engine.drawing.tables import write_csv
from ccnet.engine.evaluation import detection
from ccnet.engine.evaluation.prediction_files import PredictionFiles
from ccnet.engine.evaluation.protocols import Protocol
from ccnet.engine.evaluation.segmentation import Evaluation, evaluate
from ccnet.engine.evaluation.tasks import score_table
from ccnet.engine.runtime.atomic_files import given_path, write_text
from ccnet.engine.runtime.devices import choose_device
from ccnet.engine.runtime.distributed import processes, rank, wait_for_all
from ccnet.engine.sweeps.entry_point import entry_point


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="evaluate")
@entry_point
def main(config: DictConfig) -> float:
    """Print the scores and save them beside the checkpoint; returns the mIoU, or the mask AP."""
    path = checkpoints.find(config.checkpoint)
    saved = checkpoints.load(path, **config.published)
    config.dataset = _dataset_config(config, saved)
    if detection.finds_objects(saved):
        return detection.evaluate(config, path, saved)
    config.training_crop = saved.setting("recipe.train_transform.crop_size")
    protocol, protocol_name = _protocol(config, saved)
    dataset = build_dataset(config.dataset, config.split, eval_transform())
    if len(dataset.classes) != len(saved.classes):
        raise ValueError(
            f"{path} knows {len(saved.classes)} classes ({_few(saved.classes)}) and the data set has "
            f"{len(dataset.classes)} ({_few(dataset.classes)}): evaluate it on a data set with its own classes"
        )
    if not (dataset.has_labels or config.save_predictions or config.submission):
        raise ValueError(
            f"split={config.split} has no labels to compare with: write its predictions with submission=true or "
            "save_predictions=true, or choose a split that has them"
        )
    folder = given_path(config.output or path.parent)
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{path.stem}_{config.split}_{protocol_name}"
    files = [
        PredictionFiles(folder / f"{stem}_{kind}", dataset, submission=kind == "submission")
        for kind, wanted in (("predictions", config.save_predictions), ("submission", config.submission))
        if wanted
    ]
    in_jax = config.framework == "jax"
    with processes(torch.device("cpu") if in_jax else choose_device(config.device)) as device:
        # The precision and the memory format of the run, so that its last validation is met to the last digit.
        memory_format = torch.channels_last if saved.setting("channels_last") else torch.contiguous_format
        model = checkpoints.network(saved).to(device, memory_format=memory_format)
        if in_jax:
            from ccnet.engine.evaluation.jax_network import JaxNetwork

            model = JaxNetwork.of(model, bf16=saved.setting("bf16"), device=config.device)
        result = evaluate(
            model,
            dataset,
            protocol,
            device=device,
            bf16=saved.setting("bf16"),
            num_workers=config.num_workers,
            keep_samples=4,
            on_prediction=(lambda *found: [write(*found) for write in files]) if files else None,
        )
        wait_for_all()
        if rank() == 0:
            about = {"checkpoint": str(path), "iteration": saved.iteration, "protocol": protocol_name}
            _report(folder / stem, result, dataset, about | {"images": len(dataset)})
            for written in files:
                print(f"{'submission' if written.values is not None else 'masks':13}", end="")
                print(written.pack() if written.values is not None else written.folder)
    return result.scores.miou


def _report(stem: Path, result: Evaluation, dataset: Dataset, about: dict[str, Any]) -> None:
    """Print the scores and write ``stem`` with .csv, .json, .png and those of the confusion matrix."""
    trained = "" if about["iteration"] is None else f", iteration {about['iteration']}"
    print(f"\n{about['checkpoint']}{trained}, on {about['images']} images, {about['protocol']}")
    print(f"{result.images_per_s:.1f} images/s\n")
    measured = {"images_per_s": result.images_per_s} | (result.scores._asdict() if dataset.has_labels else {})
    write_text(stem.with_name(f"{stem.name}.json"), json.dumps(about | measured, indent=1) + "\n")
    if not dataset.has_labels:
        return
    write_csv(stem.with_name(f"{stem.name}.csv"), *result.scores.table(dataset.classes))
    counts = [[name, *line] for name, line in zip(dataset.classes, result.confusion.tolist(), strict=True)]
    write_csv(stem.with_name(f"{stem.name}_confusion.csv"), ("true / predicted", *dataset.classes), counts)
    charts.save_confusion(stem.with_name(f"{stem.name}_confusion.png"), result.confusion.numpy(), dataset.classes)
    figures.save_panel(stem.with_name(f"{stem.name}.png"), result.samples, dataset.classes, dataset.palette)
    print(score_table(result.scores, dataset.classes))
    print(f"\ntable        {stem}.csv, .json\npredictions  {stem}.png\nconfusion    {stem}_confusion.csv, .png")


def _protocol(config: DictConfig, saved: Checkpoint) -> tuple[Protocol, str]:
    """The protocol named on the command line, or that of a data set named there, or else the run's own; its name."""
    given = any(part.startswith(("protocol", "dataset=")) for part in HydraConfig.get().overrides.task)
    if given or "protocol" not in saved.config:
        return instantiate(config.protocol), HydraConfig.get().runtime.choices.protocol
    own = instantiate(saved.config["protocol"])
    return own, type(own).__name__.lower()


def _dataset_config(config: DictConfig, saved: Checkpoint) -> DictConfig:
    """The data set named on the command line, or else the checkpoint's own."""
    if any(part.startswith("dataset=") for part in HydraConfig.get().overrides.task):
        return config.dataset
    if "dataset" not in saved.config:
        raise ValueError(f"{config.checkpoint} does not tell its data set: give dataset=NAME dataset.root=DIR")
    own = OmegaConf.create(saved.config["dataset"])
    if config.root is not None:
        own.root = config.root
    return own


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


if __name__ == "__main__":
    main()
