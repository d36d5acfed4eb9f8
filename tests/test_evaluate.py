"""Evaluation: against scikit-learn, in two processes, of clips, within its memory; and what predict.py draws."""

import json
import os
import socket
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY
from hydra import compose, initialize_config_dir
from PIL import Image
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ccnet import train as training
from ccnet.engine.drawing import open_video
from ccnet.engine.evaluation.attention_maps import attention_of_point
from ccnet.engine.evaluation.confusion import ConfusionMatrix
from ccnet.engine.evaluation.prediction_files import PredictionFiles
from ccnet.engine.evaluation.protocols import MultiScale, Slide, Whole
from ccnet.kernels import criss_cross_weights
from ccnet.losses.ohem import ohem_cross_entropy
from ccnet.models import create_model


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run, whose validation set has five images."""
    folder = tmp_path_factory.mktemp("run")
    with initialize_config_dir(config_dir=str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", overrides=[*TINY, "recipe.max_iters=2", "dataset.val.length=5"])
    training.train(config, folder)
    return folder


def test_scores_agree_with_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    prediction, labels = torch.randint(0, 7, (4, 30, 20)), torch.randint(0, 7, (4, 30, 20))
    labels[torch.rand(labels.shape) < 0.2] = 255
    matrix = ConfusionMatrix(7)
    for one, truth in zip(prediction, labels, strict=True):
        matrix.update(one, truth)
    true, guessed = labels[labels != 255].numpy(), prediction[labels != 255].numpy()
    scores = matrix.scores()
    assert np.array_equal(matrix.counts, metrics.confusion_matrix(true, guessed, labels=range(7)))
    assert scores.class_iou == pytest.approx(metrics.jaccard_score(true, guessed, average=None))
    assert scores.miou == pytest.approx(metrics.jaccard_score(true, guessed, average="macro"))
    assert scores.pixel_accuracy == pytest.approx(metrics.accuracy_score(true, guessed))
    assert scores.mean_accuracy == pytest.approx(metrics.balanced_accuracy_score(true, guessed))


def test_two_processes_give_the_figures_of_one_to_the_last_digit(finished, tmp_path, run_entry, monkeypatch):
    """Five images, which two processes cannot share evenly."""
    command = (f"checkpoint={finished / 'best'}", "device=cpu", "num_workers=0", "save_predictions=true")
    run_entry("evaluate.py", *command, f"output={tmp_path / 'one'}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # as torchrun sets them
    command = (*command, f"output={tmp_path / 'two'}")
    other = subprocess.Popen(
        [sys.executable, "evaluate.py", *command],
        cwd=ROOT, env=os.environ | shared | {"RANK": "1", "LOCAL_RANK": "1"}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    for name, value in (shared | {"RANK": "0", "LOCAL_RANK": "0"}).items():
        monkeypatch.setenv(name, value)
    done = run_entry("evaluate.py", *command)
    assert other.communicate()[0] == ""  # the first process alone reports
    assert other.returncode == 0
    assert done.stdout.count("mIoU") == 1
    one, two = (json.loads((tmp_path / part / "best_val_whole.json").read_text()) for part in ("one", "two"))
    for scores in (one, two):
        scores.pop("images_per_s")
    assert one == two
    assert one["images"] == 5
    counts = [(tmp_path / part / "best_val_whole_confusion.csv").read_text() for part in ("one", "two")]
    assert counts[0] == counts[1]
    assert sum(int(cell) for line in counts[0].splitlines()[1:] for cell in line.split(",")[1:]) == 5 * 65 * 65
    for mask in sorted((tmp_path / "one" / "best_val_whole_predictions").iterdir()):
        other = tmp_path / "two" / "best_val_whole_predictions" / mask.name
        assert mask.read_bytes() == other.read_bytes()


class Pointwise(nn.Module):
    """A network that sees one pixel of one frame at a time."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.4))
        self.weight = nn.Parameter(torch.randn(5, 3))

    def forward(self, image):
        return {"out": torch.einsum("kc,nc...->nk...", self.weight, image)}


@torch.no_grad()
def test_protocols_treat_the_frames_of_a_clip_as_they_treat_images():
    model, clip = Pointwise(), torch.rand(1, 3, 4, 20, 30)
    frames = clip[0].transpose(0, 1)
    for protocol in (Slide((16, 24)), Slide((40, 50)), MultiScale(Slide((16, 24)), scales=[0.5, 1.5])):
        got = protocol(model, clip)
        assert torch.allclose(got[0].transpose(0, 1), protocol(model, frames), atol=1e-5)


class Live(TorchDispatchMode):
    """The most bytes that tensors made under it held at one time."""

    def __init__(self):
        super().__init__()
        self.held, self.peak, self.known = 0, 0, set()

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        result = function(*arguments, **(named or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and (key := leaf.untyped_storage().data_ptr()) not in self.known:
                self.known.add(key)
                self.held += (size := leaf.untyped_storage().nbytes())
                weakref.finalize(leaf.untyped_storage(), self._freed, key, size)
        self.peak = max(self.peak, self.held)
        return result

    def _freed(self, key, size):
        self.known.discard(key)
        self.held -= size


@torch.inference_mode()
def test_memory_does_not_grow_with_the_number_of_scales():
    model, image = Pointwise(), torch.rand(1, 3, 128, 256)
    a_map = 5 * 128 * 256 * 4

    def peak(scales, protocol):
        with Live() as live:
            MultiScale(protocol, scales=scales)(model, image)
        return live.peak

    for protocol in (Whole(), Slide((96, 96))):
        largest, six = peak([1.75], protocol), peak([1.75, 0.5, 0.75, 1.0, 1.25, 1.5], protocol)
        assert a_map < largest
        assert six <= largest + 2 * a_map


def test_ohem_of_clips_is_that_of_their_frames():
    logits, labels = torch.randn(2, 4, 3, 17, 25), torch.randint(0, 4, (2, 3, 17, 25))
    labels[:, :2] = 255
    options = {"threshold": 0.3, "min_kept": 64}
    frames = ohem_cross_entropy(logits.transpose(1, 2).reshape(6, 4, 17, 25), labels.view(6, 17, 25), **options)
    assert torch.equal(ohem_cross_entropy(logits, labels, **options), frames)
    assert not torch.equal(frames, ohem_cross_entropy(logits, labels, threshold=1.0))


@pytest.fixture(scope="module")
def ccnet():
    torch.manual_seed(0)
    options = {"head__channels": 16, "head__context__gamma": "fixed"}
    return create_model("ccnet", num_classes=5, backbone="resnet10t", **options).eval()


def test_attention_maps_are_rows_of_the_loops_attention_matrices(ccnet):
    image = torch.rand(1, 3, 41, 57)
    maps = attention_of_point(ccnet, image, (16, 33))
    module, seen = ccnet.head.context, []
    handle = module.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        ccnet(image)
        handle.remove()
        features, product, wants = seen[0], None, []
        for _ in range(3):
            query, key = module.query_conv(features), module.key_conv(features)
            height, width = features.shape[-2:]
            matrix = torch.stack(
                [criss_cross_weights(query, key, (y, x))[0].flatten() for y in range(height) for x in range(width)]
            )
            product = matrix if product is None else matrix @ product
            features = module(features)
            row = round(16 / 40 * (height - 1)) * width + round(33 / 56 * (width - 1))
            wants.append(product[row].view(height, width))
    for got, want in zip(maps, wants, strict=True):
        assert torch.allclose(got, want, atol=1e-6)
        assert got.sum() == pytest.approx(1, abs=1e-5)
    y, x = np.unravel_index(row, maps[0].shape)
    cross = torch.zeros_like(maps[0], dtype=torch.bool)
    cross[y], cross[:, x] = True, True
    assert torch.equal(maps[0] > 0, cross)  # R = 1 sees its row and column
    assert (maps[1] > 0).all()  # R = 2 the whole image


def test_attention_of_a_network_or_a_point_that_has_none(ccnet):
    image = torch.rand(1, 3, 41, 57)
    for point in ((41, 3), (-1, 3), (3,)):
        with pytest.raises(ValueError, match=r"is outside the picture: give \[y,x\] within 41x57 pixels"):
            attention_of_point(ccnet, image, point)
    other = create_model("fcn", num_classes=5, backbone="resnet10t", head__channels=16).eval()
    with pytest.raises(ValueError, match="has no criss-cross attention"):
        attention_of_point(other, image, (1, 1))


def test_predict_draws_attention_comparison_and_video(finished, tmp_path, run_entry):
    frames, truths = tmp_path / "frames", tmp_path / "truths"
    for folder in (frames, truths):
        folder.mkdir()
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 255, (41, 57, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(frames / f"{index}.png")
        Image.fromarray(pixels[..., 0] % 4).save(truths / f"{index}.png")
    checkpoints = f"checkpoint=[{finished / 'best'},{finished / 'last'}]"
    options = (f"input={frames}", f"labels={truths}", "video=out.gif", "attention=[20,30]", "device=cpu")
    run_entry("predict.py", checkpoints, *options, f"output={tmp_path / 'out'}")
    for name in ("0_attention.png", "2_overlay.png", "comparison.png"):
        assert np.array(Image.open(tmp_path / "out" / name)).std() > 10
    with Image.open(tmp_path / "out" / "out.gif") as video:
        assert (video.n_frames, video.size) == (3, (57, 41))


def test_an_mp4_holds_every_frame_in_order(tmp_path):
    av = pytest.importorskip("av")
    frames = [np.full((41, 57, 3), 60 * number, dtype=np.uint8) for number in range(4)]
    with open_video(tmp_path / "out.mp4", fps=15) as made:
        for frame in frames:
            made.add(frame)
    with av.open(str(tmp_path / "out.mp4")) as video:
        found = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert [frame.shape for frame in found] == [(40, 56, 3)] * 4  # H.264 has even sides
    assert [round(frame.mean() / 60) for frame in found] == [0, 1, 2, 3]


def test_mistakes_in_predict_leave_nothing_behind(finished, tmp_path, run_entry):
    picture = tmp_path / "one.png"
    Image.new("RGB", (57, 41)).save(picture)
    for option, message in (
        ("video=out.avi", r"video=out.avi ends in '.avi': choose one of .gif, .mp4"),
        ("labels=nowhere", "nowhere/one.png does not exist"),
    ):
        done = run_entry(
            "predict.py", f"checkpoint={finished / 'best'}", f"input={picture}", "device=cpu", option, ok=False
        )  # fmt: skip
        assert message in done.stderr
        assert not (tmp_path / "predictions").exists()


def test_pictures_of_one_name_are_refused_for_saving(tmp_path):
    class Twice:
        palette, result_values = ((0, 0, 0),), (0,)

        def __len__(self):
            return 2

        def name(self, index):
            return "same"

    with pytest.raises(ValueError, match="such as 'same'"):
        PredictionFiles(tmp_path / "masks", Twice())
    assert not (tmp_path / "masks").exists()
