"""A plain functional implementation of the published networks, and random checkpoints in their layouts.

Test files import the fixtures ``written`` and ``states`` as the functions that define them.
"""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from published_states import authors_state, mmseg_state

AUTHORS_MEAN_BGR = torch.tensor([104.00698793, 116.66876762, 122.67891434]).view(1, 3, 1, 1)
MMSEG_MEAN, MMSEG_STD = (
    torch.tensor(rgb).view(1, 3, 1, 1) for rgb in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
)
FAMILIES = ("ccnet", "nonlocal", "fcn", "pspnet", "deeplabv3")
TOLERANCE = 5e-5  # measured: up to 1.2e-5 with 50 layers
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
def assert_same_logits(network, published, sizes=((41, 57), (40, 52)), dtype=torch.float32):
    """Compare main and auxiliary logits at odd and even sizes, which reveal ceil mode and alignment."""
    assert not network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    generator = torch.Generator().manual_seed(0)
    for size in sizes:
        image = torch.rand(1, 3, *size, generator=generator, dtype=dtype)
        seen = []
        hook = network.backbone.register_forward_hook(lambda *call, seen=seen: seen.extend(call[2]))
        got = network(image)["out"]
        hook.remove()
        want, aux = published(image)
        assert difference(got, want) < TOLERANCE
        assert difference(network.aux_head(seen[0]), aux) < TOLERANCE


@pytest.fixture(name="written")
def written_files(tmp_path):
    """Return a function that saves an object under a name; the large files are deleted after the test."""
    paths = []

    def write(content, name="published.pth"):
        paths.append(tmp_path / name)
        torch.save(content, paths[-1])
        return paths[-1]

    yield write
    for path in paths:
        path.unlink()


@pytest.fixture(name="states", scope="module")
def random_states():
    """Return a random checkpoint of each network, by layout and family; treat it as read-only."""
    torch.manual_seed(0)
    mmseg = {family: mmseg_state(family) for family in FAMILIES}
    for state in mmseg.values():  # one backbone is enough
        state |= {key: tensor for key, tensor in mmseg["ccnet"].items() if key.startswith("backbone.")}
    return mmseg | {"authors": authors_state()}
