"""Drawn objects: the pixels of masks, boxes and labels."""

import numpy as np
import pytest
import torch
from PIL import Image

from ccnet.data.sets.colours import distinct_colours
from ccnet.engine.drawing import draw_objects, save_object_panel, save_objects
from ccnet.engine.drawing.objects import _captions, _free_place, matched_colours

CLASSES = ("disc", "bar")
FIRST, SECOND = (torch.tensor(colour) for colour in distinct_colours(2))


def picture(height=240, width=320):
    return torch.full((3, height, width), 100, dtype=torch.uint8)


def two_objects(height=240, width=320):
    """Return two squares, the second of which overlaps a corner of the first."""
    masks = torch.zeros(2, height, width, dtype=torch.uint8)
    masks[0, 60:160, 40:140] = 1
    masks[1, 140:220, 120:300] = 1
    boxes = torch.tensor([[40.0, 60, 139, 159], [120, 140, 299, 219]])
    return {"boxes": boxes, "labels": torch.tensor([1, 2]), "masks": masks, "scores": torch.tensor([0.987, 0.5])}


def near(pixel, colour):
    return (pixel.float() - colour).abs().max() <= 1


def blended(below, colour):
    return 0.55 * below + 0.45 * colour


def test_masks_are_blended_in_one_colour_per_object_and_overlaps_show_both():
    image, grey = picture(), torch.full((3,), 100.0)
    drawn = draw_objects(image, two_objects(), CLASSES)
    assert (drawn.dtype, drawn.shape) == (torch.uint8, image.shape)
    assert near(drawn[:, 100, 80], blended(grey, FIRST))
    assert near(drawn[:, 200, 250], blended(grey, SECOND))
    assert near(drawn[:, 150, 130], blended(blended(grey, FIRST), SECOND))
    assert torch.equal(drawn[:, 20, 310], image[:, 20, 310])
    assert torch.equal(image, picture())  # the input image is not modified


def test_boxes_are_outlined_with_labels_above_them():
    drawn = draw_objects(picture(), two_objects(), CLASSES)
    for y, x in ((159, 100), (100, 40), (100, 139)):
        assert near(drawn[:, y, x], FIRST)
    label = drawn[:, 51:60, 42:60]  # just above the box
    on_label = (label.float() - FIRST[:, None, None]).abs().amax(dim=0) <= 1
    assert 0.3 < on_label.float().mean() < 0.95  # a background and text of another colour
    assert (drawn[:, 30:45, 42:60] == 100).all()


def test_a_label_shows_class_and_score():
    objects = two_objects()
    truth = {key: value for key, value in objects.items() if key != "scores"}
    without, with_scores = draw_objects(picture(), truth, CLASSES), draw_objects(picture(), objects, CLASSES)
    changed = (without != with_scores).any(dim=0).nonzero()
    assert len(changed) > 0
    assert changed[:, 1].min() > 50  # "disc" is unchanged, and the score follows it
    again = draw_objects(picture(), objects | {"scores": torch.tensor([0.987, 0.6])}, CLASSES)
    assert (again != with_scores).any()


def test_a_crowd_is_named():
    truth = {key: value for key, value in two_objects().items() if key != "scores"}
    assert _captions(truth | {"crowds": torch.tensor([True, False])}, CLASSES) == ["disc (crowd)", "bar"]
    assert _captions(truth, CLASSES) == ["disc", "bar"]


def test_a_label_at_the_top_edge_stays_inside_the_image():
    objects = {key: value[:1] for key, value in two_objects().items()} | {"boxes": torch.tensor([[0.0, 0, 60, 60]])}
    drawn = draw_objects(picture(), objects, CLASSES)
    assert near(drawn[:, 0, 1], FIRST) and near(drawn[:, 8, 0], FIRST)


def test_an_image_without_objects_is_unchanged(tmp_path):
    none = {key: value[:0] for key, value in two_objects().items()}
    assert torch.equal(draw_objects(picture(), none, CLASSES), picture())
    save_objects(tmp_path / "drawn.png", picture(), none, CLASSES)
    assert (np.array(Image.open(tmp_path / "drawn.png")) == 100).all()


def test_a_panel_shows_ground_truth_beside_prediction(tmp_path):
    objects = two_objects()
    first = {key: value[:1] for key, value in objects.items()}
    second = {key: value[1:] for key, value in objects.items()}
    save_object_panel(tmp_path / "panel.png", [(picture() / 255, first, second)], CLASSES)
    pixels = np.array(Image.open(tmp_path / "panel.png").convert("RGB")).astype(int)
    for colour, column in ((FIRST, 1), (SECOND, 2)):  # these objects differ, and so do their colours
        outlined = np.abs(pixels - colour.numpy()).max(axis=2) <= 8
        assert [bool(part.any()) for part in np.array_split(outlined, 3, axis=1)] == [
            index == column for index in range(3)
        ]


def test_captions_in_a_panel_are_of_one_size_whatever_the_size_of_the_image(tmp_path):
    areas = []
    for factor in (1, 6):
        objects = two_objects(240 * factor, 320 * factor)
        objects["boxes"] *= factor
        image = picture(240 * factor, 320 * factor) / 255
        objects["masks"] = torch.zeros_like(objects["masks"])
        first = {key: value[:1] for key, value in objects.items()}
        save_object_panel(tmp_path / "panel.png", [(image, first, first)], CLASSES)
        pixels = np.array(Image.open(tmp_path / "panel.png").convert("RGB")).astype(int)
        areas.append((np.abs(pixels - FIRST.numpy()).max(axis=2) <= 8).sum())
    assert areas[1] == pytest.approx(areas[0], rel=0.1)


def test_an_object_has_one_colour_in_ground_truth_and_prediction():
    objects = two_objects()
    shifted = objects | {"boxes": objects["boxes"].flip(0) + 5, "labels": objects["labels"].flip(0)}
    truth, prediction = matched_colours(objects, shifted)
    assert prediction == truth[::-1]
    truth, prediction = matched_colours(objects, shifted | {"labels": objects["labels"]})  # of other classes
    assert len({*truth, *prediction}) == 4
    none = {key: value[:0] for key, value in objects.items()}
    assert matched_colours(none, objects)[0] == matched_colours(objects, none)[1] == []


@pytest.mark.parametrize(
    ("box", "taken", "place"),
    [
        ((100, 50, 160, 90), (), (100, 36)),  # above the box
        ((300, 50, 319, 90), (), (240, 36)),  # inside the image
        ((-9, -5, 60, 90), (), (0, 0)),
        ((100, 50, 260, 90), ((100, 36, 180, 50),), (180, 36)),  # two captions may touch
        ((100, 50, 260, 90), ((101, 36, 181, 50),), (100, 50)),
        ((100, 50, 180, 90), ((100, 30, 180, 70),), (100, 90)),
        ((100, 200, 180, 239), ((0, 186, 320, 226),), (100, 226)),  # the lower edge of the image
        ((100, 50, 180, 90), ((0, 30, 320, 104),), (100, 8)),
        ((100, 20, 180, 60), ((0, 0, 320, 74),), (100, 76)),
    ],
)
def test_a_caption_is_at_the_first_free_place_near_its_box(box, taken, place):
    assert _free_place(box, (80, 14), (320, 240), taken) == place


def test_captions_of_objects_at_one_place_do_not_overlap():
    taken = []
    for _ in range(8):
        x, y = _free_place((100, 50, 160, 90), (80, 14), (320, 240), taken)
        taken.append((x, y, x + 80, y + 14))
    covered = np.zeros((240, 320), dtype=int)
    for x1, y1, x2, y2 in taken:
        covered[y1:y2, x1:x2] += 1
    assert covered.max() == 1
    assert covered.sum() == 8 * 80 * 14
    assert taken[0][:2] == (100, 36)  # the first is above the box
