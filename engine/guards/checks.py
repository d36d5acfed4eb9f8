"""Run all checks on the configuration of a run or of a checkpoint."""

import os
import sys
from pathlib import Path
from typing import Any

from .allowed_targets import check_loadable, check_targets
from .former_names import present_names
from .secret_values import allowed_variables, refuse_secrets
from .setting_types import check_settings

_WORKERS_PER_CORE = 8


def check_run(config: dict[str, Any], folder: Path, *, resumed: bool = False) -> None:
    """Raise ValueError if a run's configuration is invalid, could not be loaded again, or would write a secret to disk.

    Args:
        config: plain dicts and lists with interpolations resolved.
        folder: the run's output folder.
        resumed: whether the configuration is that of a checkpoint, in which an argument of a class may be null
            or unknown to it.
    """
    check_settings(config, from_checkpoint=resumed)
    check_loadable(config)
    _check_workers(config)
    allowed = allowed_variables(config.get("allow_env"))
    refuse_secrets(config | {"the folder": str(folder), "the command line": sys.argv}, allowed)


def _check_workers(config: dict[str, Any]) -> None:
    """Raise ValueError if a run would start far more processes than the machine has cores.

    Checkpoints are exempt from this limit, because they may come from a larger machine.
    """
    most = _WORKERS_PER_CORE * (os.cpu_count() or 1)
    if config.get("num_workers", 0) > most:
        raise ValueError(
            f"num_workers is {config['num_workers']}, but must be at most {most} on this machine, "
            f"{_WORKERS_PER_CORE} per core: set num_workers=N"
        )


def checked_config(config: dict[str, Any]) -> dict[str, Any]:
    """Check a checkpoint's configuration and return it with current ``_target_`` names.

    Raises:
        ValueError: the configuration is not plain, references code that is not allowed, or contains an invalid value.
    """
    config = present_names(config)
    check_targets(config)
    check_settings(config, from_checkpoint=True)
    return config
