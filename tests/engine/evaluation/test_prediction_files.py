"""Saved files of predicted label maps."""

import pytest
import torch

from ccnet.engine.evaluation.prediction_files import PredictionFiles


class Images:
    """A data set without files."""

    palette, result_values = ((0, 0, 0),), (0,)

    def __init__(self, *names):
        self.names = names

    def __len__(self):
        return len(self.names)

    def name(self, index):
        return self.names[index]


def test_masks_of_images_that_are_no_longer_in_the_data_set_are_found(tmp_path):
    names = ("a", "b.1", "c")
    for shown in (names, names[:1]):
        files = PredictionFiles(tmp_path / "new" / "masks", Images(*shown))
        for index in range(len(shown)):
            files.write(index, torch.zeros(2, 3))
        assert [path.name for path in files.earlier()] == ([] if shown == names else ["b.1.png", "c.png"])


def test_saving_rejects_images_of_the_same_name(tmp_path):
    with pytest.raises(ValueError, match="such as 'same'"):
        PredictionFiles(tmp_path / "masks", Images("same", "same"))
    assert not (tmp_path / "masks").exists()
