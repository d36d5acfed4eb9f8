"""The public data sets that a network's weights are derived from: their terms apply to the weights."""

from collections.abc import Mapping
from typing import Any

from ...data import layout_of
from ...data.sets.layouts import COCO
from .record import Checkpoint


def own_data(saved: Checkpoint) -> dict[str, str]:
    """Return the public data set that a checkpoint's run trained on, {name: source and terms}; empty for others.

    A data set in COCO's format is taken for COCO if it has COCO's 80 classes, from person to toothbrush.
    """
    layout, classes = layout_of(saved.dataset.get("train") or {}), saved.classes
    is_coco = len(classes) == 80 and (classes[0], classes[-1]) == ("person", "toothbrush")
    return {} if layout is None or (layout == COCO and not is_coco) else {layout.name: layout.source}


def inherited_data(saved: Checkpoint) -> dict[str, str]:
    """Return the public data sets behind the initial weights of a checkpoint's run, as its configuration records."""
    recorded: Any = saved.config.get("inherited_data")
    return {str(name): str(source) for name, source in recorded.items()} if isinstance(recorded, Mapping) else {}


def passed_on(saved: Checkpoint | None) -> dict[str, str] | None:
    """Return the ``inherited_data`` of a run that starts from a checkpoint's weights; None if there is none."""
    return None if saved is None else inherited_data(saved) | own_data(saved) or None
