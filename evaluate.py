"""Evaluate a checkpoint on a data set.

python evaluate.py checkpoint=RUN/best                                    the one it was trained on
python evaluate.py checkpoint=RUN/best protocol=slide                     whole | slide | ms_flip | slide_ms_flip
python evaluate.py checkpoint=RUN/best root=DIR                           the data set is elsewhere now
python evaluate.py checkpoint=RUN/best dataset=camvid dataset.root=DIR    another one with the same classes
python evaluate.py checkpoint=FILE.pth dataset=camvid dataset.root=DIR    published weights: models/published

A network that finds objects is scored by COCO's AP, and its detections are saved in COCO's result format.
"""

import json
from pathlib import Path

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from data.build import build_dataset
from data.transforms import eval_transform
from engine import checkpoint, detection, figures
from engine.checkpoint import Checkpoint
from engine.entry import choose_device, entry_point
from engine.evaluation import evaluate
from engine.tables import score_table, write_csv


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
@entry_point
def main(config: DictConfig) -> float:
    """Print the scores and save them beside the checkpoint; returns the mIoU, or the mask AP."""
    path = checkpoint.find(config.checkpoint)
    saved = checkpoint.load(path, **config.published)
    config.dataset = _dataset_config(config, saved)
    if detection.finds_objects(saved):
        return detection.evaluate(config, path, saved)
    config.training_crop = saved.config["recipe"]["train_transform"]["crop_size"]
    device = choose_device(config.device)
    dataset = build_dataset(config.dataset, config.split, eval_transform())
    if len(dataset.classes) != len(saved.classes):
        raise ValueError(
            f"{path} knows {len(saved.classes)} classes ({_few(saved.classes)}) and the data set has "
            f"{len(dataset.classes)} ({_few(dataset.classes)}): evaluate it on a data set with its own classes"
        )
    # The precision and the memory format of the run, so that its last validation is met to the last digit.
    memory_format = torch.channels_last if saved.config["channels_last"] else torch.contiguous_format
    model = checkpoint.network(saved).to(device, memory_format=memory_format)
    result = evaluate(
        model,
        dataset,
        instantiate(config.protocol),
        device=device,
        bf16=saved.config["bf16"],
        num_workers=config.num_workers,
        keep_samples=4,
    )

    folder = Path(config.output or path.parent).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    protocol = HydraConfig.get().runtime.choices.protocol
    stem = f"{path.stem}_{config.split}_{protocol}"
    write_csv(folder / f"{stem}.csv", *result.scores.table(dataset.classes))
    about = {"checkpoint": str(path), "iteration": saved.iteration, "protocol": protocol, "images": len(dataset)}
    text = json.dumps(about | {"images_per_s": result.images_per_s} | result.scores._asdict(), indent=1)
    (folder / f"{stem}.json").write_text(text + "\n")
    figures.save_panel(folder / f"{stem}.png", result.samples, dataset.classes, dataset.palette)
    trained = "" if saved.iteration is None else f", iteration {saved.iteration}"
    print(f"\n{path}{trained}, on {len(dataset)} images, {protocol}\n")
    print(score_table(result.scores, dataset.classes))
    print(f"\n{result.images_per_s:.1f} images/s\n")
    print(f"table        {folder / stem}.csv, .json\npredictions  {folder / stem}.png")
    return result.scores.miou


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
