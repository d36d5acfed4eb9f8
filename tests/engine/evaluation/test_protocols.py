"""Test-time protocols preserve what they must, and have the expected effect on simple networks."""

import pytest
import torch
from conftest import TINY
from torch import nn

from ccnet.engine.evaluation.protocols import Letterbox, MultiScale, Slide, Whole, check_protocol
from ccnet.models import create_model
from ccnet.train import run


class Pointwise(nn.Module):
    """A network whose receptive field is a single pixel, so that windows and flips cannot change its output."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.4))
        self.conv = nn.Conv2d(3, 5, kernel_size=1)
        self.seen = []

    def forward(self, image):
        self.seen.append(tuple(image.shape[-2:]))
        return {"out": self.conv(image)}


@pytest.fixture
def network():
    return create_model("ccnet", num_classes=5, backbone="resnet10t", head__channels=16).eval().requires_grad_(False)


@pytest.mark.parametrize("size", [(20, 30), (40, 50), (97, 33), (33, 97), (100, 100)], ids=str)
@torch.no_grad()
def test_sliding_windows_cover_the_image_and_average(size):
    model, image = Pointwise(), torch.randint(256, (2, 3, *size), dtype=torch.uint8)
    got, of_float = (Slide((40, 30))(model, images) for images in (image, image / 255))
    assert set(model.seen) == {(40, 30)}
    assert torch.equal(got, of_float)
    assert torch.allclose(got, Whole()(model, image / 255), atol=1e-6)


@torch.no_grad()
def test_windows_are_two_thirds_of_a_crop_apart_and_inside_the_image():
    """The authors' evaluation, a crop of 769 on 1024x2048: 2 rows and 4 columns of windows with stride 513."""
    windows = [list(Slide((769, 769))._windows(side, 769)) for side in (1024, 2048)]
    assert [[(w.start, w.stop) for w in row] for row in windows] == [
        [(0, 769), (255, 1024)],
        [(0, 769), (513, 1282), (1026, 1795), (1279, 2048)],
    ]


@torch.no_grad()
def test_overlapping_windows_are_averaged():
    class Counter(Pointwise):
        def forward(self, image):
            self.seen.append(1)
            return {"out": torch.full((1, 2, *image.shape[-2:]), float(len(self.seen)))}

    got = Slide((4, 6), stride=0.5)(Counter(), torch.rand(1, 3, 4, 9))
    assert got[0, 0, 0].tolist() == [1, 1, 1, 1.5, 1.5, 1.5, 2, 2, 2]


@torch.no_grad()
def test_a_single_window_or_scale_equals_the_whole_image(network):
    image = torch.rand(1, 3, 41, 57)
    want = Whole()(network, image)
    assert torch.allclose(Slide((41, 57))(network, image), want, atol=1e-6)
    assert torch.allclose(MultiScale(Whole(), scales=[1.0], flip=False)(network, image), want)


@torch.no_grad()
def test_flip_is_undone_on_a_wide_image(network):
    image = torch.rand(1, 3, 41, 57)
    pointwise = Pointwise()
    both = MultiScale(Whole(), scales=[1.0])
    assert torch.allclose(both(pointwise, image), Whole()(pointwise, image), atol=1e-6)
    mirrored = Whole()(network, image.flip(-1)).flip(-1)
    assert not torch.allclose(mirrored, Whole()(network, image), atol=1e-4)
    assert torch.allclose(both(network, image), (Whole()(network, image) + mirrored) / 2, atol=1e-6)


@pytest.mark.parametrize("average", ["logits", "probabilities"])
@torch.no_grad()
def test_scales_are_averaged_at_the_size_of_the_image(average):
    """Resizing with aligned corners, as in the authors' evaluation, keeps colours that change linearly."""
    rows, columns = torch.linspace(0.1, 0.5, 40), torch.linspace(0, 0.4, 60)
    model, image = Pointwise(), (rows[:, None] + columns).expand(1, 3, 40, 60)
    got = MultiScale(Slide((16, 24)), scales=[0.5, 1.25], average=average)(model, image)
    want = Whole()(model, image)
    assert torch.allclose(got, want if average == "logits" else want.softmax(dim=1), atol=1e-5)
    assert set(model.seen) == {(16, 24), (40, 60)}


def test_errors_name_invalid_settings():
    with pytest.raises(ValueError, match=r"crop_size=\[0, 4\]"):
        Slide((0, 4))
    with pytest.raises(ValueError, match=r"does not record its training crop size: set protocol.crop_size=\[H,W\]"):
        Slide(None)
    with pytest.raises(ValueError, match=r"crop_size is \[4\]: set it to \[height, width\]"):
        Letterbox([4])
    for stride in (0, 1.5):
        with pytest.raises(ValueError, match=f"stride is {stride}: set a fraction of the window size"):
            Slide((4, 4), stride=stride)
    for scales in ([], [1.0, 0.0]):
        with pytest.raises(ValueError, match="scales is"):
            MultiScale(Whole(), scales=scales)
    with pytest.raises(ValueError, match="'scores': choose 'logits' or 'probabilities'"):
        MultiScale(Whole(), scales=[1.0], average="scores")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["protocol=slide", "protocol.stride=2"], "stride is 2: set a fraction of the window size"),
        (["protocol=ms_flip", "protocol.flip_pairs=[[1,9]]"], r"flip_pairs contains \[1, 9\]: .* from 0 to 3"),
    ],
)
def test_a_protocol_that_would_fail_in_the_first_validation_is_refused_before_the_first_step(
    tmp_path, options, message
):
    with pytest.raises(ValueError, match=message):
        run(*TINY, *options, folder=tmp_path / "run")
    assert not list(tmp_path.rglob("*.*"))


def test_a_window_has_at_least_the_size_of_the_output_stride():
    for protocol in (Slide((4, 64)), Letterbox((64, 4)), MultiScale(Slide((4, 64)), scales=[2])):
        with pytest.raises(
            ValueError, match=r"protocol.crop_size=\[.*4.*\] is smaller than the network's output stride"
        ):
            check_protocol(protocol, classes=2, stride=8)
    for protocol in (Whole(), Slide((8, 8)), MultiScale(Whole(), scales=[1], flip=False, flip_pairs=[[1, 9]])):
        check_protocol(protocol, classes=2, stride=8)
