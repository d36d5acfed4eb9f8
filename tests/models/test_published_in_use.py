"""Published files in the project's own format, in evaluate.py and predict.py, and as the start of training."""

import json
from unittest.mock import Mock

import pytest
import torch
from conftest import write_pair
from PIL import Image
from published_networks import (  # noqa: F401, fixtures
    PUBLISHED,
    TOLERANCE,
    authors_logits,
    difference,
    mmseg_logits,
    random_states,
    written_files,
)
from published_states import HEAD
from safetensors.torch import save_file

import ccnet
from ccnet.engine import checkpoints
from ccnet.engine.checkpoints import reading
from ccnet.models.published import importing

pytestmark = pytest.mark.slow


def test_an_imported_network_can_be_saved_in_the_projects_format(states, tmp_path):
    """Class names and colours in the file are kept; safetensors in a published layout are accepted as well."""
    save_file(states["fcn"], tmp_path / "published.safetensors")
    assert checkpoints.load(tmp_path / "published.safetensors").classes == ["class 0", "class 1", "class 2"]
    (tmp_path / "published.safetensors").unlink()
    meta = {"CLASSES": ("road", "car", "sky"), "PALETTE": [[1, 2, 3], [4, 5, 6], [7, 8, 9]], "iter": 40000}
    found = reading.from_published(importing.convert({"state_dict": states["fcn"], "meta": meta}, PUBLISHED))
    own = tmp_path / "own.safetensors"
    checkpoints.save(found, own)
    saved = checkpoints.load(own)
    own.unlink()
    assert (saved.classes, saved.palette, saved.iteration) == (list(meta["CLASSES"]), meta["PALETTE"], 40000)
    image = torch.rand(1, 3, 33, 41)
    with torch.no_grad():
        want, _ = mmseg_logits(states["fcn"], image, "fcn", align_corners=False)
        assert difference(checkpoints.network(saved)(image)["out"], want) < TOLERANCE


def test_evaluate_and_predict_accept_a_published_file(states, run_entry, written, folder_data, camvid_root, tmp_path):
    path = written(states["authors"], "CS_scenes_60000.pth")
    images, masks = folder_data
    data = ("dataset=folder", f"dataset.images={images}", f"dataset.masks={masks}", "dataset.classes=[a,b,c]")
    options = (f"checkpoint={path}", "device=cpu")
    done = run_entry("evaluate.py", *options, *data, "num_workers=0", "published.recurrence=1", f"output={tmp_path}/s")
    assert f"{path}, on 1 images, whole" in done.stdout
    scores = json.loads((tmp_path / "s" / "CS_scenes_60000_folder_val_whole_recurrence-1.json").read_text())
    settings = {name: value for name, value in scores["settings"].items() if name.startswith("published")}
    assert settings == {"published.recurrence": 1, "published.align_corners": True}
    run_entry("evaluate.py", *options, *data, "num_workers=0", f"output={tmp_path}/s")  # R = 2, in files of their own
    assert (tmp_path / "s" / "CS_scenes_60000_folder_val_whole.csv").is_file()

    picture = sorted(images.iterdir())[0]
    run_entry("predict.py", *options, f"input={picture}", f"output={tmp_path}/p", "published.recurrence=1")
    pixels = torch.frombuffer(bytearray(Image.open(picture).convert("RGB").tobytes()), dtype=torch.uint8)
    image = pixels.view(1, 48, 64, 3).permute(0, 3, 1, 2) / 255
    want = authors_logits(states["authors"], image, recurrence=1)[0].argmax(1)[0]
    mask = torch.frombuffer(bytearray(Image.open(tmp_path / "p" / f"{picture.stem}.png").tobytes()), dtype=torch.uint8)
    assert (mask.view(48, 64) == want).float().mean() > 0.999

    network = ccnet.from_pretrained(path, device="cpu", recurrence=1)  # not ignored, as options of a download are
    assert network.module.head.recurrence == 1
    network.save_pretrained(tmp_path / "folder")
    for checkpoint in (path, tmp_path / "folder"):
        message = run_entry("evaluate.py", f"checkpoint={checkpoint}", "device=cpu", ok=False).stderr
        assert f"{checkpoint} does not name its data set: set dataset=NAME dataset.root=DIR" in message
    (tmp_path / "folder" / "model.safetensors").unlink()
    message = run_entry("evaluate.py", *options, "dataset=camvid", f"dataset.root={camvid_root}", ok=False).stderr
    assert "has 3 classes (class 0, class 1, class 2) but the data set has 11 (Sky," in message


def test_export_takes_the_settings_of_a_published_file(states, run_entry, written, tmp_path, monkeypatch):
    """The error for a file that was trained with another R asks for ``published.recurrence``."""
    exported = Mock(return_value=0.0)
    monkeypatch.setattr(checkpoints, "export_onnx", exported, raising=False)
    path = written({"state_dict": states["ccnet"], "meta": {"config": "recurrence=1"}})
    command = ("export.py", f"checkpoint={path}", f"output={tmp_path / 'net.onnx'}")
    assert "with recurrence=1, not 2: set published.recurrence=1" in run_entry(*command, ok=False).stderr
    run_entry(*command, "published.recurrence=1")
    assert exported.call_args.args[0].head.recurrence == 1


def test_training_can_start_from_a_published_file(states, run_entry, written, tmp_path):
    """The same classes keep the classifier, others get a new one; the run saves checkpoints in the project's format."""
    path = written(states["authors"])
    images, masks = tmp_path / "images", tmp_path / "masks"
    for index in range(3):
        write_pair(images / f"{index}.jpg", masks / f"{index}.png", classes=4, seed=index)
    command = (
        "train.py", f"init={path}", "dataset=folder", f"dataset.images={images}", f"dataset.masks={masks}",
        "dataset.classes=4", "recipe.train_transform.crop_size=[32,32]", "recipe.batch_size=2", "recipe.max_iters=1",
        "recipe.val_every=1", "recipe.lr=1e-6", "logger=none", "num_workers=0", "device=cpu",
        f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    message = run_entry(*command, "model=fcn", ok=False).stderr
    assert f"init={path} already determines the network: remove model=fcn" in message
    run_entry(*command)
    saved = checkpoints.load(tmp_path / "run" / "best.safetensors")
    assert saved.weights["head.classify.weight"].shape == (4, HEAD, 1, 1)
    published = importing.convert(states["authors"], PUBLISHED).network().state_dict()
    for key in ("backbone.net.layer4.2.conv3.weight", "head.context.value_conv.weight", "mean"):
        assert torch.allclose(saved.weights[key], published[key], atol=1e-4)
    assert not torch.equal(saved.weights["head.reduce.0.weight"], published["head.reduce.0.weight"])  # it learns
    for file in (tmp_path / "run").iterdir():
        file.unlink()
