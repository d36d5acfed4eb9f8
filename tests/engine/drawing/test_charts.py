"""What a reader of the charts must see: the right means, spreads and costs, and every score within the frame."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from ccnet.engine.drawing import charts


@pytest.fixture
def figures(monkeypatch):
    """Return a list that receives the figures instead of files."""
    made = []
    monkeypatch.setattr(charts, "write_figure", lambda path, figure, **options: made.append(figure))
    return made


def error_bars(container):
    """Return the ends of vertical error bars, [low, high] for each point."""
    return [segment[:, 1].tolist() for segment in container.lines[2][0].get_segments()]


def test_the_bars_of_a_sweep_show_the_mean_and_the_sample_deviation_of_the_runs_that_succeeded(figures):
    charts.save_comparison(None, {"R=1": [40.0, 44.0, None], "R=2": [70.0], "R=3": [None]}, "mIoU")
    (axis,) = figures[0].axes
    assert [bar.get_width() for bar in axis.patches] == [42.0, 70.0]
    assert [text.get_text() for text in axis.texts] == ["42.0 ± 2.8", "70.0", "failed"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["R=1\n2 of 3 succeeded", "R=2", "R=3"]
    assert axis.get_ylim()[0] > axis.get_ylim()[1]  # the first setting on top


def test_the_line_of_an_option_is_in_the_order_of_its_values(figures):
    charts.save_trend(None, "recurrence", {"": {2: [60.0, 62.0], 0: [20.0], 10: [65.0]}}, "mIoU")
    (axis,) = figures[0].axes
    (line,) = axis.containers
    assert line.lines[0].get_xydata().tolist() == [[0, 20.0], [1, 61.0], [2, 65.0]]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0", "2", "10"]
    assert error_bars(line) == [[20, 20], pytest.approx([61 - 2**0.5, 61 + 2**0.5]), [65, 65]]
    for values, scale in ((range(1, 10), "linear"), (range(1, 12), "log"), (range(11), "linear")):
        charts.save_trend(None, "lr", {"": {value: [50.0] for value in values}}, "mIoU")
        assert figures[-1].axes[0].get_xscale() == scale


def test_the_score_is_drawn_above_the_cost(figures):
    charts.save_cost(None, {"R=1": (3.0, [40.0, 44.0]), "R=2": (5.0, [70.0])}, "mIoU")
    one, two = figures[0].axes[0].containers
    assert [one.lines[0].get_xydata().tolist(), two.lines[0].get_xydata().tolist()] == [[[3, 42]], [[5, 70]]]
    assert error_bars(one) == [pytest.approx([42 - 8**0.5, 42 + 8**0.5])]


def test_a_confusion_matrix_is_in_percent_of_the_true_class(figures):
    charts.save_confusion(None, np.array([[3, 1, 0], [0, 0, 0], [0, 1, 999]]), ("road", "car", "sky"))
    axis = figures[0].axes[0]
    shares = np.asarray(axis.images[0].get_array())
    assert shares[0].tolist() == [75, 25, 0] and np.isnan(shares[1]).all()
    shown = {(text.get_position(), text.get_text()) for text in axis.texts}
    assert shown == {((0, 0), "75"), ((1, 0), "25"), ((2, 2), "100")}  # (predicted, true); 0.1% is not shown
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("predicted", "true")


@pytest.mark.parametrize("scores", [[100.0], [94.44, 93.78, 94.39], [100.0, 55.5], [0.0, 0.0], [None]])
def test_scores_beside_the_bars_stay_within_the_frame(figures, scores):
    charts.save_comparison(None, {"model.head.recurrence=2": scores, "other": [50.0]}, "mIoU")
    (figure,) = figures
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    (axis,) = figure.axes
    frame = axis.get_window_extent()
    for text in axis.texts:
        shown = text.get_window_extent(canvas.get_renderer())
        assert frame.x0 < shown.x0 and shown.x1 < frame.x1, (text.get_text(), shown, frame)
