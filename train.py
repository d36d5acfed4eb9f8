"""Train a network for segmentation or for detection.

    python train.py                                                   the embedded data set, about two minutes
    python train.py model=ccnet dataset=camvid dataset.root=DIR       a real one, with its recipe
    python train.py -m model.head.recurrence=0,1,2                    a sweep, which ends in a table and a picture
    python train.py resume=RUN                                        continue a run, exactly
    python train.py init=FILE dataset=camvid dataset.root=DIR         from the network of a run, or a published one

Everything that can be set stands in ``conf/``; ``python train.py --help`` lists it.
"""

import functools
import resource
import time
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from data.build import build_dataset
from data.stream import timed, train_loader
from engine import checkpoint
from engine.checkpoint import Checkpoint
from engine.entry import choose_device, entry_point, seed_everything
from engine.run_log import RunLog
from engine.state import TrainingState, check_finite
from engine.sweep import write_result
from engine.tables import score_table
from engine.tasks import Task
from models.factory import build


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
@entry_point
def main(config: DictConfig) -> float:
    """Run one training; returns the best validation score (mIoU, mask AP), for whoever searches over configurations."""
    if config.resume is None:
        return train(config, Path(HydraConfig.get().runtime.output_dir))
    given = [part for part in HydraConfig.get().overrides.task if not part.startswith("resume=")]
    if given:
        raise ValueError(f"a resumed run keeps its own configuration: leave out {' '.join(given)}")
    folder = Path(config.resume).expanduser()
    saved = checkpoint.load(checkpoint.find(folder / "last.pt"))
    return train(OmegaConf.create(saved.config), folder, saved)


def train(config: DictConfig, folder: Path, saved: Checkpoint | None = None) -> float:
    """Train as ``config`` says, from the start or from ``saved``; everything is written into ``folder``."""
    seed_everything(config.seed)
    in_jax = _is_jax(config)
    device = torch.device("cpu") if in_jax else choose_device(config.device)  # of what torch does
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # a sweep's runs share the process
    task = instantiate(config.task)
    train_set = build_dataset(config.dataset, "train", instantiate(config.recipe.train_transform))
    val_set = build_dataset(config.dataset, "val", task.eval_transform())
    config.num_classes = len(train_set.classes)

    memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
    model = _network(config, saved)
    task.check(config, model)
    model = model.to(device, memory_format=memory_format)
    criterion = instantiate(config.loss).to(device)
    protocol = instantiate(config.protocol)
    optimizer = instantiate(config.optimizer.algorithm, model.parameters())
    schedule = instantiate(config.optimizer.schedule, optimizer)
    state = TrainingState(model, optimizer, schedule)
    if saved:
        state.restore(saved)
    forward = torch.compile(model) if config.compile else model
    jax_step = _jax_step(config, model, criterion, optimizer) if in_jax else None
    loader = train_loader(
        train_set,
        batch_size=config.recipe.batch_size,
        iterations=config.recipe.max_iters,
        start=state.iteration,
        seed=config.seed,
        num_workers=config.num_workers,
        collate=task.collate,
    )

    resolved = OmegaConf.to_container(config, resolve=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True))
    print(_summary(model, train_set, val_set, device, folder))
    cost = task.cost(model, config)
    started, window_start, window_images, waited = time.perf_counter(), time.perf_counter(), 0, 0.0
    with (
        RunLog(
            task,
            folder,
            classes=train_set.classes,
            palette=train_set.palette,
            start=state.iteration,
            wandb=_wandb(config, resolved, folder, state.wandb_id),
        ) as log,
        tqdm(total=config.recipe.max_iters, initial=state.iteration, dynamic_ncols=True, desc="train") as bar,
    ):
        state.wandb_id = log.wandb_id
        for (images, labels), seconds in timed(loader):
            waited += seconds
            if in_jax:
                loss, terms = jax_step(images, labels, state.iteration)
            else:
                images, labels = task.to_device(images, labels, device, memory_format)
                loss, terms = train_step(task, forward, criterion, optimizer, images, labels, bf16=config.bf16)
            learning_rate = schedule.get_last_lr()[0]
            schedule.step()
            state.iteration += 1
            window_images += len(images)
            bar.update()

            if state.iteration % config.log_every == 0:
                window = time.perf_counter() - window_start
                speed, share = window_images / window, waited / window
                bar.set_postfix(
                    loss=f"{loss:.3f}", lr=f"{learning_rate:.1e}", img_s=f"{speed:.1f}", wait=f"{share:.0%}"
                )
                values = {"loss": loss.item()} | {f"loss/{name}": term.item() for name, term in terms.items()}
                values |= {"lr": learning_rate, "images_per_s": speed, "data_wait": share}
                values["memory_mib"] = _peak_memory_mib(device, jax_step)
                log.train(state.iteration, values)
                window_start, window_images, waited = time.perf_counter(), 0, 0.0

            if state.iteration % config.recipe.val_every == 0 or state.iteration == config.recipe.max_iters:
                result = task.evaluate(
                    jax_step.evaluated() if in_jax else model,
                    val_set,
                    protocol,
                    device=device,
                    bf16=config.bf16,
                    num_workers=config.num_workers,
                    keep_samples=4,
                )
                log.validation(state.iteration, result)
                name, score = next(iter(result.scores.summary().items()))
                bar.write(f"iteration {state.iteration}: {name} {score:.2f}")
                cost["val_images_per_s"] = result.images_per_s
                if in_jax:
                    jax_step.write_back()
                state.save(folder, result.scores, resolved, train_set)
                window_start, window_images, waited = time.perf_counter(), 0, 0.0

    _report(task, folder, state, cost, time.perf_counter() - started)
    return state.best_score


def _network(config: DictConfig, saved: Checkpoint | None) -> nn.Module:
    """The network to train; with ``init`` it comes from there, and its configuration too."""
    if saved:
        return checkpoint.network(saved).train()
    if config.init is None:
        return build(config.model)
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    given = [part for part in overrides if part.startswith(("model=", "model.", "backbone=", "backbone."))]
    if given:
        raise ValueError(f"init={config.init} brings its own network: leave out {' '.join(given)}")
    return checkpoint.start_from(checkpoint.find(config.init), config)


def train_step(
    task: Task,
    model: nn.Module,
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Any,
    labels: Any,
    *,
    bf16: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """One optimiser step; returns the loss and its terms. A loss that is not finite stops before the step."""
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(images[0].device.type, torch.bfloat16, enabled=bf16):
        output = task.forward(model, images, labels)
    loss, terms = criterion(output, labels)
    check_finite(loss, terms)
    loss.backward()
    optimizer.step()
    return loss.detach(), terms


def _wandb(config: DictConfig, resolved: dict, folder: Path, run_id: str | None) -> functools.partial | None:
    if config.logger._target_ is None:
        return None
    return functools.partial(instantiate(config.logger), name=folder.name, config=resolved, run_id=run_id)


def _summary(model: nn.Module, train_set: Dataset, val_set: Dataset, device: torch.device, folder: Path) -> str:
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    return (
        f"{parameters:.1f} M parameters on {device}, {len(train_set)} training and {len(val_set)} validation images "
        f"of {len(train_set.classes)} classes\n{folder}"
    )


def _is_jax(config: DictConfig) -> bool:
    framework = config.get("framework", "torch")
    if framework not in ("torch", "jax"):
        raise ValueError(f"framework is {framework!r}: choose 'torch' or 'jax'")
    return framework == "jax"


def _jax_step(config: DictConfig, model: nn.Module, criterion: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    from engine.jax_network import local_devices
    from engine.jax_step import JaxStep

    devices = local_devices(config.device, config.recipe.batch_size)
    return JaxStep(model, criterion, optimizer, devices=devices, seed=config.seed, bf16=config.bf16)


def _peak_memory_mib(device: torch.device, jax_step: Any = None) -> float:
    """Of the GPU's allocator, or of the process."""
    if jax_step is not None and (peak := jax_step.peak_memory_mib()) is not None:
        return peak
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _report(task: Task, folder: Path, state: TrainingState, cost: dict[str, float], seconds: float) -> None:
    last = checkpoint.load(folder / "last.pt")
    scores = task.scores(**last.scores)
    summary = scores.summary()
    write_result(
        folder,
        {
            "overrides": list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else [],
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
    main()
