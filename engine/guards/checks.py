"""All checks of a run's configuration, and of a checkpoint's, in one call each."""

import sys
from pathlib import Path
from typing import Any

from .allowed_targets import check_targets
from .former_names import present_names
from .secret_values import refuse_secrets
from .setting_types import check_settings


def check_run(config: dict[str, Any], folder: Path) -> None:
    """Raise ValueError if a run cannot work with its configuration, or would write a secret down.

    Args:
        config: plain and resolved.
        folder: what the run writes into.
    """
    check_settings(config)
    refuse_secrets(config | {"the folder": str(folder), "the command line": sys.argv})


def checked_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's configuration under present names.

    Raises:
        ValueError: the configuration is not plain, names code that a checkpoint must not name, or has a value that
            the code cannot work with.
    """
    config = present_names(config)
    check_targets(config)
    check_settings(config)
    return config
