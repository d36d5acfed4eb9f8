"""A user error on the command line produces a single message, a non-zero exit status and no partial files."""

import argparse
import errno
import io
import logging
import multiprocessing
import sys
from contextlib import nullcontext

import pytest
import torch
from conftest import PATIENCE, TINY, write_pair
from hydra.core.hydra_config import HydraConfig
from safetensors.torch import save_file
from untrusted_files import small_config

from ccnet.data.sets.ade20k import ADE20K
from ccnet.data.sets.layouts import find_folders
from ccnet.engine import checkpoints
from ccnet.engine.checkpoints import Checkpoint
from ccnet.engine.commands.arguments import check_overrides
from ccnet.engine.guards import plain
from ccnet.engine.runtime import FolderLock, as_command_line
from ccnet.engine.runtime.atomic_files import given_path
from ccnet.evaluate import _dataset_node
from ccnet.models.factory import compose_conf
from ccnet.train import main, run

SMALL_NET = ("backbone=resnet10t", "backbone.pretrained=false", "logger=none", "num_workers=0", "device=cpu")


def refused(run_entry, tmp_path, *command):
    """Run a command that must fail and leave no files behind; return its message."""
    before = set(tmp_path.rglob("*"))
    done = run_entry(*command, ok=False)
    left = {path for path in set(tmp_path.rglob("*")) - before if path.is_file()}
    assert left == set()
    assert "Traceback" not in done.stderr
    return done.stderr


def test_an_error_for_a_missing_ade20k_shows_layout_and_source(run_entry, tmp_path):
    message = refused(run_entry, tmp_path, "train.py", "model=ccnet", "dataset=ade20k", f"dataset.root={tmp_path}/ade")
    assert f"error: dataset.root={tmp_path}/ade is not a folder: ADE20K was expected there" in message
    assert "ROOT/ADEChallengeData2016/images/training" in message
    assert "http://sceneparsing.csail.mit.edu" in message
    assert not (tmp_path / "outputs").exists() or not any((tmp_path / "outputs").iterdir())


@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_first_process_removes_the_empty_folder(run_entry, tmp_path, monkeypatch, rank):
    def fails(config, folder):
        folder.mkdir(parents=True, exist_ok=True)  # as the first process does before it writes, whichever fails
        raise ValueError("a mistake")

    monkeypatch.setattr("ccnet.engine.resuming.find_start", fails)
    monkeypatch.setattr("ccnet.engine.runtime.processes", lambda *_, **__: nullcontext())
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", str(rank))
    assert "error: a mistake" in refused(run_entry, tmp_path, "train.py", *TINY, "hydra.run.dir=runs/new")
    assert (tmp_path / "runs").exists() == bool(rank)


@pytest.mark.parametrize(
    "command",
    [
        ["train.py", *TINY],
        ["train.py", *TINY, "hydra.run.dir=outputs/a"],
        ["train.py", "-m", *TINY, "seed=0,1"],
        ["evaluate.py", "checkpoint=run/best"],
        ["check_data.py"],
        ["benchmark.py"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_an_output_folder_that_cannot_be_created_produces_one_message(run_entry, tmp_path, command):
    (tmp_path / "outputs").write_text("")  # as on a read-only file system, which a test cannot mount
    done = run_entry(*command, ok=False)
    said = f"{done.returncode}{done.stderr}"
    assert "cannot be created" in said
    assert "choose another one with hydra." in said
    assert "Traceback" not in said


def test_a_path_without_permissions_is_answered_with_what_to_do(run_entry, monkeypatch):
    def refuse(*given):
        raise PermissionError(errno.EACCES, "Permission denied", "out")

    monkeypatch.setattr("ccnet.engine.prediction.find_inputs", refuse)
    done = run_entry("predict.py", "input=photo.jpg", "output=out", ok=False)
    assert "Permission denied: 'out': change its permissions, or choose a path" in done.stderr


@pytest.mark.parametrize("entry", ["train.py", "check_data.py"])
def test_ctrl_c_before_training_produces_one_line(run_entry, tmp_path, monkeypatch, entry):
    """Start-up takes seconds, mostly to import torch."""

    def interrupted(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr("ccnet.data.check_root", interrupted)
    done = run_entry(entry, *TINY[:1], "hydra.run.dir=runs/new", ok=False)
    assert done.returncode == 130
    assert done.stderr.strip() == "interrupted"
    assert not (tmp_path / "runs").exists()


def test_a_warning_of_a_failing_download_is_printed_once(run_entry, monkeypatch):
    """huggingface_hub has a handler of its own, and Hydra gives one to the root logger."""

    def warn(*_):
        logging.getLogger("huggingface_hub.test").warning("Retrying")
        raise KeyboardInterrupt

    handler = logging.StreamHandler(io.StringIO())
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "handlers", [handler])
    monkeypatch.setattr("ccnet.data.check_root", warn)
    done = run_entry("train.py", *TINY[:1], ok=False)
    assert handler.stream.getvalue() == "Retrying\n" and "Retrying" not in done.stdout + done.stderr


def test_jax_does_not_report_the_devices_that_this_machine_lacks(run_entry, monkeypatch):
    """At the level of commands, INFO, it says that there is no TPU, as "INTERNAL: Failed to open libtpu.so"."""

    def inform(*_):
        logging.getLogger("jax._src.xla_bridge").info("Unable to initialize backend 'tpu'")
        raise KeyboardInterrupt

    monkeypatch.setattr("ccnet.data.check_root", inform)
    done = run_entry("train.py", *TINY[:1], ok=False)
    assert "Unable to initialize" not in done.stdout + done.stderr


@pytest.mark.parametrize("name", ["straße.jpg", "IMG (1).jpg", "a(1).jpg", "it's.jpg", "日本/#1;.png"])
def test_any_path_can_be_passed_without_quotes(run_entry, tmp_path, name):
    message = refused(run_entry, tmp_path, "predict.py", f"input={name}")
    assert f"error: input={name} is neither an image nor a folder" in message


def test_check_data_keeps_the_tables_of_a_run(run_entry, tmp_path):
    (tmp_path / "run").mkdir()
    for name in ("val_classes.csv", "best.safetensors"):
        (tmp_path / "run" / name).touch()
    message = refused(run_entry, tmp_path, "check_data.py", "hydra.run.dir=run")
    assert "/run holds a training run, whose tables would be replaced: set output=FOLDER" in message
    assert (tmp_path / "run" / "val_classes.csv").exists()


def test_an_output_of_the_wrong_kind_is_rejected(run_entry, tmp_path):
    (tmp_path / "file").touch()
    message = refused(run_entry, tmp_path, "export.py", "checkpoint=x", f"output={tmp_path}")
    assert f"error: output={tmp_path} is a folder: set the file to write, such as" in message
    message = refused(run_entry, tmp_path, "publish.py", f"checkpoint={checkpoints.DEFAULT}", f"output={tmp_path}/file")
    assert f"error: {tmp_path}/file is a file, not a folder: choose another output" in message
    message = refused(run_entry, tmp_path, "check_data.py", *TINY[:1], f"output={tmp_path}/file/new")
    assert f"error: {tmp_path}/file is a file, not a folder: choose another output" in message


def test_a_run_is_not_continued_in_another_folder(run_entry, tmp_path):
    (tmp_path / "old").mkdir()
    message = refused(run_entry, tmp_path, "train.py", f"resume={tmp_path / 'old'}", "hydra.run.dir=new")
    assert f"/new, but resume={tmp_path}/old continues the run in its own folder: set hydra.run.dir=" in message


@pytest.mark.parametrize(
    ("command", "output", "stem"),
    [
        (("check_data.py",), "out", ""),
        (("export.py", f"checkpoint={checkpoints.DEFAULT}"), "out/net.onnx", "net.onnx"),
    ],
)
def test_two_processes_do_not_write_the_same_output(run_entry, tmp_path, command, output, stem):
    """One would replace the file of the other by a half-written one."""
    with FolderLock(tmp_path / "out", stem=stem):
        message = refused(run_entry, tmp_path, *command, f"output={tmp_path / output}")
    assert f"error: {tmp_path / 'out' / stem} is in use by process" in message


def test_commands_start_although_argparse_of_python_3_14_checks_the_help_of_every_option(run_entry, monkeypatch):
    add = argparse.ArgumentParser.add_argument

    def checking(parser, *names, **options):
        action = add(parser, *names, **options)
        parser._check_help(action)
        return action

    def check(parser, action):
        assert isinstance(action.help, str)

    monkeypatch.setattr(argparse.ArgumentParser, "add_argument", checking)
    monkeypatch.setattr(argparse.ArgumentParser, "_check_help", check, raising=False)
    assert "dataset:" in run_entry("train.py", "--cfg", "job").stdout


def test_text_that_the_encoding_of_stdout_lacks_is_escaped(tmp_path, monkeypatch):
    printed = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", printed)
    monkeypatch.setattr(sys, "argv", ["train.py", "--cfg", "job", "dataset=folder", "dataset.classes=[straße,道路]"])
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)  # which --cfg sets
    monkeypatch.chdir(tmp_path)
    main()
    assert "- straße\n  - \\u9053\\u8def\n" in printed.buffer.getvalue().decode("cp1252")


@pytest.mark.parametrize(("entry", "option"), [("predict.py", "input="), ("train.py", "+dataset.root=''")])
def test_an_option_without_a_value_is_rejected(run_entry, tmp_path, entry, option):
    write_pair(tmp_path / "a.png", tmp_path / "labels" / "a.png", classes=2)  # an empty path is the current folder
    message = refused(run_entry, tmp_path, entry, "num_workers=0", option)
    assert message.startswith(f"error: {option.partition('=')[0]}= has no value: set")
    assert not (tmp_path / "outputs").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "named"),
    [
        (["check_data.py", "dataset.classes=2.5"], "dataset.train.classes is 2.5"),
        (["check_data.py", "dataset.classes=2", "num_workers=some"], "num_workers is 'some'"),
        (["check_data.py", "dataset.classes=2", "samples=some"], "samples is 'some'"),
        (["evaluate.py", f"checkpoint={checkpoints.DEFAULT}", "dataset.group=5"], "dataset.train.group is 5"),
        (["evaluate.py", f"checkpoint={checkpoints.DEFAULT}", "bf16=5"], "bf16 is 5"),
        (["predict.py", "protocol=slide", "protocol.crop_size=[a,b]"], "protocol.crop_size is ['a', 'b']"),
        (["predict.py", "compare_rows=a"], "compare_rows is 'a'"),
        (["benchmark.py", "repeats=many"], "repeats is 'many'"),
        (["benchmark.py", "shape=[97]"], "shape is [97]"),
        (["app.py", "port=http"], "port is 'http'"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_an_option_of_the_wrong_type_is_rejected_by_every_entry_point(run_entry, tmp_path, command, named):
    write_pair(tmp_path / "images" / "a.png", tmp_path / "masks" / "a.png", classes=2)
    data = ["dataset=folder", f"dataset.images={tmp_path / 'images'}", f"dataset.masks={tmp_path / 'masks'}"]
    entry, *options = command
    given = {"predict.py": [f"input={tmp_path / 'images'}"], "benchmark.py": [], "app.py": []}.get(entry, data)
    assert f"error: {named}, but must be" in refused(run_entry, tmp_path, entry, *given, *options)


def test_a_missing_option_and_an_argument_that_is_no_option_are_reported(run_entry, tmp_path):
    message = refused(run_entry, tmp_path, "predict.py")
    assert message.startswith("error: input is not set: set input=VALUE; --help describes it\n")
    message = refused(run_entry, tmp_path, "predict.py", "photo.jpg")
    assert message == "error: photo.jpg is not an option: write OPTION=VALUE; --help lists the options\n"
    check_overrides(["-m", "--config-dir", "ä", "-cn", "config", "~model", "x=1"])
    for shows in (["--cfg", "job"], ["--cfg=job"], ["-cjob"], ["--info"]):
        with pytest.raises(ValueError, match=f"{shows[0]} shows the configuration of one run and -m makes several"):
            check_overrides(["model=ccnet,fcn", "-m", *shows])
    check_overrides(["--config-dir", "-m", "--cfg", "job"])  # a folder of that name


def test_an_empty_path_from_python_or_a_file_is_rejected(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="got an empty string as a path"):
        given_path("")
    with pytest.raises(ValueError, match="got null as a path"):
        given_path(None)
    assert str(given_path("~no-such-user/run")) == "~no-such-user/run"  # whose home is unknown
    with pytest.raises(ValueError, match="resume= has no value"):
        run("resume=", folder="run")
    with pytest.raises(FileNotFoundError, match=r"dataset\.images= is not a folder"):
        find_folders("", "", "train")
    with pytest.raises(FileNotFoundError, match=r"dataset\.root is not set"):
        ADE20K("", split="train", transform=None)


def test_a_detector_cannot_be_exported(run_entry, tmp_path):
    config = small_config() | {"task": {"_target_": "ccnet.engine.evaluation.tasks.detection.Detection"}}
    saved = Checkpoint({"w": torch.ones(2)}, config, list("abcd"), [[0, 0, 0]] * 4, 1, {})
    checkpoints.save(saved, tmp_path / "best.safetensors")
    message = refused(run_entry, tmp_path, "export.py", "checkpoint=best.safetensors")
    assert "error: checkpoint=best.safetensors detects objects: only segmentation networks can be exported" in message


def test_the_folder_of_a_split_can_be_set_by_its_dotted_name(run_entry, tmp_path, folder_data):
    images, masks = folder_data
    data = [f"dataset.images.train={images}", f"dataset.images.val={images}", f"dataset.masks.train={masks}"]
    data = ["dataset=folder", *data, "dataset.masks.val=ä"]
    assert "error: dataset.masks.val=ä is not a folder" in refused(run_entry, tmp_path, "train.py", *data)
    with pytest.raises(FileNotFoundError, match=r"dataset\.masks\.val=ä is not a folder"):
        run(*data, folder=tmp_path / "run")


def test_an_unknown_option_shows_the_suggestion_from_hydra(run_entry, tmp_path):
    assert "Could not find 'model/ccnett'" in refused(run_entry, tmp_path, "train.py", "model=ccnett")
    message = refused(run_entry, tmp_path, "train.py", "recipe.max_iter=3")
    assert "Key 'max_iter' is not in struct" in message
    assert "Could not override 'recipe.max_iter'" in message
    assert "There is no option recipe.max_iter: did you mean recipe.max_iters?" in message


def test_a_crop_smaller_than_the_stride_is_rejected(run_entry, tmp_path):
    message = refused(run_entry, tmp_path, "train.py", *TINY, "recipe.train_transform.crop_size=[4,64]")
    assert "crop_size=[4, 64] is smaller than the network's output stride 8" in message


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_for_a_bad_label_during_training_names_file_and_value(run_entry, tmp_path, folder_data, num_workers):
    images, masks = folder_data
    for index in range(64):  # before its first step, a run looks at every second one
        write_pair(tmp_path / f"x/{index:02}.jpg", tmp_path / f"y/{index:02}.png", classes=3 + index % 2)
    done = run_entry(
        "train.py", "dataset=folder", "dataset.classes=3",
        f"dataset.images={{train:{tmp_path}/x,val:{images}}}", f"dataset.masks={{train:{tmp_path}/y,val:{masks}}}",
        "recipe.train_transform.crop_size=[32,32]", "recipe.batch_size=2", *SMALL_NET, f"num_workers={num_workers}",
        ok=False,
    )  # fmt: skip
    assert ".png contains unknown label values: 3; this data set defines 4 values (0 to 2, 255)" in done.stderr
    assert "Traceback" not in done.stderr
    for worker in multiprocessing.active_children():
        worker.join(PATIENCE)
    assert not multiprocessing.active_children()  # otherwise the process would wait for it on exit


def test_a_file_that_is_not_a_checkpoint_is_rejected(run_entry, tmp_path):
    assert "there is no checkpoint" in refused(run_entry, tmp_path, "evaluate.py", "checkpoint=RUN/best")
    for name, content in (("cut.safetensors", b"\x10\0\0\0"), ("text.pt", b"hello"), ("empty.pt", b"")):
        (tmp_path / name).write_bytes(content)
        message = refused(run_entry, tmp_path, "evaluate.py", f"checkpoint={tmp_path / name}")
        assert f"{name} is not a checkpoint of this project, or it is damaged" in message
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    write_pair(tmp_path / "x.png", tmp_path / "label.png", classes=2)
    message = refused(run_entry, tmp_path, "predict.py", f"checkpoint={tmp_path / 'other.safetensors'}", "input=x.png")
    assert "other.safetensors cannot be imported as a published checkpoint: its tensor names (weight" in message


@pytest.mark.parametrize("script", ["predict.py", "export.py"])  # whose hydra.run.dir is the current folder
def test_an_empty_current_folder_is_not_removed(run_entry, tmp_path, script):
    done = run_entry(script, "checkpoint=NOWHERE/best", *(["input=x.png"] if script == "predict.py" else []), ok=False)
    assert "there is no checkpoint" in done.stderr
    assert tmp_path.is_dir()


def test_options_that_would_have_no_effect_are_refused(run_entry, tmp_path):
    message = refused(run_entry, tmp_path, "evaluate.py", "checkpoint=RUN/best", "model.head.recurrence=1", "seed=1")
    assert "model.head.recurrence, seed cannot be set here, because the checkpoint determines the network" in message
    message = refused(run_entry, tmp_path, "predict.py", "input=photo.jpg", "training_crop=[65,65]")
    assert "set the windows with protocol=slide protocol.crop_size=[HEIGHT,WIDTH]" in message


def test_evaluate_takes_a_part_of_a_data_set_option_from_the_command_line():
    """The other options come from the run."""
    given = ["dataset=folder", "dataset.masks=/b", "+dataset.images.val=/b"]
    run = compose_conf(["dataset=folder", "dataset.images=/a", "dataset.masks=/a", "dataset.classes=3"], "config")
    saved = Checkpoint({}, {"dataset": plain(run)["dataset"]}, [], [], 1, {})
    with as_command_line(given):
        node = _dataset_node(compose_conf(given, "config"), saved)
    assert (node.images, node.masks, node.classes) == ({"val": "/b"}, "/b", 3)


def test_a_data_set_with_another_number_of_classes_is_rejected(run_entry, tmp_path, camvid_root):
    run_entry("train.py", *TINY, "recipe.max_iters=1", f"hydra.run.dir={tmp_path / 'run'}")
    message = refused(
        run_entry, tmp_path, "evaluate.py", f"checkpoint={tmp_path / 'run' / 'best'}", "dataset=camvid",
        f"dataset.root={camvid_root}", "device=cpu", f"output={tmp_path / 'scores'}",
    )  # fmt: skip
    assert "has 4 classes (background, red beacon, green beacon, ...) but the data set has 11 (Sky," in message


def test_a_missing_or_unreadable_input_is_reported(run_entry, tmp_path):
    run_entry("train.py", *TINY, "recipe.max_iters=1", f"hydra.run.dir={tmp_path / 'run'}")
    best = f"checkpoint={tmp_path / 'run' / 'best'}"
    message = refused(run_entry, tmp_path, "predict.py", best, "input=nothing.jpg", "device=cpu")
    assert "input=nothing.jpg is neither an image nor a folder or pattern of images" in message
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    here = f"output={tmp_path}"
    message = refused(run_entry, tmp_path, "predict.py", best, f"input={tmp_path / 'broken.jpg'}", here, "device=cpu")
    assert "is the folder of the input, whose images a mask could overwrite" in message
    message = refused(run_entry, tmp_path, "predict.py", best, f"input={tmp_path / 'broken.jpg'}", "device=cpu")
    assert "broken.jpg cannot be read as an image" in message


def test_an_option_of_the_protocol_alone_is_not_ignored(run_entry, tmp_path):
    write_pair(tmp_path / "a.png", tmp_path / "labels" / "a.png", classes=2)
    message = refused(run_entry, tmp_path, "predict.py", f"input={tmp_path / 'a.png'}", "++protocol.crop_size=[9,9]")
    assert "error: protocol.crop_size is [9, 9], but" in message and "Whole takes no arguments" in message
