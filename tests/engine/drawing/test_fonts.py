"""Class names are legible if any installed font has their characters; otherwise, a warning names these characters."""

import warnings
from functools import partial

import numpy as np
import pytest
from matplotlib.font_manager import fontManager
from PIL import Image

from ccnet.engine.drawing import charts, fonts, panels
from ccnet.engine.drawing.legend import LegendEntry, draw_legend

# STIX, which ships with matplotlib, has circled letters; DejaVu Sans draws all of them as the same box.
CIRCLED = ["Ⓐ road", "Ⓑ road"]


@pytest.fixture(autouse=True)
def _fresh():
    fonts._font_of.cache_clear()
    fonts._warned.clear()
    yield
    fonts._font_of.cache_clear()


def legend(name):
    return np.array(draw_legend([LegendEntry(name, (255, 0, 0))], (300, 400)))


def confusion(name, tmp_path):
    charts.save_confusion(tmp_path / "figure.png", np.eye(2, dtype=np.int64), [name, "car"])
    return np.array(Image.open(tmp_path / "figure.png"))


def panel(name, tmp_path):
    labels = np.zeros((4, 4), np.uint8)
    panels.save_samples(tmp_path / "panel.png", [[labels]], ["truth"], [name], [(255, 0, 0)])
    return np.array(Image.open(tmp_path / "panel.png"))


def test_characters_that_the_default_font_lacks_are_drawn_from_another(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "STIX" in fonts._font_of(frozenset(CIRCLED[0]))
        for drawn in (legend, partial(confusion, tmp_path=tmp_path), partial(panel, tmp_path=tmp_path)):
            one, other = map(drawn, CIRCLED)
            assert one.shape != other.shape or (one != other).any()


def test_characters_that_no_font_has_are_named_once(tmp_path, monkeypatch):
    # A font in matplotlib 3.11 that has a box for every character.
    boxes = [entry for entry in fontManager.ttflist if "Resort" in entry.fname]
    monkeypatch.setattr(fontManager, "ttflist", boxes)
    with pytest.warns(UserWarning, match="路道 are drawn as boxes. Install a font") as found:
        legend("路道")
        legend("路道")
    assert len(found) == 1
    with pytest.warns(UserWarning, match="class names: 行 are drawn as boxes") as found:
        confusion("道", tmp_path)
        confusion("道行", tmp_path)
    assert len(found) == 1


def test_ordinary_names_keep_the_default_font(tmp_path):
    assert fonts._font_of(frozenset("Straße, façade, дорога, δρόμος\n\u200b")) == fonts._DEFAULT
