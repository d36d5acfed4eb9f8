"""timm backbones: levels, errors, weights of the full model, and convolutions that train correctly in bfloat16."""

import copy

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers.std_conv import ScaledStdConv2d, ScaledStdConv2dSame
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ccnet.models.backbone import DilatedConv2d, TimmBackbone, replace_dilated_convolutions
from ccnet.models.context.pyramid import AtrousPyramid

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv2_035", "convnext_atto", "regnety_002"])
def test_backbone_reports_its_widths_at_stride_8(name):
    backbone = TimmBackbone(name).eval()
    levels = backbone(torch.rand(1, 3, 64, 96))
    assert [level.shape[1] for level in levels] == backbone.channels
    assert levels[-1].shape[-2:] == (8, 12)


def test_backbone_truncated_after_an_inner_stage_has_no_later_layers():
    cut = TimmBackbone("resnet10t", out_indices=(1, 2))
    assert cut.channels == [64, 128]
    assert not any("layer3" in key for key in cut.state_dict())


@pytest.mark.parametrize("indices", [(-1, -2), (3, -2), (2, 2), (9,), ()], ids=str)
@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv2_035"])
def test_levels_are_listed_in_the_order_of_the_features(name, indices):
    """timm sorts the features, but not their widths."""
    with pytest.raises(ValueError, match=rf"out_indices=.*: set different levels of '{name}' in ascending order"):
        TimmBackbone(name, out_indices=indices)
    backbone = TimmBackbone(name, out_indices=(1, -2, 4)).eval()
    assert [level.shape[1] for level in backbone(torch.rand(1, 3, 32, 32))] == backbone.channels


@pytest.mark.parametrize("name", ["vgg11", "vit_tiny_patch16_224", "densenet121"])
def test_a_backbone_without_stride_8_raises_an_error_that_names_others(name):
    with pytest.raises(ValueError, match=f"cannot build '{name}' with output stride 8.*resnet50.*mobilenetv2_100"):
        TimmBackbone(name)


def test_the_error_for_an_unknown_backbone_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"no backbone 'resnet11'.*resnet"):
        TimmBackbone("resnet11")
    for name in ("timm/resnet18.a1_in1k", "hf-hub:timm/resnet18.a1_in1k"):
        with pytest.raises(ValueError, match=f"no backbone '{name}': did you mean resnet18, "):
            TimmBackbone(name)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto", "cspnext_tiny"])
def test_local_weights_of_the_full_timm_model(tmp_path, name, suffix):
    """The feature networks of a ConvNeXt and a CSPNeXt name their keys differently from the full model."""
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    state = timm.create_model(name).state_dict()
    path = tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    loaded = TimmBackbone(name, weights=path).net.state_dict()
    assert all(torch.equal(tensor, state[_full_key(key, state)]) for key, tensor in loaded.items())
    wide = TimmBackbone(name, weights=path, in_channels=6).net.state_dict()  # RGB twice, at half the weight
    first = next(key for key, tensor in loaded.items() if tensor.ndim == 4)
    assert torch.allclose(wide[first], loaded[first].repeat(1, 2, 1, 1) / 2)


def _full_key(key, state):
    return next(full for full in state if full.replace(".", "_") == key.removeprefix("model.").replace(".", "_"))


def test_local_weights_of_another_model_are_rejected(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(timm.create_model("resnet18").state_dict(), path)
    with pytest.raises(ValueError, match=r"does not contain the weights of timm's resnet10t: \d+ of \d+ tensors"):
        TimmBackbone("resnet10t", weights=path)
    with pytest.raises(FileNotFoundError, match=r"missing\.pth is neither a state dict"):
        TimmBackbone("resnet10t", weights=tmp_path / "missing.pth")
    path.write_bytes(b"no weights")
    with pytest.raises(ValueError, match="not a state dict that can be read safely"):
        TimmBackbone("resnet10t", weights=path)


class DtypesOfWeightGradients(TorchDispatchMode):
    """Records in which dtypes the gradients of convolutions are computed."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution_backward.default:
            self.seen += [array.dtype for array in args[:3]]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("whole", [False, True], ids=["autocast", "converted"])
@pytest.mark.parametrize(("channels", "groups"), [(16, 16), (16, 4), (24, 1)])
@pytest.mark.parametrize("kind", [nn.Conv2d, ScaledStdConv2d, ScaledStdConv2dSame], ids=lambda kind: kind.__name__)
def test_dilated_convolutions_train_in_bfloat16_on_a_cpu(kind, channels, groups, whole):
    """oneDNN's bfloat16 gradient of their weights has uninitialised memory from 32 columns or rows on."""
    padding = {} if kind is ScaledStdConv2dSame else {"padding": 2}
    conv = kind(channels, 16, kernel_size=3, dilation=2, groups=groups, **padding)
    image = torch.randn(1, channels, 33, 97).bfloat16().contiguous(memory_format=torch.channels_last)
    if whole:
        conv.bfloat16()
    exact = copy.deepcopy(conv).float()
    expected = exact(image.float())
    expected.sin().sum().backward()
    replace_dilated_convolutions(conv)
    with torch.autocast("cpu", torch.bfloat16, enabled=not whole):
        out = conv(image)
    with DtypesOfWeightGradients() as dtypes:
        out.float().sin().sum().backward()
    assert set(dtypes.seen) == {torch.float32}
    assert out.dtype == torch.bfloat16
    assert (out - expected).abs().max() < 0.01 * expected.abs().max()
    gradients = zip(conv.parameters(), exact.parameters(), strict=True)
    assert all((got.grad - want.grad).abs().max() < 0.02 * want.grad.abs().max() for got, want in gradients)


@pytest.mark.parametrize("name", ["mobilenetv2_050", "nf_regnet_b0", "dm_nfnet_f0", "res2net50_26w_4s"])
def test_dilated_convolutions_of_a_backbone_are_replaced(name):
    backbone = TimmBackbone(name)
    convolutions = [each for each in backbone.modules() if isinstance(each, nn.Conv2d) and max(each.dilation) > 1]
    expected = [each for each in convolutions if each.groups > 1 or each.in_channels % 16]
    assert expected == [each for each in convolutions if isinstance(each, DilatedConv2d)] != []


def test_dilated_convolutions_of_a_pyramid_are_replaced():
    narrow, wide = (AtrousPyramid(channels) for channels in (24, 32))
    assert sum(isinstance(each, DilatedConv2d) for each in narrow.modules()) == 3
    assert not any(isinstance(each, DilatedConv2d) for each in wide.modules())
