"""Twins of timm's backbones compute what timm computes, and everything else is refused."""

import pickle
from functools import partial

import pytest
import torch
from timm.layers import BlurPool2d, DropBlock2d, EcaModule, LayerNorm2d, MixedConv2d, SEModule
from timm.layers.activations import GELU
from timm.layers.grn import GlobalResponseNorm
from timm.models import convnext, regnet
from timm.models._efficientnet_blocks import (
    ConvBnAct,
    EdgeResidual,
    InvertedResidual,
    SqueezeExcite,
    UniversalInvertedResidual,
)
from timm.models.resnet import BasicBlock
from torch import nn

from ccnet.models import CrissCrossAttention
from ccnet.models.backbone import TimmBackbone
from ccnet.models.context.non_local import NonLocal
from ccnet.models.context.pyramid import AtrousPyramid, PyramidPooling

jax = pytest.importorskip("jax", reason="JAX is not installed: pip install -e '.[jax]'")
nnx = pytest.importorskip("flax.nnx", reason="Flax is not installed: pip install -e '.[jax]'")
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from ccnet.models.nnx import state_dict, twin  # noqa: E402
from ccnet.models.nnx.conversion import comparison, twins  # noqa: E402

pytestmark = pytest.mark.slow

EXPAND = {"in_chs": 8, "out_chs": 8, "exp_ratio": 2.0, "act_layer": nn.SiLU}


def with_hook(before=False):
    module = nn.ReLU()
    register = module.register_forward_pre_hook if before else module.register_forward_hook
    register(lambda *_: None)
    return module


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (BasicBlock(8, 8, drop_block=partial(DropBlock2d, drop_prob=0.1)), r"BasicBlock .* drop_block=DropBlock2d"),
        (BasicBlock(8, 8, drop_path=nn.Dropout(0.1)), r"BasicBlock .* its drop_path=Dropout"),
        (BasicBlock(8, 8, act_layer=nn.ELU), r"ELU has no JAX counterpart"),
        (InvertedResidual(**EXPAND, drop_path_rate=0.1), r"InvertedResidual .* its drop_path=DropPath"),
        (SEModule(8, add_maxpool=True), r"SEModule .* its add_maxpool=True"),
        (nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"), r"padding_mode=reflect, and JAX supports only .*zeros"),
        (nn.AvgPool2d(2, padding=1), r"padding=1, and JAX supports only padding=0"),
        (BlurPool2d(3, pad_mode="replicate"), r"pad_mode=replicate, and JAX supports only pad_mode=reflect"),
        (nn.BatchNorm2d(3, affine=False), r"affine=False, and JAX supports only affine=True"),
        (nn.BatchNorm2d(3, momentum=None), r"running statistics and a momentum"),
        (with_hook(), r"ReLU has no JAX counterpart: it has a forward hook"),
        (with_hook(before=True), r"ReLU has no JAX counterpart: it has a forward hook"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_settings_without_a_counterpart_are_refused_by_name(module, reason):
    with pytest.raises(ValueError, match=reason):
        twin(module)


def test_an_attribute_that_nobody_knows_is_refused():
    module = nn.ReLU()
    module.temperature = 2.0
    with pytest.raises(ValueError, match=r"ReLU has no JAX counterpart: JAX does not support its temperature=2\.0"):
        twin(module)


@pytest.mark.parametrize(
    "module",
    [
        BasicBlock(8, 8, attn_layer="se"),
        BasicBlock(8, 8, attn_layer="eca", act_layer=GELU),
        EcaModule(16),
        InvertedResidual(**EXPAND, se_layer=SqueezeExcite),
        InvertedResidual(**EXPAND | {"act_layer": nn.Hardswish}, stride=2, pad_type="same"),
        EdgeResidual(**EXPAND, se_layer=partial(SqueezeExcite, gate_layer=nn.Hardsigmoid)),
        ConvBnAct(8, 8, 3, act_layer=nn.Mish, skip=True),
        ConvBnAct(8, 8, 3),
        BasicBlock(8, 6, downsample=nn.Sequential(nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6))),
        BasicBlock(8, 8, stride=2, aa_layer=nn.AvgPool2d, downsample=nn.AvgPool2d(2)),
        BasicBlock(8, 8, stride=2, aa_layer=BlurPool2d, downsample=nn.AvgPool2d(2, ceil_mode=True)),
        UniversalInvertedResidual(8, 8, dw_kernel_size_start=3, dw_kernel_size_end=5, exp_ratio=2.0),
        MixedConv2d(8, 8, [3, 5, 7], depthwise=True),
        convnext.ConvNeXtBlock(8, ls_init_value=0.5),
        nn.Conv2d(8, 8, 1),
        nn.GELU(),
        nn.GELU(approximate="tanh"),
        nn.LeakyReLU(0.3),
        LayerNorm2d(8, eps=0.5),
        nn.BatchNorm2d(8, eps=0.5, momentum=0.3),
        nn.AvgPool2d(3, 2, ceil_mode=True),
        nn.AvgPool2d(2, 1, ceil_mode=True),
        nn.AvgPool2d(1, 3, ceil_mode=True),
        nn.Conv2d(8, 6, (3, 2), stride=(2, 1), padding=(2, 1), dilation=(1, 3), groups=2),
        nn.MaxPool2d((3, 2), (1, 2), (1, 0)),
        SEModule(8, norm_layer=nn.BatchNorm2d),
        regnet.Bottleneck(8, 16, stride=2, group_size=4, downsample="conv1x1"),
        PyramidPooling(8, bins=(2, 3), align_corners=False),
        AtrousPyramid(8, dilations=(1, 2)),
        CrissCrossAttention(8, gamma="fixed", recompute=False),
        CrissCrossAttention(8, gamma="fixed", axes=[0]),
        NonLocal(8, gamma="fixed"),
    ],
    ids=lambda module: type(module).__name__,
)
@torch.no_grad()
def test_blocks_compute_the_same(module):
    images = torch.randn(2, 16 if isinstance(module, EcaModule) else 8, 7, 9)
    for norm in (part for part in module.eval().modules() if isinstance(part, nn.BatchNorm2d)):
        norm.weight.uniform_(0.5, 1.5)
        norm.running_mean.normal_(0, 0.1)
    made = twin(module)
    assert nnx.graphdef(pickle.loads(pickle.dumps(made))) == nnx.graphdef(made)
    shape = images.movedim(1, -1).shape
    assert jax.eval_shape(made, jax.ShapeDtypeStruct(shape, jnp.bfloat16)).dtype == jnp.bfloat16
    for train in (False, True):
        program = nnx.jit(lambda made, images, train=train: made(images, train))
        got = np.moveaxis(np.asarray(program(made, images.movedim(1, -1).numpy())), -1, 1)
        want = module.train(train)(images).numpy()
        assert np.abs(got - want).max() < (1e-4 if train else 1e-5) * np.abs(want).max()
        found = state_dict(made)
        assert found.keys() == module.state_dict().keys()
        for name, values in module.state_dict().items():
            assert torch.allclose(found[name], values, rtol=1e-4, atol=1e-5), name


def test_a_channel_that_is_zero_everywhere_has_the_same_gradient():
    norm = GlobalResponseNorm(3, channels_last=False)
    nn.init.ones_(norm.weight)
    images = torch.randn(1, 3, 4, 5)
    images[:, 1] = 0
    images.requires_grad_()
    norm(images).sin().sum().backward()
    made = twin(norm)
    slope = jax.jit(jax.grad(lambda images: jnp.sin(made(images)).sum()))
    found = slope(images.detach().movedim(1, -1).numpy())
    assert np.abs(np.moveaxis(np.asarray(found), -1, 1) - images.grad.numpy()).max() < 1e-5


def test_a_twin_that_computes_something_else_is_refused():
    """The comparison does not trust the attributes: here, a twin drops the network's channel attention."""
    backbone = TimmBackbone("mobilenetv3_small_050", out_indices=(1, 2))

    def without_attention(module):
        made = twins._twin(module)
        for _, part in nnx.iter_modules(made):
            if type(part).__name__ == "MobileNetBlock":
                part.se = None
        return made

    before = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    with pytest.raises(ValueError, match=r"differs from timm's network by .*framework=torch"):
        comparison.compare(backbone, without_attention)
    assert all(torch.equal(before[key], tensor) for key, tensor in backbone.state_dict().items())


def test_a_twin_whose_last_features_are_not_finite_is_refused():
    class Broken(nnx.Module):
        def __init__(self, module):
            self.twin = twins._twin(module)

        def __call__(self, images):
            *features, last = self.twin(images)
            return [*features, last * np.nan]

    with pytest.raises(ValueError, match=r"differs from timm's network by nan"):
        comparison.compare(TimmBackbone("resnet10t", out_indices=(2, 3)), Broken)


def test_rounding_alone_refuses_no_twin(monkeypatch):
    """Where float32 differs, as in very deep networks, float64 decides."""
    monkeypatch.setattr(comparison, "TOLERANCE", 0)
    monkeypatch.setattr(comparison, "_compared", set())
    twin(TimmBackbone("mobilenetv3_small_050", out_indices=(1, 2)))


def backbones():
    """Return the timm models that this test lists: all of them take minutes, so the families' smallest are chosen."""
    resnets = ["resnet10t", "resnetblur18"]
    return [*resnets, "mobilenetv2_035", "mobilenetv3_small_050", "mnasnet_small", "regnety_002", "convnextv2_atto"]


@pytest.mark.parametrize("name", backbones())
def test_supported_backbones_agree_with_timm(name):
    assert comparison.largest_difference(TimmBackbone(name), twins._twin) < 1e-4


@pytest.mark.parametrize("name", ["resnet50d", "resnet50s"])
def test_backbones_truncated_after_their_second_stage_agree_with_timm(name):
    assert comparison.largest_difference(TimmBackbone(name, out_indices=(1, 2)), twins._twin, (33, 47)) < 1e-4


@pytest.mark.parametrize("name", ["test_nfnet", "rexnet_100", "skresnet18"])
def test_other_backbones_are_refused_in_one_sentence(name):
    with pytest.raises(ValueError, match="has no JAX counterpart: ") as refused:
        twin(TimmBackbone(name))
    assert "\n" not in str(refused.value)
