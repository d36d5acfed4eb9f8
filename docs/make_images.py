"""Make the images of the documentation: ``python docs/make_images.py``; after training, also ``--run RUN``.

Everything in them is drawn by the program, so no data set's licence applies.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from ccnet import data
from ccnet.data.reading.image_files import read_image
from ccnet.data.sets.folder import class_colours
from ccnet.engine import app, checkpoints, drawing, evaluation
from ccnet.engine.app.street_scene import CLASSES, street_scene

IMAGES = Path(__file__).resolve().parent / "images"
POINT = (0.80, 0.30)  # (y, x) as fractions of the image: on the road


def main() -> None:
    """Make the images that the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default=checkpoints.DEFAULT, help="the network; the packaged one by default")
    parser.add_argument("--photo", type=Path, help="a photo that you may publish; a drawn street by default")
    parser.add_argument("--run", type=Path, help="the run of docs/quickstart.md, whose predictions are copied")
    given = parser.parse_args()
    draw_streets(IMAGES / "streets.png")
    if given.run:
        copy_predictions(given.run, IMAGES / "own_network.png")
    network = evaluation.load(given.checkpoint, device="cpu")
    pixels = street_scene(2)[0] if given.photo is None else read_image(given.photo).permute(1, 2, 0).numpy()
    draw_network(network, np.ascontiguousarray(pixels), IMAGES / "network.png")
    photograph_page(given.checkpoint, network, pixels, IMAGES / "app.png")


def draw_streets(path: Path) -> None:
    """Draw a few of the made streets above their masks."""
    palette = class_colours(CLASSES)
    scenes = [street_scene(seed, size=(240, 320)) for seed in range(1000, 1004)]
    rows = [[image for image, _ in scenes], [drawing.colourise(labels, palette) for _, labels in scenes]]
    _save(np.concatenate([np.concatenate(row, axis=1) for row in rows]), path)


def copy_predictions(run: Path, path: Path) -> None:
    """Copy the panel of a run: image, ground truth, prediction and errors."""
    with Image.open(run / "predictions.png") as panel:
        panel.thumbnail((1200, 1200))
        _save(np.asarray(panel.convert("RGB")), path)


def draw_network(network: evaluation.TrainedNetwork, pixels: np.ndarray, path: Path) -> None:
    """Draw an image, its classes, and where one point attends to after one and two passes."""
    viewer = app.Viewer({"network": network})
    answer = viewer.predict("photo", pixels)
    height, width = pixels.shape[:2]
    maps = viewer.attention(answer, 0, (round(POINT[1] * width), round(POINT[0] * height)))[:2]
    panels = {"image": pixels, "classes": viewer.overlay(answer, 0, 0.6)} | {made.title: made.image for made in maps}
    figure = Figure(figsize=(12, 12 / len(panels) * height / width + 0.75), layout="constrained")
    for axis, (title, shown) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        axis.imshow(shown)
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
    named = [index for index in drawing.most_frequent_first(answer.labels) if index != data.IGNORE_INDEX]
    for index in named:
        figure.axes[0].plot([], [], "s", color=np.array(network.palette[index]) / 255, label=network.classes[index])
    figure.legend(loc="outside lower center", ncols=len(named), fontsize=9, frameon=False)
    drawing.write_figure(path, figure, dpi=100)


def photograph_page(title: str, network: evaluation.TrainedNetwork, pixels: np.ndarray, path: Path) -> None:
    """Take a screenshot of ccnet-app in Chromium, with the attention of a point."""
    from playwright.sync_api import sync_playwright

    browser = shutil.which("chromium") or shutil.which("google-chrome")
    viewer = app.Viewer({Path(title).name: network})
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as started:
        photo = Path(folder) / "street.png"
        Image.fromarray(pixels).save(photo)
        with app.serving(viewer, host="127.0.0.1", port=7860, max_upload_mb=30) as served:
            window = started.chromium.launch(executable_path=browser, args=["--no-sandbox"])
            page = window.new_page(viewport={"width": 1100, "height": 700})
            page.goto(served.local_url)
            page.set_input_files("#photo input[type=file]", photo)
            page.wait_for_selector("#overlay-0 img")
            page.wait_for_timeout(1000)
            box = page.locator("#overlay-0 img").bounding_box()
            assert box is not None
            page.mouse.click(box["x"] + POINT[1] * box["width"], box["y"] + POINT[0] * box["height"])
            page.wait_for_selector("#attention-0-3 img")
            page.wait_for_timeout(1000)
            page.screenshot(path=path, full_page=True)
            window.close()
    with Image.open(path) as taken:
        _save(np.asarray(taken.convert("RGB")), path)


def _save(pixels: np.ndarray, path: Path) -> None:
    """Write a PNG of at most 256 colours, which is a third of the size and looks the same in a browser."""
    Image.fromarray(pixels).quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    print(path)


if __name__ == "__main__":
    main()
