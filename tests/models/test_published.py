"""Random checkpoints in each published layout give the same output as a plain functional implementation of the
published network on the file's own tensors; errors name anything else in the file."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import write_pair
from PIL import Image
from published_states import HEAD, authors_state, mmseg_state
from safetensors.torch import save_file

from ccnet.engine import checkpoints
from ccnet.engine.checkpoints import reading
from ccnet.models import import_checkpoint
from ccnet.models.published import importing
from ccnet.models.published.backbone import CaffeResNet

pytestmark = pytest.mark.slow


AUTHORS_MEAN_BGR = torch.tensor([104.00698793, 116.66876762, 122.67891434]).view(1, 3, 1, 1)
MMSEG_MEAN, MMSEG_STD = (
    torch.tensor(rgb).view(1, 3, 1, 1) for rgb in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
)
FAMILIES = ("ccnet", "nonlocal", "fcn", "pspnet", "deeplabv3")
TOLERANCE = 5e-5  # measured: up to 1.2e-5
PUBLISHED = Path("published.pth")


class Plain:
    """The published networks, implemented with functions on the tensors of the file."""

    def __init__(self, state, *, authors=False, align_corners=True):
        self.state, self.authors, self.align_corners = state, authors, align_corners

    def conv(self, x, key, *, stride=1, dilation=1):
        weight = self.state[f"{key}.weight"]
        padding = dilation * (weight.shape[-1] // 2)
        return F.conv2d(x, weight, self.state.get(f"{key}.bias"), stride, padding, dilation)

    def norm(self, x, key):
        weight, bias, mean, var = (self.state[f"{key}.{n}"] for n in ("weight", "bias", "running_mean", "running_var"))
        weight = weight.abs() + 1e-5 if self.authors else weight
        return F.batch_norm(x, mean, var, weight, bias)

    def module(self, x, name, **options):
        """mmsegmentation's ConvModule."""
        return F.relu(self.norm(self.conv(x, f"{name}.conv", **options), f"{name}.bn"))

    def abn(self, x, conv, norm):
        return F.leaky_relu(self.norm(self.conv(x, conv), norm), 0.01)

    def resnet(self, x, prefix, stem):
        """Return the outputs of the third and fourth stages."""
        for index, (conv, norm) in enumerate(stem):
            x = F.relu(self.norm(self.conv(x, prefix + conv, stride=1 if index else 2), prefix + norm))
        x = F.max_pool2d(x, 3, 2, 1, ceil_mode=self.authors)
        stages = []
        for stage, stride, dilation in ((1, 1, 1), (2, 2, 1), (3, 1, 2), (4, 1, 4)):
            block = 0
            while f"{prefix}layer{stage}.{block}.conv1.weight" in self.state:
                name = f"{prefix}layer{stage}.{block}."
                first = block == 0
                spread = dilation if self.authors or not first else max(dilation // 2, 1)
                y = F.relu(self.norm(self.conv(x, f"{name}conv1"), f"{name}bn1"))
                y = self.conv(y, f"{name}conv2", stride=stride if first else 1, dilation=spread)
                y = self.norm(self.conv(F.relu(self.norm(y, f"{name}bn2")), f"{name}conv3"), f"{name}bn3")
                if first:
                    x = self.norm(self.conv(x, f"{name}downsample.0", stride=stride), f"{name}downsample.1")
                x = F.relu(x + y)
                block += 1
            stages.append(x)
        return stages[2], stages[3]

    def attend(self, x, query, key, value, *, cross):
        """Dense attention; ``cross`` masks everything outside the pixel's row and column."""
        query, key, value = (self.conv(x, name).flatten(2) for name in (query, key, value))
        energy = torch.einsum("ndi,ndj->nij", query, key)
        if cross:
            rows, columns = (line.flatten() for line in torch.meshgrid(*map(torch.arange, x.shape[-2:]), indexing="ij"))
            seen = (rows[:, None] == rows) | (columns[:, None] == columns)
            energy = energy.masked_fill(~seen, -math.inf)
        else:
            energy = energy / math.sqrt(query.shape[1])
        return torch.einsum("nij,ncj->nci", energy.softmax(-1), value).unflatten(2, x.shape[-2:])

    def cca(self, x, key, gamma, recurrence):
        for _ in range(recurrence):
            names = (f"{key}.{name}_conv" for name in ("query", "key", "value"))
            x = self.state[gamma] * self.attend(x, *names, cross=True) + x
        return x

    def resized(self, x, size):
        return F.interpolate(x, size, mode="bilinear", align_corners=self.align_corners)


def authors_logits(state, image, *, recurrence):
    """Return main and auxiliary logits of an RGB image in [0, 1]; the authors' network expects BGR in 0 to 255."""
    net = Plain(state, authors=True)
    stem = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))
    inner, features = net.resnet(image.flip(1) * 255 - AUTHORS_MEAN_BGR, "", stem)
    x = net.cca(net.abn(features, "head.conva.0", "head.conva.1"), "head.cca", "head.cca.gamma", recurrence)
    x = torch.cat([features, net.abn(x, "head.convb.0", "head.convb.1")], 1)
    logits = net.conv(net.abn(x, "head.bottleneck.0", "head.bottleneck.1"), "head.bottleneck.3")
    aux = net.conv(net.abn(inner, "dsn.0", "dsn.1"), "dsn.3")
    return net.resized(logits, image.shape[-2:]), aux


def mmseg_logits(state, image, family, *, align_corners):
    net = Plain(state, align_corners=align_corners)
    stem = (("stem.0", "stem.1"), ("stem.3", "stem.4"), ("stem.6", "stem.7"))
    inner, features = net.resnet((image * 255 - MMSEG_MEAN) / MMSEG_STD, "backbone.", stem)
    size, head = features.shape[-2:], "decode_head."
    if family == "pspnet":
        pooled = [
            net.module(F.adaptive_avg_pool2d(features, side), f"{head}psp_modules.{index}.1")
            for index, side in enumerate((1, 2, 3, 6))
        ]
        x = net.module(torch.cat([features, *(net.resized(x, size) for x in pooled)], 1), f"{head}bottleneck")
    elif family == "deeplabv3":
        pooled = net.module(features.mean((2, 3), keepdim=True), f"{head}image_pool.1").expand(-1, -1, *size)
        spread = [
            net.module(features, f"{head}aspp_modules.{index}", dilation=dilation)
            for index, dilation in enumerate((1, 12, 24, 36))
        ]
        x = net.module(torch.cat([pooled, *spread], 1), f"{head}bottleneck")
    else:
        x = net.module(features, f"{head}convs.0")
        if family == "ccnet":
            x = net.cca(x, f"{head}cca", f"{head}cca.gamma.scale", 2)
        if family == "nonlocal":
            block = f"{head}nl_block."
            y = net.attend(x, *(f"{block}{name}.conv" for name in ("theta", "phi", "g")), cross=False)
            x = x + net.norm(net.conv(y, f"{block}conv_out.conv"), f"{block}conv_out.bn")
        x = net.module(torch.cat([features, net.module(x, f"{head}convs.1")], 1), f"{head}conv_cat")
    logits = net.conv(x, f"{head}conv_seg")
    aux = net.conv(net.module(inner, "auxiliary_head.convs.0"), "auxiliary_head.conv_seg")
    return net.resized(logits, image.shape[-2:]), aux


def difference(one, two):
    assert one.shape == two.shape
    return ((one - two).abs().max() / two.abs().max()).item()


@torch.no_grad()
def assert_same_logits(network, published, sizes=((41, 57), (40, 52))):
    """Compare main and auxiliary logits at odd and even sizes, which reveal ceil mode and alignment."""
    assert not network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    for size in sizes:
        image = torch.rand(2, 3, *size)
        seen = []
        hook = network.backbone.register_forward_hook(lambda *call, seen=seen: seen.extend(call[2]))
        got = network(image)["out"]
        hook.remove()
        want, aux = published(image)
        assert difference(got, want) < TOLERANCE
        assert difference(network.aux_head(seen[0]), aux) < TOLERANCE


@pytest.fixture
def written(tmp_path):
    """Return a function that saves an object under a name; the large files are deleted after the test."""
    paths = []

    def write(content, name="published.pth"):
        paths.append(tmp_path / name)
        torch.save(content, paths[-1])
        return paths[-1]

    yield write
    for path in paths:
        path.unlink()


@pytest.fixture(scope="module")
def states():
    """Return a random checkpoint of each network, by layout and family; treat it as read-only."""
    torch.manual_seed(0)
    mmseg = {family: mmseg_state(family) for family in FAMILIES}
    for state in mmseg.values():  # one backbone is enough
        state |= {key: tensor for key, tensor in mmseg["ccnet"].items() if key.startswith("backbone.")}
    return mmseg | {"authors": authors_state()}


@pytest.mark.parametrize(("depth", "recurrence"), [(101, 2), (50, 1)])
def test_the_authors_network(states, depth, recurrence, written):
    state = states["authors"] if depth == 50 else authors_state(depth)
    network = import_checkpoint(written(state), recurrence=recurrence)
    assert network.align_corners
    assert_same_logits(network, lambda image: authors_logits(state, image, recurrence=recurrence))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_mmsegmentations_networks(states, family, align_corners, written):
    name = f"{family}_r50-d8_{'769x769' if align_corners else '512x1024'}_40k_cityscapes.pth"
    network = import_checkpoint(written({"meta": {}, "state_dict": states[family]}, name))
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
    "init_cfg=dict(std=0.01), align_corners=False, "
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


def test_an_imported_network_can_be_saved_in_the_projects_format(states, tmp_path):
    """Class names and colours in the file are kept; safetensors in a published layout are accepted as well."""
    save_file(states["fcn"], tmp_path / "published.safetensors")
    assert checkpoints.load(tmp_path / "published.safetensors").classes == ["class 0", "class 1", "class 2"]
    (tmp_path / "published.safetensors").unlink()
    meta = {"CLASSES": ("road", "car", "sky"), "PALETTE": [[1, 2, 3], [4, 5, 6], [7, 8, 9]], "iter": 40000}
    found = reading.from_published(importing.convert({"state_dict": states["fcn"], "meta": meta}, PUBLISHED))
    own = tmp_path / "own.safetensors"
    checkpoints.save(found, own)
    saved = checkpoints.load(own)
    own.unlink()
    assert (saved.classes, saved.palette, saved.iteration) == (list(meta["CLASSES"]), meta["PALETTE"], 40000)
    image = torch.rand(1, 3, 33, 41)
    with torch.no_grad():
        want, _ = mmseg_logits(states["fcn"], image, "fcn", align_corners=False)
        assert difference(checkpoints.network(saved)(image)["out"], want) < TOLERANCE


def test_evaluate_and_predict_accept_a_published_file(states, run_entry, written, folder_data, camvid_root, tmp_path):
    path = written(states["authors"], "CS_scenes_60000.pth")
    images, masks = folder_data
    data = ("dataset=folder", f"dataset.images={images}", f"dataset.masks={masks}", "dataset.classes=[a,b,c]")
    options = (f"checkpoint={path}", "device=cpu")
    done = run_entry("evaluate.py", *options, *data, "num_workers=0", "published.recurrence=1", f"output={tmp_path}/s")
    assert f"{path}, on 1 images, whole" in done.stdout
    assert (tmp_path / "s" / "CS_scenes_60000_folder_val_whole.csv").is_file()

    picture = sorted(images.iterdir())[0]
    run_entry("predict.py", *options, f"input={picture}", f"output={tmp_path}/p", "published.recurrence=1")
    pixels = torch.frombuffer(bytearray(Image.open(picture).convert("RGB").tobytes()), dtype=torch.uint8)
    image = pixels.view(1, 48, 64, 3).permute(0, 3, 1, 2) / 255
    want = authors_logits(states["authors"], image, recurrence=1)[0].argmax(1)[0]
    mask = torch.frombuffer(bytearray(Image.open(tmp_path / "p" / f"{picture.stem}.png").tobytes()), dtype=torch.uint8)
    assert (mask.view(48, 64) == want).float().mean() > 0.999

    message = run_entry("evaluate.py", *options, ok=False).stderr
    assert "does not name its data set: set dataset=NAME dataset.root=DIR" in message
    message = run_entry("evaluate.py", *options, "dataset=camvid", f"dataset.root={camvid_root}", ok=False).stderr
    assert "has 3 classes (class 0, class 1, class 2) but the data set has 11 (Sky," in message


def test_training_can_start_from_a_published_file(states, run_entry, written, tmp_path):
    """The same classes keep the classifier, others get a new one; the run saves checkpoints in the project's format."""
    path = written(states["authors"])
    images, masks = tmp_path / "images", tmp_path / "masks"
    for index in range(3):
        write_pair(images / f"{index}.jpg", masks / f"{index}.png", classes=4, seed=index)
    command = (
        "train.py", f"init={path}", "dataset=folder", f"dataset.images={images}", f"dataset.masks={masks}",
        "dataset.classes=4", "recipe.train_transform.crop_size=[32,32]", "recipe.batch_size=2", "recipe.max_iters=1",
        "recipe.val_every=1", "recipe.lr=1e-6", "logger=none", "num_workers=0", "device=cpu",
        f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    message = run_entry(*command, "model=fcn", ok=False).stderr
    assert f"init={path} already determines the network: remove model=fcn" in message
    run_entry(*command)
    saved = checkpoints.load(tmp_path / "run" / "best.safetensors")
    assert saved.weights["head.classify.weight"].shape == (4, HEAD, 1, 1)
    published = importing.convert(states["authors"], PUBLISHED).network().state_dict()
    for key in ("backbone.net.layer4.2.conv3.weight", "head.context.value_conv.weight", "mean"):
        assert torch.allclose(saved.weights[key], published[key], atol=1e-4)
    assert not torch.equal(saved.weights["head.reduce.0.weight"], published["head.reduce.0.weight"])  # it learns
    for file in (tmp_path / "run").iterdir():
        file.unlink()
