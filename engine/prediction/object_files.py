"""Detect objects with a detection network, and write the files that show them."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...data.reading.bands import drawn_channels
from ...data.reading.frames import FrameReader
from .. import drawing
from ..checkpoints.record import Checkpoint
from ..evaluation.average_precision import coco_results
from ..evaluation.detection import as_stored_objects, detect, likely_objects
from ..runtime.atomic_files import write_json
from .inputs import InputImage


class Detected(NamedTuple):
    """An image and the objects in it.

    Attributes:
        picture: the upright image, uint8 (C, H, W).
        orientation: the EXIF orientation of the file.
        objects: "boxes", "labels", "scores" and "masks", in torchvision's format.
    """

    picture: Tensor
    orientation: int
    objects: dict[str, Tensor]


class ObjectFiles:
    """Detects the objects of images and writes NAME.json, and the likely ones drawn over the image.

    Args:
        network: the detection network, on ``device``.
        saved: its checkpoint.
        output: the output folder.
        device: the device to compute on.
        bf16: compute in bfloat16 where autocast permits it.
    """

    def __init__(self, network: nn.Module, saved: Checkpoint, output: Path, *, device: torch.device, bf16: bool):
        self.network, self.output, self.device, self.bf16 = network, output, device, bf16
        self.classes, self._rgb = saved.classes, saved.drawn_channels
        self._read = FrameReader(saved.value_range, channels=saved.channels)

    def predicted(self, image: InputImage) -> Detected:
        """Read an image and detect its objects."""
        picture, orientation = self._read(image.path, image.frame)
        return Detected(picture, orientation, detect(self.network, picture.to(self.device) / 255, bf16=self.bf16))

    def write(self, image: InputImage, detected: Detected) -> None:
        """Write the files of an image; NAME.json has COCO's results format with the name of each category."""
        entries = coco_results(as_stored_objects(detected.objects, detected.orientation), 0, self.classes)
        named = [
            {"category": entry.pop("category_id")} | {key: value for key, value in entry.items() if key != "image_id"}
            for entry in entries
        ]
        write_json(self.output / f"{image.name}.json", named)
        overlay = self.output / f"{image.name}_overlay.png"
        drawn = drawn_channels(detected.picture, self._rgb)
        drawing.save_objects(overlay, drawn, likely_objects(detected.objects), self.classes)
