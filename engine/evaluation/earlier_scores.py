"""Keep an evaluation from replacing the scores of another checkpoint or of other data."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoints.locations import absolute, locations_in


def subject(checkpoint: Path, dataset: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"checkpoint": path, "data": {option: path}}, with absolute paths, as recorded in the file of the scores.

    Args:
        checkpoint: the checkpoint that is evaluated.
        dataset: the plain ``dataset`` node of the configuration.
    """
    data = {name: absolute(value) for name, value in locations_in({"dataset": dataset}).items()}
    return {"checkpoint": str(checkpoint.absolute()), "data": data}


def check_replaceable(scores: Path, about: Mapping[str, Any]) -> None:
    """Raise ValueError if a file of scores belongs to another checkpoint or other data that still exist.

    If they no longer exist, they have been moved or removed, and their scores may be replaced. So may files that are
    not readable as scores.

    Args:
        scores: the file that the evaluation will write; it need not exist.
        about: what is evaluated, from :func:`subject`.
    """
    try:
        was = _paths(json.loads(scores.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return
    now = _paths(about)
    other = [
        f"{name}={path}"
        for name, path in was.items()
        if Path(str(path)).exists() and Path(str(path)).resolve() != Path(str(now.get(name))).resolve()
    ]
    if other:
        raise ValueError(
            f"{scores} holds the scores of {', '.join(other)}, which this evaluation would replace: set output=FOLDER "
            "to keep both, or delete the file"
        )


def _paths(about: Mapping[str, Any]) -> dict[str, Any]:
    return {"checkpoint": about["checkpoint"], **about.get("data", {})}
