"""Saved files of predicted label maps."""

import pytest

from ccnet.engine.evaluation.prediction_files import PredictionFiles


def test_saving_rejects_images_of_the_same_name(tmp_path):
    class Twice:
        palette, result_values = ((0, 0, 0),), (0,)

        def __len__(self):
            return 2

        def name(self, index):
            return "same"

    with pytest.raises(ValueError, match="such as 'same'"):
        PredictionFiles(tmp_path / "masks", Twice())
    assert not (tmp_path / "masks").exists()
