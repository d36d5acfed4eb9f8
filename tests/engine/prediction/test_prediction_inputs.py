"""The images that predict.py finds, the files it would write, and the images it skips."""

import errno
import os
import sys
from pathlib import Path, PurePath

import pytest
from PIL import Image

from ccnet.data.reading.label_files import LabelFormat
from ccnet.engine.prediction.ground_truth import GroundTruth, find_labels
from ccnet.engine.prediction.inputs import (
    InputImage,
    SkippedImages,
    check_outputs,
    earlier_files,
    find_inputs,
    frames_before,
    with_frames,
)


def write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def found(sources, output="out") -> list[str]:
    return [str(image.name) for image in find_inputs(sources, Path(output))]


def test_folders_are_searched_recursively_without_hidden_files_and_earlier_results(tmp_path):
    write(tmp_path, "b.JPG", "a/1.png", "a/2.tif", "a/notes.txt", "._b.jpg", ".ipynb_checkpoints/b.png", "out/b.png")
    assert found([tmp_path], tmp_path / "out") == ["a/1", "a/2", "b"]


def test_earlier_results_are_inputs_only_if_they_are_named(tmp_path, monkeypatch):
    """check_outputs then refuses them; otherwise they would be missing without a message."""
    write(tmp_path, "in/a.png", "in/out/b.png")
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "out").symlink_to(tmp_path / "in" / "out")
    for output in (tmp_path / "in" / "out", tmp_path / "link" / "out"):
        assert found([tmp_path / "in"], output) == ["a"]
        assert found([tmp_path / "in" / "out" / "b.png"], output) == ["b"]
        assert found([tmp_path / "in" / "out"], output) == ["b"]
    assert found([tmp_path / "in", tmp_path / "link"], tmp_path / "in" / "out") == ["a"]
    monkeypatch.chdir(tmp_path / "in" / "out")
    assert found([".."], ".") == ["a"]


def test_files_folders_and_patterns_are_combined_and_each_image_is_predicted_once(tmp_path, monkeypatch):
    write(tmp_path, "x/left_1.png", "x/left_2.png", "x/right_1.png", "y/left_1.png", "one.jpg")
    assert found([tmp_path / "one.jpg", tmp_path / "x"]) == ["one", "left_1", "left_2", "right_1"]
    assert found([f"{tmp_path}/*/left_*.png"]) == ["x/left_1", "x/left_2", "y/left_1"]
    assert found([tmp_path / "x" / "left_1.png", f"{tmp_path}/x/*_1.png"]) == ["left_1", "right_1"]
    monkeypatch.chdir(tmp_path)
    assert found(["**/*_2.png"]) == ["x/left_2"]


def test_links_are_followed_and_one_that_points_nowhere_is_not_dropped(tmp_path):
    write(tmp_path / "elsewhere", "1.png", "deep/2.png")
    folder = tmp_path / "in"
    write(folder, "a.png")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "around").symlink_to(folder)
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    assert found([folder]) == ["a", "gone", "linked/1", "linked/deep/2"]
    assert found([f"{folder}/*.png"]) == ["a", "gone"]


def test_frames_are_in_the_order_of_their_numbers(tmp_path):
    names = ["1/f2", "1/f10", "2/f1_b", "2/f01", "2/f1", "10/f3", "a"]
    write(tmp_path, *(f"{name}.png" for name in names))
    for source in (tmp_path, f"{tmp_path}/**/*.png"):
        assert found([source]) == ["1/f2", "1/f10", "2/f01", "2/f1", "2/f1_b", "10/f3", "a"]


def test_one_file_by_two_spellings_of_its_path_is_predicted_once(tmp_path, monkeypatch):
    write(tmp_path, "x/1.png")
    monkeypatch.chdir(tmp_path)
    assert found(["x/1.png", tmp_path / "x", "x/../x/1.png"]) == ["1"]


def test_what_is_no_image_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "clip.MP4").touch()
    for source, message in (
        ("nothing.jpg", "input=nothing.jpg is neither .* pattern of images: there is no such file or folder"),
        (tmp_path / "pipe.png", "pipe.png is neither an image nor a folder or pattern of images$"),
        ("https://example.com/a.jpg", "input=https:/example.com/a.jpg is neither .*: download it first"),
        (tmp_path / "clip.MP4", r"clip\.MP4 is a video: save its frames .* ffmpeg -i VIDEO frames/%06d\.png"),
        (tmp_path / "empty", "empty contains no images"),
        (tmp_path, "contains no images"),  # only a named pipe, which would never end
        (f"{tmp_path}/*.jpg", "contains no images"),
    ):
        with pytest.raises((FileNotFoundError, ValueError), match=message):
            find_inputs([source], tmp_path / "out")


def image(path: str, name: str = "") -> InputImage:
    return InputImage(Path(path), PurePath(name or Path(path).stem))


@pytest.mark.parametrize(
    ("paths", "reserved", "file"),
    [
        (("in/a.png", "in/a.jpg"), [], "out/a.png"),
        (("in/a.png", "other/a.png"), [], "out/a.png"),
        (("in/a.png", "in/a_overlay.png"), [], "out/a_overlay.png"),
        (("in/comparison.png",), ["comparison.png"], "out/comparison.png"),
    ],
)
def test_two_images_that_would_write_one_file_are_named(paths, reserved, file):
    with pytest.raises(ValueError, match=f"{paths[-1]} would both write {file}: "):
        check_outputs([image(path) for path in paths], Path("out"), [".png", "_overlay.png"], reserved)


def test_an_output_folder_with_images_of_the_input_is_rejected(tmp_path):
    inside = [image(f"{tmp_path}/sub/a.png", "sub/a")]
    check_outputs(inside, tmp_path / "sub", [".png"], [])
    with pytest.raises(ValueError, match="a mask could overwrite"):
        check_outputs(inside, tmp_path, [".png"], [])


def test_files_of_an_earlier_prediction_are_found(tmp_path):
    images = [image("in/a.jpg"), image("in/a_attention.jpg")]
    write(tmp_path, "a.png", "a_overlay.png", "a_attention.png", "a_probabilities/000_sky.png", "a.json", "a_notes.txt")
    write(tmp_path, "a_attention_logits.npz", "b.png", "b_attention.png")
    assert earlier_files(images, tmp_path, [".png", "_overlay.png"]) == [
        tmp_path / name for name in ("a_probabilities", "a.json", "a_attention_logits.npz")
    ]
    every = [".png", "_overlay.png", "_probabilities", ".json", "_logits.npz"]
    assert earlier_files(images, tmp_path, every) == []


def test_a_comparison_and_lost_frames_of_an_earlier_prediction_are_found(tmp_path):
    images = [image("in/deep/a.tif", f"deep/a_000{frame + 1}")._replace(frame=frame) for frame in range(2)]
    write(
        tmp_path, *(f"deep/a_000{number}.png" for number in range(1, 4)), "deep/a_0003_overlay.png", "deep/b_0001.png"
    )
    write(tmp_path, "deep/a_12.png", "comparison.png")
    expected = [tmp_path / name for name in ("deep/a_0003.png", "deep/a_0003_overlay.png", "comparison.png")]
    assert earlier_files(images, tmp_path, [".png"]) == expected
    assert earlier_files(images, tmp_path, [".png"], reserved=["comparison.png"]) == expected[:2]


def test_a_subfolder_of_the_inputs_is_not_taken_for_an_earlier_file(tmp_path):
    images = [image("in/a.jpg"), image("in/a_probabilities/b.jpg", "a_probabilities/b")]
    write(tmp_path, "a.png", "a_probabilities/b.png")
    assert earlier_files(images, tmp_path, [".png"]) == []


def test_every_earlier_file_of_a_skipped_image_is_found(tmp_path):
    images = [image("in/a.jpg"), image("in/broken.jpg")]
    write(tmp_path, "a.png", "a_overlay.png", "broken.png", "broken_overlay.png")
    skipped = SkippedImages()
    skipped.attempt(images[1], lambda: (tmp_path / "missing").read_text())
    earlier = earlier_files(images, tmp_path, [".png", "_overlay.png"], skipped.images)
    assert earlier == [tmp_path / "broken.png", tmp_path / "broken_overlay.png"]


def test_an_output_that_is_a_file_is_rejected(tmp_path):
    (tmp_path / "a.jpg").touch()
    with pytest.raises(ValueError, match=r"a\.jpg is a file, not a folder: choose another output"):
        check_outputs([], tmp_path / "a.jpg", [".png"], [])


def test_twenty_thousand_names_need_no_quadratic_number_of_steps(tmp_path):
    """Checked by the calls that Python makes, because a time depends on the machine."""
    images = [InputImage(Path(f"in/{number}.jpg"), PurePath(f"{number}")) for number in range(20_000)]
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        check_outputs(images, tmp_path, [".png", "_overlay.png"], [])
        frames = frames_before(images, 19_999, 4)
    finally:
        sys.setprofile(None)
    assert frames == images[19_995:19_999]
    assert calls < 200 * len(images)  # 118 with Python 3.13


def test_the_frames_of_a_clip_are_in_one_folder_or_one_file():
    images = [image("a/1.png"), image("b/1.png"), image("b/2.png")]
    assert frames_before(images, 2, 4) == [images[1]]
    assert frames_before(images, 2, 0) == []
    pages = [image("b/0.png"), *(image("b/1.gif")._replace(frame=index) for index in range(3)), image("b/2.png")]
    assert frames_before(pages, 3, 4) == pages[1:3]
    assert frames_before(pages, 4, 4) == []
    videos = [image(f"a/{name}.png") for name in ("day_09_left8bit", "day_10_left8bit", "night_11_left8bit")]
    assert frames_before(videos, 1, 4) == videos[:1]
    assert frames_before(videos, 2, 4) == []


def test_the_frames_of_a_file_are_numbered_from_one(tmp_path):
    pages = [Image.new("L", (4, 4), grey) for grey in (0, 99, 200)]
    for name in ("a/clip.gif", "scan.tif", "one.gif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pages[0].save(tmp_path / name, save_all=True, append_images=[] if name == "one.gif" else pages[1:])
    images = with_frames(find_inputs([tmp_path], tmp_path / "out"), 3)
    assert [(str(image.name), image.frame) for image in images] == [
        *((f"a/clip_{number:04}", number - 1) for number in (1, 2, 3)),
        ("one", None),
        *((f"scan_{number:04}", number - 1) for number in (1, 2, 3)),
    ]
    with pytest.raises(
        ValueError, match=r"scan\.tif, frame 2 and other/scan_0002\.jpg would both write out/scan_0002\.png: "
    ):
        check_outputs([*images, image("other/scan_0002.jpg")], Path("out"), [".png", "_overlay.png"], [])


def test_label_images_are_found_by_the_names_of_the_data_set(tmp_path):
    write(tmp_path, "1_mask.png", "aachen/x_gtFine_labelIds.png", "2.TIF")
    names = {"label_name": "*_mask"}
    assert find_labels([image("in/1.jpg")], tmp_path, **names) == [tmp_path / "1_mask.png"]
    assert find_labels([image("in/2.jpg")], tmp_path, **names) == [tmp_path / "2.TIF"]
    suffixes = {"image_name": "*_rgb.jpg", "label_name": "*_mask.png"}  # which training accepts
    assert find_labels([image("in/1_rgb.jpg")], tmp_path, **suffixes) == [tmp_path / "1_mask.png"]
    Image.frombytes("L", (2, 1), b"\7\x0b").save(tmp_path / "1_mask.png")
    truth = GroundTruth([image("in/1_rgb.jpg")], tmp_path, LabelFormat({7: 0, 11: 1}, **suffixes), 3)
    assert truth.of(0, (1, 2)).tolist() == [[0, 1]]
    with pytest.raises(ValueError, match=r"1_mask\.png"):
        truth.of(0, (2, 3))
    streets = {"image_name": "*_leftImg8bit", "label_name": "*_gtFine_labelIds"}
    city = image("in/aachen/x_leftImg8bit.png", "aachen/x_leftImg8bit")
    assert find_labels([city], tmp_path, **streets) == [tmp_path / "aachen" / "x_gtFine_labelIds.png"]
    with pytest.raises(FileNotFoundError, match=r"has no label image 3_mask \(.png, .*\) for in/3.jpg"):
        find_labels([image("in/3.jpg")], tmp_path, **names)
    write(tmp_path, "2.png")
    with pytest.raises(ValueError, match=r"both .*/2\.TIF and .*/2\.png could be the label image of in/2\.jpg: remove"):
        find_labels([image("in/2.jpg")], tmp_path, **names)


def test_two_images_do_not_share_a_label_image(tmp_path):
    (tmp_path / "1.png").touch()
    days = [InputImage(tmp_path / day / "1.jpg", PurePath(day, "1")) for day in ("monday", "tuesday")]
    assert find_labels(days[:1], tmp_path) == [tmp_path / "1.png"]
    with pytest.raises(
        ValueError, match=r"1\.png would be the label image of both .*monday/1\.jpg and .*tuesday/1\.jpg"
    ):
        find_labels(days, tmp_path)


def test_skipped_images_are_listed_at_the_end():
    skipped = SkippedImages()
    skipped.report(3)
    assert skipped.attempt(image("good.jpg"), lambda: 7) == 7
    for name, error in (
        ("a.jpg", ValueError("a.jpg is truncated")),
        ("b.jpg", RuntimeError("too small\nstack")),
        ("c.jpg", FileNotFoundError(errno.ENOENT, "is gone", "c.jpg")),
    ):

        def fail(error=error):
            raise error

        assert skipped.attempt(image(name), fail) is None
    with pytest.raises(
        ValueError, match=r"^3 of 4 images .*:\n  a\.jpg is truncated\n  b\.jpg: too small\n  .*is gone: 'c.jpg'$"
    ):
        skipped.report(4)
    alone = SkippedImages()
    alone.attempt(image("a.jpg"), fail)
    with pytest.raises(ValueError, match=r"^a\.jpg: .*is gone: 'c.jpg'$"):
        alone.report(1)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_no_image_is_skipped_because_the_output_cannot_be_written(number):
    def write_nothing():
        raise OSError(number, os.strerror(number))

    with pytest.raises(OSError, match=os.strerror(number)):
        SkippedImages().attempt(image("a.jpg"), write_nothing)
