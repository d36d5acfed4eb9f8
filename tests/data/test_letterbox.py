"""The letterbox of evaluation and the random warp of training."""

import statistics

import pytest
import torch
from made_images import ramp

from ccnet.data.letterbox import Placement, resample, restore
from ccnet.data.transforms import RandomWarp
from ccnet.engine.evaluation.protocols import Letterbox


@pytest.mark.parametrize("size", [(30, 50), (61, 20), (40, 40), (7, 90)], ids=str)
def test_the_letterbox_returns_labels_of_the_original_size(size):
    class Colours(torch.nn.Module):
        """A network that predicts the image's colour as the class, which reveals how the image was resampled."""

        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.4))

        def forward(self, image):
            assert image.shape[-2:] == (97, 97)
            return {"out": torch.stack([image[:, 0], 1 - image[:, 0]], dim=1)}

    image = torch.zeros(1, 3, *size)
    image[..., size[1] // 2 :] = 1
    got = Letterbox((97, 97))(Colours(), image).argmax(dim=1)
    want = (image[:, 0] == 0).long()
    assert got.shape == (1, *size)
    assert (got != want).sum() <= size[0]  # at most the column at the border


def test_restore_inverts_resample():
    labels = torch.randint(0, 20, (1, 1, 30, 22)).float()
    for frame in ((120, 120), (30, 40)):  # the image enlarged, and pixel by pixel
        placement = Placement((30, 22), frame)
        assert torch.equal(restore(resample(labels, placement, mode="nearest"), placement), labels)


@pytest.mark.parametrize("size", [(333, 500), (1000, 37), (501, 333), (90, 105), (1280, 721), (40, 900)], ids=str)
def test_a_border_pixel_takes_the_prediction_of_the_image_and_not_of_the_padding_beside_it(size):
    placement = Placement(size, (64, 64))
    inside = resample(torch.ones(1, 1, *size), placement, mode="nearest")
    assert 0 < inside.mean() < 1
    assert restore(inside, placement).min() == 1


def test_the_warp_without_randomness_equals_the_letterbox():
    image, labels = ramp(50, 30)
    warped, label = RandomWarp((64, 64), scale_std=0, angle_std=0, angle_share=0)(image, labels)
    mean = torch.tensor([124.0, 116.0, 104.0]).view(3, 1, 1)
    tested = resample((image.float() - mean)[None], Placement((50, 30), (64, 64)))[0] + mean
    assert (warped.float() - tested).abs().max() <= 0.5
    columns = (label != 255).any(dim=0).nonzero()
    assert (columns.min(), columns.max()) == (13, 50)  # 64 / 50 * 30 = 38.4 pixels, centred


@pytest.mark.parametrize("turns", range(4))
def test_a_positive_angle_turns_the_image_anticlockwise(turns):
    images = torch.rand(2, 3, 20, 20)
    turned = resample(images, Placement((20, 20), (20, 20), angle=90 * turns))
    assert torch.allclose(turned, images.rot90(turns, dims=(-2, -1)), atol=1e-4)


def test_scale_and_angle_of_a_warp_are_clipped(monkeypatch):
    image, labels = ramp(30, 40)
    warp = RandomWarp((33, 33), scale_std=0.25, angle_std=30, angle_share=1)
    for draw, placement in ((9.0, (1.25, 60)), (-9.0, (0.75, -60)), (0.5, (1.125, 15))):
        monkeypatch.setattr(torch, "randn", lambda *_, draw=draw: torch.tensor(draw))
        shifted = resample(labels[None, None].float() + 1, Placement((30, 40), (33, 33), *placement), mode="nearest")
        assert torch.equal(warp(image, labels)[1], torch.where(shifted[0, 0] == 0, 255, shifted[0, 0] - 1).byte())


@pytest.mark.parametrize("option", ["scale_std", "angle_share"])
def test_a_warp_that_would_turn_images_inside_out_or_has_no_probability_is_refused(option):
    for value in (-0.1, 1.5):
        with pytest.raises(ValueError, match=r"set numbers from 0 to 1, scale_std below 1"):
            RandomWarp((8, 8), **{"scale_std": 0, "angle_std": 0, "angle_share": 0} | {option: value})


def test_warps_rotate_and_scale_within_their_bounds():
    image, labels = ramp(64, 64)
    warp = RandomWarp((64, 64), scale_std=0.25, angle_std=30, angle_share=0.6)
    shares, rotated = [], 0
    for seed in range(60):
        torch.manual_seed(seed)
        out, label = warp(image, labels)
        assert set(label.unique().tolist()) <= {*labels.unique().tolist(), 255}
        shares.append((label != 255).float().mean().item())
        rotated += int(out[0, 20, 10:54].float().std() > 3)  # in an upright image, red is constant along a row
    assert 1 / 1.25**2 - 0.03 <= min(shares) < 0.75
    assert statistics.median(shares) > 0.8
    assert 0.4 < rotated / 60 < 0.8
