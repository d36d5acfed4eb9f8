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
import resource
import time
from contextlib import closing
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
from data.stream import Seeded, timed, train_loader
from engine import checkpoint
from engine.checkpoint import Checkpoint
from engine.distributed import any_of_all, from_first, parallel, processes, rank, world_size
from engine.entry import choose_device, entry_point, seed_everything
from engine.resume import find_start, fingerprint
from engine.run_log import NoLog, RunLog
from engine.state import NonFiniteLoss, TrainingState
from engine.step import train_step
from engine.stopping import StopRequest, leave_signals_to_parent
from engine.sweep import finished_score, write_result
from engine.tables import score_table
from engine.tasks import Task
from models.factory import build


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
@entry_point
def main(config: DictConfig) -> float:
    """Run one training; returns the best validation score (mIoU, mask AP), for whoever searches over configurations."""
    folder, saved = find_start(config, Path(HydraConfig.get().runtime.output_dir))
    if saved:
        done = finished_score(folder, saved.config["recipe"]["max_iters"]) if config.resume == "auto" else None
        if done is not None:
            print(f"{folder} is finished")
            return done
        config = OmegaConf.create(saved.config)
    with processes(_device(config)):
        return train(config, from_first(folder), saved)


def train(config: DictConfig, folder: Path, saved: Checkpoint | None = None) -> float:
    """Train as ``config`` says, from the start or from ``saved``; everything is written into ``folder``."""
    seed_everything(config.seed)
    in_jax = _is_jax(config)
    device = _device(config)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # a sweep's runs share the process
    identity = saved.training["identity"] if saved else fingerprint(config)
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
    cost = task.cost(model, config)
    forward = parallel(model, device)
    state = TrainingState(model, optimizer, schedule, identity)
    if saved:
        state.restore(saved)
    jax_step = _jax_step(config, model, criterion, optimizer) if in_jax else None
    if config.compile:
        forward = torch.compile(forward)
    samples = Seeded(train_set, config.seed, skip_broken=config.skip_broken)
    loader = train_loader(
        samples,
        batch_size=config.recipe.batch_size,
        pieces=config.accumulate,
        iterations=config.recipe.max_iters,
        start=state.iteration,
        num_workers=config.num_workers,
        collate=task.collate,
        worker_init=leave_signals_to_parent,
        process=rank(),
        processes=world_size(),
    )

    resolved = OmegaConf.to_container(config, resolve=True)
    started, window_start, window_images, waited = time.perf_counter(), time.perf_counter(), 0, 0.0
    with (
        StopRequest() as request,
        _log(task, config, resolved, folder, state, train_set) as log,
        tqdm(
            total=config.recipe.max_iters, initial=state.iteration, dynamic_ncols=True, desc="train", disable=rank() > 0
        ) as bar,
        closing(timed(loader)) as batches,
    ):
        say = bar.write if not rank() else lambda text: None
        say(_summary(model, train_set, val_set, device, folder))
        state.wandb_id = log.wandb_id

        def step(images: Any, labels: Any) -> tuple[Tensor, dict[str, Tensor]]:
            if in_jax:
                return jax_step(images, labels, state.iteration)
            images, labels = task.to_device(images, labels, device, memory_format)
            options = {"bf16": config.bf16, "accumulate": config.accumulate, "clip_norm": config.clip_norm}
            return train_step(task, forward, criterion, optimizer, images, labels, **options)

        def save(*, best: bool = False) -> None:
            if in_jax:
                jax_step.write_back()
            state.save(folder, resolved, train_set, best=best)

        def validate() -> None:
            save()  # a validation may be dropped: resuming starts with it
            with request.at_once():
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
            say(f"iteration {state.iteration}: {name} {score:.2f}")
            cost["val_images_per_s"] = result.images_per_s
            save(best=state.take(result.scores))

        if state.validation_due(config.recipe.val_every, config.recipe.max_iters):
            validate()
        for (images, labels), seconds in batches:
            waited += seconds
            buffers = [buffer.clone() for buffer in model.buffers()] if config.skip_nonfinite else []
            try:
                loss, terms = step(images, labels)
            except NonFiniteLoss as error:
                names = ", ".join(samples.names(state.iteration, config.recipe.batch_size))
                message = f"iteration {state.iteration + 1}: {error}. The batch: {names}"
                if state.skipped == config.skip_nonfinite:
                    raise NonFiniteLoss(message) from error
                state.skipped += 1
                say(f"step {state.skipped} of at most {config.skip_nonfinite} left out: {message}")
                for buffer, before in zip(model.buffers(), buffers, strict=True):
                    buffer.copy_(before)  # batch norm has seen the batch
                loss, terms = torch.tensor(float("nan")), {}
            learning_rate = schedule.get_last_lr()[0]
            schedule.step()
            state.iteration += 1
            window_images += len(images) * world_size()
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

            if state.validation_due(config.recipe.val_every, config.recipe.max_iters):
                validate()
                window_start, window_images, waited = time.perf_counter(), 0, 0.0
            elif config.save_every and state.iteration % config.save_every == 0:
                save()
            if any_of_all(request.received is not None, device) and state.iteration < config.recipe.max_iters:
                save()
                say(f"stopped after iteration {state.iteration}, continue with resume={folder}")
                request.stop()

    if not rank():
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


def _log(
    task: Task, config: DictConfig, resolved: dict, folder: Path, state: TrainingState, train_set: Dataset
) -> RunLog | NoLog:
    if rank():
        return NoLog()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True))
    return RunLog(
        task,
        folder,
        classes=train_set.classes,
        palette=train_set.palette,
        start=state.iteration,
        wandb=_wandb(config, resolved, folder, state.wandb_id),
    )


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


def _device(config: DictConfig) -> torch.device:
    """Of what torch does."""
    return torch.device("cpu") if _is_jax(config) else choose_device(config.device)


def _is_jax(config: DictConfig) -> bool:
    framework = config.get("framework", "torch")
    if framework not in ("torch", "jax"):
        raise ValueError(f"framework is {framework!r}: choose 'torch' or 'jax'")
    return framework == "jax"


def _jax_step(config: DictConfig, model: nn.Module, criterion: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    from engine.jax_network import local_devices
    from engine.jax_step import JaxStep

    if world_size() > 1 or config.accumulate > 1 or config.clip_norm is not None:
        raise ValueError(
            "framework=jax runs in one process, without accumulate and clip_norm: leave out torchrun and these"
        )
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
