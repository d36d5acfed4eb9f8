"""evaluate.py in two processes, and the files of predict.py."""

import errno
import json
import os
import shutil

import numpy as np
import pytest
from conftest import PATIENCE, ROOT, composed, forked, torchrun_variables
from PIL import Image

from ccnet import train as training
from ccnet.engine import drawing, runtime
from ccnet.engine.evaluation.tasks.semantic import Semantic

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return the folder of a finished run whose validation set has five images."""
    folder = tmp_path_factory.mktemp("run")
    training.train(composed("recipe.max_iters=2", "dataset.val.length=5"), folder)
    return folder


def test_two_processes_get_exactly_the_scores_of_one(finished, tmp_path, run_entry, monkeypatch):
    """Two processes cannot split five images evenly."""
    command = (f"checkpoint={finished / 'best'}", "device=cpu", "num_workers=0", "save_predictions=true")
    run_entry("evaluate.py", *command, f"output={tmp_path / 'one'}")
    another = shutil.copytree(finished, tmp_path / "another") / "best"
    done = run_entry("evaluate.py", f"checkpoint={another}", "device=cpu", f"output={tmp_path / 'one'}", ok=False)
    assert f"one/best_val_whole.json holds the scores of checkpoint={finished / 'best.safetensors'}" in done.stderr
    command = (*command, f"output={tmp_path / 'two'}")
    (tmp_path / "two" / "best_val_whole_predictions").mkdir(parents=True)
    (left := tmp_path / "two" / "best_val_whole_predictions" / "removed.png").touch()
    first, second = torchrun_variables()
    other = forked("evaluate.py", command, output=tmp_path / "printed", cwd=tmp_path, environment=second)
    for name, value in first.items():
        monkeypatch.setenv(name, value)
    done = run_entry("evaluate.py", *command)
    other.join(PATIENCE)
    assert (other.exitcode, (tmp_path / "printed").read_text()) == (0, "")  # only the first process reports
    assert done.stdout.count("mIoU") == 1
    assert f"left by an earlier evaluation of other images: {left}\n" in done.stdout
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


def test_scores_are_printed_even_if_they_cannot_be_written(finished, run_entry, monkeypatch):
    def read_only(path, *arguments):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    before = sorted(finished.iterdir())
    monkeypatch.setattr("pathlib.Path.touch", read_only)
    done = run_entry("evaluate.py", f"checkpoint={finished / 'best'}", "device=cpu", "num_workers=0", ok=False)
    assert done.stdout.count("mIoU ") == 1
    assert f"error: the results cannot be written to {finished}: " in done.stderr
    assert "Set output=FOLDER" in done.stderr
    assert sorted(finished.iterdir()) == before


def test_the_permissions_of_every_file_follow_the_umask(finished, run_entry):
    """The files of a run, and those of an evaluation with another umask."""
    umask = os.umask(0o027)
    try:
        options = ("device=cpu", "num_workers=0", "save_predictions=true", f"output={finished / 'scores'}")
        run_entry("evaluate.py", f"checkpoint={finished / 'best'}", *options)
    finally:
        os.umask(umask)
    for path in finished.rglob("*"):
        if path.is_file():
            mode = 0o666 & ~(0o027 if "scores" in path.parts else umask)
            assert path.stat().st_mode & 0o777 == mode, path


def test_bf16_of_the_command_line_applies_and_is_that_of_the_run_otherwise(finished, tmp_path, run_entry, monkeypatch):
    """The out-of-memory message recommends ``bf16=true``."""
    used = []

    def evaluate(model, dataset, protocol, *, bf16, original=Semantic.evaluate, **options):
        used.append(bf16)
        return original(model, dataset, protocol, bf16=bf16, **options)

    monkeypatch.setattr(Semantic, "evaluate", staticmethod(evaluate))
    # All processes write to the folder of the first one.
    monkeypatch.setattr("ccnet.engine.runtime.from_first", lambda stem: tmp_path / "first" / stem.name)
    for options in ((), ("bf16=true",)):
        run_entry(
            "evaluate.py", f"checkpoint={finished / 'best'}", "device=cpu", "num_workers=0", f"output={tmp_path}",
            *options,
        )  # fmt: skip
    assert used == [False, True]
    assert (tmp_path / "first" / "best_val_whole.json").is_file()


@pytest.mark.parametrize("command", [("evaluate.py",), ("predict.py", f"input={ROOT / 'results'}")])
def test_options_of_published_checkpoints_are_refused_for_a_run(command, finished, run_entry):
    done = run_entry(*command, f"checkpoint={finished / 'best'}", "published.recurrence=1", ok=False)
    assert "published.recurrence would have no effect, because" in done.stderr


def test_predict_draws_attention_comparison_and_video(finished, tmp_path, run_entry, monkeypatch):
    compared = []

    def save(path, rows, *others, original=drawing.save_side_by_side):
        compared.extend(rows)
        return original(path, rows, *others)

    monkeypatch.setattr(drawing, "save_side_by_side", save)
    frames, truths = tmp_path / "frames", tmp_path / "truths"
    for folder in (frames, truths):
        folder.mkdir()
    for index in range(4):
        height = 41 if index < 3 else 16  # the point of attention=[20,30] is outside the last image
        pixels = np.random.default_rng(index).integers(0, 255, (height, 57, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(frames / f"{index}.png")
        Image.fromarray(pixels[..., 0] % 4).save(truths / f"{index}.png")
    checkpoints = f"checkpoint=[{finished / 'best'},{finished / 'last'}]"
    options = (f"input={frames}", f"labels={truths}", "video=out.gif", "attention=[20,30]", "device=cpu")
    done = run_entry("predict.py", checkpoints, *options, f"output={tmp_path / 'out'}", ok=False)
    assert f"1 of 4 images were skipped:\n  {frames}/3.png: attention=[20, 30] is outside the image" in done.stderr
    assert len(compared) == 3
    for index, (shown, truth, predictions) in enumerate(compared):
        assert np.array_equal(shown, Image.open(frames / f"{index}.png"))
        assert np.array_equal(truth, Image.open(truths / f"{index}.png"))
        assert len(predictions) == 2
        assert np.array_equal(predictions[0], Image.open(tmp_path / "out" / f"{index}.png"))
    for name in ("0_attention.png", "2_overlay.png", "comparison.png"):
        assert np.array(Image.open(tmp_path / "out" / name)).std() > 10
    with Image.open(tmp_path / "out" / "out.gif") as video:
        assert (video.n_frames, video.height) == (3, 41)
        assert video.width > 57  # the legend
    again = run_entry("predict.py", checkpoints.split(",")[0] + "]", f"input={frames}", f"output={tmp_path / 'out'}")
    assert f"left by an earlier prediction: {tmp_path / 'out' / '0_attention.png'} and 3 more\n" in again.stdout
    assert "left by an earlier" not in done.stdout


def test_predict_skips_broken_images_and_keeps_the_orientation_of_the_others(finished, tmp_path, run_entry):
    """One run over subfolders with a photo that a camera turned, a broken one, and one in the format of the masks."""
    photos = tmp_path / "photos"
    (photos / "day").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (41, 57, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(photos / "day" / "turned.png", exif=exif)
    Image.fromarray(np.rot90(pixels, -1)).save(photos / "upright.png")
    Image.fromarray(pixels).save(photos / "pages.gif", save_all=True, append_images=[Image.fromarray(255 - pixels)])
    (photos / "day" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    output = tmp_path / "out"
    done = run_entry(
        "predict.py", f"checkpoint={finished}", f"input={photos}", f"output={output}", "probabilities=png",
        "logits=true", "device=cpu", ok=False,
    )  # fmt: skip
    assert f"1 of 5 images were skipped:\n  {photos}/day/broken.jpg cannot be read as an image" in done.stderr
    assert "images: 4" in done.stdout
    assert sorted(path.name for path in output.glob("pages*.png")) == [
        f"pages_000{number}{kind}.png" for number in (1, 2) for kind in ("", "_overlay")
    ]
    turned, upright = (Image.open(output / name) for name in ("day/turned.png", "upright.png"))
    assert (turned.size, turned.getexif()[0x0112], upright.size) == ((57, 41), 6, (41, 57))
    assert np.array_equal(np.array(turned), np.rot90(np.array(upright)))
    with np.load(output / "upright_logits.npz") as file:
        logits, classes = file["logits"].astype(np.float32), file["classes"].tolist()
    assert (logits.argmax(axis=0) == np.array(upright)).mean() > 0.99  # but for ties in half precision
    grey = [np.array(Image.open(path)) for path in sorted((output / "day" / "turned_probabilities").iterdir())]
    want = np.exp(logits - logits.max(axis=0))
    want = np.rot90(255 * want / want.sum(axis=0), axes=(1, 2))
    assert len(grey) == len(classes)
    assert np.abs(np.stack(grey) - want).max() < 1.5
    assert not [path for path in output.rglob(".*")]


def test_interrupting_predict_ends_in_one_message_before_the_first_image_too(tmp_path, run_entry, monkeypatch):
    def interrupted(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr("ccnet.engine.prediction.find_inputs", interrupted)
    done = run_entry("predict.py", "input=photo.jpg", "output=out", ok=False)
    assert done.returncode == "interrupted: the images predicted so far are in out"


def test_only_one_process_writes_predictions_to_a_folder(finished, tmp_path, run_entry):
    Image.new("RGB", (57, 41)).save(tmp_path / "one.png")
    command = ("predict.py", f"checkpoint={finished / 'best'}", f"input={tmp_path / 'one.png'}", "device=cpu")
    output = tmp_path / "out"
    with runtime.FolderLock(output, "output"):
        done = run_entry(*command, f"output={output}", ok=False)
        assert f"error: {output} is in use by process {os.getpid()}" in done.stderr
        assert "or choose another folder with output=DIR" in done.stderr
        assert [path.name for path in output.iterdir()] == ["run.lock"]
    run_entry(*command, f"output={output}")
    assert sorted(path.name for path in output.iterdir()) == ["one.png", "one_overlay.png"]


def test_only_one_process_writes_the_same_scores(finished, tmp_path, run_entry):
    output = tmp_path / "scores"
    command = ("evaluate.py", f"checkpoint={finished / 'best'}", f"output={output}", "device=cpu", "num_workers=0")
    with runtime.FolderLock(output, "output", "best_val_whole"):
        done = run_entry(*command, ok=False)
        assert f"error: {output / 'best_val_whole'} is in use by process {os.getpid()}" in done.stderr
        assert [path.name for path in output.iterdir()] == ["best_val_whole.lock"]
        run_entry(*command, "protocol=slide")
    run_entry(*command)
    assert {path.stem.removesuffix("_confusion") for path in output.iterdir()} == {"best_val_whole", "best_val_slide"}


def test_errors_in_predict_leave_no_files_behind(finished, tmp_path, run_entry):
    picture = tmp_path / "one.png"
    Image.new("RGB", (57, 41)).save(picture)
    for option, message in (
        ("video=out.avi", r"video=out.avi ends in '.avi': choose one of .gif, .mp4"),
        ("labels=nowhere", f"labels=nowhere has no label image one (.png, .tif, .tiff, .bmp, .gif) for {picture}"),
        ("attention=200", "attention=200 is not a point: set its row and column in pixels"),
        ("attention=[y,x]", "attention=['y', 'x'] is not a point: set its row and column in pixels, as in attention=["),
        ("probabilities=jpg", "probabilities=jpg: choose one of npz, png, png16"),
    ):
        done = run_entry(
            "predict.py", f"checkpoint={finished / 'best'}", f"input={picture}", "device=cpu", option, ok=False
        )  # fmt: skip
        assert message in done.stderr
        assert not (tmp_path / "predictions").exists()
    done = run_entry(
        "predict.py", f"checkpoint={finished / 'best'}", f"input={picture}", "device=cpu", "probabilities=npz",
        "attention=[41,0]", ok=False,
    )  # fmt: skip
    assert "attention=[41, 0] is outside the image" in done.stderr
    assert "images:" not in done.stdout
    assert not [*(tmp_path / "predictions").iterdir()]
