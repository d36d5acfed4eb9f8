"""Make the images of docs/quickstart.md: ``python docs/make_images.py RUN``, with the run that it trains.

Everything in them is drawn by the program, so no data set's licence applies.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from ccnet.data.sets.colours import class_colours
from ccnet.engine import app, drawing, prediction
from ccnet.engine.app.street_scene import CLASSES, street_scene

IMAGES = Path(__file__).resolve().parent / "images"
POINT = (0.80, 0.30)  # (y, x) as fractions of the image: on the road


def main() -> None:
    """Draw the data, copy the predictions of the run and photograph the page with its network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="the run of docs/quickstart.md")
    run = parser.parse_args().run
    draw_streets(IMAGES / "streets.png")
    copy_predictions(run, IMAGES / "own_network.png")
    photograph_page(run, IMAGES / "app.png")


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


def photograph_page(run: Path, path: Path) -> None:
    """Take a screenshot of ccnet-app in Chromium, with the attention of a point."""
    from playwright.sync_api import sync_playwright

    browser = shutil.which("chromium") or shutil.which("google-chrome")
    viewer, pixels = app.Viewer({run.name: prediction.load(run, device="cpu")}), street_scene(2)[0]
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
    Image.fromarray(pixels).save(path, optimize=True)
    print(path)


if __name__ == "__main__":
    main()
