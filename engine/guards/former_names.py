"""Targets in checkpoints written before this project was the package `ccnet`, under their present names."""

from typing import Any

# Former module or class -> present one. Longer names come before the packages that contain them.
_PRESENT = {
    "data.transforms": "ccnet.data.transforms",
    "data": "ccnet.data.sets",
    "engine.tasks": "ccnet.engine.evaluation.tasks",
    "engine.protocols": "ccnet.engine.evaluation.protocols",
    "engine.schedule": "ccnet.engine.training.lr_schedules",
    "engine.wandb_run": "ccnet.engine.training.wandb_logger",
    "losses.GivenLosses": "ccnet.losses.DetectionLoss",
    "losses": "ccnet.losses",
    "models.context.lines": "ccnet.models.context.horizontal_vertical",
    "models.heads.direct.DirectHead": "ccnet.models.heads.pyramid.PyramidHead",
    "models": "ccnet.models",
}


def present_names(node: Any) -> Any:
    """Return a plain configuration with every former `_target_` replaced by its present name."""
    if isinstance(node, dict):
        return {
            key: _present(value) if key == "_target_" and isinstance(value, str) else present_names(value)
            for key, value in node.items()
        }
    if isinstance(node, list):
        return [present_names(value) for value in node]
    return node


def _present(target: str) -> str:
    for former, present in _PRESENT.items():
        if f"{target}.".startswith(f"{former}."):
            return present + target.removeprefix(former)
    return target
