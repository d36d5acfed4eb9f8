"""Train a segmentation or detection network.

    python train.py                                                   the built-in data set, about two minutes
    python train.py model=ccnet dataset=camvid dataset.root=DIR       a real data set, with its recipe
    python train.py -m model.head.recurrence=0,1,2                    a sweep, summarised in a table and plots
    python train.py resume=RUN                                        resume a run exactly where it stopped
    torchrun --nproc-per-node=8 train.py dataset=cityscapes           on eight GPUs, with each batch split among them
    python train.py init=FILE dataset=camvid dataset.root=DIR         start from the weights of a run, or published ones

All options are in ``conf/``; ``python train.py --help`` lists them.
"""

import time
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from ccnet import data
from ccnet.conf import CONF
from ccnet.engine import checkpoints, guards, runtime, sweeps, training
from ccnet.engine.sweeps.entry_point import entry_point


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
@entry_point
def main(config: DictConfig) -> float:
    """Start or resume a run; return its best validation score (mIoU or mask AP), which a search maximises."""
    if config.resume is None:  # a resumed run uses the data set in its checkpoint
        data.check_root(config.dataset)
    folder, saved = checkpoints.find_start(config, Path(HydraConfig.get().runtime.output_dir))
    if saved:
        done = sweeps.finished_score(folder, saved.config["recipe"]["max_iters"]) if config.resume == "auto" else None
        if done is not None:
            print(f"{folder} is already finished")
            return done
        config = checkpoints.continued(config, saved)
    with runtime.processes(training.framework_of(config).device):
        starts = runtime.from_all(saved.iteration if saved else 0)
        if len(set(starts)) > 1:
            raise ValueError(
                f"processes found checkpoints of different iterations, {starts}: all machines must see the run's folder"
            )
        return train(config, runtime.from_first(folder), saved)


def train(config: DictConfig, folder: Path, saved: "checkpoints.Checkpoint | None" = None) -> float:
    """Train from scratch or resume from `saved`; write all output to `folder` and return the best score, in [0, 1]."""
    began = time.perf_counter()
    guards.check_run(guards.plain(config), folder)
    framework = training.framework_of(config)
    framework.check(config)
    runtime.reset_peak(framework.device)
    runtime.seed_everything(config.seed)
    identity = checkpoints.fingerprint(config)

    task = instantiate(config.task)
    train_set = data.build_dataset(config.dataset, "train", instantiate(config.recipe.train_transform))
    val_set = data.build_dataset(config.dataset, "val", task.eval_transform())

    model, config = checkpoints.initial_network(config, saved, num_classes=len(train_set.classes))
    task.check(config, model)
    model = training.on_device(model, framework.device, config)
    criterion = instantiate(config.loss).to(framework.device)
    optimizer = instantiate(config.optimizer.algorithm, model.parameters())
    schedule = instantiate(config.optimizer.schedule, optimizer)
    state = training.TrainingState(model, optimizer, schedule, identity)
    cost = task.cost(model, config)
    runtime.seed_dropout(config.seed)
    if saved:
        state.restore(saved)

    step = framework.step(config, task, model, criterion, optimizer)
    loader = training.remaining_batches(config, train_set, task, start=state.iteration)
    with (
        runtime.StopRequest() as request,
        training.open_log(config, folder, task=task, dataset=train_set, state=state, group=sweeps.sweep_name()) as log,
    ):
        run = training.Run(
            config=config,
            folder=folder,
            task=task,
            state=state,
            step=step,
            device=framework.device,
            loader=loader,
            val_set=val_set,
            log=log,
            request=request,
        )
        run.say(training.opening_lines(model, train_set, val_set, framework.device, folder))
        run.fit()

    unreadable = sum(runtime.from_all(int(run.samples.broken.sum())))
    if runtime.rank() == 0:
        cost |= {"val_images_per_s": run.val_images_per_s}
        sweeps.write_result(folder, training.run_result(task, state, cost, time.perf_counter() - began))
        print(training.closing_lines(task, state, train_set.classes, folder, unreadable))
    return state.best_score


if __name__ == "__main__":
    from ccnet.train import main  # so that launchers pickle `main` by reference: see entry_point

    main()
