"""A network with random weights that stands in for a trained one."""

import torch

from ccnet.data.sets.camvid import CLASSES, PALETTE
from ccnet.engine.checkpoints import Checkpoint
from ccnet.engine.guards import plain
from ccnet.models.factory import build, compose_conf


def stand_in(model: str = "ccnet", *overrides: str) -> Checkpoint:
    """Return the checkpoint of a small network for CamVid, trained for no iteration, whose files lie nowhere."""
    options = [f"model={model}", "dataset=camvid", "dataset.root=/data/camvid", "backbone=resnet10t"]
    options += ["backbone.weights=/data/weights.pth", "recipe.head.channels=32", "recipe.head.gamma=fixed", *overrides]
    config = plain(compose_conf([*options, "num_classes=11", "logger=none"], "config"))
    backbone = config["model"]["backbone"] | {"weights": None, "pretrained": False}
    network = build(config["model"] | {"backbone": backbone})
    with torch.no_grad():  # random statistics, so that float16 has something to round
        for tensor in network.state_dict().values():
            if tensor.is_floating_point() and tensor.ndim == 1:
                tensor.uniform_(0.5, 1.5)
    scores = {"miou": 0.6, "pixel_accuracy": 0.9, "mean_accuracy": 0.7}
    scores |= {name: [0.6] * 10 + [float("nan")] for name in ("class_iou", "class_accuracy")}
    palette = [list(colour) for colour in PALETTE]
    return Checkpoint(network.state_dict(), config, list(CLASSES), palette, 4000, scores)
