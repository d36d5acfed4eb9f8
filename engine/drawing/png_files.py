"""Write images and figures as PNG files, atomically."""

import warnings
from pathlib import Path

from matplotlib.figure import Figure
from PIL import ExifTags, Image

from ..runtime.atomic_files import replacing
from .fonts import set_fonts

DPI = 120  # resolution of figures


def write_png(path: Path, picture: Image.Image, *, orientation: int = 1) -> None:
    """Write an image, with an EXIF orientation tag if it is not upright."""
    exif = {}
    if orientation != 1:
        tags = Image.Exif()
        tags[ExifTags.Base.Orientation] = orientation
        exif = {"exif": tags}
    with replacing(path) as unfinished:
        picture.save(unfinished, format="PNG", **exif)


def write_figure(path: Path, figure: Figure, *, dpi: int = DPI, bbox_inches: str | None = None) -> None:
    """Write a matplotlib figure, in fonts that have the characters of its texts."""
    set_fonts(figure)
    with replacing(path) as unfinished, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # set_fonts has warned
        figure.savefig(unfinished, format="png", dpi=dpi, bbox_inches=bbox_inches)
