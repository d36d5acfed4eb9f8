"""Long runs: signals, damaged checkpoints, NaN losses, unreadable images, full disks."""

import os
import resource
import shutil
import signal
from contextlib import nullcontext

import pytest
import torch
from conftest import at_call, composed

from ccnet import train as training
from ccnet.data.sets.folder import Folder
from ccnet.data.training_samples import Seeded
from ccnet.engine import checkpoints
from ccnet.engine.evaluation.protocols import Whole
from ccnet.engine.evaluation.segmentation import predict
from ccnet.engine.evaluation.tasks.semantic import Semantic
from ccnet.engine.resuming import find_start, fingerprint
from ccnet.engine.runtime import stop_signals as stopping
from ccnet.engine.training.steps import torch_step
from ccnet.engine.training.steps.torch_step import train_step

pytestmark = pytest.mark.slow


def start(config, folder):
    """Return where a run would start."""
    with find_start(config, folder) as found:
        return found


def same_weights(one, two):
    one, two = (checkpoints.load(folder / "last.pt") for folder in (one, two))
    assert (one.iteration, repr(one.scores)) == (two.iteration, repr(two.scores))
    return all(torch.equal(values, two.weights[name]) for name, values in one.weights.items())


@pytest.mark.parametrize(
    ("number", "during", "iteration"),
    [(signal.SIGTERM, "train_step", 3), (signal.SIGINT, "evaluate", 2), (signal.SIGTERM, "evaluate", 2)],
)
def test_a_signal_saves_the_run_and_resume_auto_continues_it(
    whole, tmp_path, monkeypatch, capsys, number, during, iteration
):
    def kill():
        os.kill(os.getpid(), number)

    folder = tmp_path / "runs" / "cut"
    folder.mkdir(parents=True)
    before = signal.getsignal(signal.SIGINT)
    place = torch_step if during == "train_step" else Semantic
    with monkeypatch.context() as patched:
        killed = at_call(3 if during == "train_step" else 1, kill, getattr(place, during))
        patched.setattr(place, during, staticmethod(killed))
        with pytest.raises(SystemExit) as ended:
            training.train(composed(), folder)
    assert ended.value.code == stopping.EXIT_CODE == 75
    assert f"stopped after iteration {iteration}, continue with resume={folder}" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is before
    found, saved = start(composed("resume=auto", "num_workers=3"), tmp_path / "runs" / "new")
    assert (found, saved.iteration) == (folder, iteration)
    training.train(composed(), folder, saved)
    assert same_weights(whole, folder)
    assert (folder / "val.csv").read_text().count("\n") == 3  # the validation that was lost has been repeated


def test_resume_auto_reports_which_checkpoints_it_skipped_and_why(whole, tmp_path, capsys):
    for name in ("a", "b"):
        shutil.copytree(whole, tmp_path / name)
    (tmp_path / "b" / "last.pt").write_bytes((whole / "last.pt").read_bytes()[:5000])
    flipped = bytearray((whole / "previous.pt").read_bytes())
    flipped[len(flipped) // 2] ^= 1
    (tmp_path / "b" / "previous.pt").write_bytes(flipped)
    (tmp_path / "a" / "last.pt").unlink()
    found, saved = start(composed("resume=auto"), tmp_path / "new")
    assert (found, saved.iteration) == (tmp_path / "a", 2)
    said = capsys.readouterr().out
    assert f"skipped {tmp_path}/b/last.pt: " in said
    assert f"resume=auto: {tmp_path}/a/previous.pt, iteration 2" in said
    shutil.rmtree(tmp_path / "a")
    found, saved = start(composed("resume=auto"), tmp_path / "new")
    said = capsys.readouterr().out
    assert (found, saved) == (tmp_path / "new", None)
    assert f"skipped {tmp_path}/b/previous.pt: " in said
    assert "its content does not match its checksum" in said
    shutil.copytree(whole, tmp_path / "a")
    found, saved = start(composed("resume=auto", "recipe.lr=0.5"), tmp_path / "new")
    assert (found, saved) == (tmp_path / "new", None)
    said = capsys.readouterr().out
    assert "skipped 2 of other configurations: starting a new run" in said
    assert "/a at iteration 4, has recipe.lr=0.003 instead of 0.5" in said
    with pytest.raises(ValueError, match="has no readable checkpoint"):
        start(composed(f"resume={tmp_path / 'b'}"), tmp_path / "new")
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        start(composed(f"resume={tmp_path / 'c'}"), tmp_path / "new")


def test_the_fingerprint_ignores_how_a_run_is_executed():
    own = fingerprint(composed(), {"training data": "a"})
    assert own == fingerprint(composed("num_workers=4", "log_every=7", "resume=auto"), {"training data": "a"})
    assert own == fingerprint(composed("recipe.max_iters=9"), {"training data": "a"})
    assert own != fingerprint(composed("seed=1"), {"training data": "a"})
    assert own != fingerprint(composed(), {"training data": "b"})


@pytest.mark.parametrize("name", ["last.pt", "best.safetensors"])
def test_a_flipped_bit_in_the_tensors_is_detected(whole, tmp_path, name):
    content = (whole / name).read_bytes()
    for part in range(1, 8):
        damaged = bytearray(content)
        damaged[len(content) * part // 8] ^= 16
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(ValueError, match=name):
            checkpoints.load(tmp_path / name)


def test_a_full_disk_keeps_the_earlier_checkpoint(whole, tmp_path):
    """A file size limit simulates a full disk."""
    folder = shutil.copytree(whole, tmp_path / "run")
    saved = checkpoints.load(folder / "last.pt")
    names = sorted(path.name for path in folder.iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        for name in ("last.pt", "best.safetensors"):
            with pytest.raises(OSError, match=f"{name}|File too large"):
                checkpoints.save(saved, folder / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(path.name for path in folder.iterdir()) == names
    assert (folder / "last.pt").read_bytes() == (whole / "last.pt").read_bytes()


def nan_at(number):
    """Return a training step whose images contain a NaN in the `number`-th call."""
    calls = []

    def step(task, model, criterion, optimizer, images, labels, **named):
        calls.append(1)
        if len(calls) == number:
            images = images * float("nan")
        return train_step(task, model, criterion, optimizer, images, labels, **named)

    return step


def test_a_nan_loss_stops_the_run_and_names_the_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_step, "train_step", nan_at(3))
    with pytest.raises(ValueError) as raised:
        training.train(composed(), tmp_path)
    message = str(raised.value)
    assert message.startswith("iteration 3: the loss is nan (main nan, aux nan, grad_norm nan): lower recipe.lr")
    order = [index for index in range(8) if f"beacons_train_0000{index}" in message]
    assert len(order) == 2
    assert checkpoints.load(tmp_path / "last.pt").iteration == 2


def test_a_nan_loss_is_detected_before_a_checkpoint_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_step, "train_step", nan_at(2))
    with pytest.raises(ValueError, match="iteration 2: the loss is nan"):
        training.train(composed("recipe.val_every=4", "save_every=3", "log_every=100"), tmp_path)
    assert not (tmp_path / "last.pt").exists()


def test_last_and_previous_checkpoints_are_from_different_iterations(whole, tmp_path):
    saved = {name: checkpoints.load(whole / f"{name}.pt") for name in ("last", "previous")}
    assert [saved[name].iteration for name in ("last", "previous")] == [4, 2]
    folder = shutil.copytree(whole, tmp_path / "run")
    (folder / "last.pt").write_bytes(b"damaged")
    _, begun = start(composed("resume=auto"), tmp_path / "new")
    training.train(composed(), folder, begun)
    assert same_weights(whole, folder)
    assert checkpoints.load(folder / "previous.pt").iteration == 2  # not the damaged one


def test_skip_nonfinite_allows_that_many_steps(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch_step, "train_step", nan_at(3))
    training.train(composed("skip_nonfinite=1"), tmp_path)
    saved = checkpoints.load(tmp_path / "last.pt")
    assert (saved.iteration, saved.training["skipped"]) == (4, 1)
    assert all(values.isfinite().all() for values in saved.weights.values())  # batch norm's statistics are among them
    assert "0 unreadable images, 1 steps that were not finite" in capsys.readouterr().out


def test_an_unreadable_image_is_named_and_skipped_if_allowed(folder_data):
    images, masks = folder_data
    dataset = Folder(images, masks, classes=3, split="all", val_share=0.5, transform=lambda *sample: sample)
    whole = Seeded(dataset, 0)
    path = images / "2.jpg"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"2.jpg cannot be read as an image and may be truncated"):
        Seeded(dataset, 0)[9, 2]
    tolerant = Seeded(dataset, 0, skip_broken=1)
    for warned in (pytest.warns(UserWarning, match=r"skipping image 2 \(1 of at most 1\): .*2.jpg"), nullcontext()):
        with warned:
            sample = tolerant[9, 2]
        assert torch.equal(sample[0], whole[9, 3][0])
    (images / "4.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"4.jpg does not exist"):
        tolerant[3, 4]


class Greedy(torch.nn.Module):
    def forward(self, images):
        return {"out": images.new_empty(2**57)}


def test_an_out_of_memory_error_says_what_to_reduce():
    images, labels = torch.rand(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    with pytest.raises(MemoryError, match=r"reduce recipe\.batch_size or .*crop_size, .* accumulate=2, .* bf16=true"):
        train_step(Semantic(), Greedy(), torch.nn.Identity(), optimizer, images, labels)
    with pytest.raises(MemoryError, match=r"an image of 4x4 pixels needs more memory .*: set protocol=slide"):
        predict(Greedy(), images, Whole())
