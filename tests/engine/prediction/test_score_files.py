"""Files with the scores of every class, read back."""

import errno
import os
from pathlib import PurePath

import numpy as np
import pytest
import torch
from PIL import Image
from stand_in import stand_in
from torch import nn

from ccnet.engine.evaluation.protocols import MultiScale, Tile, Whole
from ccnet.engine.prediction.inputs import InputImage
from ccnet.engine.prediction.label_maps import LabelMaps
from ccnet.engine.prediction.predictor import Predictor
from ccnet.engine.prediction.score_files import open_scores, wanted_scores

CLASSES = ("road", "traffic light / sign", "ciel bleuté")


def written(tmp_path, kind, **options):
    """Write logits in two parts; return the logits and their probabilities, (K, H, W)."""
    logits = torch.linspace(-3, 3, 3 * 4 * 6).sin().mul(4).view(1, 3, 4, 6)
    with open_scores(tmp_path / "a_scores", (4, 6), CLASSES, kind, **options) as file:
        for columns in (slice(0, 2), slice(2, 6)):
            file.add(Tile(slice(0, 4), columns, logits[..., columns]))
    return logits[0].numpy(), logits[0].softmax(dim=0).numpy()


def test_npz_holds_probabilities_or_logits_and_the_names(tmp_path):
    _, probabilities = written(tmp_path, "npz")
    with np.load(tmp_path / "a_scores.npz") as file:
        assert file["classes"].tolist() == [*CLASSES]
        assert file["probabilities"].dtype == np.float16
        assert np.abs(file["probabilities"] - probabilities).max() < 1e-3
    logits, _ = written(tmp_path, "npz", logits=True)
    with np.load(tmp_path / "a_scores.npz") as file:
        assert np.abs(file["logits"] - logits).max() < 4e-3
    assert [path.name for path in tmp_path.iterdir()] == ["a_scores.npz"]


@pytest.mark.parametrize(("kind", "largest"), [("png", 255), ("png16", 65535)])
def test_each_class_is_a_grey_image_in_the_orientation_of_the_image(tmp_path, kind, largest):
    _, probabilities = written(tmp_path, kind, orientation=6)
    names = sorted(path.name for path in (tmp_path / "a_scores").iterdir())
    assert names == ["000_road.png", "001_traffic_light_sign.png", "002_ciel_bleuté.png"]
    grey = np.array(Image.open(tmp_path / "a_scores" / names[1]))
    assert grey.dtype == (np.uint8 if largest == 255 else np.uint16)
    assert np.abs(np.rot90(grey.astype(float), -1) / largest - probabilities[1]).max() <= 0.51 / largest


def test_the_classes_of_an_earlier_network_are_removed(tmp_path):
    folder = tmp_path / "a_scores"
    folder.mkdir()
    for name in ("000_sky.png", "001_traffic_light_sign.png", "003_tree.png", "notes.png"):
        (folder / name).write_bytes(b"")
    written(tmp_path, "png")
    names = {path.name: path.stat().st_size > 0 for path in folder.iterdir()}
    new = ("000_road.png", "001_traffic_light_sign.png", "002_ciel_bleuté.png")
    assert names == {**dict.fromkeys(new, True), "notes.png": False}


@pytest.mark.parametrize("probabilities", [None, "npz"])
@pytest.mark.parametrize("logits", [False, True])
def test_only_the_requested_files_are_written_and_all_in_the_orientation_of_the_image(tmp_path, probabilities, logits):
    scores = torch.randn(1, 3, 4, 6)
    options = {"probabilities": probabilities, "logits": logits, "normalised": False, "orientation": 6}
    with wanted_scores(tmp_path / "a", (4, 6), CLASSES, **options) as add:
        assert (add is None) == (not probabilities and not logits)
        if add:
            add(Tile(slice(0, 4), slice(0, 6), scores))
    wanted = {"probabilities": scores[0].softmax(dim=0)} if probabilities else {}
    wanted |= {"logits": scores[0]} if logits else {}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"a_{name}.npz" for name in wanted)
    for name, values in wanted.items():
        with np.load(tmp_path / f"a_{name}.npz") as file:
            assert np.allclose(np.rot90(file[name], -1, axes=(1, 2)), values, atol=4e-3)


class Steps(nn.Module):
    """A network whose logits are the multiples of the brightness, 0 to 1."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, 3, 1, 1))

    def forward(self, images):
        return {"out": images[:, :1] * torch.arange(11).view(-1, 1, 1)}


@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_a_protocol_that_averages_probabilities_gets_no_second_softmax(tmp_path, average):
    Image.new("RGB", (8, 6), (102, 0, 0)).save(tmp_path / "a.png")
    protocol = MultiScale(Whole(), scales=[1.0], average=average)
    maps = LabelMaps(
        [Predictor(Steps(), protocol, device=torch.device("cpu"))], stand_in("fcn"),
        [InputImage(tmp_path / "a.png", PurePath("a"))], tmp_path, probabilities="npz", logits=False, attention=None,
        compare_rows=0, truth=None,
    )  # fmt: skip
    maps.predicted(0)
    want = (0.4 * torch.arange(11)).softmax(dim=0).view(-1, 1, 1)
    with np.load(tmp_path / "a_probabilities.npz") as file:
        assert np.allclose(file["probabilities"], want, atol=1e-3)


def test_nothing_is_left_of_an_image_that_fails(tmp_path):
    with pytest.raises(RuntimeError, match="no"), open_scores(tmp_path / "a", (4, 6), CLASSES, "npz"):
        raise RuntimeError("no")
    assert [*tmp_path.iterdir()] == []


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="macOS")
def test_a_full_disk_is_an_error_before_the_file_is_mapped_memory_without_space(tmp_path, monkeypatch):
    """Otherwise the first write to it would end the process with SIGBUS."""
    wanted = []

    def full(descriptor, offset, length):
        wanted.append((offset, length))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with (
        pytest.raises(OSError, match=r"No space left on device: .*a"),
        open_scores(tmp_path / "a", (4, 6), CLASSES, "npz"),
    ):
        pass
    ((offset, length),) = wanted
    assert offset == 0 and length > 3 * 4 * 6 * 2
    assert [*tmp_path.iterdir()] == []
