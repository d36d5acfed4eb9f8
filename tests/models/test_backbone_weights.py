"""Backbones that are taken from runs, whatever the run's head was."""

import pytest
import timm
import torch

from ccnet.engine.checkpoints import Checkpoint, save
from ccnet.models import create_model
from ccnet.models.backbone import TimmBackbone


@pytest.fixture
def run(tmp_path):
    """Return a function that writes the checkpoints of a run of a network, and returns its folder."""

    def written(network, counters=True):
        state = {key: value for key, value in network.state_dict().items() if counters or "num_batches" not in key}
        for name in ("best.safetensors", "last.pt"):
            save(Checkpoint(state, {}, [], [], 0, {}), tmp_path / name)
        return tmp_path

    return written


@pytest.mark.slow
@pytest.mark.parametrize("file", ["", "best", "last", "best.safetensors", "last.pt"])
def test_the_backbone_of_a_run_is_taken_alone(run, file):
    network = create_model("ccnet", num_classes=5, backbone="resnet10t", head__channels=8)
    network.mean += 0.1
    folder = run(network)
    taken = TimmBackbone("resnet10t", weights=folder / file)
    assert all(
        torch.equal(value, network.backbone.net.state_dict()[key]) for key, value in taken.net.state_dict().items()
    )
    assert torch.equal(torch.tensor(taken.mean), network.mean.flatten())


def test_a_detector_and_a_segmentation_network_exchange_backbones(run):
    settings = {"num_classes": 3, "backbone": "resnet10t"}
    detector = create_model("mask_rcnn", channels=16, frozen=True, **settings)
    folder = run(detector)  # its batch norm is frozen, and has no counters
    made = create_model("fcn", backbone__weights=str(folder), head__channels=8, **settings)
    ours, theirs = made.backbone.net.state_dict(), detector.backbone.body.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items() if key in theirs)
    assert sum(key in theirs for key in ours) > 60
    back = create_model("mask_rcnn", channels=16, backbone__weights=str(run(made)), **settings)
    assert all(torch.equal(value, ours[key]) for key, value in back.backbone.body.state_dict().items() if key in ours)


def test_image_statistics_that_a_detector_would_not_record_have_to_be_set(run):
    """Its checkpoints do not contain them, so that a resumed or evaluated network would have those of timm."""
    settings = {"num_classes": 3, "backbone": "resnet10t"}
    segmenter = create_model("fcn", head__channels=8, **settings)
    segmenter.mean.fill_(0.25)
    weights = {"backbone__weights": str(run(segmenter)), "channels": 16}
    with pytest.raises(ValueError, match=r"set backbone\.mean=\[0\.25,0\.25,0\.25\] backbone\.std=\["):
        create_model("mask_rcnn", **weights, **settings)
    made = create_model("mask_rcnn", **weights, backbone__mean=[0.25] * 3, backbone__std=[0.2] * 3, **settings)
    assert made.transform.image_mean == [0.25] * 3


def test_weights_for_another_number_of_channels_say_so(run):
    folder = run(create_model("fcn", num_classes=2, backbone="resnet10t", backbone__in_channels=4, head__channels=8))
    with pytest.raises(ValueError, match=r"for images of 4 channels, but backbone.in_channels=3: set .*in_channels=4"):
        TimmBackbone("resnet10t", weights=folder)


def test_other_runs_are_refused(run, tmp_path):
    folder = run(create_model("fcn", num_classes=2, backbone="resnet18", head__channels=8))
    with pytest.raises(ValueError, match=r"does not contain the weights of timm's resnet10t: .* tensors are missing"):
        TimmBackbone("resnet10t", weights=folder / "best")
    for missing in (tmp_path / "gone" / "best", "~no-such-user/run/best"):
        with pytest.raises(FileNotFoundError, match=r"is neither a state dict of timm's resnet18 .* a run writes best"):
            TimmBackbone("resnet18", weights=missing)
    content = bytearray((folder / "best.safetensors").read_bytes())
    content[-100] ^= 1
    (folder / "best.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="does not match its checksum"):
        TimmBackbone("resnet18", weights=folder / "best")


def test_weights_are_downloaded_unless_a_file_contains_them(run, monkeypatch):
    folder = run(create_model("fcn", num_classes=2, backbone="resnet10t", head__channels=8))
    created = timm.create_model

    def without_network(name, *, pretrained, **options):
        if pretrained:
            raise ConnectionError("no route to the host")
        return created(name, **options)

    monkeypatch.setattr(timm, "create_model", without_network)
    message = r"weights of 'resnet10t' could not be downloaded \(no route to the host\): .* backbone\.weights=FILE, or"
    with pytest.raises(OSError, match=message):
        TimmBackbone("resnet10t", pretrained=True)
    monkeypatch.setenv("HOME", str(folder))
    TimmBackbone("resnet10t", pretrained=True, weights="~/best")
