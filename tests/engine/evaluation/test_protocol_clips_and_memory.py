"""Test-time protocols on clips, and their peak memory."""

import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ccnet.engine.evaluation.protocols import Letterbox, MultiScale, Slide, Whole, passes, tiles
from ccnet.engine.evaluation.segmentation import evaluate, predict
from ccnet.models import create_model


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
    scaled = MultiScale(Slide((16, 24)), scales=[0.5, 1.5])
    for protocol in (Slide((16, 24)), Slide((40, 50)), scaled, Letterbox((17, 24))):
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


@torch.inference_mode()
def test_windows_are_predicted_in_memory_that_does_not_grow_with_the_height():
    model, protocol = Pointwise(), Slide((48, 48))

    def peak(height):
        image = torch.randint(255, (1, 3, height, 96), dtype=torch.uint8)
        with Live() as live:
            labels = predict(model, image, protocol)
        assert torch.equal(labels, (model(image / 255)["out"]).argmax(dim=1).to(torch.uint8))
        return live.peak - image.nbytes - labels.nbytes

    low, high = peak(96), peak(960)
    assert high - low < 2 * 960 * 4  # how often each row is covered
    assert high < 5 * 960 * 96 * 4 / 4  # a map of logits


@torch.inference_mode()
def test_tiles_add_windows_up_in_the_order_of_the_windows():
    """The sums are equal to the bit to those of windows added to a map of the whole image."""

    class Position(Pointwise):
        def forward(self, image):
            ramp = torch.linspace(0.1, 0.7, image.shape[-1])
            return {"out": super().forward(image)["out"] * ramp}

    model, image = Position(), torch.rand(1, 3, 47, 61)
    for protocol in (Slide((16, 24)), Slide((16, 24), stride=0.3), Slide((16, 70)), Slide((60, 24))):
        crop = protocol.crop_size
        total, count = torch.zeros(1, 5, 47, 61), torch.zeros(47, 61)
        for rows in protocol._windows(47, crop[0]):
            for columns in protocol._windows(61, crop[1]):
                part = image[..., rows, columns]
                padding = (0, crop[1] - part.shape[-1], 0, crop[0] - part.shape[-2])
                padded = torch.nn.functional.pad(part - 0.4, padding) + 0.4 if any(padding) else part
                total[..., rows, columns] += model(padded)["out"][..., : part.shape[-2], : part.shape[-1]]
                count[rows, columns] += 1
        covered = torch.zeros(47, 61)
        for tile in tiles(protocol, model, image):
            covered[tile.rows, tile.columns] += 1
            assert torch.equal(tile.scores, (total / count)[..., tile.rows, tile.columns])
        assert (covered == 1).all()


def test_the_number_of_passes_is_that_of_the_calls():
    class Counted(Pointwise):
        calls = 0

        def forward(self, image):
            self.calls += 1
            return super().forward(image)

    image = torch.rand(1, 3, 47, 61)
    for protocol in (Whole(), Slide((16, 24)), MultiScale(Slide((16, 24)), scales=[0.5, 1.5])):
        model = Counted()
        with torch.no_grad():
            protocol(model, image)
        assert model.calls == passes(protocol, (47, 61))


def test_an_image_that_the_network_cannot_process_is_named():
    class Tiny(torch.utils.data.Dataset):
        classes, ignore_index = ("a", "b"), 255

        def __len__(self):
            return 1

        def __getitem__(self, index):
            return torch.zeros(3, 1, 40), torch.zeros(1, 40, dtype=torch.uint8)

        def name(self, index):
            return "thin"

    network = create_model("fcn", num_classes=2, backbone="resnet10t", head__channels=8)
    with pytest.raises(ValueError, match=r"^image thin: expected RGB images .* of at least 8x8 pixels"):
        evaluate(network, Tiny(), Whole(), device=torch.device("cpu"))


def test_a_scale_at_which_an_image_is_too_small_is_named():
    model = create_model("fcn", num_classes=3, backbone="beacons").eval()
    with pytest.raises(ValueError, match=r"^at scale 0.5: expected RGB images .* got \(1, 3, 6, 20\)"):
        MultiScale(Whole(), scales=[1.0, 0.5])(model, torch.rand(1, 3, 12, 40))
