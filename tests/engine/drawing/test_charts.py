"""What a reader of the charts must see: every score within the frame."""

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from ccnet.engine.drawing import charts


@pytest.mark.parametrize("scores", [[100.0], [94.44, 93.78, 94.39], [100.0, 55.5], [0.0, 0.0], [None]])
def test_scores_beside_the_bars_stay_within_the_frame(tmp_path, monkeypatch, scores):
    figures = []
    monkeypatch.setattr(charts, "write_figure", lambda path, figure, **options: figures.append(figure))
    charts.save_comparison(tmp_path / "sweep.png", {"model.head.recurrence=2": scores, "other": [50.0]}, "mIoU")
    (figure,) = figures
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    (axis,) = figure.axes
    frame = axis.get_window_extent()
    for text in axis.texts:
        shown = text.get_window_extent(canvas.get_renderer())
        assert frame.x0 < shown.x0 and shown.x1 < frame.x1, (text.get_text(), shown, frame)
