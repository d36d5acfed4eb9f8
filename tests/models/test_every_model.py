"""Tests of every network in the zoo: a new file in conf/model is picked up automatically."""

import copy

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from test_configs import composed
from torch import nn

from ccnet.models import create_model, list_models
from ccnet.models.mask_rcnn import MaskRCNN
from ccnet.models.parser import Parser

pytestmark = pytest.mark.slow


CLASSES, EMBEDDING = 5, 16
SIZE = (65, 97)  # pixels; not divisible by any output stride
# Settings that make a network small and trainable from random weights; each network uses those that it has.
SMALL = {
    "head.channels": 16,
    "aux_head.channels": 16,
    "embedding_channels": EMBEDDING,
    "channels": 16,
    "frozen": False,
    "min_size": 65,
    "max_size": 97,
}


@pytest.fixture(scope="module", params=list_models())
def built(request):
    config = composed(f"model={request.param}").model
    known = {key: value for key, value in SMALL.items() if OmegaConf.select(config, key, default=...) is not ...}
    options = {key.replace(".", "__"): value for key, value in known.items()}
    return create_model(request.param, num_classes=CLASSES, backbone="resnet10t", **options)


@pytest.fixture
def network(built):
    """Return a network that the test may change."""
    return copy.deepcopy(built)


def set_gamma(network):
    """Set every gamma to 1: at the initial 0, query and key get no gradient."""
    for key, parameter in network.named_parameters():
        if key.endswith("gamma"):
            nn.init.ones_(parameter)
    return network


def documented_shapes(network, batch):
    """Return the training outputs that the class documents, with their shapes."""
    height, width = SIZE
    stride = network.backbone.output_stride
    shapes = {
        "out": (batch, CLASSES, height, width),
        "aux": (batch, CLASSES, height, width),
        "edge": (batch, 2, height, width),
        "embedding": (batch, EMBEDDING, -(-height // stride), -(-width // stride)),
    }
    if not isinstance(network, Parser):
        del shapes["edge"]
        if network.aux_head is None:
            del shapes["aux"]
    return shapes


def objects(count):
    """Return images and targets in torchvision's detection format, with one object per image."""
    mask = torch.zeros(1, *SIZE, dtype=torch.uint8)
    mask[:, 10:50, 20:80] = 1
    target = {"boxes": torch.tensor([[20.0, 10.0, 80.0, 50.0]]), "labels": torch.tensor([CLASSES]), "masks": mask}
    return [torch.rand(3, *SIZE) for _ in range(count)], [target] * count


def assert_every_parameter_has_a_gradient(network):
    trainable = {key: parameter for key, parameter in network.named_parameters() if parameter.requires_grad}
    assert trainable
    assert [key for key, p in trainable.items() if p.grad is None or not p.grad.isfinite().all()] == []


def test_outputs_match_the_documentation_and_every_parameter_learns(network):
    set_gamma(network).train()
    if isinstance(network, MaskRCNN):
        output = network(*objects(2))
        assert set(output) == {
            "loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"
        }  # fmt: skip
        assert all(loss.ndim == 0 for loss in output.values())
    else:
        output = network(torch.rand(2, 3, *SIZE))
        assert {key: tuple(tensor.shape) for key, tensor in output.items()} == documented_shapes(network, 2)
        assert list(output) == network.training_outputs
    sum(tensor.square().sum() for tensor in output.values()).backward()
    assert_every_parameter_has_a_gradient(network)


@torch.no_grad()
def test_evaluation_returns_only_the_prediction_and_safetensors_restore_it(network, tmp_path):
    set_gamma(network).eval()
    restored = copy.deepcopy(network)
    for tensor in restored.state_dict().values():
        tensor.zero_()
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    restored.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    if isinstance(network, MaskRCNN):
        images, _ = objects(1)
        (found,), (again,) = network(images), restored(images)
        count = len(found["scores"])
        shapes = {key: tuple(tensor.shape) for key, tensor in found.items()}
        assert shapes == {"boxes": (count, 4), "labels": (count,), "scores": (count,), "masks": (count, 1, *SIZE)}
    else:
        image = torch.rand(1, 3, *SIZE)
        found, again = network(image), restored(image)
        assert {key: tuple(tensor.shape) for key, tensor in found.items()} == {"out": (1, CLASSES, *SIZE)}
    assert all(torch.equal(found[key], again[key]) for key in found)


def test_unsuitable_images_produce_a_single_sentence(network):
    network.eval()
    if isinstance(network, MaskRCNN):
        with pytest.raises(ValueError, match=r"list of 3d tensors of shape \[C, H, W\], got") as error:
            network([torch.rand(64, 64)])
        assert "\n" not in str(error.value)
        return
    stride = network.backbone.output_stride
    network(torch.rand(1, 3, stride, stride))  # is just large enough
    clips = [(1, 3, 2, 64, 64)] if isinstance(network, Parser) else []
    for shape in ((1, 3, stride - 1, 64), (1, 1, 64, 64), (3, 64, 64), *clips):
        size = rf"of at least {stride}x{stride} pixels \(the output stride\)"
        message = rf"^expected RGB images \(N, 3, H, W\).* {size}, got \({shape[0]}, "
        with pytest.raises(ValueError, match=message) as error:
            network(torch.rand(shape))
        assert "\n" not in str(error.value)


def test_convolutions_are_padded_by_numbers(built):
    """Quantisers of exported graphs, such as torchao's for x86, do not support ``padding="same"``."""
    assert not any(isinstance(layer.padding, str) for layer in built.modules() if isinstance(layer, nn.Conv2d))
