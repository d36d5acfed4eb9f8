"""predict.py takes the frames of a clip from the images before it."""

from pathlib import PurePath

import numpy as np
import pytest
import torch
from PIL import Image
from stand_in import stand_in
from torch import nn

from ccnet.engine.evaluation.protocols import Whole
from ccnet.engine.prediction.inputs import InputImage
from ccnet.engine.prediction.label_maps import LabelMaps
from ccnet.engine.prediction.predictor import Predictor


class Recorder(nn.Module):
    """A network that records the brightness of each frame of its input, 0 to 255, and returns it as every logit."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, 3, 1, 1))
        self.seen = []

    def forward(self, images):
        self.seen.append((images.float().unflatten(0, (1, -1))[0, 0, 0, ..., 0, 0] * 255).round().int().tolist())
        return {"out": torch.cat([images[:, :1]] * 11, dim=1)}


def clips_of(folder, images, frames):
    """Return what each network sees of the images {name: (brightness, height)}, None for unreadable ones."""
    inputs = []
    for name, (brightness, height) in images.items():
        inputs.append(InputImage(folder / name, PurePath(name).with_suffix("")))
        Image.fromarray(np.full((height, 8, 3), brightness, np.uint8)).save(folder / name)
        if brightness == 0:
            (folder / name).write_bytes(b"")
    networks = [Recorder() for _ in frames]
    predictors = [
        Predictor(network, Whole(), device=torch.device("cpu"), frames=number)
        for network, number in zip(networks, frames, strict=True)
    ]
    maps = LabelMaps(
        predictors, stand_in("fcn"), inputs, folder, probabilities=None, logits=True, attention=None,
        compare_rows=len(frames) - 1, truth=None,
    )  # fmt: skip
    predictors[0].about_memory = lambda size: "the images are split"
    for index, (brightness, _) in enumerate(images.values()):
        if brightness:
            maps.predicted(index)
        else:
            with pytest.raises(ValueError, match="cannot be read as an image"):
                maps.predicted(index)
    return [network.seen for network in networks]


def test_a_clip_starts_anew_after_an_unreadable_image_or_one_of_another_size(tmp_path):
    images = {"1.png": (10, 6), "2.png": (20, 6), "3.png": (0, 6), "4.png": (40, 6), "5.png": (50, 6), "6.png": (60, 7)}
    (seen,) = clips_of(tmp_path, images, [3])
    assert seen == [[10, 10, 10], [10, 10, 20], [40, 40, 40], [40, 40, 50], [60, 60, 60]]


def test_a_clip_has_the_images_of_one_sequence(tmp_path):
    images = {"0001TP_006690.png": (10, 6), "0006R0_f00930.png": (20, 6), "0006R0_f00960.png": (30, 6)}
    (seen,) = clips_of(tmp_path, images, [3])
    assert seen == [[10, 10, 10], [20, 20, 20], [20, 20, 30]]
    for name, (brightness, _) in images.items():  # the scores are those of the last frame
        with np.load(tmp_path / f"{name[:-4]}_logits.npz") as file:
            assert np.allclose(file["logits"], brightness / 255, atol=1e-3)


def test_networks_with_clips_of_different_lengths_are_compared(tmp_path, capsys):
    still, clip = clips_of(tmp_path, {"1.png": (10, 6), "2.png": (20, 6)}, [1, 3])
    assert (still, clip) == ([10, 20], [[10, 10, 10], [10, 10, 20]])
    assert capsys.readouterr().out.count("the images are split") == 1  # for both images
