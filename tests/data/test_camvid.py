"""CamVid in both layouts, as frames and as clips."""

from itertools import pairwise
from pathlib import Path, PurePath

import numpy as np
import pytest
import torch
from conftest import SHARED
from made_roots import FULL_FRAMES, write_camvid, write_camvid_full
from PIL import Image

from ccnet.data.sets.camvid import CLASSES, CamVid, CamVidFull, _in_split, frame_of
from ccnet.data.sets.camvid_video import CamVidVideo
from ccnet.data.transforms import eval_transform
from ccnet.engine.prediction.ground_truth import GroundTruth
from ccnet.engine.prediction.inputs import InputImage

CAMVID = SHARED / "data" / "camvid"


def test_camvid_reads_the_published_lists_and_ignores_label_11(camvid_root):
    dataset = CamVid(camvid_root, split="train", transform=eval_transform())
    image, labels = dataset[1]
    raw = np.array(Image.open(camvid_root / "trainannot" / "0001TP_000001.png"))
    assert len(dataset) == 4
    assert (image.shape, image.dtype) == ((3, 48, 64), torch.float32)
    assert torch.equal(labels, torch.from_numpy(np.where(raw == 11, 255, raw)).long())
    assert 0 <= image.min() < image.max() <= 1
    assert len(dataset.palette) == len(dataset.classes) == 11


@pytest.mark.skipif(not CAMVID.is_dir(), reason="no ../shared/data/camvid on this machine")
def test_real_camvid():
    dataset = CamVid(CAMVID, split="val", transform=eval_transform())
    image, labels = dataset[0]
    assert len(dataset) == 101
    assert image.shape == (3, 360, 480)
    assert set(labels.unique().tolist()) <= {*range(11), 255}


def test_camvid_full_merges_32_colours_into_11_classes(tmp_path):
    root = write_camvid_full(tmp_path)
    for split, stems in FULL_FRAMES.items():
        dataset = CamVidFull(root, split=split, transform=eval_transform())
        assert [dataset.name(index) for index in range(len(dataset))] == stems
    # sky; archway -> building; cone -> pole; lane marking -> road; void; motorcycle -> bicyclist
    assert list(dict.fromkeys(dataset[0][1][0].tolist())) == [0, 1, 2, 3, 255, 10]
    label = dataset.pairs[0][1]
    wrong = np.array(Image.open(label))
    wrong[0, 0] = (1, 2, 3)
    Image.fromarray(wrong).save(label)
    with pytest.raises(
        ValueError, match=r"_L\.png contains unknown label values: 1 2 3; this data set defines 32 values"
    ):
        dataset[0]


# label_colors.txt of CamVid, in the order of SegNet's classes.
ORIGINAL = {
    "Sky": {"Sky": (128, 128, 128)},
    "Building": {
        "Building": (128, 0, 0), "Archway": (192, 0, 128), "Bridge": (0, 128, 64), "Tunnel": (64, 0, 64),
        "Wall": (64, 192, 0),
    },
    "Pole": {"Column_Pole": (192, 192, 128), "TrafficCone": (0, 0, 64)},
    "Road": {"Road": (128, 64, 128), "LaneMkgsDriv": (128, 0, 192), "LaneMkgsNonDriv": (192, 0, 64)},
    "Pavement": {"Sidewalk": (0, 0, 192), "ParkingBlock": (64, 192, 128), "RoadShoulder": (128, 128, 192)},
    "Tree": {"Tree": (128, 128, 0), "VegetationMisc": (192, 192, 0)},
    "SignSymbol": {"SignSymbol": (192, 128, 128), "Misc_Text": (128, 128, 64), "TrafficLight": (0, 64, 64)},
    "Fence": {"Fence": (64, 64, 128)},
    "Car": {
        "Car": (64, 0, 128), "SUVPickupTruck": (64, 128, 192), "Truck_Bus": (192, 128, 192), "Train": (192, 64, 128),
        "OtherMoving": (128, 64, 64),
    },
    "Pedestrian": {
        "Pedestrian": (64, 64, 0), "Child": (192, 128, 64), "CartLuggagePram": (64, 0, 192), "Animal": (64, 128, 64),
    },
    "Bicyclist": {"Bicyclist": (0, 128, 192), "MotorcycleScooter": (192, 0, 192)},
}  # fmt: skip


def test_camvid_full_knows_the_colours_of_the_original_label_images(tmp_path):
    root = write_camvid_full(tmp_path)
    dataset = CamVidFull(root, split="train", transform=None)
    for index, (name, merged) in enumerate(ORIGINAL.items()):
        Image.fromarray(np.array([list(merged.values())], np.uint8)).save(dataset.pairs[0][1])
        assert (dataset.classes[index], dataset.read_labels(0).tolist()) == (name, [[index] * len(merged)])


def test_camvid_full_ignores_the_smoothed_outlines_in_one_of_the_original_label_images(tmp_path):
    root = write_camvid_full(tmp_path)
    image, label = root / "701_StillsRaw_full" / "Seq05VD_f00000.png", root / "LabeledApproved_full"
    image = image.rename(image.with_stem("Seq05VD_f02610"))
    label = (label / "Seq05VD_f00000_L.png").rename(label / "Seq05VD_f02610_L.png")
    want = CamVidFull(root, split="test", transform=None).read_labels(1)
    pixels = np.array(Image.open(label))
    pixels[0, :2] = [(26, 26, 26), (128, 128, 102)]  # sky blended with void and with tree
    Image.fromarray(pixels).save(label)
    want[0, :2] = 255
    assert torch.equal(CamVidFull(root, split="test", transform=None).read_labels(1), want)
    truth = GroundTruth([InputImage(image, PurePath(image.stem))], label.parent, CamVidFull.label_format(CLASSES), 3)
    assert np.array_equal(truth.of(0, want.shape), want.numpy())


@pytest.mark.skipif(not CAMVID.is_dir(), reason="no ../shared/data/camvid on this machine")
@pytest.mark.parametrize("split", ["train", "val"])
def test_the_full_layout_uses_the_segnet_split(split):
    names = [
        Path(line.split()[0]) for part in ("train", "val") for line in (CAMVID / f"{part}.txt").read_text().splitlines()
    ]
    assert [path for path in names if _in_split(path, split)] == [path for path in names if path.parts[0] == split]


def test_clips_do_not_cross_gaps_and_have_labels_for_the_last_frame(tmp_path):
    dataset = CamVidVideo(write_camvid(tmp_path), split="train", frames=3, transform=eval_transform())
    names = [[dataset._stills.name(frame)[-3:] for frame in clip] for clip in dataset.clips]
    assert [" ".join(clip) for clip in names] == [
        "000 000 000", "000 000 030", "000 030 060", "300 300 300", "300 300 330",
    ]  # fmt: skip
    Image.fromarray(np.full((48, 64), 7, np.uint8)).save(dataset._stills.pairs[2][1])  # unlike the other frames
    image, labels = dataset[2]
    stills = CamVid(tmp_path, split="train", transform=eval_transform())
    assert (image.shape, labels.shape) == ((3, 3, 48, 64), (3, 48, 64))
    assert all(torch.equal(image[:, t], stills[t][0]) for t in range(3))
    assert (labels[2] == 7).all() and (dataset.read_labels(2) == 7).all()
    assert (labels[:2] == 255).all()
    assert dataset.image_path(2).stem == dataset.name(2) == "0001TP_000060"
    assert dataset.stamp(2) == stills.stamp(2)


@pytest.mark.skipif(not CAMVID.is_dir(), reason="no ../shared/data/camvid on this machine")
def test_real_clips_do_not_cross_sequences_or_gaps():
    for split, length, step, starts in (("train", 367, 31, 5), ("val", 101, 2, 1)):
        dataset = CamVidVideo(CAMVID, split=split, frames=5, transform=None)
        assert sorted(clip[-1] for clip in dataset.clips) == list(range(length))  # every labelled frame is scored once
        frames = [[frame_of(dataset._stills.pairs[index][0]) for index in clip] for clip in dataset.clips]
        assert all(len({sequence for sequence, _ in clip}) == 1 for clip in frames)
        assert all(0 <= b - a <= step for clip in frames for (_, a), (_, b) in pairwise(clip))
        assert sum(clip[0] == clip[-1] for clip in frames) == starts  # train: three sequences and two gaps
