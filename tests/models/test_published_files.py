"""How published files may be wrapped, what their names and configurations say, and which of them are refused."""

from pathlib import Path

import pytest
import torch
from published_networks import PUBLISHED, random_states, written_files  # noqa: F401, fixtures
from published_states import HEAD

from ccnet.models import create_model, import_checkpoint
from ccnet.models.published import importing

pytestmark = pytest.mark.slow


def test_every_wrapping_loads_the_same_network(states, written):
    """Data-parallel prefixes, with or without counters, torch's old file format, half precision, a bare state dict."""
    state = states["authors"]
    want = importing.convert(state, PUBLISHED).network().state_dict()
    bare = {f"module.{key}": tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}
    path = written(bare)
    torch.save({"model": bare}, path, _use_new_zipfile_serialization=False)
    got = import_checkpoint(path).state_dict()
    assert all(torch.equal(got[key], tensor) for key, tensor in want.items() if not key.endswith("tracked"))
    half = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in state.items()}
    got = importing.convert(half, PUBLISHED).network().state_dict()
    assert all(got[key].dtype == tensor.dtype for key, tensor in want.items())
    assert torch.allclose(got["head.project.0.weight"], want["head.project.0.weight"], atol=1e-2)


def test_missing_unused_and_misshapen_tensors_are_listed_in_one_error(states):
    state = dict(states["ccnet"])
    del state["decode_head.cca.query_conv.weight"], state["backbone.layer2.0.bn1.running_var"]
    state["backbone.layer5.weight"] = state["auxiliary_head.extra"] = torch.zeros(2)
    state["decode_head.convs.1.conv.weight"] = torch.zeros(HEAD, HEAD, 1, 1)
    with pytest.raises(ValueError) as caught:
        importing.convert({"state_dict": state}, PUBLISHED)
    assert str(caught.value) == (
        "published.pth cannot be imported as a published checkpoint: its tensors do not match the "
        "network that its keys indicate: 2 missing (backbone.layer2.0.bn1.running_var, "
        "decode_head.cca.query_conv.weight); 2 unused (auxiliary_head.extra, backbone.layer5.weight); 1 of another "
        "shape (decode_head.convs.1.conv.weight (16, 16, 1, 1) instead of (16, 16, 3, 3))"
    )
    state = {key: tensor for key, tensor in states["authors"].items() if key != "dsn.0.bias"}
    with pytest.raises(ValueError, match=r"1 missing \(dsn\.0\.bias\)$"):
        importing.convert(state, PUBLISHED)


def test_values_that_are_not_finite_are_refused(states):
    """Their predictions would be one class everywhere, with scores as if that were the network's answer."""
    key = "backbone.layer2.0.bn1.running_var"
    for value in (float("nan"), float("inf")):
        tensor = states["fcn"][key].clone()
        tensor[3] = value
        refused(states["fcn"] | {key: tensor}, rf"1 with values that are not finite \({key}\)$")


def refused(state, message, name="published.pth", meta=None):
    with pytest.raises(ValueError, match=message):
        importing.convert({"state_dict": state, "meta": meta}, Path(name))


def test_errors_for_other_networks_list_the_nearest_names(states):
    head = "decode_head."
    refused(
        states["fcn"] | {f"{head}gc_block.conv_mask.weight": torch.zeros(1)},
        "only ccnet, nonlocal, fcn, pspnet, deeplabv3 can be imported; the closest is fcn, but this one also has "
        r"decode_head\.gc_block",
    )
    refused(
        states["deeplabv3"]
        | {f"{head}c1_bottleneck.conv.weight": torch.zeros(1), f"{head}sep_bottleneck.x": torch.zeros(1)},
        r"the closest is deeplabv3, but this one also has decode_head\.c1_bottleneck, decode_head\.sep_bottleneck",
    )
    psp = {key.replace("head.conva", "head.0.stages"): tensor for key, tensor in states["authors"].items()}
    refused(psp, "of the authors' networks, only ccnet can be imported: its head has bottleneck, .*; this one has 0")
    refused({"layer1.0.weight": torch.zeros(1)}, r"its tensor names \(layer1\.0\.weight, \.\.\.\) match neither")
    own = create_model("fcn", num_classes=2, backbone="resnet10t", head__channels=8)
    refused(own.state_dict(), "tensors are those of a network of this project, but the configuration that builds it is")
    refused({}, "it contains no state dict")
    refused({"epoch": 3}, "it contains no state dict")


def test_other_backbones_are_rejected(states):
    state = {key: tensor for key, tensor in states["fcn"].items() if "layer3.5" not in key}
    refused(state, r"neither a ResNet-50 nor a ResNet-101 \(backbone\.layer3 has 5 bottleneck blocks, not 6 or 23")
    basic = {key: tensor for key, tensor in states["fcn"].items() if "conv3" not in key}
    refused(basic, "has 6 basic blocks")
    # Networks of output stride 16 have the same tensors; the configuration in the file or the file's name tells.
    coarse = "output stride 16 or 32: only output stride 8"
    refused(states["fcn"], coarse, "fcn_d6_r50-d16_512x1024_40k_cityscapes_20210305_130133-98d5d1bc.pth")
    refused(states["deeplabv3"], coarse, meta={"config": "strides=(1, 2, 2, 1), multi_grid=(1, 2, 4)"})


@pytest.mark.parametrize("recurrence", [0, 65, 1.5, "2"])
def test_recurrence_is_a_number_of_loops(recurrence):
    with pytest.raises(ValueError, match=f"recurrence is {recurrence}: set the number of loops in training, 1 to 64"):
        importing.convert({}, PUBLISHED, recurrence=recurrence)


def test_tensors_of_another_type_or_excessive_size_are_refused(states):
    bias, first = "decode_head.conv_seg.bias", "decode_head.convs.0.conv.weight"
    refused(states["fcn"] | {bias: torch.zeros(3, dtype=torch.int8)}, rf"1 of another type \({bias} torch\.int8\)")
    refused(states["fcn"] | {first: torch.zeros(10**6, 1)}, "cannot be built: .* far larger than its weights")


def test_parameters_are_detached(states):
    state = {key: torch.nn.Parameter(t) if t.is_floating_point() else t for key, t in states["authors"].items()}
    assert not any(tensor.requires_grad for tensor in importing.convert(state, PUBLISHED).weights.values())


# The published files' configurations contain these settings, in the layouts of both major versions.
TRAINED = (
    "strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), contract_dilation=True, style='pytorch', recurrence=2, "
    "mean=[123.675, 116.28, 103.53], std=[\n    58.395, 57.12, 57.375\n], bgr_to_rgb=True, mode='whole', "
    "init_cfg=dict(std=0.01), norm_cfg=dict(type='SyncBN', requires_grad=True), align_corners=False, "
)


@pytest.mark.parametrize(
    ("family", "config", "message"),
    [
        ("fcn", "strides=[1, 2, 2, 1]", "output stride 16 or 32"),
        ("fcn", "dilations=(1, 1, 2, 4)", "contract_dilation=False: only True can be imported"),
        ("fcn", TRAINED + "style='caffe'", "style='caffe': only 'pytorch'"),
        ("fcn", TRAINED + "dilation=6", "dilation=6: only 1"),
        ("fcn", TRAINED + "to_rgb=False", "to_rgb=False: only True"),
        ("fcn", "mean=[1, 2]", r"mean=\(1\.0, 2\.0\) on images of 3 channels"),
        ("fcn", TRAINED + "multi_grid=(1, 2, 4)", r"multi_grid=\(1,2,4\): only None"),
        ("fcn", TRAINED + "norm_cfg=dict(\n  eps=0.001, type='BN')", r"norm_cfg\.eps=0\.001: only 1e-05"),
        ("fcn", TRAINED + "act_cfg=dict(type='LeakyReLU')", r"act_cfg\.type='LeakyReLU': only 'ReLU'"),
        ("fcn", "mean=None, std=None, init_cfg=dict(std=0.01)", "mean=None: only numbers"),
        ("fcn", "std=[58.395, 57.12, -1.0]", r"std=\(58\.395, 57\.12, -1\.0\) on images of 3 channels"),
        ("nonlocal", TRAINED + "mode='dot_product'", "mode='dot_product': only 'embedded_gaussian'"),
        ("nonlocal", TRAINED + "use_scale=False", "use_scale=False: only True"),
        ("pspnet", TRAINED + "pool_scales=(1, 2, 4, 8)", r"pool_scales=\(1,2,4,8\): only \(1,2,3,6\)"),
        ("deeplabv3", TRAINED + "dilations=(1, 6, 12, 18)", r"dilations=\(1,6,12,18\): only .* or \(1,12,24,36\)"),
        ("ccnet", "recurrence=3", r"recurrence=3, not 2: set published\.recurrence=3"),
    ],
)
def test_settings_that_the_tensors_do_not_show_are_refused(states, family, config, message):
    for key in ("config", "cfg"):
        refused(states[family], message, meta={key: config})


def test_image_statistics_come_from_the_configuration(states):
    usual = importing.convert({"state_dict": states["fcn"], "meta": {"cfg": TRAINED}}, PUBLISHED)
    assert not {"mean", "std"} & usual.model["backbone"].keys()
    config = TRAINED.replace("123.675, 116.28, 103.53", "51, 102, 153").replace("58.395", "25.5")
    found = importing.convert({"state_dict": states["fcn"], "meta": {"cfg": config}}, PUBLISHED)
    assert found.weights["mean"].flatten().tolist() == pytest.approx([0.2, 0.4, 0.6])
    assert found.weights["std"].flatten().tolist() == pytest.approx([0.1, 57.12 / 255, 57.375 / 255])
    assert torch.equal(found.network().mean, found.weights["mean"])
    config = TRAINED.replace("123.675, 116.28, 103.53", "1.02e2, 1.02e2, 1.02e2")
    found = importing.convert({"state_dict": states["fcn"], "meta": {"cfg": config}}, PUBLISHED)
    assert found.weights["mean"].flatten().tolist() == pytest.approx([0.4] * 3)


@pytest.mark.parametrize(
    ("config", "name", "given", "aligned", "crop"),
    [
        (
            "align_corners=True,\nstrides=(\n    1,\n    2,\n    1,\n    1,\n)\ncrop_size = (\n    713,\n    713,\n)",
            "a_512x1024_b.pth",
            None,
            True,
            (713, 713),
        ),
        ("strides=(1, 2, 1, 1), align_corners=False", "a_769x769_b.pth", None, False, (769, 769)),
        ("", "ccnet_4xb2-40k_cityscapes-769x769_2020.pth", None, True, (769, 769)),
        ("", "ccnet_512x512_80k_ade20k_20200615_014848-d16f61ea.pth", None, False, (512, 512)),
        ("", "ccnet.pth", None, False, None),
        ("", "ccnet.pth", True, True, None),
        ("align_corners=True", "ccnet.pth", False, False, None),
    ],
)
def test_alignment_and_crop_come_from_the_argument_the_configuration_or_the_name(
    states, config, name, given, aligned, crop, monkeypatch
):
    monkeypatch.setattr(importing, "_weights", lambda layout, found: {})  # the tensors do not matter here
    found = importing.convert(
        {"state_dict": states["pspnet"], "meta": {"config": config}}, Path(name), align_corners=given
    )
    assert found.model["align_corners"] == found.model["head"]["context"]["align_corners"] == aligned
    assert found.crop_size == crop
    authors = importing.convert(states["authors"], Path(name), align_corners=given)
    assert authors.model["align_corners"] == (given is not False)
    assert authors.crop_size == (769, 769)


def test_names_and_colours_of_the_classes_come_from_either_version_of_mmsegmentation(states, monkeypatch):
    monkeypatch.setattr(importing, "_weights", lambda layout, found: {})
    names, colours = ("road", "car", "sky"), [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    for meta, expected in (
        ({"CLASSES": names, "PALETTE": colours, "iter": 40000}, ([*names], colours, 40000)),
        ({"dataset_meta": {"classes": names, "palette": colours}, "iter": 40000}, ([*names], colours, 40000)),
        ({"dataset_meta": {"classes": names[:2], "palette": None}}, (None, None, None)),
    ):
        found = importing.convert({"state_dict": states["fcn"], "meta": meta}, PUBLISHED)
        assert (found.classes, found.palette, found.iteration) == expected


def test_a_pickled_object_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"state_dict": {}, "message_hub": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"more than tensors and plain values.*weights_only=False\)\['state_dict'\]"):
        import_checkpoint(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        import_checkpoint(tmp_path / "missing.pth")
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match=r"cut\.pth is not a checkpoint of this project, or it is damaged"):
        import_checkpoint(tmp_path / "cut.pth")


@pytest.mark.parametrize("name", ["network.pth", "network.safetensors"])
@pytest.mark.parametrize(
    ("content", "message"),
    [("version https://git-lfs.github.com/spec/v1\n", "a text file"), ("<html>\r\n", "a text file"), ("", "empty")],
)
def test_a_file_that_a_failed_download_left_is_named_as_such(name, content, message, tmp_path):
    """Advice on files with more than tensors, which torch takes a text for, would lead the user astray."""
    (tmp_path / name).write_text(content)
    with pytest.raises(
        ValueError, match=f"{name} is not a checkpoint of this project, or it is damaged: it is {message};"
    ):
        import_checkpoint(tmp_path / name)
