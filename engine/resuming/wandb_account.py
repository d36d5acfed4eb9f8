"""Resume runs in the user's own W&B account, no matter who wrote the checkpoint."""

from collections.abc import Mapping
from typing import Any

from ..checkpoints.record import Checkpoint
from ..runtime.launchers import is_first

_ACCOUNT = ("entity", "project")


def own_account(saved: Checkpoint, now: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``logger`` node of a checkpoint with the W&B entity and project of the current command.

    Args:
        saved: the checkpoint to resume from.
        now: the plain configuration of the current command.

    Returns:
        {"logger": node}; empty if the checkpoint or the command does not log to W&B.
    """
    theirs, ours = saved.config.get("logger", {}), now["logger"]
    if theirs.get("_target_") is None or ours.get("_target_") is None:
        return {}
    account = {key: ours.get(key) for key in _ACCOUNT}
    before = {key: theirs.get(key) for key in _ACCOUNT}
    if before != account and is_first():
        given = " ".join(f"logger.{key}={value}" for key, value in before.items() if value is not None)
        print(f"W&B: the account in the checkpoint is ignored; to use it, set it on the command line: {given}")
    return {"logger": theirs | account}
