"""What the page of ccnet-app shows, without a browser."""

import copy
import re
import runpy
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from stand_in import stand_in
from untrusted_files import bomb

from ccnet.engine.app import Viewer, street_scene
from ccnet.engine.app.examples import write_examples
from ccnet.engine.app.legend_html import legend_html
from ccnet.engine.app.street_scene import CLASSES, ROAD, SKY, write_streets
from ccnet.engine.prediction import TrainedNetwork


@pytest.fixture(scope="module")
def network():
    return TrainedNetwork(stand_in(), device="cpu")


@pytest.fixture
def viewer(network, monkeypatch):
    monkeypatch.setattr(network, "crop_size", [40, 60])
    return Viewer({"one": network}, max_megapixels=0.1)


@pytest.fixture
def photo(tmp_path):
    Image.fromarray(street_scene(0, size=(80, 120))[0]).save(tmp_path / "a photo.png")
    return tmp_path / "a photo.png"


@pytest.mark.parametrize("arguments", [[], ["streets"], ["80", "streets"]], ids=str)
def test_the_command_of_the_quickstart_shows_its_usage(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["street_scene", *arguments])
    with pytest.raises(SystemExit, match=r"^usage: python -m ccnet\.engine\.app\.street_scene FOLDER NUMBER$"):
        runpy.run_path(str(ROOT / "engine" / "app" / "street_scene.py"), run_name="__main__")
    assert not [*tmp_path.iterdir()]


def test_a_large_image_is_predicted_at_the_size_of_the_training_crops(viewer, network, photo):
    answer = viewer.answer(photo)
    small = Image.fromarray(answer.pixels).resize((60, 40), Image.Resampling.BILINEAR, reducing_gap=2.0)
    labels = network.predict(np.array(small)).labels
    assert answer.labels[0].shape == (80, 120)
    assert set(np.unique(answer.labels[0])) <= set(np.unique(labels))
    assert (answer.labels[0].reshape(40, 2, 60, 2) == labels[:, None, :, None]).mean() > 0.9


def test_the_files_are_those_of_predict(viewer, photo, tmp_path):
    answer = viewer.answer(photo)
    mask, overlay = viewer.files(answer, 0, tmp_path / "out")
    assert (mask.name, overlay.name) == ("a photo.png", "a photo_overlay.png")
    assert np.array_equal(np.array(Image.open(mask)), answer.labels[0])
    assert Image.open(overlay).height >= 80
    shown = viewer.overlay(answer, 0, 0.0)
    assert shown.shape == (1200, 1800, 3)  # fifteen times as large
    assert np.array_equal(shown[::15, ::15], answer.pixels)


def test_attention_is_drawn_around_the_point_that_was_clicked(viewer, photo):
    answer = viewer.answer(photo)
    point = viewer.point_of(answer, (90 * 15 + 7, 20 * 15 + 7))
    assert point == (20, 90)
    maps = viewer.attention(answer, 0, point)
    assert [made.title.partition(":")[0] for made in maps] == ["R = 1", "R = 2", "R = 3"]
    for made in maps:
        assert made.image.shape == (80, 120, 3)
        assert tuple(made.image[20, 90]) == (0, 230, 118)  # the mark
    assert viewer.point_of(answer, (5000, -3)) == (0, 119)  # a click on the edge may be rounded to outside
    for name in ("fcn", "hv_vh"):  # whose attention is not criss-cross
        other = Viewer({name: TrainedNetwork(stand_in(name), device="cpu")})
        assert other.attention(other.answer(photo), 0, (1, 1)) == []


def test_large_images_are_drawn_smaller_and_stay_aligned(viewer, network, monkeypatch, tmp_path):
    monkeypatch.setattr(viewer, "max_megapixels", 10)
    Image.fromarray(street_scene(1, size=(301, 2001))[0]).save(tmp_path / "wide.png")
    answer = viewer.answer(tmp_path / "wide.png")
    assert viewer.overlay(answer, 0, 0.5).shape == (151, 1001, 3)
    made = viewer.attention(answer, 0, viewer.point_of(answer, (400, 50)))[0].image
    assert made.shape == (76, 501, 3)
    assert tuple(made[25, 200]) == (0, 230, 118)


@pytest.mark.parametrize("kind", ["broken", "large", "bomb", "empty"])
def test_files_that_cannot_be_shown_are_refused_without_naming_the_servers_folders(viewer, tmp_path, kind):
    path = tmp_path / "photo.png"
    if kind == "large":
        Image.new("RGB", (400, 300)).save(path)
    elif kind == "bomb":
        bomb(path)
    else:
        path.write_bytes(b"no image" if kind == "broken" else b"")
    with pytest.raises(ValueError, match=r"^photo.png (cannot be read as an image|has)") as caught:
        viewer.answer(path)
    assert str(tmp_path) not in str(caught.value)
    if kind == "large":
        assert "0 megapixels, and this page accepts up to 0.1: scale the image down" in str(caught.value)


def test_a_legend_lists_the_classes_that_occur_and_escapes_their_names():
    labels = np.array([[0, 0, 1], [1, 1, 1]], dtype=np.uint8)
    made = legend_html(labels, ["<b>sky</b>", "road", "car"], [[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    assert re.findall(r'class="name">(.*?)</span>', made) == ["road", "&lt;b&gt;sky&lt;/b&gt;"]
    assert re.findall(r'class="share">(.*?)</span>', made) == ["66.7%", "33.3%"]
    assert "rgb(4, 5, 6)" in made and "rgb(7, 8, 9)" not in made


def test_networks_that_the_page_cannot_show_are_refused(network):
    with pytest.raises(ValueError, match="3 checkpoints are set, but the page compares at most two"):
        Viewer(dict.fromkeys("abc", network))
    detector = TrainedNetwork.__new__(TrainedNetwork)
    detector.segments = False
    with pytest.raises(ValueError, match="objects detects objects"):
        Viewer({"objects": detector})
    other = copy.copy(network)
    other.value_range = [0, 4095]
    with pytest.raises(
        ValueError, match=r"have dataset.value_range=None and \[0, 4095\], .*: serve them one at a time"
    ):
        Viewer({"a": network, "b": other})
    other.channels = 4
    with pytest.raises(ValueError, match=r"b takes images of 4 channels, but the page reads RGB: use predict.py"):
        Viewer({"b": other})


def test_examples_suit_the_network(network, tmp_path):
    streets = write_examples(network.dataset, tmp_path)
    assert [path.name for path in streets] == ["street_1.png", "street_2.png", "street_3.png"]
    assert len({path.read_bytes() for path in streets}) == 3
    beacons = {"val": {"_target_": "ccnet.data.sets.synthetic.Beacons", "split": "val", "length": 2, "size": 65}}
    assert [Image.open(path).size for path in write_examples(beacons, tmp_path)] == [(65, 65)] * 2


def test_a_street_has_every_class_and_labels_that_fit_its_shapes(tmp_path):
    write_streets(tmp_path, 6)
    seen = set()
    for path in sorted((tmp_path / "masks").iterdir()):
        labels, image = np.array(Image.open(path)), np.array(Image.open(tmp_path / "images" / path.name))
        assert labels.shape == image.shape[:2] == (360, 480)
        assert (labels[0] != ROAD).all() and (labels[-1] != SKY).all()
        assert np.ptp(image[labels == ROAD].mean(axis=0)) < 12  # grey
        seen |= set(np.unique(labels))
    assert seen == set(range(len(CLASSES)))
