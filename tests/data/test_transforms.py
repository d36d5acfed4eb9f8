"""Images and labels are transformed alike, with the same distribution as a torchvision pipeline."""

import itertools

import numpy as np
import pytest
import torch
from made_images import coded, ramp
from torchvision import tv_tensors
from torchvision.transforms import v2

from ccnet.data.transforms import (
    Flip,
    Jitter,
    ScaleCrop,
    as_float,
    swapped_classes,
    train_transform,
    warp_transform,
)
from ccnet.engine.evaluation.protocols import MultiScale, Whole

SIDES = [[14, 15], [16, 17], [18, 19]]  # of LIP: left and right arm, leg and shoe


@pytest.mark.parametrize("size", [(40, 50), (90, 20), (20, 90), (100, 120)], ids=str)
def test_crop_and_flip_transform_image_and_labels_alike(size):
    transform = train_transform(crop_size=(64, 80), flip=0.5)
    for seed in range(8):
        torch.manual_seed(seed)
        image, labels = transform(*coded(*size))
        assert image.shape == (3, 64, 80)
        assert labels.shape == (64, 80)
        valid = labels != 255
        y, x = image[:2].long()
        assert torch.equal(labels[valid], ((y * size[1] + x) % 200)[valid])
        assert valid.sum() == min(size[0], 64) * min(size[1], 80)
        assert image[:, ~valid].unique(dim=1).flatten().tolist() == [124, 116, 104][: 3 * bool((~valid).any())]


def test_scale_stays_within_its_bounds_and_labels_are_not_interpolated():
    image, labels = tv_tensors.Image(torch.zeros(3, 64, 64, dtype=torch.uint8)), torch.zeros(64, 64, dtype=torch.long)
    labels[:, 32:] = 7
    transform = train_transform(crop_size=(160, 160), scale=(0.75, 2.0), flip=0)
    sides = set()
    for seed in range(40):
        torch.manual_seed(seed)
        _, out = transform(image, tv_tensors.Mask(labels))
        assert set(out.unique().tolist()) <= {0, 7, 255}
        sides.add(round((out != 255).sum().item() ** 0.5))
    assert min(sides) >= 48
    assert max(sides) <= 128
    assert len(sides) > 20


def test_the_layout_in_memory_does_not_change_the_pixels():
    """Decoders return interleaved images; torchvision's own are planar."""
    random = torch.Generator().manual_seed(0)
    interleaved = torch.randint(256, (70, 90, 3), dtype=torch.uint8, generator=random).permute(2, 0, 1)
    labels = torch.randint(5, (70, 90), dtype=torch.uint8, generator=random)
    for crop_size in ((40, 40), (64, 200)):
        transform = train_transform(crop_size=crop_size, scale=(0.5, 2.0))
        for seed in range(6):
            samples = []
            for image in (interleaved, interleaved.contiguous()):
                torch.manual_seed(seed)
                samples.append(transform(tv_tensors.Image(image), tv_tensors.Mask(labels)))
            assert all(torch.equal(one, other) for one, other in zip(*samples, strict=True))
            assert type(samples[0][0]) is type(samples[0][1]) is torch.Tensor


def test_uint8_becomes_float_as_in_torchvision():
    image = torch.arange(256, dtype=torch.uint8).repeat(3, 2, 1)
    assert torch.equal(as_float(image), v2.functional.to_dtype(image, torch.float32, scale=True))
    floats = torch.rand(3, 4, 4)
    assert as_float(floats) is floats


def test_short_sides_are_sampled_from_the_list():
    transform = train_transform(crop_size=(80, 160), short_sides=[30, 60], flip=0)
    sizes = set()
    for seed in range(20):
        torch.manual_seed(seed)
        _, labels = transform(*coded(40, 80))
        sizes.add(((labels != 255).any(dim=1).sum().item(), (labels != 255).any(dim=0).sum().item()))
    assert sizes == {(30, 60), (60, 120)}


def test_colour_jitter_does_not_change_labels():
    image, labels = coded(30, 30)
    out, same = train_transform(crop_size=(30, 30), flip=0, color_jitter=[0.5, 0, 0.5, 0.5])(image, labels)
    assert torch.equal(same, labels)
    assert (out.float() - image.float()).abs().max() > 3


@pytest.mark.parametrize("strengths", [[0.1, -0.1], [0, 0, 0, 0.6], [0.1] * 5])
def test_colour_jitter_out_of_range_is_an_error(strengths):
    with pytest.raises(ValueError, match=r"color_jitter is \[.*\]: set brightness, contrast, saturation and hue"):
        train_transform(crop_size=(30, 30), color_jitter=strengths)
    train_transform(crop_size=(30, 30), color_jitter=[0.1])  # brightness only


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_jitter_without_strength_changes_nothing(channels):
    image, labels = torch.randint(256, (channels, 5, 6), dtype=torch.uint8), torch.zeros(5, 6)
    assert torch.equal(Jitter()(tv_tensors.Image(image), labels)[0], image)


def test_brightness_and_contrast_of_other_channels_stay_within_their_range():
    """Brightness multiplies all values; contrast, the differences from the mean of all channels."""
    image, labels = torch.tensor([[[60.0, 80]], [[100, 120]]]).to(torch.uint8), torch.zeros(1, 2)
    brighter, stronger = [], []
    for _ in range(100):
        brighter.append((Jitter(brightness=0.5)(image, labels)[0].float() / image).mean().item())
        out = Jitter(contrast=0.5)(image, labels)[0].float()
        assert out.mean() == pytest.approx(90, abs=0.5)
        stronger.append((out[1, 0, 1] - out[0, 0, 0]).item() / 60)
    for factors in (brighter, stronger):
        assert 0.48 < min(factors) < 0.6 and 1.4 < max(factors) < 1.52
    for strength in ({"brightness": 1.5}, {"contrast": 1.5}):  # factors below 0 would invert the image
        assert all((out[1, 0, 1] >= out[0, 0, 0]) for out in (Jitter(**strength)(image, labels)[0] for _ in range(30)))
    bright = Jitter(brightness=0.5)(torch.full((2, 9, 9), 250, dtype=torch.uint8), labels)[0]
    assert 120 < bright.min() == bright.max()  # clipped at 255 rather than wrapped around


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_size": [8]}, r"crop_size is \[8\]: set it to \[height, width\]"),
        ({"crop_size": [8, 0]}, r"crop_size=\[8, 0\]"),
        ({"scale": [2.0, 0.5]}, r"scale is \[2.0, 0.5\]: set it to \[smallest, largest\]"),
        ({"scale": [0, 1]}, r"scale is \[0, 1\]"),
        ({"scale": [1.0]}, r"scale is \[1.0\]"),
        ({"short_sides": []}, r"short_sides is \[\]: set it to one or more lengths"),
        ({"short_sides": [0, 9]}, r"short_sides is \[0, 9\]"),
        ({"scale": [1, 1], "short_sides": [9]}, "set either scale or short_sides, not both"),
    ],
)
def test_invalid_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ScaleCrop(**{"crop_size": [8, 8]} | options)


@pytest.mark.parametrize("options", [{"scale": [1, 1]}, {"scale": [0.1, 0.1]}, {"short_sides": [64]}], ids=str)
def test_at_least_one_pixel_is_cropped_and_kept(options):
    for _ in range(9):
        _, labels = ScaleCrop([8, 8], **options)(*coded(1, 2))
        assert labels.shape == (8, 8) and (labels != 255).any()


def extents(transform, image, labels, draws):
    """Return the first and last row and column of each crop in the ramp, and the percentage of valid pixels."""
    found = []
    for seed in range(draws):
        torch.manual_seed(seed)
        crop, label = transform(image, labels)
        valid = label != 255
        red, green = (crop[channel][valid].float() for channel in (0, 1))
        found.append([red.min(), red.max(), green.min(), green.max(), 100 * valid.float().mean()])
    return np.array(found)


@pytest.mark.slow
def test_crops_have_the_same_distribution_as_torchvision():
    """The Cityscapes recipe at an eighth of the size: 128x256 scaled by U(0.75, 2), crop 97."""
    image, labels = ramp(128, 256)
    fill = {tv_tensors.Image: [124, 116, 104], tv_tensors.Mask: 255}
    plain = v2.Compose(
        [v2.ScaleJitter((256, 128), (0.75, 2.0), antialias=True), v2.RandomCrop(97, pad_if_needed=True, fill=fill)]
    )
    ours, theirs = (extents(chain, image, labels, 250) for chain in (ScaleCrop((97, 97), scale=(0.75, 2.0)), plain))
    for column in range(5):
        one, two = ours[:, column], theirs[:, column]
        # Means differ by less than three standard errors; standard deviations are similar.
        error = (one.var() / len(one) + two.var() / len(two)) ** 0.5
        assert abs(one.mean() - two.mean()) <= 3 * error + 1e-9
        assert one.std() == pytest.approx(two.std(), rel=0.15, abs=0.5)


def test_a_crop_equals_the_same_window_of_the_resized_image():
    """They match up to the rounding of the window's edges, which is less than a pixel."""
    image, labels = ramp(64, 96)
    for factor in (0.75, 1.0, 1.4, 2.0):
        torch.manual_seed(3)
        crop, label = ScaleCrop((40, 48), scale=(factor, factor))(image, labels)
        torch.manual_seed(3)
        torch.rand(())
        size = [round(64 * factor), round(96 * factor)]
        tops = [int(torch.randint(abs(side - crop_) + 1, ())) for side, crop_ in zip(size, (40, 48), strict=True)]
        whole = v2.functional.resize(image, size, antialias=True)
        want = whole[:, tops[0] : tops[0] + 40, tops[1] : tops[1] + 48]
        assert (crop.float() - want.float()).abs().max() <= 250 / 64 + 1
        # The labels are the steps of the ramp, so they must match the image.
        steps = (crop[:2].float() / 25).clamp(max=9.99)
        drawn = torch.stack([label // 10, label % 10]).float()
        assert ((steps - drawn - 0.5).abs() <= 0.5 + 0.2).all()


@pytest.mark.parametrize("factor", [0.5, 1.5])
def test_a_whole_image_is_resized_as_in_torchvision(factor):
    """With antialiasing; labels are those of the nearest pixel, by the centres of the pixels."""
    image, labels = torch.randint(256, (3, 64, 96), dtype=torch.uint8), torch.randint(9, (64, 96), dtype=torch.uint8)
    size = [round(64 * factor), round(96 * factor)]
    crop, label = ScaleCrop(size, scale=(factor, factor))(image, labels)
    assert torch.equal(crop, v2.functional.resize(image, size, antialias=True))
    nearest = torch.nn.functional.interpolate(labels[None, None].float(), size, mode="nearest-exact")
    assert torch.equal(label, nearest[0, 0].byte())


def test_all_frames_of_a_clip_are_transformed_alike():
    image, labels = ramp(40, 60)
    clip = tv_tensors.Image(torch.stack([image, image])), tv_tensors.Mask(torch.stack([labels, labels]))
    crop = train_transform(crop_size=(32, 48), scale=(0.5, 2.0), color_jitter=[0.4, 0.4, 0.4, 0.1])
    warp = warp_transform(crop_size=(32, 48), scale_std=0.25, angle_std=30, angle_share=0.6)
    for seed, transform in itertools.product(range(6), (crop, warp)):
        torch.manual_seed(seed)
        out, label = transform(*clip)
        assert (out.shape, label.shape) == ((2, 3, 32, 48), (2, 32, 48))
        assert torch.equal(out[0], out[1])
        assert torch.equal(label[0], label[1])
    torch.manual_seed(5)
    alone, own_labels = warp(tv_tensors.Image(image), tv_tensors.Mask(labels))
    assert torch.equal(out[0], alone) and torch.equal(label[0], own_labels)


@pytest.mark.parametrize(
    "transform",
    [
        train_transform(crop_size=(40, 20), flip=1.0, flip_pairs=SIDES),
        warp_transform(crop_size=(40, 20), scale_std=0, angle_std=0, angle_share=0, flip=1.0, flip_pairs=SIDES),
    ],
    ids=["crop", "warp"],
)
def test_a_flip_swaps_left_and_right_classes(transform):
    labels = torch.arange(20, dtype=torch.uint8).expand(40, 20)
    image = torch.zeros(3, 40, 20, dtype=torch.uint8)
    _, flipped = transform(tv_tensors.Image(image), tv_tensors.Mask(labels))
    mirror = {14: 15, 15: 14, 16: 17, 17: 16, 18: 19, 19: 18}
    assert flipped[0].tolist() == [mirror.get(label, label) for label in reversed(range(20))]


def test_flip_averaging_swaps_left_and_right_classes():
    class Arms(torch.nn.Module):
        """A network that predicts class 14 in the left half of every image and 15 in the right half."""

        def forward(self, image):
            logits = torch.zeros(len(image), 20, *image.shape[-2:])
            half = image.shape[-1] // 2
            logits[:, 14, :, :half] = logits[:, 15, :, half:] = 1
            return {"out": logits}

    image = torch.rand(1, 3, 6, 10)
    plain = Whole()(Arms(), image)
    exchanged = MultiScale(Whole(), scales=[1.0], flip_pairs=SIDES)(Arms(), image)
    assert torch.equal(exchanged, plain)  # a flipped left arm is still a left arm
    mixed = MultiScale(Whole(), scales=[1.0])(Arms(), image)
    assert torch.equal(mixed[:, 14], mixed[:, 15])


@pytest.mark.parametrize("pairs", [[[1]], [[1, 2, 3]], [[1, 1]], [[1, 2], [3, 1]]])
def test_classes_to_swap_are_pairs(pairs):
    with pytest.raises(ValueError, match=r"flip_pairs is .*: set pairs of two classes, each class in one pair only"):
        Flip(0.5, pairs)


def test_any_class_of_the_data_set_can_be_swapped():
    assert swapped_classes(4, [[0, 3]]).tolist() == [3, 1, 2, 0]
    assert swapped_classes(4, [[3, 0], [1, 2]]).tolist() == [3, 2, 1, 0]
    for pair in ([0, 4], [4, 0], [-1, 0], [0, -1]):
        with pytest.raises(ValueError, match="class numbers from 0 to 3"):
            swapped_classes(4, [pair])


def test_flip_with_probability_zero_returns_its_arguments():
    image, labels = ramp(8, 8)
    assert Flip(0.0)(image, labels) == (image, labels)
