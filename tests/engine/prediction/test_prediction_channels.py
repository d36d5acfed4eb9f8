"""Prediction reads a file exactly as training does, for a network of any number of channels."""

import re

import numpy as np
import pytest
from PIL import Image
from stand_in import stand_in

import ccnet
from ccnet.engine.checkpoints.reading import load
from ccnet.engine.checkpoints.writing import save

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 4)).astype(np.uint8)
DEEP = PIXELS.astype(np.uint16) * 257  # the same values of 16 bits


@pytest.fixture
def network(request, tmp_path):
    """Return a network of a number of channels, loaded from tmp_path/best.safetensors."""
    save(stand_in("fcn", f"backbone.in_channels={request.param}"), tmp_path / "best.safetensors")
    return ccnet.load(tmp_path / "best.safetensors", device="cpu")


def write(folder, images):
    folder.mkdir()
    for name, pixels in images.items():
        if name.endswith("npy"):
            np.save(folder / name, pixels)
        elif name.startswith("pages"):
            first, *rest = map(Image.fromarray, np.moveaxis(pixels, -1, 0))
            first.save(folder / name, save_all=True, append_images=rest)
        else:
            Image.fromarray(pixels).save(folder / name)


def predicted(run_entry, folder, ok=True):
    """Return the probabilities that predict.py saves for the files of a folder, by name, and its error messages."""
    options = ["checkpoint=best.safetensors", f"input={folder}", "device=cpu", "output=out", "probabilities=npz"]
    done = run_entry("predict.py", *options, ok=ok)
    found = {path.stem.removesuffix("_probabilities"): path for path in folder.parent.glob("out/*.npz")}
    return {name: np.load(path)["probabilities"] for name, path in found.items()}, done.stderr


def of(network, image):
    return network.predict(image).probabilities.astype(np.float16)


@pytest.mark.slow
@pytest.mark.parametrize("network", [4], indirect=True)
def test_four_channels_in_any_kind_of_file_and_from_python(network, tmp_path, run_entry):
    pytest.importorskip("tifffile", reason="pip install 'ccnet-segmentation[bands]'")
    first = np.ascontiguousarray(np.moveaxis(PIXELS, -1, 0))
    images = {"rgba.png": PIXELS, "bands.tif": PIXELS, "pages.tif": PIXELS, "last.npy": PIXELS, "first.npy": first}
    images["deep.npy"] = DEEP
    grey, rgb = PIXELS[..., 0], PIXELS[..., :3]
    write(tmp_path / "in", {**images, "grey.png": grey, "rgb.png": rgb, "three.npy": rgb, "pages_of_three.tif": rgb})
    found, errors = predicted(run_entry, tmp_path / "in", ok=False)
    assert found.keys() == {name.partition(".")[0] for name in images}
    expected = of(network, PIXELS)
    assert not np.array_equal(of(network, 255 - PIXELS), expected)
    for name, array in images.items():
        assert np.array_equal(found[name.partition(".")[0]], expected), name
        assert np.array_equal(of(network, tmp_path / "in" / name), expected), name
        assert np.array_equal(of(network, array), expected), name
    assert np.array_equal(of(network, Image.fromarray(PIXELS)), expected)
    for message in (
        r"4 of 10 images were skipped",
        r"grey.png has 1 channel \(mode L\), but backbone.in_channels=4",
        r"rgb.png has 3 channels \(mode RGB\), but backbone.in_channels=4",
        r"three.npy has the shape \(24, 32, 3\): expected \(H, W, 4\) or \(4, H, W\), as backbone.in_channels=4 says",
        r"pages_of_three.tif has the shape \(3, 24, 32\): expected \(H, W, 4\) or \(4, H, W\), as",
    ):
        assert re.search(message, errors), message
    with pytest.raises(ValueError, match=r"^this array has the shape \(24, 32, 3\): expected \(H, W, 4\)"):
        network.predict(rgb)
    with pytest.raises(ValueError, match=r"^this image has 3 channels \(mode RGB\), but backbone.in_channels=4"):
        network.predict(Image.fromarray(rgb))


@pytest.mark.slow
@pytest.mark.parametrize("network", [1], indirect=True)
def test_one_channel_in_any_kind_of_file_and_from_python(network, tmp_path, run_entry):
    grey, deep = PIXELS[..., 0], DEEP[..., 0]
    images = {"grey.png": grey, "plane.npy": grey, "last.npy": grey[..., None], "deep.png": deep}
    rgb = np.stack([grey] * 3, axis=-1)
    write(tmp_path / "in", {**images, "rgb.png": rgb, "pages.tif": PIXELS[..., :2]})
    found, _ = predicted(run_entry, tmp_path / "in")
    expected = of(network, grey)
    for name, array in images.items():
        assert np.array_equal(found[name.partition(".")[0]], expected), name
        assert np.array_equal(of(network, array), expected), name
    for array in (grey, rgb, deep):
        assert np.array_equal(of(network, Image.fromarray(array)), expected)
    assert np.array_equal(found["rgb"], expected) and np.array_equal(found["pages_0001"], expected)
    assert np.array_equal(found["pages_0002"], of(network, PIXELS[..., 1]))

    other = load(tmp_path / "best.safetensors")
    other.config["dataset"]["value_range"] = [0, 4095]
    save(other, tmp_path / "deep.safetensors")
    done = run_entry("predict.py", "checkpoint=[best.safetensors,deep.safetensors]", "input=in", ok=False)
    assert (
        "error: the checkpoints read images differently, with backbone.in_channels and dataset.value_range of 1 and "
        "None, 1 and [0, 4095]: predict them one at a time" in done.stderr
    )


@pytest.mark.parametrize("network", [1, 2, 3, 4, 5], indirect=True)
def test_the_code_in_the_model_card_runs(network, tmp_path, monkeypatch):
    shape = (24, 32) if network.channels in (1, 3) else (24, 32, network.channels)
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    if len(shape) == 2:
        Image.fromarray(pixels).convert("RGB").save(tmp_path / "photo.jpg")
    np.save(tmp_path / "image.npy", pixels)
    monkeypatch.chdir(tmp_path)
    network.save_pretrained("published")
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "published" / "README.md").read_text(), flags=re.DOTALL)
    found = {}
    exec(code, found)
    assert found["labels"].shape == (24, 32)
