"""Write an image's scores for every class: probabilities or logits, as .npz or as one grey image per class."""

import os
import re
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ...data.reading.image_files import as_stored
from ..drawing.png_files import write_png
from ..evaluation.protocols import Tile
from ..runtime.atomic_files import naming, replacing

FORMATS = {"npz": np.float16, "png": np.uint8, "png16": np.uint16}
_ONE = {"png": 2**8 - 1, "png16": 2**16 - 1}  # the pixel value that represents a probability of 1
_BETWEEN_WORDS = re.compile(r"[\W_]+")


class ScoreFile:
    """The scores (K, H, W) of one image, collected tile by tile on disk; see :func:`open_scores`.

    Args:
        scratch: the temporary file that collects them.
        shape: (K, H, W).
        kind: a key of ``FORMATS``.
        logits: write logits instead of probabilities; the file is then an .npz.
        normalised: the scores passed to :meth:`add` are already probabilities.
    """

    def __init__(self, scratch: Path, shape: tuple[int, int, int], kind: str, *, logits: bool, normalised: bool):
        self._one = _ONE.get(kind)
        self._softmax = not (logits or normalised)
        self.scores = np.lib.format.open_memmap(scratch, mode="w+", dtype=FORMATS[kind], shape=shape)
        if hasattr(os, "posix_fallocate"):  # not on macOS
            # The file has no blocks yet: if the disk were full, writing to the mapped memory would raise SIGBUS.
            with open(scratch, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, scratch.stat().st_size)

    def add(self, tile: Tile) -> None:
        """Add the scores (1, K, h, w) of a tile of the image."""
        scores: Tensor = tile.scores[0].float()
        if self._softmax:
            scores = scores.softmax(dim=0)
        if self._one:
            scores = (scores * self._one).round()
        self.scores[:, tile.rows, tile.columns] = scores.cpu().numpy()


@contextmanager
def open_scores(
    path: Path,
    size: tuple[int, int],
    classes: Sequence[str],
    kind: str,
    *,
    logits: bool = False,
    normalised: bool = False,
    orientation: int = 1,
) -> Generator[ScoreFile]:
    """Collect the scores of an image and write them when the ``with`` block succeeds.

    Args:
        path: the output without suffix. "npz": ``path.npz`` with the float16 array "probabilities" or "logits"
            (K, H, W), and "classes", the names. "png", "png16": the folder ``path`` with a grey image for each class,
            ``000_NAME.png``, in which a probability of 1 is 255 or 65535.
        size: (H, W) of the upright image.
        classes: the names of the K classes.
        kind: "npz", "png" or "png16".
        logits: write logits, as "npz".
        normalised: the scores passed to :meth:`ScoreFile.add` are already probabilities.
        orientation: the EXIF orientation of the image, which the written scores have as well.
    """
    scratch = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with naming(path):
            file = ScoreFile(scratch, (len(classes), *size), kind, logits=logits, normalised=normalised)
            yield file
            scores = as_stored(file.scores, orientation)
            if kind == "npz":
                arrays: dict[str, Any] = {
                    "logits" if logits else "probabilities": scores,
                    "classes": np.array([*classes]),
                }
                with replacing(path.with_name(f"{path.name}.npz")) as unfinished, open(unfinished, "wb") as opened:
                    np.savez(opened, **arrays)
                return
            path.mkdir(exist_ok=True)
            stems = [_BETWEEN_WORDS.sub("_", title).strip("_") for title in classes]
            names = [f"{index:03d}_{stem}.png" for index, stem in enumerate(stems)]
            for before in path.glob("[0-9][0-9][0-9]_*.png"):  # perhaps written for a network with other classes
                before.unlink()
            for name, values in zip(names, scores, strict=True):
                write_png(path / name, Image.fromarray(np.ascontiguousarray(values)))
    finally:
        with suppress(OSError):
            scratch.unlink()


@contextmanager
def wanted_scores(
    stem: Path,
    size: tuple[int, int],
    classes: Sequence[str],
    *,
    probabilities: str | None,
    logits: bool,
    normalised: bool,
    orientation: int,
) -> Generator[Callable[[Tile], None] | None]:
    """Yield a function that adds the scores of a tile to every requested file; None if no file is requested.

    Args:
        stem: the common prefix of the file paths.
        size, classes, normalised, orientation: see :func:`open_scores`.
        probabilities: the format of the probabilities; None to write none.
        logits: write the logits.
    """
    with ExitStack() as opened:
        files: list[ScoreFile] = []
        if probabilities:
            path = stem.with_name(f"{stem.name}_probabilities")
            file = open_scores(path, size, classes, probabilities, normalised=normalised, orientation=orientation)
            files.append(opened.enter_context(file))
        if logits:
            path = stem.with_name(f"{stem.name}_logits")
            file = open_scores(path, size, classes, "npz", logits=True, orientation=orientation)
            files.append(opened.enter_context(file))

        def add(tile: Tile) -> None:
            """Add the scores of a tile to every file."""
            for file in files:
                file.add(tile)

        yield add if files else None
