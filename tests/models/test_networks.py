"""Context modules, backbones and CCNet in detail; test_every_model.py tests what all networks have in common."""

import pytest
import torch
from torch import nn

from ccnet.kernels import criss_cross_attention
from ccnet.models import CrissCrossAttention, RecurrentCrissCrossAttention, create_model
from ccnet.models.context.global_convolution import GlobalConvolution
from ccnet.models.context.horizontal_vertical import HorizontalVertical, ParallelHorizontalVertical
from ccnet.models.context.non_local import BottleneckNonLocal, NonLocal
from ccnet.models.context.pyramid import AtrousPyramid, PyramidPooling

pytestmark = pytest.mark.slow


needs_interpreter = pytest.mark.skipif(
    torch.cuda.is_available(), reason="the Triton kernels only take CPU tensors in interpreter mode"
)


def small(name="ccnet", *, num_classes=5, **overrides):
    return create_model(
        name, num_classes=num_classes, backbone="resnet10t", head__channels=16, aux_head__channels=16, **overrides
    )


def test_loops_share_their_parameters():
    none, one, *more = (sum(p.numel() for p in small(head__recurrence=loops).parameters()) for loops in range(4))
    assert one - none == sum(p.numel() for p in CrissCrossAttention(16).parameters())
    assert more == [one, one]


def test_the_head_has_the_layers_of_the_paper():
    """Channels and order at the paper's size: 512 channels, 64 for query and key."""
    head = create_model("ccnet", num_classes=19, backbone="resnet50").head
    shapes = {key: tuple(p.shape) for key, p in head.named_parameters() if p.ndim == 4}
    assert shapes == {
        "reduce.0.weight": (512, 2048, 3, 3),
        "context.query_conv.weight": (64, 512, 1, 1),
        "context.key_conv.weight": (64, 512, 1, 1),
        "context.value_conv.weight": (512, 512, 1, 1),
        "project.0.weight": (512, 512, 3, 3),
        "bottleneck.0.weight": (512, 2048 + 512, 3, 3),
        "classify.weight": (19, 512, 1, 1),
    }
    assert head.recurrence == 2
    assert head.context.gamma.item() == 0
    assert head.dropout.p == 0.1


def test_ccnet_without_loops_equals_fcn():
    assert list(small(head__recurrence=0).state_dict()) == list(small("fcn").state_dict())


@pytest.mark.parametrize("gamma", ["fixed", "learned"])
def test_non_local_equals_the_dense_formula(gamma):
    module = NonLocal(16, gamma=gamma).double()
    if gamma == "learned":
        nn.init.constant_(module.gamma, 0.3)
    x = torch.randn(2, 16, 5, 7, dtype=torch.float64)
    query, key, value = (conv(x).flatten(2) for conv in (module.query_conv, module.key_conv, module.value_conv))
    attention = torch.einsum("ndp,ndq->npq", query, key).softmax(dim=-1)
    want = (1 if gamma == "fixed" else 0.3) * torch.einsum("npq,ncq->ncp", attention, value).view_as(x) + x
    assert (module(x) - want).abs().max() < 1e-12


def test_the_non_local_block_needs_a_multiple_of_eight_channels():
    with pytest.raises(ValueError, match="channels is 20: the non-local block needs a multiple of 8"):
        NonLocal(20)


def test_the_original_non_local_block_equals_the_dense_formula():
    module = BottleneckNonLocal(16).double().eval()
    x = torch.randn(2, 16, 5, 7, dtype=torch.float64)
    assert torch.equal(module(x), x)  # before training, it is the identity
    conv, norm = module.project
    nn.init.normal_(norm.weight)
    query, key, value = (conv(x).flatten(2) for conv in (module.query_conv, module.key_conv, module.value_conv))
    attention = (torch.einsum("ndp,ndq->npq", query, key) / 8**0.5).softmax(dim=-1)
    context = torch.einsum("npq,ncq->ncp", attention, value).view(2, 8, 5, 7)
    want = norm(torch.einsum("oc,nchw->nohw", conv.weight[:, :, 0, 0], context)) + x
    assert (module(x) - want).abs().max() < 1e-12


@pytest.mark.parametrize("module", [HorizontalVertical, ParallelHorizontalVertical])
def test_rows_then_columns_see_everything(module):
    x = torch.randn(1, 16, 6, 7, requires_grad=True)
    (gradient,) = torch.autograd.grad(module(16, gamma="fixed")(x)[0, :, 2, 3].sum(), x)
    assert (gradient.abs().sum(dim=1) > 0).all()


def test_horizontal_vertical_attends_within_rows_first():
    rows, columns = HorizontalVertical(16, gamma="fixed")
    x = torch.randn(1, 16, 6, 7, requires_grad=True)
    for module, seen in ((rows, 7), (columns, 6)):
        (gradient,) = torch.autograd.grad(module(x)[0, :, 2, 3].sum(), x)
        assert (gradient.abs().sum(dim=1) > 0).sum() == seen
    assert not gradient[0, :, 2, :3].any()


def test_the_parallel_module_attends_in_both_orders_and_adds_the_results():
    module = ParallelHorizontalVertical(16, gamma="fixed")
    x = torch.randn(1, 16, 6, 7, requires_grad=True)
    for branch, order in ((module.hv, (7, 6)), (module.vh, (6, 7))):
        for attention, seen in zip(branch, order, strict=True):
            (gradient,) = torch.autograd.grad(attention(x)[0, :, 2, 3].sum(), x)
            assert (gradient.abs().sum(dim=1) > 0).sum() == seen
    assert torch.equal(module(x), module.hv(x) + module.vh(x))


def test_global_convolution_is_the_sum_of_two_separable_convolutions():
    module = GlobalConvolution(4, kernel_size=5).double()
    x, total = torch.randn(1, 4, 9, 8, dtype=torch.float64), 0
    for (first, second), tall_first in ((module.left, True), (module.right, False)):
        assert first.weight.shape == second.weight.mT.shape == ((4, 4, 5, 1) if tall_first else (4, 4, 1, 5))
        # Without biases and borders, two convolutions are one with the product of their kernels.
        first.bias.data.zero_()
        second.bias.data.zero_()
        kernel = torch.einsum("omyx,mivu->oivx" if tall_first else "omyx,mivu->oiyu", second.weight, first.weight)
        total = total + nn.functional.conv2d(x, kernel, padding=2)
    assert torch.allclose(module(x), total)


def test_the_pyramids_have_the_published_grids_and_dilations():
    pspnet, deeplab = (small(name).head.context for name in ("pspnet", "deeplabv3"))
    assert pspnet.bins == (1, 2, 3, 6)
    assert [branch[0].dilation for branch in deeplab.dilated] == [(12, 12), (24, 24), (36, 36)]
    for bins in ([], [0, 1]):
        with pytest.raises(ValueError, match=r"bins is .*: set one or more numbers of at least 1"):
            PyramidPooling(8, bins=bins)
    with pytest.raises(ValueError, match=r"dilations is \[0\]: set numbers of at least 1"):
        AtrousPyramid(8, dilations=[0])


def test_global_convolution_has_a_square_receptive_field_of_its_kernel_size():
    x = torch.randn(1, 8, 21, 21, requires_grad=True)
    (gradient,) = torch.autograd.grad(GlobalConvolution(8, kernel_size=7)(x)[0, :, 10, 10].sum(), x)
    seen = gradient.abs().sum(dim=1)[0] > 0
    assert seen[7:14, 7:14].all()
    assert seen.sum() == 7 * 7


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("spatial", [(5,), (5, 4), (3, 5, 4)], ids=str)
def test_the_module_applies_the_operator_to_its_projections(spatial, channels_last):
    module = CrissCrossAttention(16, gamma="fixed")
    x = torch.randn(2, 16, *spatial)
    if channels_last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    projected = [
        torch.einsum("oc,nc...->no...", conv.weight[:, :, 0, 0], x) + conv.bias.view(-1, *[1] * len(spatial))
        for conv in (module.query_conv, module.key_conv, module.value_conv)
    ]
    assert torch.allclose(module(x), criss_cross_attention(*projected) + x, atol=1e-5)
    twice = RecurrentCrissCrossAttention(16, recurrence=2, gamma="fixed")
    twice.attention = module
    assert torch.allclose(twice(x), module(module(x)))


@pytest.mark.parametrize(("channels", "setting", "number"), [(16, None, 2), (4, None, 1), (16, 5, 5)])
def test_query_and_key_have_an_eighth_of_the_channels_by_default(channels, setting, number):
    module = CrissCrossAttention(channels, query_channels=setting)
    assert module.query_conv.out_channels == module.key_conv.out_channels == number
    x = torch.randn(1, channels, 3, 4)
    assert module(x).shape == x.shape


def test_frames_interact_only_in_the_attention():
    """A clip of one frame equals an image, and frames interact only through the attention."""
    model = small("ccnet3d").eval()
    nn.init.ones_(model.head.context.gamma)
    assert list(model.state_dict()) == list(small().state_dict())
    clip = torch.rand(1, 3, 4, 33, 41, requires_grad=True)
    assert model(clip)["out"].shape == (1, 5, 4, 33, 41)
    assert torch.allclose(model(clip[:, :, :1])["out"][:, :, 0], model(clip[:, :, 0])["out"], atol=1e-5)
    without = small("fcn").eval()
    for network, frames in ((model, [0, 1, 2, 3]), (without, [2])):
        (gradient,) = torch.autograd.grad(network(clip)["out"][:, :, 2].square().sum(), clip)
        assert gradient.abs().sum(dim=(0, 1, 3, 4)).nonzero().flatten().tolist() == frames


def test_wrapped_attention_still_takes_clips():
    model = small("ccnet3d").eval()
    nn.init.ones_(model.head.context.gamma)
    clip = torch.rand(1, 3, 3, 33, 41)
    expected = model(clip)["out"]
    model.head.context = torch.compile(model.head.context, backend="eager")
    assert torch.allclose(model(clip)["out"], expected, atol=1e-5)


@pytest.mark.parametrize("name", ["nonlocal", "gcn", "hv", "hv_vh", "pspnet", "deeplabv3"])
def test_other_context_modules_process_the_frames_independently(name):
    model = small(name).eval()
    for key, parameter in model.head.context.named_parameters():
        if key.endswith("gamma"):
            nn.init.ones_(parameter)
    clip = torch.rand(2, 3, 3, 33, 41)
    frames = model(clip.transpose(1, 2).flatten(0, 1))["out"].unflatten(0, (2, 3)).transpose(1, 2)
    assert torch.allclose(model(clip)["out"], frames, atol=1e-5)


def test_training_on_clips():
    model = small("ccnet3d", embedding_channels=4).train()
    output = model(torch.rand(2, 3, 3, 33, 41))
    # 33x41 pixels are 5x6 features
    shapes = {key: tuple(tensor.shape) for key, tensor in output.items()}
    assert shapes == {"out": (2, 5, 3, 33, 41), "aux": (2, 5, 3, 33, 41), "embedding": (2, 4, 3, 5, 6)}
    sum(tensor.square().sum() for tensor in output.values()).backward()
    assert model.head.context.gamma.grad.abs() > 0


def test_a_clips_last_frame_is_classified_by_its_first():
    """The last frames of all four clips are identical; only the first frames distinguish the two classes."""
    torch.manual_seed(0)
    clips = torch.full((4, 3, 3, 33, 33), 0.5)
    kinds = torch.tensor([0, 1, 0, 1])
    clips[kinds == 1, :, 0, 4:20, 4:20] = 1.0
    labels = kinds.view(4, 1, 1).expand(4, 33, 33)
    options = {"head__recurrence": 3, "head__context__gamma": "fixed", "head__dropout": 0.0}
    model = small("ccnet3d", num_classes=2, **options).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(12):
        optimizer.zero_grad()
        logits = model(clips)["out"][:, :, -1]
        loss = torch.nn.functional.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
    assert loss < 0.35  # chance level is log 2 = 0.69


def test_invalid_settings_of_the_module_are_rejected():
    with pytest.raises(ValueError, match=r"axes must be a sequence of integers, such as \(0, 1\), got 1"):
        CrissCrossAttention(8, axes=1)
    with pytest.raises(ValueError, match=r"gamma is 'zero': choose 'learned' \(starts at 0\) or 'fixed' \(1\)"):
        CrissCrossAttention(8, gamma="zero")


@pytest.mark.parametrize("backend", ["reference", "auto", pytest.param("triton", marks=needs_interpreter)])
def test_recomputed_projections_give_the_same_gradients(backend):
    """Recomputing query, key and value in the backward pass gives the same output and gradients up to rounding."""
    module = CrissCrossAttention(16, gamma="fixed", backend=backend)
    x = torch.randn(2, 16, 5, 3)
    upstream = torch.randn_like(x)
    results = []
    for module.recompute in (False, True):
        out = module(x)
        results.append([out, *torch.autograd.grad(out, list(module.parameters()), upstream)])
    for one, two in zip(*results, strict=True):
        assert torch.allclose(one, two, atol=1e-5)


def test_learned_gamma_is_initially_the_identity_and_changes_after_one_step():
    module = CrissCrossAttention(16)
    x = torch.randn(2, 16, 5, 4)
    assert torch.equal(module(x), x)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module(x).square().sum().backward()
    assert module.gamma.grad.abs() > 0
    assert not module.query_conv.weight.grad.any()
    optimizer.step()
    optimizer.zero_grad()
    module(x).square().sum().backward()
    assert module.query_conv.weight.grad.any()


def test_one_loop_sees_a_cross_and_two_see_everything():
    x = torch.randn(1, 8, 6, 7, requires_grad=True)
    for recurrence, seen in ((1, 6 + 7 - 1), (2, 6 * 7)):
        module = RecurrentCrissCrossAttention(8, recurrence=recurrence, gamma="fixed")
        (gradient,) = torch.autograd.grad(module(x)[0, :, 2, 3].sum(), x)
        assert (gradient.abs().sum(dim=1) > 0).sum() == seen


@pytest.mark.parametrize(
    ("name", "options"),
    [("ccnet", {"head__num_classes": 0}), ("pspnet", {"head__channels": 2})],
    ids=["no classes", "pyramid of 2 channels"],
)
def test_layers_without_weights_are_refused(name, options):
    with pytest.raises(ValueError, match=r"layers without weights, such as head\.\S+ \(0, .*: set num_classes"):
        create_model(name, num_classes=2, backbone="resnet10t", **options)


def test_normalisation_is_part_of_the_network():
    model = small().eval()
    assert model.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert {"mean", "std"} <= set(model.state_dict())
    seen = []
    model.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    image = torch.rand(1, 3, 32, 32)
    model(image)
    assert torch.allclose(seen[0], (image - model.mean) / model.std)


def test_bf16_and_channels_last():
    model = small().eval()
    image = torch.rand(2, 3, 40, 56)
    want = model(image)["out"]
    got = model.to(memory_format=torch.channels_last)(image.to(memory_format=torch.channels_last))["out"]
    assert torch.allclose(got, want, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(image)["out"].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_images_of_another_precision_are_converted_to_that_of_the_network(dtype):
    """Images read with NumPy and divided by 255 are float64."""
    model = small().eval()
    image = torch.rand(1, 3, 32, 40).to(dtype)
    got = model(image)["out"]
    assert got.dtype == torch.float32
    assert torch.allclose(got, model(image.float())["out"], atol=1e-5)
    assert model.bfloat16()(image)["out"].dtype == torch.bfloat16


def test_images_are_converted_to_the_dtype_of_weights_that_differs_from_that_of_buffers():
    """As under the mixed precision of FSDP."""
    model = small().eval()
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):  # batch norm with weights in bfloat16 needs a GPU
            layer.bfloat16()
    assert model.mean.dtype == torch.float32
    assert model(torch.rand(1, 3, 32, 40))["out"].dtype == torch.bfloat16


def test_errors_for_unsuitable_images_mention_clips_and_the_range():
    with pytest.raises(ValueError, match=r"RGB images \(N, 3, H, W\) or clips .* of at least 8x8"):
        small()(torch.rand(1, 3, 7, 64))
    with pytest.raises(ValueError, match=r"floating-point images in \[0, 1\], got torch\.uint8: convert them first"):
        small()(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"or clips .* got \(1, 3, 0, 64, 64\)"):
        small()(torch.zeros(1, 3, 0, 64, 64))
