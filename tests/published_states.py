"""Random state dicts in the layouts of published checkpoints."""

import math

import torch

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
HEAD, AUX, K = 16, 12, 3  # channels of the narrow heads, and classes


class State(dict):
    """A random state dict, built layer by layer."""

    def conv(self, key, outputs, inputs, size=1, *, bias=False):
        self[f"{key}.weight"] = torch.randn(outputs, inputs, size, size) * math.sqrt(2 / (inputs * size * size))
        if bias:
            self[f"{key}.bias"] = 0.1 * torch.randn(outputs)

    def norm(self, key, channels, *, scale=1.0):
        """Add a norm with negative weights, which in-place activated batch norms may have and plain ones allow."""
        self[f"{key}.weight"] = scale * (0.5 + torch.rand(channels)) * torch.randn(channels).sign()
        self[f"{key}.bias"] = 0.1 * torch.randn(channels)
        self[f"{key}.running_mean"] = 0.1 * torch.randn(channels)
        self[f"{key}.running_var"] = 0.5 + torch.rand(channels)
        self[f"{key}.num_batches_tracked"] = torch.tensor(9)

    def resnet(self, prefix, stem, depth, blocks=None):
        """Add a ResNet; ``stem`` lists (convolution, norm, outputs, inputs) of its three layers."""
        for conv, norm, outputs, inputs in stem:
            self.conv(prefix + conv, outputs, inputs, 3)
            self.norm(prefix + norm, outputs)
        inputs = stem[-1][2]
        for stage, count in enumerate(blocks or BLOCKS[depth], 1):
            width = 32 * 2**stage
            for block in range(count):
                name = f"{prefix}layer{stage}.{block}"
                for index, (out, in_, size) in enumerate(
                    ((width, inputs, 1), (width, width, 3), (4 * width, width, 1)), 1
                ):
                    self.conv(f"{name}.conv{index}", out, in_, size)
                    self.norm(f"{name}.bn{index}", out, scale=0.3 if index == 3 else 1.0)  # 33 blocks add up
                if block == 0:
                    self.conv(f"{name}.downsample.0", 4 * width, inputs)
                    self.norm(f"{name}.downsample.1", 4 * width)
                inputs = 4 * width

    def cca(self, key, gamma):
        for name, outputs in (("query_conv", HEAD // 8), ("key_conv", HEAD // 8), ("value_conv", HEAD)):
            self.conv(f"{key}.{name}", outputs, HEAD, bias=True)
        self[gamma] = torch.tensor(0.8)

    def conv_norm(self, conv, norm, outputs, inputs, size=3, *, bias=False):
        self.conv(conv, outputs, inputs, size, bias=bias)
        self.norm(norm, outputs)


def authors_state(depth=50):
    state = State()
    stem = (("conv1", "bn1", 64, 3), ("conv2", "bn2", 64, 64), ("conv3", "bn3", 128, 64))
    state.resnet("", stem, depth)
    state["conv1.weight"] /= 64  # for pixel values from 0 to 255
    state.conv_norm("head.conva.0", "head.conva.1", HEAD, 2048)
    state.cca("head.cca", "head.cca.gamma")
    state["head.cca.gamma"] = torch.tensor([0.8])
    state.conv_norm("head.convb.0", "head.convb.1", HEAD, HEAD)
    state.conv_norm("head.bottleneck.0", "head.bottleneck.1", HEAD, 2048 + HEAD)
    state.conv("head.bottleneck.3", K, HEAD, bias=True)
    state.conv_norm("dsn.0", "dsn.1", AUX, 1024, bias=True)
    state.conv("dsn.3", K, AUX, bias=True)
    return dict(state)


def mmseg_state(family, depth=50):
    state = State()
    stem = (("stem.0", "stem.1", 32, 3), ("stem.3", "stem.4", 32, 32), ("stem.6", "stem.7", 64, 32))
    state.resnet("backbone.", stem, depth)

    def module(name, outputs, inputs, size):
        state.conv_norm(f"{name}.conv", f"{name}.bn", outputs, inputs, size)

    head = "decode_head."
    if family in ("ccnet", "nonlocal", "fcn"):
        module(f"{head}convs.0", HEAD, 2048, 3)
        module(f"{head}convs.1", HEAD, HEAD, 3)
        module(f"{head}conv_cat", HEAD, 2048 + HEAD, 3)
    if family == "ccnet":
        state.cca(f"{head}cca", f"{head}cca.gamma.scale")
    if family == "nonlocal":
        for name in ("g", "theta", "phi"):
            state.conv(f"{head}nl_block.{name}.conv", HEAD // 2, HEAD, bias=True)
        module(f"{head}nl_block.conv_out", HEAD, HEAD // 2, 1)
    if family == "pspnet":
        for index in range(4):
            module(f"{head}psp_modules.{index}.1", HEAD, 2048, 1)
        module(f"{head}bottleneck", HEAD, 2048 + 4 * HEAD, 3)
    if family == "deeplabv3":
        module(f"{head}image_pool.1", HEAD, 2048, 1)
        for index in range(4):
            module(f"{head}aspp_modules.{index}", HEAD, 2048, 3 if index else 1)
        module(f"{head}bottleneck", HEAD, 5 * HEAD, 3)
    state.conv(f"{head}conv_seg", K, HEAD, bias=True)
    module("auxiliary_head.convs.0", AUX, 1024, 3)
    state.conv("auxiliary_head.conv_seg", K, AUX, bias=True)
    return dict(state)
