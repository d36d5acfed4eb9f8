"""Videos, read back frame by frame."""

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ccnet.engine.drawing import VideoLegend, check_video, open_video
from ccnet.engine.drawing.legend import draw_legend


def test_an_mp4_contains_every_frame_in_order(tmp_path):
    av = pytest.importorskip("av")
    frames = [np.full((41, 57, 3), 60 * number, dtype=np.uint8) for number in range(4)]
    with open_video(tmp_path / "out.mp4", fps=15) as made:
        for frame in frames:
            made.add(frame)
    with av.open(str(tmp_path / "out.mp4")) as video:
        found = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert [frame.shape for frame in found] == [(40, 56, 3)] * 4  # H.264 has even sides
    assert [round(frame.mean() / 60) for frame in found] == [0, 1, 2, 3]


def gif_frames(path, frames, legend=None):
    with open_video(path, fps=10) as made:
        for frame in frames:
            made.add(frame, legend)
    with Image.open(path) as read:
        found = []
        for number in range(read.n_frames):
            read.seek(number)
            found.append(np.array(read.convert("RGB")).astype(int))
    return found, made


def test_a_gif_has_the_colours_of_all_frames(tmp_path):
    """A class that occurs only in the last frame, in a few pixels, after frames of many other colours."""
    generator = np.random.default_rng(0)
    frames = [generator.integers(0, 120, (60, 80, 3), dtype=np.uint8) for _ in range(5)]
    frames[-1][10:14, 20:24] = 220, 20, 60
    frames[-1][40:44, 20:24] = 0, 220, 220
    found, _ = gif_frames(tmp_path / "out.gif", frames)
    assert len(found) == 5
    for rows, colour in ((slice(10, 14), (220, 20, 60)), (slice(40, 44), (0, 220, 220))):
        assert np.abs(found[-1][rows, 20:24] - colour).max() <= 24
    assert np.abs(found[0] - frames[0]).mean() < 16


def test_frames_of_another_size_are_fitted_into_the_first(tmp_path):
    # Pillow joins frames that are equal.
    grey = [
        np.full((*size, 3), level, dtype=np.uint8) for size, level in (((40, 60), 0), ((40, 60), 99), ((80, 60), 255))
    ]
    found, made = gif_frames(tmp_path / "out.gif", grey)
    assert [frame.shape for frame in found] == [(40, 60, 3)] * 3
    assert made.fitted == 1
    assert [round(frame.mean()) for frame in found] == [0, 99, 128]  # 30 of 60 columns are white
    assert (found[2][:, :14] == 0).all()


def test_a_legend_keeps_its_size_and_place_beside_frames_of_another_size(tmp_path):
    legend = VideoLegend(["road"], [(255, 0, 0)])
    canvas = legend.of(np.zeros((40, 60), dtype=np.uint8))
    assert legend.of(np.zeros((80, 30), dtype=np.uint8)) == canvas
    assert legend.of(np.full((40, 60), 255, dtype=np.uint8)) == canvas  # ignored pixels have no line
    frames = [np.full((*size, 3), 99, dtype=np.uint8) for size in ((40, 60), (80, 30))]
    found, made = gif_frames(tmp_path / "out.gif", frames, canvas)
    assert made.fitted == 1
    assert np.abs(found[0][:, 60:] - np.array(canvas)).max() < 24
    assert np.array_equal(found[0][:, 60:], found[1][:, 60:])


def test_a_rate_that_no_video_can_have_is_an_error():
    for name, fps in (("a.gif", 0), ("a.gif", -3), ("a.gif", "abc"), ("a.gif", 240), ("a.mp4", 0), ("a.mp4", math.nan)):
        with pytest.raises(ValueError, match=rf"fps={fps}: set it to the frames per second .* from 0\.01 to \d+"):
            check_video(Path(name), fps)
    check_video(Path("a.gif"), 0.5)


@pytest.mark.parametrize("fps", [15, 24, 30, 60])
def test_a_gif_plays_at_the_given_rate(tmp_path, fps):
    with open_video(tmp_path / "out.gif", fps=fps) as made:
        for number in range(30):
            made.add(np.full((2, 2, 3), 8 * number, dtype=np.uint8))
    durations = []
    with Image.open(tmp_path / "out.gif") as read:
        for number in range(read.n_frames):
            read.seek(number)
            durations.append(read.info["duration"])
    assert abs(sum(durations) - 30_000 / fps) <= 10


def test_a_video_has_a_legend_of_constant_size_in_which_classes_keep_their_place():
    palette = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    legend = VideoLegend(["road", "car", "a long name of a class"], palette)
    shown = []
    for classes in ([1], [0, 0, 1], [2]):
        labels = np.resize(np.array(classes, dtype=np.uint8), (90, 120))
        shown.append(np.array(legend.of(labels)))
    assert len({picture.shape for picture in shown}) == 1
    assert shown[0].shape[0] == 90

    def places(picture, colour):
        return np.nonzero((picture == colour).all(axis=2).any(axis=1))[0]

    assert len(places(shown[0], palette[0])) == 0
    assert np.array_equal(places(shown[0], palette[1]), places(shown[2], palette[1]))
    assert places(shown[1], palette[0]).min() > places(shown[1], palette[1]).max()


def test_a_full_video_legend_shows_the_classes_of_the_frame(monkeypatch):
    drawn = []

    def recorded(lines, size, **options):
        drawn.append("".join(line.text for line in lines))
        return draw_legend(lines, size, **options)

    monkeypatch.setattr("ccnet.engine.drawing.video.draw_legend", recorded)
    legend = VideoLegend("abcdef", [(9, 9, 9)] * 6)
    for classes in ([0, 1], [1, 2], [3, 1], [4], [0, 1, 2, 3]):
        legend.of(np.resize(np.array(classes, dtype=np.uint8), (64, 64)))  # with room for three lines
    assert drawn == ["ab", "abc", "dbc", "dbe", "dba" + "c"]  # the last of four makes a line "and N more"
