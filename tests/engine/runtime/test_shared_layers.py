"""Batch norm and dropout of a batch that is split over two processes equal those of the whole batch."""

from functools import partial

import pytest
import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import nn
from two_processes import together

from ccnet.engine.runtime.shared_layers import share_batch_norm, share_dropout

pytestmark = pytest.mark.slow

LAYERS = {
    "plain": partial(nn.BatchNorm2d, eps=0.1, momentum=0.3),
    "cumulative average": partial(nn.BatchNorm2d, momentum=None),
    "without weights": partial(nn.BatchNorm2d, affine=False),
    "without statistics": partial(nn.BatchNorm2d, track_running_stats=False),
    "with an activation": partial(BatchNormAct2d, act_layer=nn.LeakyReLU),
    "half precision": nn.BatchNorm2d,
    "dropout": lambda channels: nn.Dropout2d(0.25),
    "dropout of 1": lambda channels: nn.Dropout2d(1.0),
}


def applied(rank=0, number=1):
    """Return the outputs of a rank's images in two training steps and in evaluation, and what each layer has learnt."""
    generator = torch.Generator().manual_seed(0)
    images = 100 + torch.randn(2, 4, 3, 5, 6, generator=generator)
    weights = torch.rand(2, 3, generator=generator)
    # The first rank has one image and the second one three; masks are only drawn for parts of equal size.
    uneven, even = slice(rank * 1, 1 + rank * 3), slice(rank * 2, rank * 2 + 2)
    found = {}
    for name, make in LAYERS.items():
        network = nn.Sequential(make(3)).train()
        for parameter, values in zip(network.parameters(), weights, strict=False):
            parameter.data.copy_(values - 0.5)
        if number > 1:
            share_batch_norm(network, torch.device("cpu"))
            share_dropout(network)
        own = slice(None) if number == 1 else even if "dropout" in name else uneven
        torch.manual_seed(1)
        inputs = [step[own].to(torch.bfloat16 if name == "half precision" else torch.float32) for step in images]
        inputs[1].requires_grad_(True)
        outputs = [network(part) for part in inputs]
        (outputs[1].float() ** 3).sum().backward()
        network.eval()
        evaluated = [] if name == "without statistics" else [network(inputs[0])]  # which would be those of the part
        learnt = {key: value.float() for key, value in network.state_dict().items()}
        found[name] = [part.detach().float() for part in (*outputs, inputs[1].grad, *evaluated)], learnt
    return found


def test_layers_of_two_processes_equal_those_of_one(tmp_path):
    first, second = together(partial(applied, number=2), tmp_path)
    for name, (outputs, learnt) in applied().items():
        tolerance = 0.05 if name == "half precision" else 1e-3
        for whole, *parts in zip(outputs, first[name][0], second[name][0], strict=True):
            assert torch.allclose(torch.cat(parts), whole, rtol=tolerance, atol=tolerance), name
        for part in (first, second):
            assert part[name][1].keys() == learnt.keys()
            assert all(torch.allclose(part[name][1][key], value, rtol=1e-3) for key, value in learnt.items()), name
    dropped = first["dropout"][0][0] == 0
    assert torch.equal(dropped.all((2, 3)), dropped.any((2, 3)))  # entire channels
    assert not any(output.any() for output in first["dropout of 1"][0][:3])


def test_layers_keep_their_mode():
    network = share_batch_norm(
        nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(nn.BatchNorm2d(3).eval())), torch.device("cpu")
    )
    assert [norm.training for norm in (network[0], network[1][0])] == [True, False]
