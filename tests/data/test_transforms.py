"""The crop-first transforms against a plain chain, left and right in the mirror, the letterbox, upright photos."""

import statistics

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from ccnet.data import image_files as pictures
from ccnet.data.image_files import read_image
from ccnet.data.label_files import LabelReader
from ccnet.data.letterbox import Placement, resample, restore
from ccnet.data.sets.lip import FLIP_PAIRS
from ccnet.data.transforms import Flip, RandomWarp, ScaleCrop, train_transform, warp_transform
from ccnet.engine.evaluation.protocols import Letterbox, MultiScale, Whole


def ramp(height, width):
    """A picture whose red and green rise along y and x, with labels that say the same in steps."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([y * 250 // height, x * 250 // width, torch.zeros_like(x)]).to(torch.uint8)
    labels = (y * 10 // height * 10 + x * 10 // width).to(torch.uint8)
    return tv_tensors.Image(image), tv_tensors.Mask(labels)


def shown(transform, image, labels, draws):
    """What of the source each draw shows: its first and last row and column, by the ramp, and the valid share."""
    found = []
    for seed in range(draws):
        torch.manual_seed(seed)
        crop, label = transform(image, labels)
        valid = label != 255
        red, green = (crop[channel][valid].float() for channel in (0, 1))
        found.append([red.min(), red.max(), green.min(), green.max(), 100 * valid.float().mean()])
    return np.array(found)


def test_crops_are_distributed_as_those_of_a_plain_chain():
    """Cityscapes' recipe at an eighth of its size: scale U(0.75, 2) of 128x256, crop 97."""
    image, labels = ramp(128, 256)
    fill = {tv_tensors.Image: [124, 116, 104], tv_tensors.Mask: 255}
    plain = v2.Compose(
        [v2.ScaleJitter((256, 128), (0.75, 2.0), antialias=True), v2.RandomCrop(97, pad_if_needed=True, fill=fill)]
    )
    ours, theirs = (shown(chain, image, labels, 250) for chain in (ScaleCrop((97, 97), scale=(0.75, 2.0)), plain))
    for column in range(5):
        one, two = ours[:, column], theirs[:, column]
        # Means within three standard errors of their difference; spreads alike.
        error = (one.var() / len(one) + two.var() / len(two)) ** 0.5
        assert abs(one.mean() - two.mean()) <= 3 * error + 1e-9
        assert one.std() == pytest.approx(two.std(), rel=0.15, abs=0.5)


def test_a_crop_is_what_resizing_the_whole_picture_shows_there(monkeypatch):
    """To the rounding of the window's edges: less than a pixel of a smooth picture."""
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
        # Picture and labels keep together: the label is the ramp's step at that place.
        steps = (crop[:2].float() / 25).clamp(max=9.99)
        drawn = torch.stack([label // 10, label % 10]).float()
        assert ((steps - drawn - 0.5).abs() <= 0.5 + 0.2).all()


def test_every_frame_of_a_clip_is_cut_scaled_and_mirrored_alike():
    image, labels = ramp(40, 60)
    clip = tv_tensors.Image(torch.stack([image, image])), tv_tensors.Mask(torch.stack([labels, labels]))
    transform = train_transform(crop_size=(32, 48), scale=(0.5, 2.0), color_jitter=[0.4, 0.4, 0.4, 0.1])
    for seed in range(6):
        torch.manual_seed(seed)
        out, label = transform(*clip)
        assert (out.shape, label.shape) == ((2, 3, 32, 48), (2, 32, 48))
        assert torch.equal(out[0], out[1])
        assert torch.equal(label[0], label[1])


@pytest.mark.parametrize(
    "transform",
    [
        train_transform(crop_size=(40, 20), flip=1.0, flip_pairs=FLIP_PAIRS),
        warp_transform(crop_size=(40, 20), scale_std=0, angle_std=0, angle_share=0, flip=1.0, flip_pairs=FLIP_PAIRS),
    ],
    ids=["crop", "warp"],
)
def test_left_and_right_are_exchanged_in_the_mirror(transform):
    labels = torch.arange(20, dtype=torch.uint8).expand(40, 20)
    image = torch.zeros(3, 40, 20, dtype=torch.uint8)
    _, flipped = transform(tv_tensors.Image(image), tv_tensors.Mask(labels))
    mirror = {14: 15, 15: 14, 16: 17, 17: 16, 18: 19, 19: 18}
    assert flipped[0].tolist() == [mirror.get(label, label) for label in reversed(range(20))]


def test_flipped_testing_exchanges_left_and_right():
    class Sides(torch.nn.Module):
        """Says class 14 on the left half of what it sees and 15 on the right, whatever that is."""

        def forward(self, image):
            logits = torch.zeros(len(image), 20, *image.shape[-2:])
            half = image.shape[-1] // 2
            logits[:, 14, :, :half] = logits[:, 15, :, half:] = 1
            return {"out": logits}

    image = torch.rand(1, 3, 6, 10)
    plain = Whole()(Sides(), image)
    exchanged = MultiScale(Whole(), scales=[1.0], flip_pairs=FLIP_PAIRS)(Sides(), image)
    assert torch.equal(exchanged, plain)  # a person's left arm is still the left arm in the mirror
    mixed = MultiScale(Whole(), scales=[1.0])(Sides(), image)
    assert torch.equal(mixed[:, 14], mixed[:, 15])


@pytest.mark.parametrize("size", [(30, 50), (61, 20), (40, 40), (7, 90)], ids=str)
def test_the_letterbox_returns_labels_of_the_original_size(size):
    class Colours(torch.nn.Module):
        """The class is the picture's own colour, so that the way there and back can be seen."""

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
    assert (got != want).sum() <= size[0]  # at most the column at the edge


def test_restore_undoes_the_placement_of_labels():
    labels = torch.randint(0, 20, (1, 1, 30, 22)).float()
    placement = Placement((30, 22), (120, 120))
    assert torch.equal(restore(resample(labels, placement, mode="nearest"), placement), labels)


def test_training_warp_without_chance_is_the_letterbox_of_testing():
    image, labels = ramp(50, 30)
    warped, label = RandomWarp((64, 64), scale_std=0, angle_std=0, angle_share=0)(image, labels)
    mean = torch.tensor([124.0, 116.0, 104.0]).view(3, 1, 1)
    tested = resample((image.float() - mean)[None], Placement((50, 30), (64, 64)))[0] + mean
    assert (warped.float() - tested).abs().max() <= 0.5
    columns = (label != 255).any(dim=0).nonzero()
    assert (columns.min(), columns.max()) == (13, 50)  # 64 / 50 * 30 = 38.4 pixels, centred


def test_warps_turn_and_scale_within_their_bounds():
    image, labels = ramp(64, 64)
    warp = RandomWarp((64, 64), scale_std=0.25, angle_std=30, angle_share=0.6)
    shares, turned = [], 0
    for seed in range(60):
        torch.manual_seed(seed)
        out, label = warp(image, labels)
        assert set(label.unique().tolist()) <= {*labels.unique().tolist(), 255}
        shares.append((label != 255).float().mean().item())
        turned += int(out[0, 20, 10:54].float().std() > 3)  # upright, red does not change along a row
    assert 1 / 1.25**2 - 0.03 <= min(shares) < 0.75
    assert statistics.median(shares) > 0.8
    assert 0.4 < turned / 60 < 0.8


def test_photos_and_masks_are_turned_upright_as_exif_says(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter
    for name in ("photo.png", "photo.tif"):
        Image.fromarray(pixels).save(tmp_path / name, exif=exif)
        assert torch.equal(read_image(tmp_path / name), torch.from_numpy(np.rot90(pixels, -1).copy()).permute(2, 0, 1))
    Image.fromarray(pixels[..., 0] % 5).save(tmp_path / "mask.png", exif=exif)
    labels = LabelReader({index: index for index in range(5)})(tmp_path / "mask.png")
    assert np.array_equal(labels, np.rot90(pixels[..., 0] % 5, -1))


@pytest.mark.parametrize("decoder", ["pywuffs", "Pillow"])
def test_every_kind_of_png_is_read_alike_with_and_without_pywuffs(tmp_path, monkeypatch, decoder):
    if decoder == "pywuffs":
        pytest.importorskip("pywuffs")
    else:
        monkeypatch.setattr(pictures, "_wuffs_decoder", lambda kind: None)
    pixels = np.random.default_rng(0).integers(0, 255, (33, 47, 3), dtype=np.uint8)
    read = LabelReader({index: index for index in range(254)} | {255: 255, 254: 0})
    for name, picture in {
        "rgb": Image.fromarray(pixels),
        "grey": Image.fromarray(pixels[..., 0]),
        "alpha": Image.fromarray(np.dstack([pixels, pixels[..., :1]])),
        "palette": Image.fromarray(pixels).quantize(9),
        "bits": Image.fromarray(pixels[..., 0] > 99),
        "deep": Image.fromarray(pixels[..., 0].astype(np.uint16)),
    }.items():
        path = tmp_path / f"{name}.png"
        picture.save(path)
        assert np.array_equal(read_image(path).permute(1, 2, 0), np.array(Image.open(path).convert("RGB"))), name
        if name in ("grey", "palette", "bits", "deep"):
            want = np.array(Image.open(path)).astype(int)
            assert np.array_equal(read(path), np.where(want == 254, 0, want)), name
    (tmp_path / "rgb.png").write_bytes((tmp_path / "rgb.png").read_bytes()[:-300])
    with pytest.raises(ValueError, match=r"rgb\.png cannot be read as an image, it may be truncated"):
        read_image(tmp_path / "rgb.png")
    # A JPEG that is called .png.
    Image.fromarray(pixels).save(tmp_path / "jpeg.png", format="JPEG")
    assert read_image(tmp_path / "jpeg.png").shape == (3, 33, 47)


def test_flip_keeps_what_it_is_given_when_it_does_not_flip():
    image, labels = ramp(8, 8)
    assert Flip(0.0)(image, labels) == (image, labels)
