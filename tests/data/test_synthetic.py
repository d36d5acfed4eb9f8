"""The embedded data set."""

import torch

from ccnet.data.sets.synthetic import Beacons
from ccnet.data.transforms import eval_transform


def test_the_colour_of_the_beacon_is_the_class_of_every_shape():
    dataset = Beacons(split="train", length=30, transform=eval_transform())
    palette = torch.tensor(dataset.palette) / 255
    for index in range(30):
        image, labels = dataset[index]
        classes = labels.unique().tolist()
        assert len(classes) == 2
        distance = (image - palette[classes[1]][:, None, None]).abs().amax(dim=0)
        assert (distance < 0.15).sum() > 150  # a disc 17 pixels in diameter has 227
        assert (labels[distance < 0.1] == 0).all()
    assert {int(dataset[index][1].max()) for index in range(30)} == {1, 2, 3}


def test_images_depend_only_on_split_seed_and_index():
    def first(**options):
        return Beacons(length=2, transform=eval_transform(), **options)[0][0]

    assert torch.equal(first(split="train"), first(split="train"))
    assert not torch.equal(first(split="train"), first(split="val"))
    assert not torch.equal(first(split="train"), first(split="train", seed=1))
