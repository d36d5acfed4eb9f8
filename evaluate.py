"""Evaluate a checkpoint on a data set.

python evaluate.py checkpoint=RUN/best                                    on the data set it was trained on
python evaluate.py checkpoint=RUN/best protocol=slide                     whole | slide | ms_flip | slide_ms_flip
python evaluate.py checkpoint=RUN/best dataset.root=DIR                   if the data set has moved
python evaluate.py checkpoint=RUN/best dataset=camvid dataset.root=DIR    on another data set with the same classes
python evaluate.py checkpoint=RUN/best split=all dataset=folder dataset.images=DIR dataset.masks=DIR   your own images
python evaluate.py checkpoint=RUN/best split=test submission=true         an archive for the benchmark server
torchrun --nproc-per-node=8 evaluate.py checkpoint=RUN/best               images split across eight GPUs; same scores
python evaluate.py checkpoint=FILE.pth dataset=camvid dataset.root=DIR    published weights: see models/published

Detection networks are scored by COCO AP, and their detections are saved in COCO's results format.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from ccnet import data
from ccnet.engine import checkpoints, evaluation, guards, runtime, training
from ccnet.engine.commands.entry_point import entry_point

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ccnet.data import SegmentationDataset
    from ccnet.engine.checkpoints import Checkpoint
    from ccnet.engine.evaluation import PredictionFiles, Task

# Options that an evaluation uses; the configuration has all those of train.py.
_USED = (
    "checkpoint", "split", "output", "save_predictions", "submission", "dataset", "protocol", "published", "framework",
    "device", "bf16", "num_workers", "collective_timeout",
)  # fmt: skip


@entry_point("evaluate")
def main(config: DictConfig) -> float:
    """Print the scores and save them, by default next to the checkpoint; return the mIoU or mask AP."""
    given = runtime.given_options()
    _check_options(given)
    path = checkpoints.find(config.checkpoint)
    if "dataset" in given:
        data.check_root(config.dataset, [config.split])
    saved = checkpoints.load(path, **config.published)
    checkpoints.check_published([saved])
    task = evaluation.task_of(saved.config)
    _check_outputs(config, task)
    config = _completed(config, saved, task)
    bf16 = config.bf16 if "bf16" in given else saved.setting("bf16")
    protocol_node, protocol_name = _protocol_node(config, saved, task)
    protocol = instantiate(protocol_node)
    dataset: Any = data.build_dataset(config.dataset, config.split, task.eval_transform())
    task.check_classes(saved.classes, dataset)
    framework = training.choose_framework(config.framework, config.device)
    with runtime.processes(framework.device, timeout=config.collective_timeout), ExitStack() as held:
        # Hydra's folder contains the time, which differs between processes.
        stem = runtime.from_first(_stem(config, path, protocol_name if task.predicts_label_maps else ""))
        about = _subject(config, saved, path, protocol_node, bf16)
        with _writable(stem.parent):
            if runtime.rank() == 0:
                held.enter_context(runtime.FolderLock(stem.parent, "output", stem.name))
        evaluation.check_replaceable(Path(f"{stem}.json"), about)
        with _writable(stem.parent):
            files = _prediction_files(config, stem, dataset) if task.predicts_label_maps else []
            stem.parent.mkdir(parents=True, exist_ok=True)

        def write_prediction(index: int, labels: "Tensor") -> None:
            for predictions in files:
                predictions.write(index, labels)

        result = task.evaluate(
            framework.evaluated(_network(saved), bf16=bf16),
            dataset,
            protocol,
            device=framework.device,
            bf16=bf16,
            num_workers=config.num_workers,
            keep_samples=4,
            on_prediction=write_prediction if files else None,
        )
        runtime.wait_for_all()
        if runtime.rank() == 0:
            about |= {"iteration": saved.iteration, "protocol": protocol_name, "images": len(dataset)}
            print(task.report(result, dataset, about))
            _write_results(task, result, dataset, stem, about, files)
    return result.scores.headline


def _check_options(given: Mapping[str, Any]) -> None:
    """Raise ValueError if an option on the command line would have no effect because the checkpoint determines it."""
    wrong = [name for name in given if name.lstrip("~").partition(".")[0] not in _USED]
    if wrong:
        raise ValueError(
            f"{', '.join(wrong)} cannot be set here, because the checkpoint determines the network and its settings: "
            f"remove it. evaluate.py uses {', '.join(_USED)}"
        )
    unused = [name for name in given if name.startswith("dataset.") and not _is_location(name)]
    if unused and "dataset" not in given:
        raise ValueError(
            f"{', '.join(unused)} cannot be set without dataset=NAME, because the data set is that of the checkpoint: "
            "remove it, or set dataset=NAME, too"
        )


def _check_outputs(config: DictConfig, task: "Task") -> None:
    """Raise ValueError for options that only apply to networks that label pixels."""
    if not task.predicts_label_maps and (config.save_predictions or config.submission):
        raise ValueError(
            "save_predictions and submission are for networks that label pixels: remove them; detections are always "
            "saved in COCO's results format"
        )


def _is_location(option: str) -> bool:
    return bool(checkpoints.locations_in({option: "set"}))


def _completed(config: DictConfig, saved: "Checkpoint", task: "Task") -> DictConfig:
    """Return the configuration with what the checkpoint determines: the data set, its channels, the crop size.

    Raises:
        ValueError: an argument of the data set or the protocol has the wrong type.
    """
    crop = saved.setting("recipe.train_transform.crop_size") if task.predicts_label_maps else None
    channels = {"in_channels": saved.channels}  # determines how the data set reads images
    config = guards.replaced(config, dataset=_dataset_node(config, saved), training_crop=crop, backbone=channels)
    guards.check_settings({"dataset": guards.plain(config.dataset)}, from_checkpoint=True)
    protocol = guards.plain(config.protocol)  # explains itself if the crop size of the checkpoint is null
    guards.check_settings({"protocol": {name: value for name, value in protocol.items() if value is not None}})
    return config


def _dataset_node(config: DictConfig, saved: "Checkpoint") -> Any:
    """Return the ``dataset`` node: the command line's if it names a data set, otherwise the checkpoint's.

    If both are of the same class, options not set on the command line are taken from the checkpoint, such as the
    classes and mask values of ``dataset=folder``. The classes that a mirror image swaps are those of the network, on
    any data set.
    """
    given = runtime.given_options()
    if "dataset" in given:
        own = saved.dataset
        same = _target(config.dataset, "val") == _target(own, "val")
        kept = {key: own[key] for key in config.dataset if key in own and not _target(own, key)} if same else {}
        if own.get("flip_pairs"):
            kept["flip_pairs"] = own["flip_pairs"]
        kept = {key: value for key, value in kept.items() if not checkpoints.is_given(f"dataset.{key}", given)}
        return guards.replaced(config.dataset, **kept)
    if not saved.dataset:
        raise ValueError(f"{config.checkpoint} does not name its data set: set dataset=NAME dataset.root=DIR")
    return checkpoints.moved(saved.config, runtime.given_options())["dataset"]


def _target(dataset: Any, name: str) -> Any:
    """Return the ``_target_`` of an entry of the ``dataset`` node; None if the entry is a plain option."""
    node = dataset.get(name)
    return node.get("_target_") if isinstance(node, Mapping) else None


def _protocol_node(config: DictConfig, saved: "Checkpoint", task: "Task") -> tuple[Any, str]:
    """Return the ``protocol`` node and its name.

    The run's own protocol, if it has one, is used unless the command line sets a protocol or a data set.

    Raises:
        ValueError: the protocol is not for the task.
    """
    given = any(option == "dataset" or option.startswith("protocol") for option in runtime.given_options())
    node, own = config.protocol, saved.config.get("protocol")
    name = str(HydraConfig.get().runtime.choices["protocol"])
    if own is not None and not given:
        node, name = own, own["_target_"].rpartition(".")[2].lower()
    if name != "whole" and not task.predicts_label_maps:
        raise ValueError(f"protocol={name}: Mask R-CNN processes whole images, resized as in training; remove protocol")
    return node, name


def _stem(config: DictConfig, path: Path, protocol_name: str) -> Path:
    """Return the common prefix of the files to write, by default next to the checkpoint at `path`.

    It names everything that distinguishes the scores from others of the same checkpoint.
    """
    given, choices = runtime.given_options(), HydraConfig.get().runtime.choices
    dataset = str(choices["dataset"]) if "dataset" in given else ""
    parts = [path.stem, dataset, config.split, protocol_name, evaluation.variant(given)]
    own = HydraConfig.get().runtime.output_dir if config.checkpoint in checkpoints.PACKAGED else path.parent
    return runtime.given_path(config.output or own) / "_".join(filter(None, parts))


def _subject(config: DictConfig, saved: "Checkpoint", path: Path, protocol_node: Any, bf16: bool) -> dict[str, Any]:
    """Return the checkpoint, data and settings that the scores belong to."""
    node = guards.plain(config.dataset)
    how = guards.plain(protocol_node) if isinstance(protocol_node, DictConfig) else protocol_node
    settings = {"dataset": {config.split: node[config.split]}, "protocol": how, "bf16": bf16}
    if saved.is_published:  # its weights do not determine these
        model = saved.config["model"]
        recurrence, align_corners = model.get("head", {}).get("recurrence"), model.get("align_corners")
        settings["published"] = {"recurrence": recurrence, "align_corners": align_corners}
    return evaluation.subject(path, node, settings)


def _prediction_files(config: DictConfig, stem: Path, dataset: "SegmentationDataset") -> list["PredictionFiles"]:
    if not (dataset.has_labels or config.save_predictions or config.submission):
        raise ValueError(
            f"split={config.split} has no labels to compare with: write its predictions with submission=true or "
            "save_predictions=true, or choose a split with labels"
        )
    files = []
    if config.save_predictions:
        files.append(evaluation.PredictionFiles(Path(f"{stem}_predictions"), dataset))
    if config.submission:
        files.append(evaluation.PredictionFiles(Path(f"{stem}_submission"), dataset, submission=True))
    return files


def _write_results(
    task: "Task", result: Any, dataset: Any, stem: Path, about: dict[str, Any], files: Sequence["PredictionFiles"]
) -> None:
    """Write the scores, pack the predictions for a benchmark's server, and print the names of the files."""
    with _writable(stem.parent):
        print(task.write_report(stem, result, dataset, about))
        for predictions in files:
            submission = predictions.submission
            print(f"submission   {predictions.pack()}" if submission else f"masks        {predictions.folder}")
            if earlier := predictions.earlier():
                more = f" and {len(earlier) - 1} more" if len(earlier) > 1 else ""
                print(f"left by an earlier evaluation of other images: {earlier[0]}{more}")


@contextmanager
def _writable(folder: Path) -> Generator[None]:
    """Extend an OSError raised in the block with `folder` and the hint to set ``output``."""
    try:
        yield
    except OSError as error:
        raise OSError(f"the results cannot be written to {folder}: {error}. Set output=FOLDER") from error


def _network(saved: "Checkpoint") -> "nn.Module":
    """Return the network in the memory format of its run, so that its validation scores are reproduced exactly."""
    import torch

    memory_format = torch.channels_last if saved.setting("channels_last") else torch.contiguous_format
    return checkpoints.network(saved).to(memory_format=memory_format)  # pyrefly: ignore[no-matching-overload], in torch 2.11


if __name__ == "__main__":
    import ccnet.evaluate  # so that launchers pickle `main` by reference: see entry_point

    ccnet.evaluate.main()
