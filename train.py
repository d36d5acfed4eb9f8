"""Train a network for segmentation or for detection.

    python train.py                                                   the embedded data set, about two minutes
    python train.py model=ccnet dataset=camvid dataset.root=DIR       a real one, with its recipe
    python train.py -m model.head.recurrence=0,1,2                    a sweep, which ends in a table and a picture
    python train.py resume=RUN                                        continue a run, exactly
    torchrun --nproc-per-node=8 train.py dataset=cityscapes           on eight GPUs, which share each batch
    python train.py init=FILE dataset=camvid dataset.root=DIR         from the network of a run, or a published one

Everything that can be set stands in ``conf/``; ``python train.py --help`` lists it.
"""

import functools
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.utils.data import Dataset

from ccnet.conf import CONF
from ccnet.data.build import build_dataset
from ccnet.data.loader import timed
from ccnet.data.roots import check_root
from ccnet.data.stream import Seeded, train_loader
from ccnet.engine import checkpoints, guards
from ccnet.engine.checkpoints import Checkpoint
from ccnet.engine.evaluation.tasks import Task, score_table
from ccnet.engine.guards import plain
from ccnet.engine.runtime.atomic_files import write_text
from ccnet.engine.runtime.devices import choose_device, seed_everything
from ccnet.engine.runtime.distributed import from_all, from_first, processes, rank, world_size
from ccnet.engine.runtime.stop_signals import StopRequest
from ccnet.engine.sweeps.entry_point import entry_point
from ccnet.engine.sweeps.results import finished_score, sweep_name, write_result
from ccnet.engine.training.logger import NoLog, RunLog
from ccnet.engine.training.loop import Run
from ccnet.engine.training.prefetch import prefetch
from ccnet.engine.training.state import TrainingState
from ccnet.engine.training.torch_step import Step, TorchStep, memory_format
from ccnet.models.factory import build


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
@entry_point
def main(config: DictConfig) -> float:
    """Run one training; returns the best validation score (mIoU, mask AP), for whoever searches over configurations."""
    if config.resume is None:  # a resumed run has its own data set
        check_root(config.dataset)
    folder, saved = checkpoints.find_start(config, Path(HydraConfig.get().runtime.output_dir))
    if saved:
        done = finished_score(folder, saved.config["recipe"]["max_iters"]) if config.resume == "auto" else None
        if done is not None:
            print(f"{folder} is finished")
            return done
        config = checkpoints.continued(config, saved)
    with processes(_device(config)):
        starts = from_all(saved.iteration if saved else 0)
        if len(set(starts)) > 1:
            raise ValueError(
                f"the processes found checkpoints of the iterations {starts}: all machines need to see the run's folder"
            )
        return train(config, from_first(folder), saved)


def train(config: DictConfig, folder: Path, saved: Checkpoint | None = None) -> float:
    """Train as ``config`` says, from the start or from ``saved``; everything is written into ``folder``."""
    began = time.perf_counter()
    guards.check_run(plain(config), folder)
    seed_everything(config.seed)
    device = _device(config)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # a sweep's runs share the process
    identity = checkpoints.fingerprint(config)
    task = instantiate(config.task)
    train_set = build_dataset(config.dataset, "train", instantiate(config.recipe.train_transform))
    val_set = build_dataset(config.dataset, "val", task.eval_transform())

    model, found_out = _network(config, saved, len(train_set.classes))
    config = OmegaConf.create(plain(config, **found_out))
    task.check(config, model)
    model = model.to(device, memory_format=memory_format(config))
    criterion = instantiate(config.loss).to(device)
    optimizer = instantiate(config.optimizer.algorithm, model.parameters())
    state = TrainingState(model, optimizer, instantiate(config.optimizer.schedule, optimizer), identity)
    cost = task.cost(model, config)
    if rank():
        torch.manual_seed(config.seed + rank())  # dropout draws differently in each process
    if saved:
        state.restore(saved)
    step = _step(config, task, model, criterion, optimizer, device)
    samples = Seeded(train_set, config.seed, skip_broken=config.skip_broken)
    loader = train_loader(
        samples,
        batch_size=config.recipe.batch_size,
        pieces=config.accumulate,
        iterations=config.recipe.max_iters,
        start=state.iteration,
        num_workers=config.num_workers,
        collate=task.collate,
        process=rank(),
        processes=world_size(),
    )

    with (
        StopRequest() as request,
        _log(task, config, folder, state, train_set) as log,
        closing(prefetch(timed(loader), step.place, device)) as batches,
    ):
        run = Run(
            config,
            folder,
            task=task,
            protocol=instantiate(config.protocol),
            step=step,
            device=device,
            state=state,
            samples=samples,
            val_set=val_set,
            log=log,
            request=request,
        )
        run.say(_summary(model, train_set, val_set, device, folder))
        run.fit(batches)

    broken = sum(from_all(int(samples.broken.sum())))
    if not rank():
        _report(task, folder, state, cost | {"val_images_per_s": run.val_images_per_s}, time.perf_counter() - began)
        if broken or state.skipped:
            print(f"left out     {broken} pictures that cannot be read, {state.skipped} steps that were not finite")
    return state.best_score


def _step(
    config: DictConfig,
    task: Task,
    model: nn.Module,
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
) -> Step:
    if not _is_jax(config):
        return TorchStep.of(config, task, model, criterion, optimizer, device)
    from ccnet.engine.evaluation.jax_network import local_devices
    from ccnet.engine.training.jax_step import JaxStep

    if world_size() > 1 or config.accumulate > 1:
        raise ValueError("framework=jax runs in one process, without accumulate: leave out torchrun and accumulate")
    devices = local_devices(config.device, config.recipe.batch_size)
    return JaxStep(
        model,
        criterion,
        optimizer,
        devices=devices,
        seed=config.seed,
        bf16=config.bf16,
        clip_norm=config.clip_norm,
    )


def _network(config: DictConfig, saved: Checkpoint | None, num_classes: int) -> tuple[nn.Module, dict[str, Any]]:
    """Return the network to train, and the settings that were not known when the configuration was composed.

    With ``init``, the network and its ``model`` node come from that checkpoint.
    """
    if saved:
        return checkpoints.network(saved).train(), {"num_classes": num_classes}
    if config.init is None:
        return build(config.model, num_classes=num_classes), {"num_classes": num_classes}
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    given = [part for part in overrides if part.startswith(("model=", "model.", "backbone=", "backbone."))]
    if given:
        raise ValueError(f"init={config.init} brings its own network: leave out {' '.join(given)}")
    model, node = checkpoints.start_from(checkpoints.find(config.init), config, num_classes=num_classes)
    return model, {"num_classes": num_classes, "model": node}


def _log(task: Task, config: DictConfig, folder: Path, state: TrainingState, train_set: Dataset) -> RunLog | NoLog:
    if rank():
        return NoLog()
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
    log = RunLog(
        task,
        folder,
        classes=train_set.classes,
        palette=train_set.palette,
        start=state.iteration,
        validated=state.validated,
        wandb=_wandb(config, folder, state.wandb_id),
    )
    state.wandb_id = log.wandb_id
    return log


def _wandb(config: DictConfig, folder: Path, run_id: str | None) -> functools.partial | None:
    if config.logger._target_ is None:
        return None
    group = config.logger.get("group") or sweep_name()
    name = "/".join(folder.resolve().parts[-2:])
    return functools.partial(instantiate(config.logger), name=name, group=group, config=plain(config), run_id=run_id)


def _summary(model: nn.Module, train_set: Dataset, val_set: Dataset, device: torch.device, folder: Path) -> str:
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    return (
        f"{parameters:.1f} M parameters on {device}, {len(train_set)} training and {len(val_set)} validation images "
        f"of {len(train_set.classes)} classes\n{folder}"
    )


def _device(config: DictConfig) -> torch.device:
    """Of what torch does."""
    return torch.device("cpu") if _is_jax(config) else choose_device(config.device)


def _is_jax(config: DictConfig) -> bool:
    framework = config.get("framework", "torch")
    if framework not in ("torch", "jax"):
        raise ValueError(f"framework is {framework!r}: choose 'torch' or 'jax'")
    return framework == "jax"


def _report(task: Task, folder: Path, state: TrainingState, cost: dict[str, float], seconds: float) -> None:
    last = checkpoints.load(folder / "last.pt")
    scores = task.scores(**last.scores)
    summary = scores.summary()
    write_result(
        folder,
        {
            **summary,
            f"best_{next(iter(summary))}": 100 * state.best_score,
            **cost,
            "iterations": state.iteration,
            "seconds": seconds,
        },
    )
    print(f"\n{score_table(scores, last.classes)}\n")
    for what, name in (
        ("scores", "val.csv"),
        ("curves", "curves.png"),
        ("predictions", "predictions.png"),
        ("best weights", "best.safetensors"),
    ):
        print(f"{what:13}{folder / name}")


if __name__ == "__main__":
    from ccnet.train import main  # a launcher's processes import what `main` calls by name: see entry_point

    main()
