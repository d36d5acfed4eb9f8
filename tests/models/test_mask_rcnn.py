"""Mask R-CNN: where its context module sits, which layers are frozen, and that all others learn."""

import pytest
import torch
from torch import nn

from ccnet.models import create_model

pytestmark = pytest.mark.slow


def small(**overrides):
    options = {"backbone": "resnet10t", "frozen": False, "channels": 16, "min_size": 48, "max_size": 80} | overrides
    return create_model("mask_rcnn", num_classes=3, **options)


def test_context_precedes_the_last_block_of_res4_and_is_initially_the_identity():
    """ResNet-50: 1024 channels at stride 16. All other tensors keep their names."""
    shapes = {}
    for context in (None, "rcca", "nonlocal"):
        with torch.device("meta"):  # only the shapes matter
            model = create_model("mask_rcnn", num_classes=80, backbone="resnet50", context=context)
        shapes[context] = {key: tensor.shape for key, tensor in model.state_dict().items()}
        blocks = [name for name, _ in model.backbone.body["layer3"].named_children()]
        assert blocks == ["0", "1", "2", "3", "4", *(["context"] if context else []), "5"]
    plain = shapes[None]
    for context, prefix in (("rcca", "context.attention"), ("nonlocal", "context")):
        own = {key: shape for key, shape in shapes[context].items() if key not in plain}
        assert plain == {key: shape for key, shape in shapes[context].items() if key in plain}
        assert {key for key in own if key.endswith("weight")} == {
            f"backbone.body.layer3.{prefix}.{name}_conv.weight" for name in ("query", "key", "value")
        }
        assert sum(shape.numel() for shape in own.values()) == 1_312_001
        assert own[f"backbone.body.layer3.{prefix}.value_conv.weight"] == (1024, 1024, 1, 1)

    torch.manual_seed(0)
    model, without = small(backbone="resnet18").eval(), small(backbone="resnet18", context=None).eval()
    without.load_state_dict({k: v for k, v in model.state_dict().items() if "context" not in k})
    image = torch.rand(1, 3, 64, 96)
    features = {}
    for name, network in (("with", model), ("without", without)):
        features[name] = network.backbone(image)
    assert [feature.shape[-2:] for feature in features["with"].values()][:4] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    for level, feature in features["without"].items():
        assert torch.allclose(features["with"][level], feature, atol=1e-5)
    x = torch.rand(1, 256, 4, 6)
    context = model.backbone.body["layer3"].context
    assert context.recurrence == 2 and torch.equal(context(x), x)
    nn.init.ones_(model.backbone.body["layer3"].context.attention.gamma)
    changed = [
        level for level, one in model.backbone(image).items() if not torch.equal(one, features["without"][level])
    ]
    assert changed == list(features["with"])  # the feature pyramid propagates it to every level


def test_paper_baseline_freezes_batch_norm_and_res2():
    model = create_model("mask_rcnn", num_classes=3, backbone="resnet18")
    body = model.backbone.body
    assert not any(isinstance(module, nn.BatchNorm2d) for module in body.modules())
    trained = {name.split(".")[0] for name, parameter in body.named_parameters() if parameter.requires_grad}
    assert trained == {"layer2", "layer3", "layer4"}
    assert all(parameter.requires_grad for parameter in model.rpn.parameters())
    assert model.transform.min_size == (800,) and model.transform.max_size == 1333
    assert model.roi_heads.mask_predictor.mask_fcn_logits.out_channels == 3 + 1


def test_every_parameter_learns_at_odd_sizes_and_without_objects():
    model = small().train()
    nn.init.ones_(model.backbone.body["layer3"].context.attention.gamma)
    masks = torch.zeros(1, 45, 61, dtype=torch.uint8)
    masks[:, 5:40, 10:50] = 1
    images = [torch.rand(3, 45, 61), torch.rand(3, 70, 33)]
    targets = [
        {"boxes": torch.tensor([[10.0, 5, 50, 40]]), "labels": torch.tensor([2]), "masks": masks},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "masks": torch.zeros(0, 70, 33)},
    ]
    losses = model(images, targets)
    assert set(losses) == {
        "loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"
    }  # fmt: skip
    sum(losses.values()).backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    found = model.eval()(images[:1])[0]
    count = len(found["scores"])
    assert found["masks"].shape == (count, 1, 45, 61) and found["boxes"].shape == (count, 4)


def test_unknown_context_and_unfit_backbone_get_one_sentence():
    with pytest.raises(ValueError, match=r"no context 'rcaa': did you mean rcca\? Available: \['none', 'nonlocal'"):
        small(context="rcaa")
    with pytest.raises(ValueError, match="needs the stages layer1, layer2, layer3, layer4 of a ResNet"):
        small(backbone="mobilenetv2_100")
