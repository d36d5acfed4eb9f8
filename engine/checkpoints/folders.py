"""Store a network as a folder with config.json and model.safetensors, the layout of Hugging Face repositories.

The folder contains everything that prediction, evaluation and fine-tuning need, and no paths of the training machine.
"""

import json
import math
from pathlib import Path
from typing import Any

from torch import Tensor

from ...models.tensor_files import FOLDER_WEIGHTS as WEIGHTS
from ...models.tensor_files import write_safetensors
from ..runtime.atomic_files import replacing, write_json
from .options import DATA_LOCATIONS, without_pretrained
from .record import Checkpoint

CONFIG = "config.json"

# Parts of a run's configuration that are kept.
_KEPT = (
    "model", "task", "dataset", "recipe", "protocol", "loss", "optimizer", "clip_norm", "frozen_stages", "norm_eval",
    "seed", "accumulate", "bf16", "channels_last", "inherited_data",
)  # fmt: skip
_FIELDS = {"config", "classes", "palette", "iteration", "scores"}
_SMALL = 1024  # elements; smaller tensors, such as the mean colour and norms of timm's small networks, stay exact


def write_folder(saved: Checkpoint, folder: Path) -> None:
    """Write config.json and model.safetensors; see :func:`half_precision` for smaller files.

    Both are complete before either replaces an earlier one: a process that is killed while writing leaves neither.

    Args:
        saved: the checkpoint; its training state is not written.
        folder: created if needed.
    """
    content = {
        "config": portable(saved.config),
        "classes": list(saved.classes),
        "palette": [list(colour) for colour in saved.palette],
        "iteration": saved.iteration,
        "scores": saved.scores,
    }
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / CONFIG) as config, replacing(folder / WEIGHTS) as weights:
        write_json(config, content)
        write_safetensors(weights, saved.weights, {"format": "pt"})


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder with config.json and model.safetensors."""
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def holds_network(path: Path) -> bool:
    """Return whether :func:`write_folder` has written the files in a folder, and not another project."""
    try:
        return is_folder(path) and _is_ours(json.loads((path / CONFIG).read_text(encoding="utf-8")))
    except ValueError:
        return False


def from_folder(weights: dict[str, Tensor], config: Path) -> Checkpoint:
    """Return the checkpoint of untrusted weights and the untrusted config.json that belongs to them."""
    content = json.loads(config.read_text(encoding="utf-8"))
    if not _is_ours(content):
        raise ValueError(f"{config.name} must have exactly the keys {', '.join(sorted(_FIELDS))}")
    content["scores"] = _with_nan(content["scores"])
    return Checkpoint(weights, **content)


def _is_ours(content: Any) -> bool:
    return isinstance(content, dict) and content.keys() == _FIELDS


def portable(config: dict[str, Any]) -> dict[str, Any]:
    """Return the parts of a run's configuration that are meaningful on any machine, without file locations."""
    kept: dict[str, Any] = {part: config[part] for part in _KEPT if part in config}
    return kept | {"model": without_pretrained(kept["model"]), "dataset": _unlocated(kept.get("dataset", {}))}


def half_precision(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict with its large tensors in float16; vectors and small tensors keep their dtype.

    Raises:
        ValueError: a weight exceeds the range of float16.
    """
    halved = {key: _half(tensor) for key, tensor in weights.items()}
    wrong = [key for key, tensor in halved.items() if not tensor.isfinite().all() and weights[key].isfinite().all()]
    if wrong:
        raise ValueError(f"{', '.join(wrong)} exceed the range of float16: keep the weights in float32")
    return halved


def _half(tensor: Tensor) -> Tensor:
    large = tensor.is_floating_point() and tensor.ndim > 1 and tensor.numel() > _SMALL
    return tensor.half() if large else tensor


def _unlocated(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: None if key in DATA_LOCATIONS else _unlocated(value) for key, value in node.items()}
    return node


def _with_nan(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _with_nan(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_with_nan(value) for value in node]
    return math.nan if node is None else node
