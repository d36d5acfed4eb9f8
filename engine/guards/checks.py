"""Run all checks on the configuration of a run or of a checkpoint."""

import sys
from pathlib import Path
from typing import Any

from .allowed_targets import check_targets
from .former_names import present_names
from .secret_values import refuse_secrets
from .setting_types import check_settings


def check_run(config: dict[str, Any], folder: Path) -> None:
    """Raise ValueError if a run's configuration is invalid or would write a secret to disk.

    Args:
        config: plain dicts and lists with interpolations resolved.
        folder: the run's output folder.
    """
    check_settings(config)
    refuse_secrets(config | {"the folder": str(folder), "the command line": sys.argv})


def checked_config(config: dict[str, Any]) -> dict[str, Any]:
    """Check a checkpoint's configuration and return it with current names.

    Raises:
        ValueError: the configuration is not plain, references code that is not allowed, or contains an invalid value.
    """
    config = present_names(config)
    check_targets(config)
    check_settings(config)
    return config
