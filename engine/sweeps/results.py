"""Write and read ``result.json`` in a run's folder, which contains the run's overrides and scores."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig

from ..runtime.atomic_files import read_json, write_json
from ..runtime.overrides import given_overrides, in_sweep
from ..runtime.run_folder import CONFIG, RESULT

if TYPE_CHECKING:
    from ..checkpoints.record import Checkpoint


def write_result(folder: Path, result: dict[str, Any]) -> None:
    """Write this run's overrides, {option: value}, and its result for the sweep's report.

    Args:
        folder: the run's folder.
        result: the scores, starting with the one used to compare runs; {"error": message} if the run failed. Its
            ``overrides``, if any, replace those of the current command.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RESULT, {"overrides": given_overrides()} | result)  # atomic: other processes may be reading


def describe_again(folder: Path) -> None:
    """Replace the overrides in a finished run's result by those of the current command, if that is a sweep.

    A sweep that is extended by ``resume=auto`` thus reports all its runs in the same terms.
    """
    if in_sweep() and (found := read_json(folder / RESULT)):
        with suppress(OSError):  # the folder may be read-only
            write_json(folder / RESULT, found | {"overrides": given_overrides()})


def sweep_name() -> str | None:
    """Return the name of the sweep's folder, which groups its runs in W&B; None outside a sweep."""
    return Path(HydraConfig.get().sweep.dir).resolve().name if in_sweep() else None


def finished_score(folder: Path, saved: "Checkpoint", iterations: int, patience: int | None = None) -> float | None:
    """Return the best score, in [0, 1], of the run in `folder`; None if the run is not finished.

    The result must belong to the checkpoint: another run, or an earlier part of this one, may have left one behind.

    Args:
        folder: the run's folder.
        saved: the run's newest checkpoint.
        iterations: the number of iterations of the whole run.
        patience: the number of validations without a better score after which the run ends; None to disable.
    """
    result = read_json(folder / RESULT)
    if saved.iteration != iterations and not is_exhausted(saved, patience):
        return None
    if result.get("iterations") != saved.iteration:
        return None
    identity = saved.training["identity"]
    if result.get("identity", identity) != identity:  # not recorded by earlier versions
        return None
    return next((value / 100 for name, value in result.items() if name.startswith("best_")), None)


def is_exhausted(saved: "Checkpoint", patience: int | None) -> bool:
    """Return True if `patience` is set and the score of a run has not improved for that many validations."""
    return patience is not None and saved.training.get("stale", 0) >= patience


def set_aside_result(folder: Path) -> None:
    """Rename the result of an earlier part of a run to ``result_ITERATIONS.json``; remove the error of a failed part.

    A run has no result until it is finished.
    """
    path = folder / RESULT
    iterations = read_json(path).get("iterations")
    with suppress(FileNotFoundError):
        if isinstance(iterations, int):
            path.replace(path.with_stem(f"{path.stem}_{iterations}"))
        else:
            path.unlink()


def unfinished(folder: Path) -> list[Path]:
    """Return the folders of runs that have started but have no result, because they are running or were killed."""
    runs = sorted(path.parent for path in folder.rglob(CONFIG))
    return [run for run in runs if not (run / RESULT).exists() and "wandb" not in run.relative_to(folder).parts]
