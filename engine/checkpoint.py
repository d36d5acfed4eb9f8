"""Checkpoints: tensors and a plain config, never a pickled object.

``best.safetensors`` holds the weights and, in its header, the resolved config, the classes with their colours
and the scores. ``last.pt`` holds the same and what continuing the run needs besides; it is read with
``weights_only=True``. Both are written beside their place and then moved there, so that a run which is killed
while writing keeps the file it had.
"""

import json
import os
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from engine.trusted import check_config
from models.factory import build

SUFFIXES = (".safetensors", ".pt")
_HEADER = "ccnet"


@dataclass
class Checkpoint:
    """Everything that a checkpoint holds.

    Attributes:
        weights: state dict of the network.
        config: of the run, resolved.
        classes: K names.
        palette: K RGB triples.
        iteration: iterations done.
        scores: of the last validation.
        training: state of optimiser, schedule, random generators and the best score; only in ``last.pt``.
    """

    weights: dict[str, torch.Tensor]
    config: dict[str, Any]
    classes: list[str]
    palette: list[list[int]]
    iteration: int
    scores: dict[str, Any]
    training: dict[str, Any] = field(default_factory=dict)


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Write ``path`` (.safetensors or .pt) whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if path.suffix == ".safetensors":
            header = {key: value for key, value in vars(checkpoint).items() if key not in ("weights", "training")}
            weights = {key: tensor.detach().cpu().contiguous() for key, tensor in checkpoint.weights.items()}
            save_file(weights, temporary, metadata={_HEADER: json.dumps(header)})
        else:
            torch.save(dict(vars(checkpoint)), temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def find(path: str | Path | None) -> Path:
    """The file that ``RUN/best``, ``RUN/last`` or a full file name means."""
    if path is None:
        raise ValueError("checkpoint is not set: give checkpoint=RUN/best, RUN the folder of a training run")
    path = Path(path).expanduser()
    candidates = [path] if path.suffix in SUFFIXES else [path.with_name(path.name + suffix) for suffix in SUFFIXES]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    listed = " or ".join(str(candidate) for candidate in candidates)
    raise FileNotFoundError(f"there is no checkpoint {listed}: a run writes best.safetensors and last.pt")


def load(path: Path) -> Checkpoint:
    """Read a checkpoint without running anything that it may contain."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {})[_HEADER])
            found = Checkpoint(weights=load_file(path), **header)
        else:
            found = Checkpoint(**torch.load(path, map_location="cpu", weights_only=True))
        check_config(found.config)
        return found
    except OSError:
        raise
    except pickle.UnpicklingError as error:  # torch's own text suggests to load it all the same
        raise ValueError(
            f"{path} is not a checkpoint of this project: it holds more than tensors and values"
        ) from error
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, EOFError, AttributeError) as error:
        raise ValueError(f"{path} is not a checkpoint of this project, or it is damaged: {error}") from error


def network(checkpoint: Checkpoint) -> nn.Module:
    """The network of a checkpoint, rebuilt from its config, with its weights, in eval mode."""
    config = OmegaConf.create(checkpoint.config)
    # Its own weights replace whatever the backbone started from: nothing to download, no file to look for.
    config.model.backbone = OmegaConf.merge(config.model.backbone, {"pretrained": False, "weights": None})
    model = build(config.model)
    try:
        model.load_state_dict(checkpoint.weights)
    except RuntimeError as error:
        raise ValueError(f"the checkpoint's weights do not fit the network of its config: {error}") from error
    return model.eval()
