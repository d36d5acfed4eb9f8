"""Every input pipeline that is compared returns the same kind of samples."""

import numpy as np
import pytest
import torch
from conftest import ROOT
from omegaconf import OmegaConf

from ccnet.benchmarks import input_peers, input_pipeline
from ccnet.engine.drawing.tables import read_records

CITY = input_pipeline.CITYSCAPES._replace(size=(64, 128), crop=(49, 49))
ADE = input_pipeline.ADE20K._replace(size=(48, 64), crop=(49, 49), short_sides=(30, 60))


@pytest.mark.parametrize("recipe", [CITY, ADE], ids=["cityscapes", "ade20k"])
def test_loaders_return_crops_of_the_recipe(recipe, tmp_path):
    pair = input_pipeline.made_pair(tmp_path, recipe)
    loaders = [
        input_peers.torchvision_loader(recipe, input_peers.pillow),
        input_peers.torchvision_io(recipe),
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


def test_torchvision_io_is_skipped_without_its_decoders(monkeypatch):
    monkeypatch.delattr("torchvision.io.decode_image")
    assert input_peers.torchvision_io(CITY) is None


def test_the_rows_do_not_go_to_the_file_of_the_comparison(tmp_path, monkeypatch):
    """With the default options, `benchmark.py` and `benchmark.py mode=input` have the same output."""
    monkeypatch.setattr(input_pipeline, "CITYSCAPES", CITY)
    monkeypatch.setattr(input_pipeline, "ADE20K", ADE)
    monkeypatch.setattr(input_pipeline, "_IN_A_ROW", 1)
    config = OmegaConf.load(ROOT / "conf" / "benchmark.yaml")
    config.output, config.repeats = str(tmp_path / "b"), 1
    (tmp_path / "b.csv").write_text("peer,pass\ncpu,forward\n")
    assert "b_input.csv" in input_pipeline.time_input(config, torch.device("cpu"))
    rows = read_records(tmp_path / "b_input.csv")
    assert {row["recipe"] for row in rows} == {"cityscapes", "ade20k"}
    assert all(float(row["images_per_s_per_core"]) > 0 for row in rows)
