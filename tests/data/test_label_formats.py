"""The format of label images, known without the files of the data set."""

import pytest
from conftest import configured
from omegaconf import OmegaConf

from ccnet import data


@pytest.mark.parametrize(
    ("options", "classes", "some", "names"),
    [
        (["dataset=ade20k"], 150, {0: 255, 1: 0, 150: 149}, ("*", "*")),
        (["dataset=camvid"], 11, {0: 0, 11: 255}, ("*", "*")),
        (["dataset=camvid_full"], 11, {(128, 128, 128): 0, (0, 0, 0): 255}, ("*", "*_L")),
        (["dataset=camvid_video"], 11, {(128, 128, 128): 0, (0, 0, 0): 255}, ("*", "*_L")),
        (["dataset=cityscapes"], 19, {7: 0, 0: 255}, ("*_leftImg8bit", "*_gtFine_labelIds")),
        (["dataset=voc"], 21, {0: 0, 255: 255}, ("*", "*")),
        (["dataset=synthetic"], 4, {3: 3, 255: 255}, ("*", "*")),
        (["dataset=folder", "dataset.values=[0,200]", "dataset.mask_name=*_m"], 2, {200: 1, 255: 255}, ("*", "*_m")),
    ],
    ids=lambda value: value[0].partition("=")[2] if isinstance(value, list) else "",
)
def test_label_formats_are_those_of_the_data_sets(options, classes, some, names):
    dataset = OmegaConf.to_container(configured(*options).dataset, resolve=True)
    found = data.label_format(dataset, [f"{n}" for n in range(classes)])
    assert some.items() <= found.label_ids.items()
    assert (found.image_name, found.label_name) == names


def test_without_a_data_set_label_images_hold_class_indices():
    assert data.label_format({}, ["a", "b"]).label_ids == {0: 0, 1: 1, 255: 255}
