"""Test-time protocols on clips, and their peak memory."""

import weakref

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ccnet.engine.evaluation.protocols import MultiScale, Slide, Whole


class Pointwise(nn.Module):
    """A network whose receptive field is a single pixel of a single frame."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.4))
        self.weight = nn.Parameter(torch.randn(5, 3))

    def forward(self, image):
        return {"out": torch.einsum("kc,nc...->nk...", self.weight, image)}


@torch.no_grad()
def test_protocols_treat_the_frames_of_a_clip_like_images():
    model, clip = Pointwise(), torch.rand(1, 3, 4, 20, 30)
    frames = clip[0].transpose(0, 1)
    for protocol in (Slide((16, 24)), Slide((40, 50)), MultiScale(Slide((16, 24)), scales=[0.5, 1.5])):
        got = protocol(model, clip)
        assert torch.allclose(got[0].transpose(0, 1), protocol(model, frames), atol=1e-5)


class Live(TorchDispatchMode):
    """Track the peak number of bytes held by tensors created in this mode."""

    def __init__(self):
        super().__init__()
        self.held, self.peak, self.known = 0, 0, set()

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        result = function(*arguments, **(named or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and (key := leaf.untyped_storage().data_ptr()) not in self.known:
                self.known.add(key)
                self.held += (size := leaf.untyped_storage().nbytes())
                weakref.finalize(leaf.untyped_storage(), self._freed, key, size)
        self.peak = max(self.peak, self.held)
        return result

    def _freed(self, key, size):
        self.known.discard(key)
        self.held -= size


@torch.inference_mode()
def test_memory_does_not_grow_with_the_number_of_scales():
    model, image = Pointwise(), torch.rand(1, 3, 128, 256)
    a_map = 5 * 128 * 256 * 4

    def peak(scales, protocol):
        with Live() as live:
            MultiScale(protocol, scales=scales)(model, image)
        return live.peak

    for protocol in (Whole(), Slide((96, 96))):
        largest, six = peak([1.75], protocol), peak([1.75, 0.5, 0.75, 1.0, 1.25, 1.5], protocol)
        assert a_map < largest
        assert six <= largest + 2 * a_map
