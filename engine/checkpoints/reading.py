"""Find and read checkpoints without executing any code that they may contain.

Four kinds of file are read into the same record:

- a run's weights, ``best.safetensors``: the tensors, with the configuration, the classes and their colours, and the
  scores in the header;
- a run's state, ``last.pt`` and ``previous.pt``: the same, plus everything needed to resume the run;
- a folder with ``config.json`` and ``model.safetensors``; see ``folders.py``;
- a published checkpoint; see :func:`ccnet.import_checkpoint`.

The tensor files of runs and folders carry checksums, and a file that does not match them is rejected.
"""

import errno
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ...data.sets.colours import class_colours
from ...models import tensor_files
from ...models.checksums import HEADER
from ...models.published.importing import Published, convert
from ...models.tensor_files import TensorFile
from ..runtime.atomic_files import given_path
from ..runtime.overrides import given_options
from .folders import CONFIG, WEIGHTS, from_folder, is_folder
from .pretrained import PACKAGED, packaged_file
from .record import Checkpoint, checked


def find(path: str | Path | None) -> Path:
    """Return the checkpoint file for ``RUN/best``, ``RUN/last``, ``RUN`` (its best weights) or a full file name.

    Also accepts a folder with ``config.json`` and ``model.safetensors``, or the name of a packaged network. Nothing is
    downloaded.

    Raises:
        ValueError: ``path`` is None, or a file of another kind.
        FileNotFoundError: there is no such file.
    """
    if path is None:
        raise ValueError("checkpoint is not set: use checkpoint=RUN/best, where RUN is the folder of a training run")
    if path in PACKAGED:
        return packaged_file(str(path))
    return tensor_files.find(given_path(path))


def load(path: Path, **published: Any) -> Checkpoint:
    """Read and check a checkpoint.

    Args:
        path: a run's checkpoint, or a published one.
        **published: arguments of :func:`ccnet.import_checkpoint`, which apply to published checkpoints only.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a checkpoint, is damaged, or its configuration references code that is not allowed;
            see ``engine/guards``.
    """
    file = tensor_files.read(path)
    folder = HEADER not in file.metadata and path.name == WEIGHTS and is_folder(path.parent)
    if HEADER not in file.metadata and not folder and not _is_state(file.content):
        file = convert(file.content, path, **published)
    try:
        checkpoint = checked(_record(file, path.with_name(CONFIG) if folder else None))
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is not a checkpoint of this project, or it is damaged: {error}") from error
    checkpoint.source = path
    return checkpoint


def check_published(loaded: Sequence[Checkpoint], options: Sequence[str] | None = None) -> None:
    """Raise ValueError if options of published checkpoints are set and none of these is one.

    Args:
        loaded: the checkpoints.
        options: the names of the options that are set; None for those on the command line.
    """
    if options is None:
        options = [name for name in given_options() if name.startswith("published.")]
    if options and not any(saved.is_published for saved in loaded):
        raise ValueError(
            f"{', '.join(options)} would have no effect, because {loaded[0].source} is not a published checkpoint and "
            "determines its network: remove it"
        )


def peek(path: Path) -> Checkpoint:
    """Read a run's state without its tensors, and without verifying its checksums.

    The file is memory-mapped, so this takes milliseconds regardless of its size.

    Raises:
        OSError: the file cannot be read, for a reason that may be temporary.
        ValueError: it is not the state of a run, or is damaged.
    """
    try:
        checkpoint = checked(Checkpoint(**torch.load(path, map_location="cpu", mmap=True, weights_only=True)))
    except Exception as error:  # each kind of damage raises a different error
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # a truncated file cannot be mapped
            raise
        raise ValueError(f"it is not a checkpoint of this project, or it is damaged: {error}") from error
    if not checkpoint.training:
        raise ValueError("it contains weights but no training state; use init=FILE to start from them")
    light = {key: checkpoint.training.get(key) for key in ("identity", "contents", "choices")}
    return replace(checkpoint, weights={}, training=light, source=path)


def _record(file: TensorFile | Published, config: Path | None) -> Checkpoint:
    if isinstance(file, Published):
        return from_published(file)
    if not file.checksums_match:
        raise ValueError("its content does not match its checksum")
    if config is not None:
        return from_folder(file.content, config)
    if HEADER in file.metadata:
        return Checkpoint(file.content, **json.loads(file.metadata[HEADER]))
    return Checkpoint(**file.content)


def _is_state(content: Any) -> bool:
    return isinstance(content, dict) and {"weights", "config"} <= content.keys()


def from_published(published: Published) -> Checkpoint:
    """Convert a published checkpoint to the record that a run of this project would have written."""
    config = {
        "model": published.model,
        "recipe": {"train_transform": {"crop_size": published.crop_size and list(published.crop_size)}},
        "channels_last": True,
        "bf16": False,
    }
    classes = published.classes or [f"class {index}" for index in range(published.num_classes)]
    palette = [list(colour) for colour in published.palette or class_colours(classes)]
    return Checkpoint(published.weights, config, classes, palette, published.iteration, scores={})
