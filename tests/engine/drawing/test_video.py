"""Videos, read back frame by frame."""

import numpy as np
import pytest

from ccnet.engine.drawing import open_video


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
