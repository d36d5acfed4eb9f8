"""The task that a checkpoint was trained for."""

from collections.abc import Mapping
from typing import Any

from hydra.utils import instantiate

from .semantic import Semantic
from .task import Task


def task_of(config: Mapping[str, Any]) -> Task:
    """Return the task of a checkpoint's configuration; semantic segmentation if it names none."""
    return instantiate(config["task"]) if config.get("task") else Semantic()
