"""Generate example images for the page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from hydra.utils import instantiate
from PIL import Image

from .street_scene import street_scene

_NUMBER = 3


def write_examples(dataset: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write a few example images and return their paths.

    They are samples of the built-in data set for a network trained on it, and synthetic street scenes otherwise.

    Args:
        dataset: the ``dataset`` node of the network's configuration.
        folder: created if needed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    node = dataset.get("val") or {}
    if str(node.get("_target_")).endswith("synthetic.Beacons"):
        beacons = instantiate(node, transform=None)
        images = [beacons.read(index)[0].permute(1, 2, 0).numpy() for index in range(min(_NUMBER, len(beacons)))]
        return [_written(folder / f"beacons_{index}.png", image) for index, image in enumerate(images, 1)]
    return [_written(folder / f"street_{index}.png", street_scene(index)[0]) for index in range(1, _NUMBER + 1)]


def _written(path: Path, image: np.ndarray) -> Path:
    Image.fromarray(image).save(path)
    return path
