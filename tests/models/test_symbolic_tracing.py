"""torch.fx records the attention module as one operation, for torchvision's feature extractors and quantisation."""

import pytest
import torch
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from ccnet.models import CrissCrossAttention, RecurrentCrissCrossAttention


def network():
    attention = RecurrentCrissCrossAttention(8)
    nn.init.ones_(attention.attention.gamma)
    return nn.Sequential(nn.Conv2d(3, 8, 3), attention, nn.Conv2d(8, 4, 1))


def test_a_traced_network_computes_the_same_for_any_size():
    net = network()
    traced = torch.fx.symbolic_trace(net)
    recorded = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    assert recorded == ["0", "1.attention", "1.attention", "2"]
    for size in ((1, 3, 9, 12), (2, 3, 20, 7)):
        x = torch.randn(size)
        assert torch.equal(traced(x), net(x))
    parameters = list(net.parameters())  # shared with the traced network
    ours, wanted = (torch.autograd.grad(each(x).square().sum(), parameters) for each in (traced, net))
    assert all(map(torch.equal, ours, wanted))


def test_torchvision_extracts_the_attentions_features():
    net, x = network(), torch.randn(1, 3, 9, 12)
    net.eval()
    features = create_feature_extractor(net, ["0", "1"])(x)
    assert torch.equal(features["0"], net[0](x))
    assert torch.equal(features["1"], net[:2](x))


def test_the_module_alone_is_refused():
    with pytest.raises(TypeError, match="CrissCrossAttention as one operation and cannot trace it alone"):
        torch.fx.symbolic_trace(CrissCrossAttention(8))
