"""Networks in Python: trained on two folders, loaded from the run, and asked for a single image."""

import numpy as np
import pytest
import torch
from conftest import TINY, write_pair
from PIL import Image

import ccnet
from ccnet.engine.checkpoints import load as load_checkpoint
from ccnet.engine.drawing import blend
from ccnet.engine.prediction.trained_network import TrainedNetwork
from ccnet.engine.runtime import FolderTaken
from ccnet.train import run

SMALL = [
    "recipe.max_iters=1", "recipe.batch_size=2", "backbone=resnet10t", "backbone.pretrained=false",
    "recipe.head.channels=16", "recipe.train_transform.crop_size=[33,33]", "num_workers=0", "logger=none",
    "device=cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the folder of a run that Python has started, and its images."""
    root = tmp_path_factory.mktemp("own")
    for index in range(4):
        write_pair(root / "images" / f"{index}.png", root / "masks" / f"{index}.png", classes=3, seed=index)
    data = [f"dataset.images={root / 'images'}", f"dataset.masks={root / 'masks'}", "dataset.classes=[road,car,sky]"]
    score = run("dataset=folder", *data, *SMALL, folder=root / "run")
    assert score is not None and 0 <= score <= 1
    return root / "run", root / "images"


def test_a_network_knows_its_classes_and_predicts_a_file_an_array_and_an_image(trained):
    folder, images = trained
    network = ccnet.load(folder, device="cpu")
    assert network.classes == ["road", "car", "sky"]
    best = folder / "best.safetensors"
    assert repr(network) == f"TrainedNetwork(source={best}, classes=['road', 'car', 'sky'], device=cpu)"
    assert network.palette == load_checkpoint(folder / "best.safetensors").palette
    pixels = np.array(Image.open(images / "0.png"))
    labels, probabilities, overlay = found = network.predict(images / "0.png")
    with torch.inference_mode():
        logits = network(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)["out"][0]
    assert np.array_equal(labels, logits.argmax(dim=0).numpy()) and labels.dtype == np.uint8
    assert np.allclose(probabilities, logits.softmax(dim=0).numpy(), atol=1e-6)
    assert np.array_equal(overlay, blend(pixels, labels, network.palette))
    for same in (str(images / "0.png"), pixels, Image.fromarray(pixels), Image.fromarray(pixels).convert("RGBA")):
        assert all(np.array_equal(one, two) for one, two in zip(network.predict(same), found, strict=True))
    grey = network.predict(pixels[..., 0])
    assert np.array_equal(grey.labels, network.predict(np.repeat(pixels[..., :1], 3, axis=2)).labels)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (
            np.zeros((4, 4, 3)),
            r"this array has values of type float64 .*: train with those of black and white, dataset",
        ),
        (
            np.zeros((4, 4, 2), dtype=np.uint8),
            r"this array has the shape \(4, 4, 2\): expected \(H, W, 3\), \(H, W\) or",
        ),
        (Image.new("I", (4, 4), 70_000), r"this image has mode I, 32-bit whole numbers \(here from 70000 to 70000\)"),
        (7, "got int"),
    ],
)
def test_other_inputs_are_refused(trained, image, message):
    with pytest.raises(ValueError, match=message):
        ccnet.load(trained[0], device="cpu").predict(image)


def test_options_of_published_checkpoints_are_refused_for_a_run(trained):
    """Its configuration determines them: with recurrence=1, a network of R = 2 would have been returned."""
    for load in (ccnet.load, ccnet.from_pretrained):
        with pytest.raises(ValueError, match=r"^recurrence would have no effect, because .*best.safetensors is not a"):
            load(trained[0], device="cpu", recurrence=1)
    assert ccnet.from_pretrained(trained[0], device="cpu", revision="main").classes == ["road", "car", "sky"]


def test_options_from_python_are_checked_like_those_of_the_command_line(trained):
    with pytest.raises(ValueError, match=r"a resumed run keeps its own configuration: remove recipe.lr=0.5"):
        run(f"resume={trained[0]}", "recipe.lr=0.5", folder=trained[0])
    with pytest.raises(FolderTaken, match="already holds a run"):
        run(*TINY, folder=trained[0])


def test_a_network_in_training_predicts_in_eval_mode(trained):
    folder, images = trained
    network = ccnet.load(folder, device="cpu")
    expected = network.predict(images / "0.png").probabilities
    network.module.train()
    network.module.backbone.eval()
    before = {key: tensor.clone() for key, tensor in network.module.state_dict().items()}
    assert np.array_equal(network.predict(images / "0.png").probabilities, expected)
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.module.state_dict().items())
    assert network.module.training and network.module.head.training and not network.module.backbone.net.training


def test_a_network_with_another_classifier_needs_its_classes_and_is_not_saved(trained, tmp_path):
    folder, images = trained
    network = ccnet.load(folder, device="cpu")
    network.save_pretrained(tmp_path / "same")
    network.module.head.classify = torch.nn.Conv2d(network.module.head.classify.in_channels, 2, kernel_size=1)
    with pytest.raises(ValueError, match="returns 2 classes, but has 3 names: set the attributes classes and palette"):
        network.predict(images / "0.png")
    network.classes, network.palette = ["a", "b"], [[0, 0, 0], [9, 9, 9]]
    assert network.predict(images / "0.png").probabilities.shape[0] == 2
    with pytest.raises(ValueError, match=r"config\.json .*head\.classify\.bias was changed .*: save module"):
        network.save_pretrained(tmp_path / "other")
    assert not (tmp_path / "other" / "config.json").exists()


def test_a_network_with_another_recurrence_is_not_saved(trained, tmp_path):
    """The configuration, and so a network loaded from the folder, would have the R of the run."""
    network = ccnet.load(trained[0], device="cpu")
    network.module.head.recurrence += 1
    with pytest.raises(ValueError, match=r"head\.recurrence was changed after it was loaded: save module"):
        network.save_pretrained(tmp_path / "other")
    network.module.head.recurrence -= 1
    network.save_pretrained(tmp_path / "other")


@pytest.mark.slow
def test_a_detection_network_returns_objects():
    made = ccnet.create_model("mask_rcnn", num_classes=2, backbone="resnet10t", channels=16, frozen=False)
    made.roi_heads.score_thresh = 0.0
    network = TrainedNetwork.__new__(TrainedNetwork)
    network.module, network.device, network.classes = made.eval(), torch.device("cpu"), ["road", "car"]
    network.value_range = network._predictor = network._rgb = None
    network.channels = 3
    image = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    found = network.predict(image)
    assert len(found.labels) == len(found.scores) == len(found.boxes) == len(found.masks) > 0
    assert found.masks.shape[1:] == (40, 50) and found.masks.dtype == bool
    assert set(found.labels.tolist()) <= {0, 1} and found.overlay.shape == image.shape
