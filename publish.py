"""Write a trained network to a folder for sharing: half-precision weights and a model card.

    python publish.py checkpoint=RUN output=FOLDER                    scored on the run's validation data
    python publish.py checkpoint=RUN output=FOLDER dataset.root=DIR   if the data set has moved

FOLDER then contains config.json, model.safetensors and README.md (the model card). ``ccnet.from_pretrained`` and the
entry points accept it like a run, and it is a complete Hugging Face repository. The scores in the card are those of the
stored weights; if float16 lowers the headline metric by more than ``most_lost`` points, nothing is written.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from ccnet import data
from ccnet.engine import checkpoints, evaluation, prediction, runtime, training
from ccnet.engine.commands.entry_point import entry_point

if TYPE_CHECKING:
    from ccnet.engine.checkpoints import Checkpoint


@entry_point("publish")
def main(config: DictConfig) -> None:
    """Score the network before and after rounding its weights, and write the folder."""
    path, output = checkpoints.find(config.checkpoint), runtime.given_path(config.output)
    _check_output(output)
    saved = checkpoints.load(path)
    dataset, record = _validation_set(config, saved), _record(config, path)
    scores = _scores(config, saved, dataset)
    stored, note = saved, ""
    if config.half:
        stored = replace(saved, weights=checkpoints.half_precision(saved.weights))
        note = " Large tensors are stored in float16."
        if _differ(saved.weights, stored.weights):
            exact, scores = scores, _scores(config, stored, dataset)
            note += _note_on_rounding(exact, scores, config.most_lost)
    stored = replace(stored, scores=scores._asdict())
    protocol = saved.config.get("protocol", {}).get("_target_", "Whole").rpartition(".")[2]
    scored_on = f"Percent on the {len(dataset)} images of the val split, protocol {protocol}."
    with runtime.FolderLock(output, "output"):
        checkpoints.write_folder(stored, output)
        prediction.write_card(stored, output, scored_on=scored_on + note, record=record)
    size = (output / "model.safetensors").stat().st_size / 1e6
    print(f"{evaluation.headline_text(scores)}\n{output}: {size:.1f} MB of weights, with config.json and README.md")


def _check_output(output: Path) -> None:
    """Raise ValueError if `output` is a file, holds a run, or holds other files that would be overwritten."""
    runtime.refuse_file(output, "output")
    if runtime.holds_run(output):
        raise ValueError(
            f"output={output} holds a run, and checkpoint={output} would no longer mean its best weights: choose "
            "another folder"
        )
    taken = [name for name in ("README.md", "config.json", "model.safetensors") if (output / name).exists()]
    if taken and not checkpoints.holds_network(output):
        raise ValueError(f"{output / taken[0]} belongs to something else and would be overwritten: set output=FOLDER")


def _validation_set(config: DictConfig, saved: "Checkpoint") -> Any:
    if not saved.dataset:
        raise ValueError(f"{config.checkpoint} does not name its data set: publish a run")
    node: Any = OmegaConf.create(checkpoints.moved(saved.config, runtime.given_options())["dataset"])
    data.check_root(node, ["val"])
    return data.build_dataset(node, "val", evaluation.task_of(saved.config).eval_transform())


def _scores(config: DictConfig, saved: "Checkpoint", dataset: Any) -> Any:
    """Return the scores on the full validation set, with the run's own protocol and precision."""
    framework = training.choose_framework("torch", config.device)
    protocol, bf16 = saved.config.get("protocol"), saved.setting("bf16")
    result = evaluation.task_of(saved.config).evaluate(
        framework.evaluated(checkpoints.network(saved), bf16=bf16),
        dataset,
        instantiate(protocol) if protocol else evaluation.Whole(),
        device=framework.device,
        bf16=bf16,
        num_workers=config.num_workers,
    )
    return result.scores


def _differ(exact: dict[str, Any], rounded: dict[str, Any]) -> bool:
    """Return whether rounding has changed a weight; False for a network that was published in float16 before."""
    return any(not tensor.equal(rounded[key].to(tensor.dtype)) for key, tensor in exact.items())


def _note_on_rounding(exact: Any, rounded: Any, most_lost: float) -> str:
    """Return a sentence for the model card about the scores before rounding to float16.

    Raises:
        ValueError: rounding costs more than ``most_lost`` points of the headline metric.
    """
    name, before = next(iter(exact.summary().items()))
    after = rounded.summary()[name]
    if before - after > most_lost:
        raise ValueError(
            f"float16 costs {before - after:.2f} points of {name} ({before:.2f} instead of {after:.2f}), more than "
            f"most_lost={most_lost}: keep float32 with half=false"
        )
    return f" With the run's float32 weights, {name} is {before:.2f}."


def _record(config: DictConfig, path: Path) -> dict[str, Any]:
    """Return the record of the training in the run's result.json; values on the command line take precedence.

    Raises:
        ValueError: result.json is damaged.
    """
    result = path.parent / "result.json"
    try:
        recorded = json.loads(result.read_text(encoding="utf-8")) if result.is_file() else {}
    except ValueError as error:
        raise ValueError(
            f"{result}, from which the model card takes the record of the training, is damaged ({error}): restore it, "
            "or remove it and set commit= and machine="
        ) from error
    given = {name: str(config[name]) for name in ("commit", "machine") if config[name] is not None}
    return checkpoints.record_of(recorded) | given


if __name__ == "__main__":
    import ccnet.publish  # so that launchers pickle `main` by reference: see entry_point

    ccnet.publish.main()
