"""Write images and figures as PNG files, atomically."""

from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from ..runtime.atomic_files import replacing


def write_png(path: Path, picture: Image.Image) -> None:
    """Write an image."""
    with replacing(path) as unfinished:
        picture.save(unfinished, format="PNG")


def write_figure(path: Path, figure: Figure, *, dpi: int = 120, bbox_inches: str | None = None) -> None:
    """Write a matplotlib figure."""
    with replacing(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=dpi, bbox_inches=bbox_inches)
