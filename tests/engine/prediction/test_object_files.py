"""The files that prediction writes for a detection network; a stand-in always finds the same objects."""

import json
from pathlib import PurePath

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from ccnet.engine.checkpoints import Checkpoint
from ccnet.engine.prediction.inputs import InputImage
from ccnet.engine.prediction.object_files import ObjectFiles


class Finds(torch.nn.Module):
    """Finds a disc in the upper left corner, and something unlikely."""

    def forward(self, images):
        ((_, height, width),) = (image.shape for image in images)
        masks = torch.zeros(2, 1, height, width)
        masks[0, :, :8, :4] = masks[1] = 1
        boxes = torch.tensor([[0.0, 0, 4, 8], [0, 0, width, height]])
        return [{"boxes": boxes, "labels": torch.tensor([2, 1]), "scores": torch.tensor([0.9, 0.1]), "masks": masks}]


@pytest.mark.parametrize(("orientation", "box"), [(1, [0, 0, 4, 8]), (6, [0, 26, 8, 4])])
def test_objects_have_names_and_the_coordinates_of_the_file(tmp_path, orientation, box):
    """Orientation 6 says that the 40x30 pixels of the file have to be turned by 90 degrees to be upright."""
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = orientation
    Image.new("RGB", (40, 30), (90, 90, 90)).save(tmp_path / "photo.png", exif=tags)
    config = {"model": {"backbone": {}}, "dataset": {}}
    saved = Checkpoint({}, config, ["bar", "disc"], [[255, 0, 0], [0, 255, 0]], 1, {})
    files = ObjectFiles(Finds(), saved, tmp_path / "out", device=torch.device("cpu"), bf16=False)
    (tmp_path / "out").mkdir()
    image = InputImage(tmp_path / "photo.png", PurePath("photo"))
    files.write(image, files.predicted(image))
    found = json.loads((tmp_path / "out" / "photo.json").read_text())
    assert [(entry["category"], round(entry["score"], 3)) for entry in found] == [("disc", 0.9), ("bar", 0.1)]
    assert found[0]["bbox"] == box and found[0]["segmentation"]["size"] == [30, 40]
    overlay = np.array(Image.open(tmp_path / "out" / "photo_overlay.png").convert("RGB")).astype(int)
    drawn = (np.abs(overlay - 90).max(axis=2) > 30).mean()
    assert 0.01 < drawn < 0.9  # the disc and its label, but not the object that covers everything
