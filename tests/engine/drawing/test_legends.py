"""Legends, overlays and panels: what they show, and that it fits."""

import math
from functools import partial

import numpy as np
import pytest
from PIL import Image

from ccnet.data.sets.colours import class_colours, distinct_colours
from ccnet.engine.drawing import blend, charts, colourise, mark_errors, panels, save_mask, save_overlay
from ccnet.engine.drawing.charts import _means, save_curves
from ccnet.engine.drawing.legend import (
    LegendEntry,
    count_classes,
    draw_legend,
    entries,
    legend_width,
    line_height,
    most_frequent_first,
)
from ccnet.engine.drawing.panels import _shortened, _wrapped, save_grid

PALETTE = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


def test_a_legend_lists_the_classes_present_most_frequent_first_and_ignored_pixels_last():
    labels = np.repeat(np.array([2, 2, 2, 0, 255, 255], dtype=np.uint8), 4).reshape(4, 6)
    lines = entries(count_classes(labels), ("road", "car", "sky"), PALETTE)
    assert [line.text for line in lines] == ["sky  50.0%", "road  16.7%", "ignored  33.3%"]
    assert [line.colour for line in lines] == [PALETTE[2], PALETTE[0], None]
    assert most_frequent_first(count_classes(labels)) == [2, 0, 255]
    rare = np.zeros(256, dtype=np.int64)
    rare[:3] = 1994, 1, 5
    assert [line.text.split()[1] for line in entries(rare, ("a", "b", "c"), PALETTE)] == ["99.7%", "0.2%", "0.1%"]
    rare[0] = 3994
    assert entries(rare, ("a", "b", "c"), PALETTE)[2].text == "b  <0.1%"


@pytest.mark.parametrize(("size", "number"), [((364, 500), 150), ((3000, 4000), 12), ((60, 80), 30), ((500, 3000), 20)])
def test_a_legend_grows_with_the_image_and_not_with_the_classes(size, number):
    lines = [LegendEntry(f"class number {index}  10.0%", PALETTE[0]) for index in range(number)]
    legend = draw_legend(lines, size)
    assert legend.height <= max(size[0], 12 * line_height(size))
    assert legend.width <= 3 * 14 * line_height(size)
    assert line_height(size) * min(1200 / size[1], 1) >= 14  # pixels on a screen 1200 pixels wide


def test_ignored_pixels_stay_in_a_legend_that_is_too_long():
    lines = [*(LegendEntry(f"class {index}", (9, 9, 200)) for index in range(99)), LegendEntry("ignored", ignored=True)]
    canvas = np.array(draw_legend(lines, (64, 64)))
    last = canvas[-30:, -130:-100].reshape(-1, 3)  # the last line of the last column
    assert (last == 125).all(axis=1).any()  # a stripe
    assert canvas.shape[1] < 1.2 * draw_legend(lines[:30], (64, 64)).width  # three columns of ten


def test_a_legend_beside_a_video_is_as_wide_as_its_longest_name_needs():
    names = ("a", "a considerably longer name", "b")
    wide = legend_width(names, (240, 320))
    assert wide == legend_width(names[1:2], (240, 320)) > 2 * legend_width(names[:1], (240, 320))
    legend = np.array(draw_legend([LegendEntry(name, PALETTE[0]) for name in names], (240, 320), width=wide))
    assert legend.shape[:2] == (240, wide) and (legend[:, -5:] == 255).all()


def test_ignored_pixels_are_hatched_everywhere():
    labels = np.zeros((40, 40), dtype=np.uint8)
    labels[20:] = 255
    image = np.full((40, 40, 3), 100, dtype=np.uint8)
    for drawn in (colourise(labels, PALETTE), blend(image, labels, PALETTE), mark_errors(labels * 0, labels)):
        assert len(np.unique(drawn[:20].reshape(-1, 3), axis=0)) == 1
        assert len(np.unique(drawn[20:].reshape(-1, 3), axis=0)) == 2


def test_the_colours_of_classes_and_errors():
    image, labels = np.full((600, 2, 3), 200, dtype=np.uint8), np.repeat(np.uint8([[0, 2]]), 600, axis=0)
    drawn = blend(image, labels, PALETTE, opacity=0.25)  # in bands of rows
    assert (drawn == [[round(0.75 * 200 + 0.25 * part) for part in PALETTE[index]] for index in (0, 2)]).all()
    errors = mark_errors(np.uint8([[0, 1]]), labels[:1])
    assert errors[0, 1, 0] > 2 * errors[0, 1, 1] and np.ptp(errors[0, 0]) < 10  # red, grey


def test_an_overlay_above_32_megapixels_is_reduced(tmp_path, monkeypatch):
    image, labels = np.zeros((60, 90, 3), dtype=np.uint8), np.zeros((60, 90), dtype=np.uint8)
    assert save_overlay(tmp_path / "a.png", image, labels, ("road",), PALETTE[:1]) == 1
    monkeypatch.setattr("ccnet.engine.drawing.label_images._LARGEST_OVERLAY", 60 * 90 // 4)
    assert save_overlay(tmp_path / "a.png", image, labels, ("road",), PALETTE[:1]) == 2
    colour = np.array(Image.open(tmp_path / "a.png"))[:30, :45]
    assert (colour == colour[0, 0]).all()


def test_a_mask_is_stored_like_the_photo_with_its_tag(tmp_path):
    labels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    save_mask(tmp_path / "a.png", labels, PALETTE, orientation=8)
    with Image.open(tmp_path / "a.png") as mask:
        assert mask.getexif()[0x0112] == 8
        assert np.array_equal(np.array(mask.transpose(Image.Transpose.ROTATE_90)), labels)


def test_background_and_other_are_dark():
    colours = class_colours(["background", "car", "other", "sky"])
    assert max(colours[0]) < max(colours[2]) < 80
    assert [colours[1], colours[3]] == distinct_colours(4)[1::2]


@pytest.mark.parametrize("inches", [0.5, 1.5, 5])
def test_titles_fit_their_columns(inches):
    for title in ("errors (red)", "outputs/ccnet_camvid/2026-11-26_15-10-59/best", "x" * 200, "a=1,b=2/" * 30):
        lines = _wrapped(title, inches).split("\n")
        assert max(map(len, lines)) <= max(inches / 0.078, 6)
        assert len(lines) <= 5


def test_titles_of_checkpoints_omit_what_their_paths_share():
    assert _shortened(["/a/run"]) == ["/a/run"]
    assert _shortened(["/a/1/best.safetensors", "/a/2/best.safetensors"]) == ["1", "2"]


def drawn_figure(monkeypatch, module, draw):
    """Return the figure that ``draw()`` passes to ``write_figure`` of a module."""
    figures = []
    monkeypatch.setattr(module, "write_figure", lambda path, figure, **options: figures.append(figure))
    draw()
    return figures[0]


def test_titles_of_one_row_share_a_baseline(monkeypatch):
    image = np.zeros((9, 9, 3), dtype=np.uint8)
    titles = ("image", "truth", "a/long/path/of/a/run/that/needs/several/lines")
    figure = drawn_figure(monkeypatch, panels, lambda: save_grid(None, [[image] * 3], titles))
    figure.canvas.draw()
    assert len({(text.get_position()[1], text.get_va()) for text in figure.texts}) == 1
    assert figure.texts[0].get_va() == "baseline"
    top = figure.axes[0].images[0].get_window_extent().y1
    assert min(text.get_window_extent().y0 for text in figure.texts) >= top - 1


def test_images_of_one_row_are_aligned_at_the_top(tmp_path):
    tall, wide = np.zeros((60, 30, 3), dtype=np.uint8), np.full((20, 80, 3), (255, 0, 0), dtype=np.uint8)
    save_grid(tmp_path / "a.png", [[tall, wide]], ("", ""))
    pixels = np.array(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    halves = np.array_split(pixels, 2, axis=1)
    tops = [
        np.nonzero((np.abs(half - colour).sum(axis=2) < 9).any(axis=1))[0].min()
        for half, colour in zip(halves, ((0, 0, 0), (255, 0, 0)), strict=True)
    ]
    assert abs(tops[0] - tops[1]) <= 1


def test_long_curves_show_means_since_the_last_point():
    iterations, means = _means([(index, index % 2) for index in range(1, 2001)])
    assert (len(iterations), iterations[0], iterations[-1]) == (200, 10, 2000)
    assert set(means) == {0.5}
    assert _means([(1, 3.0)]) == ([1], [3.0])
    assert _means([]) == ([], [])


def test_single_points_and_scores_at_the_edges_are_visible_in_curves(monkeypatch):
    train, validation = [{"iteration": 4, "loss": 1.5}], [{"iteration": 4, "box_AP": 0.0, "mask_AP": 0.0}]
    figure = drawn_figure(monkeypatch, charts, lambda: save_curves(None, train, validation, ["box_AP", "mask_AP"]))
    lines = [line for axis in figure.axes for line in axis.get_lines()]
    assert [line.get_marker() for line in lines] == ["o"] * 3
    assert not any(line.get_clip_on() for line in lines[1:])
    assert figure.axes[0].get_ylim() == (0, pytest.approx(1.15 * 1.5))
    for rows in ([{"iteration": 4, "loss": math.nan}], [{"iteration": 4, "loss": 0.0}], []):
        figure = drawn_figure(monkeypatch, charts, partial(save_curves, None, rows, validation, ["box_AP"]))
        assert figure.axes[0].get_ylim() == (0, 1)
