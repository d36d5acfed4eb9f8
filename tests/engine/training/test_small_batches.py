"""Batches of one or two images: what fails does so before the data is read, and Mask R-CNN's learning rate follows."""

import pytest
from conftest import configured

from ccnet.engine.training import check_batch, with_length_and_rate
from ccnet.train import run


@pytest.mark.parametrize("model", ["pspnet", "deeplabv3", "ce2p"])
def test_one_image_at_a_time_is_refused_where_batch_norm_follows_global_pooling(model):
    command = [f"model={model}", "backbone.pretrained=false"]
    for batch, accumulate in ((1, 1), (2, 2)):
        config = configured(*command, f"recipe.batch_size={batch}", f"accumulate={accumulate}")
        expected = rf"recipe.batch_size={batch} with accumulate={accumulate} passes one image .* synchronised"
        with pytest.raises(ValueError, match=expected):
            check_batch(config)
    check_batch(configured(*command, "recipe.batch_size=2"))
    check_batch(configured("model=ccnet", "recipe.batch_size=1"))


def test_the_data_is_not_read_before(monkeypatch, tmp_path):
    monkeypatch.setattr("ccnet.data.build.instantiate", lambda *_, **__: pytest.fail("the data was read"))
    with pytest.raises(ValueError, match=r"needs two: set recipe.batch_size to at least twice accumulate"):
        run("model=pspnet", "recipe.batch_size=1", "logger=none", "device=cpu", folder=tmp_path)


def test_the_learning_rate_of_mask_rcnn_follows_the_batch(capsys):
    config = with_length_and_rate(configured("dataset=coco", "recipe.batch_size=2"))
    assert config.optimizer.algorithm.lr == config.recipe.lr == 0.0025
    assert "learning rate 0.0025: recipe.lr=0.02 for batches of 16 (recipe.base_batch_size), times 2/16" in (
        capsys.readouterr().out
    )
    assert with_length_and_rate(config) is config  # a second time changes nothing
    for own in (["dataset=coco"], ["dataset=coco", "recipe.batch_size=2", "recipe.base_batch_size=null"], []):
        config = configured(*own)
        assert with_length_and_rate(config) is config
