"""Names, folders and splits: one test for each row of the table of files and folders in docs/data.md."""

import os
import unicodedata

import numpy as np
import pytest
from documented_tables import DocumentedTable
from PIL import Image
from user_files import MASK, folder, labels, masks, names, pictures, save

from ccnet.data import contents_of

TABLE = DocumentedTable("files and folders")


def test_the_documentation_lists_these_folders():
    assert TABLE.documented() == TABLE.tested


@TABLE.row("hidden files and folders, such as ._a.jpg and .ipynb_checkpoints")
def test_hidden_files_are_skipped(tmp_path):
    images = pictures(tmp_path / "images", "a.jpg", "b/c.jpg", ".ipynb_checkpoints/a-checkpoint.jpg")
    there = masks(tmp_path / "masks", "a.png", "b/c.png")
    (images / "._a.jpg").write_bytes(b"\0\5\x16\7")
    (there / "._a.png").write_bytes(b"\0\5\x16\7")
    assert names(folder(images, there)) == ["a", "b_c"]


@TABLE.row("masks in .PNG, .tif, .bmp or .gif")
def test_formats_of_masks(tmp_path):
    images = pictures(tmp_path / "images", *(f"{index}.JPG" for index in range(4)))
    there = masks(tmp_path / "masks", "0.PNG", "1.tif", "2.bmp", "3.gif")
    dataset = folder(images, there)
    assert all(np.array_equal(dataset.read_labels(index), MASK) for index in range(4))
    sparse = np.array([0, 2, 5, 255], dtype=np.uint8)[np.minimum(MASK + MASK.T[:20, :1], 3)]
    path = save(tmp_path / "sparse.gif", sparse)  # Pillow renumbers its palette to 0, 1, 2, 3
    assert np.array_equal(labels(path, classes=6), sparse)
    colours = Image.fromarray(sparse)
    colours.putpalette([128, 0, 0, 0, 0, 9, 0, 64, 0, 9, 0, 0, 9, 9, 0, 7, 7, 9] + [0] * 750)
    colours.save(tmp_path / "colours.gif")
    with pytest.raises(ValueError, match=r"colours\.gif is a colour image .*map its colours .*with dataset\.values"):
        labels(tmp_path / "colours.gif", classes=6)
    values = {"128 0 0": "road", "0 64 0": "car", "7 7 9": "sky", "0 0 0": "ignore"}
    want = np.select([sparse == 0, sparse == 2, sparse == 5], [0, 1, 2], 255)
    assert np.array_equal(labels(tmp_path / "colours.gif", values, None), want)


@TABLE.row("masks in .jpg or .webp, or with their compression under another suffix")
def test_lossy_masks(tmp_path):
    images = pictures(tmp_path / "images", "0.jpg")
    with pytest.raises(FileNotFoundError, match=r"there is 0\.jpg\. JPEG and WebP change the values .* save .* as PNG"):
        folder(images, masks(tmp_path / "masks", "0.jpg"))
    for name, options in (
        ("0.png", {"format": "JPEG"}), ("1.png", {"format": "WEBP"}), ("2.tif", {"compression": "jpeg"})
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"{name} is compressed with loss\. JPEG and WebP change the values"):
            labels(save(tmp_path / name, MASK, **options), values="0-253", classes=254)  # where all values are classes


@TABLE.row("other names, such as NAME_mask.png or 1-mask.png")
def test_names_of_masks(tmp_path):
    images = pictures(tmp_path / "images", "1.jpg", "11.jpg", "sub/1.jpg")
    there = masks(tmp_path / "masks", "1-mask.png", "11-mask.png", "sub/1-mask.PNG")
    assert names(folder(images, there, mask_name="*-mask")) == ["1", "11", "sub_1"]
    assert names(folder(images, there, mask_name="*-mask.png")) == ["1", "11", "sub_1"]
    same = masks(tmp_path / "same", "1.png", "11.png", "sub/1.png")
    assert names(folder(images, same, image_name="*.jpg", mask_name="*.png")) == ["1", "11", "sub_1"]
    with pytest.raises(FileNotFoundError) as told:
        folder(images, there)
    assert str(told.value) == (
        f"3 of 3 images have no label image in {there}: {images}/1.jpg needs {there}/1 (.png, .tif, .tiff, .bmp, .gif);"
        " there is 1-mask.png, 11-mask.png, sub/1-mask.PNG. If these are the masks, set dataset.mask_name='*-mask'"
    )
    numbered = pictures(tmp_path / "numbered", "image_7.jpg")
    masks(tmp_path / "numbered", "mask_7.png")
    assert names(folder(numbered, numbered, image_name="image_*", mask_name="mask_*")) == ["image_7"]
    together = pictures(tmp_path / "together", "7.png")
    masks(tmp_path / "together", "7_mask.png")
    for suffix in ("png", "jpg"):
        one = masks(pictures(tmp_path / suffix, f"7.{suffix}", f"8.{suffix}"), "7_mask.png", "8_mask.png")
        with pytest.raises(FileNotFoundError, match=r"\. If these are the masks, set dataset\.mask_name='\*_mask'$"):
            folder(one, one)
    only = pictures(tmp_path / "only", "7.jpg")
    with pytest.raises(FileNotFoundError, match=r"there is 7\.jpg$"):  # which is not said to be a mask
        folder(only, only)
    assert names(folder(together, together, mask_name="*_mask")) == ["7"]
    with pytest.raises(ValueError, match=r"the name 'mask' of label images must contain one \*"):
        folder(images, there, mask_name="mask")


@TABLE.row("photos and masks in one folder, such as 7.jpg and 7.png")
def test_photos_and_masks_in_one_folder(tmp_path):
    together = pictures(tmp_path, "7.jpg", "8.JPEG", "sub/7.jpg")
    masks(tmp_path, "7.png", "8.bmp", "sub/7.PNG")
    dataset = folder(together, together)
    assert names(dataset) == ["7", "8", "sub_7"]
    assert all(np.array_equal(dataset.read_labels(index), MASK) for index in range(3))
    assert names(folder(together, together / ".." / together.name)) == ["7", "8", "sub_7"]  # as a relative path may be
    pictures(together, "9.png")
    with pytest.raises(FileNotFoundError, match=r"1 of 4 images have no label image in .*9\.png needs .*9 \("):
        folder(together, together)
    pictures(together, "7.tif")
    with pytest.raises(ValueError, match=r"contains two label images of one name: 7\.png and 7\.tif"):
        folder(together, together)


@TABLE.row("masks in a subfolder of the folder of images")
def test_masks_in_a_subfolder_of_the_images(tmp_path):
    images = pictures(tmp_path, "1.png", "sub/2.png")
    inside = masks(tmp_path / "masks", "1.png", "sub/2.png", "3.png")
    for same in (inside, tmp_path / "sub" / ".." / "masks"):
        dataset = folder(images, same)
        assert (names(dataset), dataset.masks_without_image()) == (["1", "sub_2"], [inside / "3.png"])


@TABLE.row("two images, or two masks, with the same name")
def test_two_files_of_one_name(tmp_path):
    images = pictures(tmp_path / "images", "1.jpg", "1.png")
    with pytest.raises(ValueError, match=r"images contains two images of one name: 1\.jpg and 1\.png"):
        folder(images, masks(tmp_path / "masks", "1.png"))


@TABLE.row("file names that are not valid UTF-8, as from older Windows archives")
def test_file_names_that_are_not_utf8(tmp_path):
    name = os.fsdecode(b"stra\xdfe")
    dataset = folder(pictures(tmp_path / "images", f"{name}.jpg"), masks(tmp_path / "masks", f"{name}.png"))
    assert contents_of(dataset).startswith("1 images, ")
    assert np.array_equal(dataset.read_labels(0), MASK)


@TABLE.row("accented letters that one program stores as one character and another, as on macOS, as two")
def test_accented_letters(tmp_path):
    one, two = (unicodedata.normalize(form, "M\xfcnchen_1") for form in ("NFC", "NFD"))
    there = masks(tmp_path / "masks", f"{one}.png", "2.png")
    images = pictures(tmp_path / "images", f"{two}.jpg", "2.jpg")
    assert len(folder(images, there)) == 2
    assert len(folder(images, masks(tmp_path / "b", f"{one}_\xe9.png", "2_e\u0301.png"), mask_name="*_\xe9")) == 2
    lists = {"val": tmp_path / "val.txt"}
    lists["val"].write_text(f"{one}\n", encoding="utf-8")
    assert folder(images, there, "val", lists=lists).image_path(0) == images / f"{two}.jpg"


@TABLE.row("masks without an image")
def test_masks_without_an_image(tmp_path):
    images, there = (
        pictures(tmp_path / "images", "1.jpg"),
        masks(tmp_path / "masks", "1_mask.png", "2_mask.png", "x.png"),
    )
    assert folder(images, there, mask_name="*_mask").masks_without_image() == [there / "2_mask.png"]
    together = masks(pictures(tmp_path / "both", "1.jpg"), "1.png")
    assert folder(together, together).masks_without_image() == []
    shared = masks(tmp_path / "shared", "1.png", "2.png", "3.png", "4.png")  # of two splits, and a spare one
    parts = {"train": pictures(tmp_path / "train", "1.jpg", "2.jpg"), "val": pictures(tmp_path / "val", "3.jpg")}
    for split in ("train", "val", "all"):
        assert folder(parts, shared, split).masks_without_image() == [shared / "4.png"]
    (parts["val"] / "3.jpg").unlink()
    parts["val"].rmdir()
    assert folder(parts, shared, "train").masks_without_image() == [shared / "3.png", shared / "4.png"]


@TABLE.row("images without a mask")
def test_images_without_a_mask(tmp_path):
    images, there = (
        pictures(tmp_path / "images", "1.jpg", "10.jpg", "11.jpg"),
        masks(tmp_path / "masks", "10.png", "11.png"),  # whose names contain 1
    )
    with pytest.raises(
        FileNotFoundError, match=r"1 of 3 .* there is 10\.png, 11\.png\. Add the missing ones .* dataset\.lists can"
    ):
        folder(images, there)
    for split, name in (("train", "10"), ("val", "11")):
        (tmp_path / f"{split}.txt").write_text(name)
    with pytest.raises(FileNotFoundError, match=r"2 of 2 .* there is 10\.png, 11\.png$"):
        folder(pictures(tmp_path / "others", "1.jpg", "2.jpg"), there)
    lists = {split: str(tmp_path / f"{split}.txt") for split in ("train", "val")}
    assert [names(folder(images, there, split, lists=lists)) for split in lists] == [["10"], ["11"]]
    (tmp_path / "val.txt").write_text("1")
    with pytest.raises(FileNotFoundError, match=r"val\.txt, line 1: 1 is not an image with a label image in "):
        folder(images, there, "val", lists=lists)


@TABLE.row("names that differ in upper and lower case")
def test_names_that_differ_in_case(tmp_path):
    images, there = pictures(tmp_path / "images", "IMG_1.JPG"), masks(tmp_path / "masks", "img_1.png")
    with pytest.raises(FileNotFoundError, match=r"there is img_1\.png\. Upper and lower case differ: rename the files"):
        folder(images, there)
    images, there = pictures(tmp_path / "b", "1.jpg"), masks(tmp_path / "c", "1.png")
    with pytest.raises(
        FileNotFoundError, match=r"there is 1\.png\. If these are the masks, set dataset\.mask_name='\*'"
    ):
        folder(images, there, mask_name="*_L")


@TABLE.row("folders for train, val and test")
def test_folders_of_splits(tmp_path, monkeypatch):
    places = {
        split: pictures(tmp_path / split / "images", *(f"{split}{index}.jpg" for index in range(5)))
        for split in ("train", "val", "test")
    }
    there = {
        split: masks(tmp_path / split / "masks", *(f"{split}{index}.png" for index in range(5))) for split in places
    }
    for split in places:
        assert names(folder(places, there, split)) == [f"{split}{index}" for index in range(5)]
    pictures(places["val"], "train0.jpg")
    masks(there["val"], "train0.png")
    everything = folder(places, there, "all")
    assert (len(everything), names(everything)[0], names(everything)[5]) == (16, "1_train0", "2_train0")
    lists = {split: str(tmp_path / f"{split}.txt") for split in ("train", "val")}  # of images in these folders
    for split in lists:
        (tmp_path / f"{split}.txt").write_text("train0\n")
        assert folder(places, there, split, lists=lists).image_path(0) == places[split] / "train0.jpg"
    with pytest.raises(ValueError, match=r"dataset\.images has the key valid: its keys are train, val, test"):
        folder({"train": places["train"], "valid": places["val"]}, there, "val")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "2024").symlink_to(places["train"])
    (tmp_path / "2025").symlink_to(places["val"])
    assert names(folder({"train": 2024, "val": 2025}, there, "train"))[0] == "train0"  # numbers on the command line
    with pytest.raises(FileNotFoundError, match=r"dataset\.images=~no-such-user/photos is not a folder"):
        folder("~no-such-user/photos", there["train"])
    del places["val"]  # drawn from train
    drawn = [names(folder(places, there, split)) for split in ("train", "val")]
    assert drawn == [["train0", "train1", "train3", "train4"], ["train2"]]


@TABLE.row("folders of splits that are the same, or inside one another")
def test_folders_of_splits_that_overlap(tmp_path):
    images = pictures(tmp_path / "images", "1.jpg", "2.jpg", "val/3.jpg")
    there = masks(tmp_path / "masks", "1.png", "2.png", "val/3.png")
    (tmp_path / "link").symlink_to(images / "val")
    for val in (images, images / "val", tmp_path / "link"):
        for split in ("train", "all"):
            with pytest.raises(
                ValueError, match=r"images\.train=.* contains dataset\.images\.val=.* be in both splits"
            ):
                folder(
                    {"train": images, "val": val},
                    there if val == images else {"train": there, "val": there / "val"},
                    split,
                )
    assert names(folder({"train": images, "val": images / "val"}, {"train": there, "val": there / "val"}, "val")) == [
        "3"
    ]
    with pytest.raises(ValueError, match=r"images\.test=.* contains dataset\.images\.train"):
        folder({"train": images / "val", "test": images}, {"train": there / "val", "test": there}, "train")
    (tmp_path / "train.txt").write_text("1\n")
    (tmp_path / "val.txt").write_text("2\n")
    lists = {split: str(tmp_path / f"{split}.txt") for split in ("train", "val")}
    assert names(folder({"train": images, "val": images}, there, "train", lists=lists)) == ["1"]


@TABLE.row("lists of names")
def test_lists_of_names(tmp_path):
    images = pictures(tmp_path / "images", "a.jpg", "b c.jpg", "sub/d.jpg")
    there = masks(tmp_path / "masks", "a.png", "b c.png", "sub/d.png")
    lists = {split: str(tmp_path / f"{split}.txt") for split in ("train", "val")}
    (tmp_path / "train.txt").write_text("sub/d\na.jpg\n", encoding="utf-8-sig")
    (tmp_path / "val.txt").write_text("b c\n")
    assert names(folder(images, there, "train", lists=lists)) == ["sub_d", "a"]
    assert names(folder(images, there, "val", lists=lists)) == ["b c"]
    (tmp_path / "val.txt").write_text(f"{images}/b c.jpg\n")
    assert names(folder(images, there, "val", lists=lists)) == ["b c"]
    (tmp_path / "link").symlink_to(tmp_path)
    for other in (tmp_path / "masks" / ".." / "images", tmp_path / "link" / "images"):
        assert names(folder(other, there, "val", lists=lists)) == ["b c"]
    (tmp_path / "val.txt").write_text(f"{tmp_path}/b c.jpg\n")
    with pytest.raises(ValueError, match=r"val\.txt, line 1: '.*/b c\.jpg' points outside .*images"):
        folder(images, there, "val", lists=lists)
    (tmp_path / "val.txt").write_text("b c\n")
    with pytest.raises(ValueError, match=r"split=test has no images: list it in dataset\.lists"):
        folder(images, there, "test", lists=lists)
    (tmp_path / "val.txt").write_text("a\n")
    with pytest.raises(ValueError, match=r"val\.txt, line 1: a is also in the list of train"):
        folder(images, there, "val", lists=lists)
    for text in ("b c\nsub/d\nb c.jpg\n", "b c\r\nsub/d\r\n./b c\r\n"):
        (tmp_path / "val.txt").write_text(text, newline="")
        with pytest.raises(ValueError, match=r"val\.txt, line 3: b c is listed twice"):
            folder(images, there, "val", lists={"val": lists["val"]})
    (tmp_path / "val.txt").write_bytes("b c".encode("utf-16"))
    with pytest.raises(ValueError, match=r"val\.txt is not a UTF-8 text file, save it as UTF-8"):
        folder(images, there, "val", lists=lists)
    (tmp_path / "val.txt").write_text("e\n")
    with pytest.raises(FileNotFoundError, match=r"val\.txt, line 1: e is not an image"):
        folder(images, there, "val", lists=lists)
    with pytest.raises(ValueError, match=r"dataset\.lists has the key valid: its keys are train, val, test"):
        folder(images, there, "train", lists={"train": lists["train"], "valid": lists["val"]})
    with pytest.raises(ValueError, match=r"dataset\.lists=.*train\.txt: set a file for each split"):
        folder(images, there, "train", lists=lists["train"])


@TABLE.row("one folder for all splits")
def test_fractions(tmp_path):
    stems = [f"{index:02d}" for index in range(20)]
    images = pictures(tmp_path / "images", *(f"{stem}.jpg" for stem in stems))
    there = masks(tmp_path / "masks", *(f"{stem}.png" for stem in stems))
    parts = [names(folder(images, there, split, test_share=0.1)) for split in ("train", "val", "test")]
    assert sorted(name for part in parts for name in part) == stems
    assert [len(part) for part in parts] == [14, 4, 2]
    assert parts[1] == names(folder(images, there, "val")) == ["02", "07", "12", "17"]  # as in earlier versions
    with pytest.raises(ValueError, match=r"split=test has no images: set dataset\.test_share"):
        folder(images, there, "test")
    with pytest.raises(ValueError, match=r"val_share=0\.8, dataset\.test_share=0\.3: set fractions"):
        folder(images, there, "val", val_share=0.8, test_share=0.3)
    three = pictures(tmp_path / "three", "a.jpg", "b.jpg", "c.jpg"), masks(tmp_path / "m", "a.png", "b.png", "c.png")
    shares = {"val_share": 0.5, "test_share": 0.45}
    parts = [names(folder(*three, split, **shares)) for split in ("train", "val", "test")]
    assert sorted(parts) == [["a"], ["b"], ["c"]]


@TABLE.row("frames of the same video, or slices of the same patient")
def test_groups_stay_together(tmp_path):
    stems = [f"p{patient}_{number}" for patient in range(10) for number in range(1 + patient % 3)]
    images = pictures(tmp_path / "images", *(f"{stem}.jpg" for stem in stems))
    there = masks(tmp_path / "masks", *(f"{stem}.png" for stem in stems))
    options = {"group": r"^(p\d+)_", "test_share": 0.2}
    parts = [names(folder(images, there, split, **options)) for split in ("train", "val", "test")]
    assert sorted(name for part in parts for name in part) == sorted(stems)
    patients = [{stem.partition("_")[0] for stem in part} for part in parts]
    assert not (patients[0] & patients[1] or patients[1] & patients[2] or patients[0] & patients[2])
    assert [len(part) for part in parts] == [11, 4, 4]
    with pytest.raises(ValueError, match=r"dataset\.group='\(' is not a regular expression: missing \)"):
        folder(images, there, "val", group="(")
    with pytest.raises(ValueError, match=r"dataset\.group='frame' does not match p0_0"):
        folder(images, there, "val", group="frame")
    with pytest.raises(ValueError, match=r"1 groups of images cannot be divided into train, val: 2 are needed"):
        folder(images, there, "val", group="^p")


@TABLE.row("a single image")
def test_a_single_image(tmp_path):
    images, there = pictures(tmp_path / "images", "a.jpg"), masks(tmp_path / "masks", "a.png")
    assert names(folder(images, there)) == ["a"]
    with pytest.raises(ValueError, match=r"1 images cannot be divided .* choose the split 'all'"):
        folder(images, there, "train")
