"""The page of ccnet-app in a real browser, which can reach nothing but the server."""

import io
import logging
import os
import shutil

import numpy as np
import pytest
from conftest import free_port
from PIL import Image
from stand_in import stand_in

from ccnet.engine import app
from ccnet.engine.prediction import TrainedNetwork

playwright = pytest.importorskip("playwright.sync_api", reason="pip install 'ccnet-segmentation[dev]'")

pytestmark = pytest.mark.slow

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"
PATIENCE_MS = 300_000


@pytest.fixture(scope="module")
def viewer():
    networks = {model: TrainedNetwork(stand_in(model), device="cpu") for model in ("ccnet", "fcn")}
    return app.Viewer(networks, max_megapixels=0.3)


@pytest.fixture(scope="module")
def server(viewer):
    pytest.importorskip("gradio", reason="pip install 'ccnet-segmentation[app]'")  # takes seconds, so not at collection
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "")  # restored afterwards
        patch.setenv("GRADIO_TEMP_DIR", "")
        with app.serving(viewer, host="127.0.0.1", port=free_port(), max_upload_mb=1) as page:
            yield page.local_url


@pytest.fixture(scope="module")
def browser():
    if BROWSER is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with playwright.sync_playwright() as started:
        made = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu", OFFLINE])
        yield made
        made.close()


@pytest.fixture
def page(server, browser):
    """Open the page in a new window; fail if it asks for anything from elsewhere."""
    window = browser.new_page(viewport={"width": 1300, "height": 900})
    window.set_default_timeout(PATIENCE_MS)
    asked, errors = [], []
    window.on("request", lambda request: asked.append(request.url))
    window.on("pageerror", lambda error: errors.append(str(error)))
    window.goto(server)
    window.wait_for_selector("#photo input[type=file]", state="attached")
    yield window
    window.close()
    assert [url for url in asked if not url.startswith((server, "data:", "blob:"))] == []
    assert errors == []


@pytest.fixture
def photo(tmp_path):
    Image.fromarray(app.street_scene(0, size=(90, 120))[0]).save(tmp_path / "street.png")
    return tmp_path / "street.png"


def test_requests_are_not_logged(server, caplog):
    """At the level of commands, INFO, httpx would also log the requests of Gradio to its own server."""
    httpx = pytest.importorskip("httpx")
    with caplog.at_level(logging.INFO):
        assert httpx.get(server).status_code == 200
    assert [record.getMessage() for record in caplog.records if record.name == "httpx"] == []


def test_a_port_in_use_is_named_with_the_option_that_changes_it(server, viewer, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", os.environ["GRADIO_TEMP_DIR"])  # restored afterwards: the server uses it
    port = int(server.rstrip("/").rpartition(":")[2])
    message = f"^host=127.0.0.1 port={port} cannot be used: the port is taken.*Set another port; port=null"
    with pytest.raises(OSError, match=message), app.serving(viewer, host="127.0.0.1", port=port, max_upload_mb=1):
        pass


def upload(page, path):
    page.set_input_files("#photo input[type=file]", path)


def picture(page, name):
    """Return the pixels of an image on the page."""
    address = page.locator(f"#{name} img").get_attribute("src")
    return np.array(Image.open(io.BytesIO(page.request.get(address).body())).convert("RGB"))


def test_an_upload_shows_overlays_legends_files_and_attention(page, photo, viewer):
    upload(page, photo)
    page.wait_for_selector("#overlay-1 img")
    answer = viewer.answer(photo)
    for index in range(2):
        assert np.array_equal(picture(page, f"overlay-{index}"), viewer.overlay(answer, index, 0.55))
        named = page.locator(f"#legend-{index} .name").all_inner_texts()
        assert len(named) == len(np.unique(answer.labels[index])) and set(named) <= set(viewer.networks[0].classes)

    with page.expect_download() as started:
        page.click("#mask-0")
    assert started.value.suggested_filename == "street.png"
    assert np.array_equal(np.array(Image.open(started.value.path())), answer.labels[0])

    image = page.locator("#overlay-0 img")
    box = image.bounding_box()
    image.click(position={"x": 0.75 * box["width"], "y": 0.25 * box["height"]})
    page.wait_for_selector("#attention-0-3 img")
    for loop in (1, 2, 3):
        assert f"R = {loop}: " in page.locator(f"#attention-0-{loop}").inner_text()
        marked = (picture(page, f"attention-0-{loop}") == (0, 230, 118)).all(axis=2)
        assert np.abs(np.argwhere(marked).mean(axis=0) - (22.5, 90)).max() <= 2
    assert page.get_by_text("Attention is only shown for networks with one criss-cross module").is_visible()  # fcn

    before = page.locator("#overlay-0 img").get_attribute("src")
    page.fill("#opacity input[type=number]", "0")
    page.keyboard.press("Tab")
    page.wait_for_function("before => document.querySelector('#overlay-0 img').src != before", arg=before)
    assert np.array_equal(picture(page, "overlay-0"), viewer.overlay(answer, 0, 0.0))


def test_an_example_can_be_chosen(page):
    page.locator("img[src*='street_2']").click()
    page.wait_for_selector("#overlay-0 img")
    assert page.locator("#legend-0 li").count() > 0


def test_a_broken_file_gives_a_message(page, photo, tmp_path):
    upload(page, photo)
    page.wait_for_selector("#overlay-0 img")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    upload(page, tmp_path / "broken.jpg")
    page.get_by_text("broken.jpg cannot be read as an image").first.wait_for()
    page.wait_for_selector("#overlay-0 img", state="detached")  # that of the image before
    assert page.locator("#mask-0").is_disabled()


def test_a_large_image_gives_a_message(page, tmp_path):
    Image.new("RGB", (800, 600)).save(tmp_path / "large.png")
    upload(page, tmp_path / "large.png")
    page.get_by_text("large.png has 800 x 600 pixels").first.wait_for()


def test_a_large_file_gives_a_message(page, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (500, 700, 3), dtype=np.uint8)).save(
        tmp_path / "noise.png"
    )
    upload(page, tmp_path / "noise.png")
    page.get_by_text("maximum").first.wait_for()
