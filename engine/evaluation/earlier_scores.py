"""Keep an evaluation from replacing the scores of another checkpoint, of other data or with other settings."""

import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoints.locations import absolute, is_location, locations_in
from ..checkpoints.options import flat

_LONGEST = 60  # characters of the options in a file name
_OPTIONS = ("protocol.", "published.", "bf16")
_UNSCORED = ("_target_", "palette", "rgb")  # options of a data set or protocol that change no score


def variant(given: Mapping[str, Any]) -> str:
    """Return the options that affect the scores as part of a file name, such as "scales-0.5-1.0"; "" for none.

    They are those of the protocol and of a published checkpoint, and ``bf16``.

    Args:
        given: the options on the command line, without ``+`` or ``++``.
    """
    options = {
        name.removeprefix("protocol.").removeprefix("published."): value
        for name, value in given.items()
        if name.startswith(_OPTIONS)
    }
    text = "_".join(f"{name}-{value}".lower() for name, value in sorted(options.items()))
    text = re.sub(r"[^\w.]+", "-", text).strip("-").replace("-_", "_")
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}_{zlib.crc32(text.encode()):08x}"


def subject(checkpoint: Path, dataset: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is evaluated and how, as recorded in the file of the scores.

    Args:
        checkpoint: the checkpoint that is evaluated.
        dataset: the plain ``dataset`` node of the configuration.
        settings: the plain nodes and options that affect the scores.

    Returns:
        {"checkpoint": path, "data": {option: path}, "settings": {option: value}}, with absolute paths and without the
        options that affect no score.
    """
    data = {name: absolute(value) for name, value in locations_in({"dataset": dataset}).items()}
    kept = {
        name: value
        for name, value in flat(settings).items()
        if not is_location(name) and name.rpartition(".")[2] not in _UNSCORED
    }
    return {"checkpoint": str(checkpoint.absolute()), "data": data, "settings": kept}


def check_replaceable(scores: Path, about: Mapping[str, Any]) -> None:
    """Raise ValueError if a file holds the scores of another checkpoint, of other data or with other settings.

    A checkpoint or data that no longer exist, because they have been moved or removed, do not count as others. Files
    that are not readable as scores may be replaced.

    Args:
        scores: the file that the evaluation will write; it need not exist.
        about: what is evaluated, from :func:`subject`.
    """
    try:
        earlier = json.loads(scores.read_text(encoding="utf-8"))
        paths, settings = _paths(earlier), dict(earlier.get("settings", {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return
    new_paths = _paths(about)
    differing = [
        f"{name}={path}"
        for name, path in paths.items()
        if Path(str(path)).exists() and Path(str(path)).resolve() != Path(str(new_paths.get(name))).resolve()
    ]
    requested = json.loads(json.dumps(about.get("settings", {})))
    differing += [
        f"{name}={value}" for name, value in settings.items() if name in requested and requested[name] != value
    ]
    if differing:
        raise ValueError(
            f"{scores} holds the scores of {', '.join(differing)}, which this evaluation would replace: set "
            "output=FOLDER to keep both, or delete the file"
        )


def _paths(about: Mapping[str, Any]) -> dict[str, Any]:
    return {"checkpoint": about["checkpoint"], **about.get("data", {})}
