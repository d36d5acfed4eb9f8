"""Random checkpoints in each published layout give the same output as a plain functional implementation of the
published network on the file's own tensors."""

from pathlib import Path

import pytest
import torch
from published_networks import (  # noqa: F401, fixtures
    FAMILIES,
    PUBLISHED,
    assert_same_logits,
    authors_logits,
    difference,
    mmseg_logits,
    random_states,
    written_files,
)
from published_states import authors_state, mmseg_state

from ccnet.models import import_checkpoint
from ccnet.models.published import importing
from ccnet.models.published.backbone import CaffeResNet

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("depth", "recurrence"), [(101, 2), (50, 1)])
def test_the_authors_network(states, depth, recurrence, written):
    state = states["authors"] if depth == 50 else authors_state(depth)
    network = import_checkpoint(written(state), recurrence=recurrence)
    assert network.align_corners
    sizes = [(41, 57), (40, 52)] if depth == 50 else [(40, 57)]
    # In 101 layers, rounding to float32 may add up to more than the tolerance.
    wide = {key: tensor.double() for key, tensor in state.items()}
    assert_same_logits(
        network.double(), lambda image: authors_logits(wide, image, recurrence=recurrence), sizes, torch.float64
    )


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_mmsegmentations_networks(states, family, align_corners):
    name = f"{family}_r50-d8_{'769x769' if align_corners else '512x1024'}_40k_cityscapes.pth"
    network = importing.convert({"meta": {}, "state_dict": states[family]}, Path(name)).network()
    assert_same_logits(network, lambda image: mmseg_logits(states[family], image, family, align_corners=align_corners))


def test_mmsegmentations_resnet_101():
    state = mmseg_state("ccnet", depth=101)
    found = importing.convert({"state_dict": state}, Path("ccnet.pth"))
    assert_same_logits(
        found.network(), lambda image: mmseg_logits(state, image, "ccnet", align_corners=False), [(40, 57)]
    )


def test_the_random_checkpoints_reveal_every_difference_of_the_authors_network(states):
    """Without any one of them, the logits change by far more than the tolerance of the tests above."""
    network = importing.convert(states["authors"], PUBLISHED).network()
    net, image = network.backbone.net, torch.rand(1, 3, 40, 52)
    slopes = [module for module in network.head.modules() if isinstance(module, torch.nn.LeakyReLU)]
    assert len(slopes) == 3
    with torch.no_grad():
        want = network(image)["out"]
        for part, attribute, wrong in (
            (net.maxpool, "ceil_mode", False),
            (net.layer3[0].conv2, "dilation", (1, 1)),
            (net.layer4[0].conv2, "dilation", (2, 2)),
            (slopes[0], "negative_slope", 0.0),
            (network.head, "recurrence", 1),
            (network, "align_corners", False),
        ):
            right = getattr(part, attribute)
            setattr(part, attribute, wrong)
            if attribute == "dilation":
                part.padding = wrong
            assert difference(network(image)["out"], want) > 1e-3, attribute
            setattr(part, attribute, right)
            if attribute == "dilation":
                part.padding = right
        assert torch.equal(network(image)["out"], want)


def test_the_authors_backbone_requires_rgb_and_output_stride_8():
    with pytest.raises(ValueError, match="output_stride is 16, but the authors' network has 8"):
        CaffeResNet("resnet50s", output_stride=16)
    with pytest.raises(ValueError, match="set one number per channel"):
        CaffeResNet("resnet50s", in_channels=1)


def test_in_place_activated_batch_norm_scales_by_the_magnitude_of_the_weight_plus_eps(states):
    network = importing.convert(states["authors"], PUBLISHED).network()
    for ours, theirs in ((network.head.reduce[1], "head.conva.1"), (network.backbone.net.bn1, "bn3")):
        weight = states["authors"][f"{theirs}.weight"]
        assert weight.min() < 0
        assert torch.equal(ours.weight, weight.abs() + 1e-5)
