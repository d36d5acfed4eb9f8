"""Fonts that have the characters of class names: DejaVu Sans, or one installed on this machine."""

import warnings
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text
from PIL import ImageFont

_DEFAULT = str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf")
_warned: set[int] = set()  # code points that a warning has named: a figure asks for a font for each of its texts
_PLACEHOLDERS = ("Last Resort", "LastResort", "Adobe Blank")  # fonts that draw every character as a box or not at all


def text_font(size: int, texts: Iterable[str]) -> ImageFont.FreeTypeFont:
    """Return a font that has the characters of a legend or caption; `size` is in pixels."""
    return ImageFont.truetype(_font_of(frozenset("".join(texts))), size)


def set_fonts(figure: Figure) -> None:
    """Set the font of each text in a figure whose characters the default font lacks."""
    for text in _texts(figure):
        font = _font_of(frozenset(text.get_text()))
        if font != _DEFAULT:
            text.set_fontproperties(FontProperties(fname=font, size=text.get_fontsize()))


def _texts(artist: Artist) -> Iterator[Text]:
    """Yield the texts of a figure, except those at an axis that is switched off, which would have to be made first."""
    if isinstance(artist, Text):
        yield artist
    if not (isinstance(artist, Axis) and not artist.axes.axison):
        for child in artist.get_children():
            yield from _texts(child)


@cache
def _font_of(characters: frozenset[str]) -> str:
    """Return the path of the font with most of the characters; warn if it lacks some, which it draws as boxes."""
    needed = {ord(character) for character in characters if character.isprintable() and not character.isspace()}
    if needed <= _characters(_DEFAULT):
        return _DEFAULT
    installed = [entry for entry in fontManager.ttflist if not entry.name.startswith(_PLACEHOLDERS)]
    upright = [entry for entry in installed if entry.style == "normal" and entry.weight in (400, "normal")]
    upright.sort(key=lambda entry: "Sans" not in entry.name)  # max takes the first of several that have as many
    font = max([_DEFAULT, *(entry.fname for entry in upright)], key=lambda path: len(needed & _characters(path)))
    if lacking := needed - _characters(font) - _warned:
        _warned.update(lacking)
        warnings.warn(
            f"no installed font has all characters of the class names: {''.join(map(chr, sorted(lacking)))} are drawn "
            "as boxes. Install a font that has them, such as Noto Sans CJK",
            stacklevel=2,
        )
    return font


@cache
def _characters(path: str) -> frozenset[int]:
    """Return the code points of a font; an empty set if it cannot be read."""
    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()
