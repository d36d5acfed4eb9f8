"""Predictions as files: in the palette for people, or with a benchmark's own label values for its server."""

import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ..drawing import label_images as figures
from ..runtime.atomic_files import replacing


class PredictionFiles:
    """Writes ``folder/NAME.png`` for each image of a data set.

    Args:
        folder: is made.
        dataset: with ``name(i)``, ``palette`` and, for a submission, ``result_values``.
        submission: grey values as the benchmark wants them (Cityscapes: label ids 7 to 33, ADE20K: 1 to 150, LIP and
            others: the class indices) instead of class indices in the palette.

    Raises:
        ValueError: two images of the data set have one name.
    """

    def __init__(self, folder: Path, dataset: Dataset, *, submission: bool = False):
        names = [dataset.name(index) for index in range(len(dataset))]
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise ValueError(f"{len(twice)} names of this data set are those of several pictures, such as {twice[0]!r}")
        self.folder, self.names, self.palette = folder, names, dataset.palette
        self.values = np.array(dataset.result_values, dtype=np.uint8) if submission else None
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, index: int, prediction: Tensor) -> None:
        """Write the class indices (H, W) of image ``index``."""
        path = self.folder / f"{self.names[index]}.png"
        if self.values is None:
            figures.save_mask(path, prediction.numpy(), self.palette)
        else:
            figures.write_png(path, Image.fromarray(self.values[prediction.numpy()]))

    def pack(self) -> Path:
        """One zip beside the folder with the files of all images; returns its path."""
        path = self.folder.with_suffix(".zip")
        # Stored: a PNG does not get smaller.
        with replacing(path) as unfinished, zipfile.ZipFile(unfinished, "w") as archive:
            for name in self.names:
                archive.write(self.folder / f"{name}.png", f"{name}.png")
        return path
