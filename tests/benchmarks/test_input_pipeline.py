"""Every input pipeline that is compared returns the same kind of samples."""

import numpy as np
import pytest
import torch

from ccnet.benchmarks import input_peers, input_pipeline

CITY = input_pipeline.CITYSCAPES._replace(size=(64, 128), crop=(49, 49))
ADE = input_pipeline.ADE20K._replace(size=(48, 64), crop=(49, 49), short_sides=(30, 60))


@pytest.mark.parametrize("recipe", [CITY, ADE], ids=["cityscapes", "ade20k"])
def test_loaders_return_crops_of_the_recipe(recipe, tmp_path):
    pair = input_pipeline.made_pair(tmp_path, recipe)
    loaders = [
        input_peers.torchvision_loader(recipe, input_peers.pillow),
        input_peers.mmsegmentation(recipe),
        input_peers.albumentations(recipe),
        input_pipeline.crop_first(recipe, [pair]),
    ]
    for load in filter(None, loaders):  # those of peers that are installed
        for seed in range(4):
            torch.manual_seed(seed)
            np.random.seed(seed)
            image, labels = load(*pair)
            assert (image.dtype, image.shape) == (torch.uint8, (3, 49, 49))
            assert labels.shape == (49, 49)
            assert image.min() < image.max()
            assert set(labels.unique().tolist()) <= {*range(19), 255}
