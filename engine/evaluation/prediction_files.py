"""Write predicted label maps as files: colour PNGs for viewing, or label values for a benchmark's server."""

import tarfile
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
        dataset: a segmentation data set, with ``name(i)``, ``palette`` and, for a submission, ``result_values`` and
            optionally ``result_folder``.
        submission: write greyscale PNGs with the values that the benchmark's server expects (Cityscapes: label ids 7
            to 33, ADE20K: 1 to 150, LIP and others: class indices) instead of palette PNGs of class indices, which
            only VOC's server expects.

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
        self._result_folder: str = getattr(dataset, "result_folder", "")
        indexed = not submission or self._result_folder
        self._values = None if indexed else np.array(dataset.result_values, dtype=np.uint8)
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, index: int, prediction: Tensor) -> None:
        """Write the predicted class indices (H, W) for image `index`."""
        path = self.folder / f"{self._names[index]}.png"
        if self._values is None:
            save_mask(path, prediction.numpy(), self._palette)
        else:
            write_png(path, Image.fromarray(self._values[prediction.numpy()]))

    def earlier(self) -> list[Path]:
        """Return the PNGs that an earlier evaluation of other images left in the folder."""
        names = {f"{name}.png" for name in self._names}
        return sorted(path for path in self.folder.glob("*.png") if path.name not in names)

    def pack(self) -> Path:
        """Pack the files of all images into an archive next to the folder; return its path.

        It is a zip archive, or a tar archive if the benchmark expects the files in a ``result_folder``.
        """
        suffix = ".tar" if self._result_folder else ".zip"
        path = self.folder.with_name(f"{self.folder.name}{suffix}")  # the name may contain dots
        files = [self.folder / f"{name}.png" for name in self._names]
        with replacing(path) as unfinished:
            if self._result_folder:
                with tarfile.open(unfinished, "w") as archive:
                    for file in files:
                        archive.add(file, f"{self._result_folder}/{file.name}")
            else:
                with zipfile.ZipFile(unfinished, "w") as archive:  # stored: PNGs are already compressed
                    for file in files:
                        archive.write(file, file.name)
        return path
