"""Checkpoints: tensors and a plain config, never a pickled object.

``best.safetensors`` holds the weights and, in its header, the resolved config, the classes with their colours
and the scores. ``last.pt`` holds the same and what continuing the run needs besides; it is read with
``weights_only=True``. ``previous.pt`` is the ``last.pt`` of an iteration before. All are written beside their place and
then moved there, so that a run which is killed while writing keeps the file it had. All carry checksums (CRC-32, which
torch writes for every tensor of a .pt file), and a file that has changed since is refused.

Published files (``models.import_checkpoint``) are read into the same form.
"""

import json
import os
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ...data.sets.folder import distinct_colours
from ...models import tensor_files
from ...models.factory import build
from ...models.published import importing
from ..guards.allowed_targets import check_config
from ..guards.former_names import present_names
from ..guards.settings import check_settings
from ..runtime.atomic_files import given_path, replacing
from ..runtime.lost_workers import lost_worker

SUFFIXES = (".safetensors", ".pt")  # of a run's own
_PUBLISHED = ".pth"
_HEADER, _CHECKSUM = "ccnet", "crc32"
_TRAINING = {"optimizer", "schedule", "random", "best_score", "validated", "skipped", "identity", "wandb_id"}
LAST, PREVIOUS = "last.pt", "previous.pt"


@dataclass
class Checkpoint:
    """Everything that a checkpoint holds.

    Attributes:
        weights: state dict of the network.
        config: of the run, resolved.
        classes: K names.
        palette: K RGB triples.
        iteration: iterations done; None where a published file does not say.
        scores: of the last validation.
        training: state of optimiser, schedule, random generators and the best score; only in ``last.pt``.
        source: the file that it was read from.
    """

    weights: dict[str, torch.Tensor]
    config: dict[str, Any]
    classes: list[str]
    palette: list[list[int]]
    iteration: int | None
    scores: dict[str, Any]
    training: dict[str, Any] = field(default_factory=dict)
    source: Path | None = None

    def setting(self, name: str) -> Any:
        """A value of the config by its name with dots; ValueError if it has none."""
        value = self.config
        for key in name.split("."):
            if not (isinstance(value, dict) and key in value):
                raise ValueError(f"the checkpoint's config has no {name}: train.py and published files give it one")
            value = value[key]
        return value


def save(checkpoint: Checkpoint, path: Path, *, before: Path | None = None) -> None:
    """Write ``path`` (.safetensors or .pt) whole or not at all.

    Args:
        before: what a file that is there is called from then on; None to replace it.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    with replacing(path) as unfinished:
        try:
            if path.suffix == ".safetensors":
                header = {
                    key: value
                    for key, value in vars(checkpoint).items()
                    if key not in ("weights", "training", "source")
                }
                weights = {key: tensor.detach().cpu().contiguous() for key, tensor in checkpoint.weights.items()}
                text = json.dumps(header)
                save_file(weights, unfinished, metadata={_HEADER: text, _CHECKSUM: _checksum(text, weights)})
            else:
                torch.save({key: value for key, value in vars(checkpoint).items() if key != "source"}, unfinished)
            with open(unfinished, "rb+") as file:
                os.fsync(file.fileno())
        except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have errors of their own
            if lost_worker(error):
                raise
            raise OSError(
                f"{path} could not be written, is the disk full? The checkpoint before is as it was: make space, and "
                f"resume=auto goes on from there. {error}"
            ) from error
        if before and path.exists():
            os.replace(path, before)


def find(path: str | Path | None) -> Path:
    """The file that ``RUN/best``, ``RUN/last`` or a full file name, such as a published one's, means."""
    if path is None:
        raise ValueError("checkpoint is not set: give checkpoint=RUN/best, RUN the folder of a training run")
    path = given_path(path)
    candidates = (
        [path]
        if path.suffix in (*SUFFIXES, _PUBLISHED)
        else [path.with_name(path.name + suffix) for suffix in SUFFIXES]
    )
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    listed = " or ".join(str(candidate) for candidate in candidates)
    raise FileNotFoundError(f"there is no checkpoint {listed}: a run writes best.safetensors and last.pt")


def load(path: Path, **published: Any) -> Checkpoint:
    """Read a checkpoint without running anything that it may contain.

    Args:
        path: a checkpoint of this project, or a published one.
        **published: arguments of :func:`models.import_checkpoint`; they touch published ones alone.
    """
    content, metadata = tensor_files.read(path), _metadata(path)
    header = metadata.get(_HEADER)
    own = header is not None or (isinstance(content, dict) and {"weights", "config"} <= content.keys())
    published_as = None if own else importing.convert(content, path, **published)
    try:
        if published_as:
            return _checked(_from_published(published_as))
        found = _checked(Checkpoint(**content) if header is None else Checkpoint(content, **json.loads(header)))
        _check_sums(path, metadata, found.weights)
        found.source = path
        return found
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is not a checkpoint of this project, or it is damaged: {error}") from error


def _checked(found: Checkpoint) -> Checkpoint:
    """``found``, or ValueError unless all of it is what the rest of the project takes it for."""
    plain = {
        "weights": isinstance(found.weights, dict)
        and all(isinstance(key, str) and tensor_files.is_plain(value) for key, value in found.weights.items()),
        "config": isinstance(found.config, dict),
        "classes": _is_list(found.classes, lambda name: isinstance(name, str)),
        "palette": _is_list(
            found.palette,
            lambda colour: len(colour) == 3 and _is_list(colour, lambda part: type(part) is int and 0 <= part <= 255),
        ),
        "iteration": found.iteration is None or (type(found.iteration) is int and 0 <= found.iteration < 2**63),
        "scores": isinstance(found.scores, dict),
        "training": isinstance(found.training, dict),
    }
    if found.training and isinstance(found.training, dict):
        plain["training"] = found.training.keys() >= _TRAINING
    if wrong := [name for name, good in plain.items() if not good]:
        raise ValueError(f"its {' and '.join(wrong)} cannot be what they should be")
    if len(found.classes) != len(found.palette):
        raise ValueError(f"it names {len(found.classes)} classes and has {len(found.palette)} colours")
    found.config = present_names(found.config)
    check_config(found.config)
    check_settings(found.config)
    return found


def _is_list(value: Any, good: Callable[[Any], bool]) -> bool:
    return isinstance(value, (list, tuple)) and all(good(part) for part in value)


def _metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says besides its tensors."""
    if path.suffix != ".safetensors":
        return {}
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def _check_sums(path: Path, metadata: dict[str, str], weights: dict[str, torch.Tensor]) -> None:
    if path.suffix == ".safetensors":
        damaged = metadata.get(_CHECKSUM, "") not in ("", _checksum(metadata[_HEADER], weights))
    else:
        try:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip() is not None
        except (zipfile.BadZipFile, NotImplementedError, EOFError):
            damaged = True
    if damaged:
        raise ValueError("its content does not meet its checksum")


def _checksum(text: str, weights: dict[str, torch.Tensor]) -> str:
    total = zlib.crc32(text.encode())
    for key in sorted(weights):
        total = zlib.crc32(weights[key].reshape(-1).view(torch.uint8).numpy(), zlib.crc32(key.encode(), total))
    return f"{total:08x}"


def _from_published(found: importing.Published) -> Checkpoint:
    config = {
        "model": found.model,
        "recipe": {"train_transform": {"crop_size": found.crop_size and list(found.crop_size)}},
        "channels_last": True,
        "bf16": False,
    }
    classes = found.classes or [f"class {index}" for index in range(found.num_classes)]
    palette = [list(colour) for colour in found.palette or distinct_colours(found.num_classes)]
    return Checkpoint(found.network.state_dict(), config, classes, palette, found.iteration, scores={})


def network(checkpoint: Checkpoint) -> nn.Module:
    """The network of a checkpoint, rebuilt from its config, with its weights, in eval mode."""
    model = _without_start(checkpoint.setting("model"))
    number = OmegaConf.select(model, "head.num_classes", default=model.get("num_classes"))
    if number != len(checkpoint.classes):
        raise ValueError(f"the checkpoint's network has {number} classes and it names {len(checkpoint.classes)}")
    return _filled(_built(model, checkpoint), checkpoint.weights).eval()


def start_from(path: Path, config: DictConfig) -> nn.Module:
    """The network of a checkpoint with its weights, for a new run; ``config.model`` becomes that network's.

    Classifiers start anew where the run has another number of classes, and so does the loss's embedding.
    """
    given = load(path, **config.published)
    model = _without_start(given.setting("model"))
    if "embedding_channels" in model:
        model.embedding_channels = OmegaConf.select(config, "model.embedding_channels")
    for head in (model.get("head"), model.get("aux_head")):
        if isinstance(head, DictConfig):
            head.num_classes = config.num_classes
    config.model = model
    network = _built(model, given)
    weights = {key: tensor for key, tensor in given.weights.items() if not key.startswith("embed.")}
    for key, tensor in network.state_dict().items():
        if key.startswith("embed.") or ("classify." in key and key in weights and weights[key].shape != tensor.shape):
            weights[key] = tensor
    return _filled(network, weights)


def _without_start(model: dict[str, Any]) -> DictConfig:
    """A checkpoint's own weights replace whatever its backbone started from: nothing to download or to look for."""
    if not isinstance(model.get("backbone"), dict):
        raise ValueError("the checkpoint's config has no model.backbone")
    return OmegaConf.create(model | {"backbone": model["backbone"] | {"pretrained": False, "weights": None}})


def _built(model: DictConfig, checkpoint: Checkpoint) -> nn.Module:
    try:
        network = build(model, holding=tensor_files.size(checkpoint.weights))
    except InstantiationException as error:
        raise ValueError(f"the checkpoint's network cannot be built from its config: {error.__cause__}") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"the checkpoint's config describes a {type(network).__name__} and no network")
    return network


def _filled(network: nn.Module, weights: dict[str, torch.Tensor]) -> nn.Module:
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"the checkpoint's weights do not fit the network of its config: {error}") from error
    return network
