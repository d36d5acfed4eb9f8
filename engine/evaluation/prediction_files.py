"""Write predicted label maps as files: colour PNGs for viewing, or label values for a benchmark's server."""

import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from ...data.dataset import SegmentationDataset
from ..drawing.label_images import save_mask
from ..drawing.png_files import write_png
from ..runtime.atomic_files import replacing


class PredictionFiles:
    """A folder with one PNG per image of a data set, named after the image.

    Args:
        folder: the output folder, created if needed.
        dataset: a segmentation data set, with ``name(i)``, ``palette`` and, for a submission, ``result_values``.
        submission: write greyscale PNGs with the values that the benchmark's server expects (Cityscapes: label ids 7
            to 33, ADE20K: 1 to 150, LIP and others: class indices) instead of palette PNGs of class indices.

    Raises:
        ValueError: two images of the data set have the same name.
    """

    def __init__(self, folder: Path, dataset: SegmentationDataset, *, submission: bool = False):
        names = [dataset.name(index) for index in range(len(dataset))]
        repeated = [name for name, count in Counter(names).items() if count > 1]
        if repeated:
            raise ValueError(
                f"{len(repeated)} image names occur more than once in this data set, such as {repeated[0]!r}: the "
                "predictions would overwrite each other"
            )
        self.folder, self.submission = folder, submission
        self._names, self._palette = names, dataset.palette
        self._values = np.array(dataset.result_values, dtype=np.uint8) if submission else None
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, index: int, prediction: Tensor) -> None:
        """Write the predicted class indices (H, W) for image `index`."""
        path = self.folder / f"{self._names[index]}.png"
        if self._values is None:
            save_mask(path, prediction.numpy(), self._palette)
        else:
            write_png(path, Image.fromarray(self._values[prediction.numpy()]))

    def pack(self) -> Path:
        """Pack the files of all images into a zip archive next to the folder; return its path."""
        path = self.folder.with_name(f"{self.folder.name}.zip")  # the name may contain dots
        # Stored, not deflated: PNGs are already compressed.
        with replacing(path) as unfinished, zipfile.ZipFile(unfinished, "w") as archive:
            for name in self._names:
                archive.write(self.folder / f"{name}.png", f"{name}.png")
        return path
