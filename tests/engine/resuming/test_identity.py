"""Which runs are the same: the options that matter, their defaults, the data, and where it lies."""

import copy
import dataclasses
import shutil

import pytest
import torch
from conftest import TINY, composed, configured
from omegaconf import OmegaConf, open_dict
from PIL import Image

from ccnet.data import build_dataset
from ccnet.engine.checkpoints import Checkpoint, located, moved
from ccnet.engine.checkpoints.folders import portable
from ccnet.engine.checkpoints.options import completed
from ccnet.engine.guards import plain
from ccnet.engine.resuming import continued
from ccnet.engine.resuming.contents import data_contents, weight_contents
from ccnet.engine.resuming.continuation import check_given
from ccnet.engine.resuming.identity import EXECUTION, RequestedRun, differing
from ccnet.engine.runtime.overrides import as_command_line
from ccnet.engine.training import with_class_weights


def contents(config):
    return data_contents(*(build_dataset(config.dataset, split, None) for split in ("train", "val")))


def run_of(config, **missing):
    """Return a checkpoint of a run, as :func:`peek` does; `missing` replaces parts of its training state."""
    known = contents(config) | weight_contents(config)
    state = {"identity": "", "contents": known, "random": [{}]} | missing
    return Checkpoint({}, plain(located(config)), [], [], 2, {}, state)


def differences(saved, config, **given):
    return RequestedRun(config, given, lambda: contents(config)).differences(saved)


def without(config, name):
    """Return a plain configuration without an option."""
    made = copy.deepcopy(config)
    *parents, key = name.split(".")
    node = made
    for parent in parents:
        node = node[parent]
    del node[key]
    return made


@pytest.fixture(scope="module")
def config():
    """Return the configuration of a tiny run, composed once."""
    return composed()


@pytest.fixture(scope="module")
def recorded(config):
    """Return the checkpoint of this run."""
    return run_of(config)


@pytest.fixture(scope="module")
def requested(config):
    """Return this run as the command line requests it."""
    return RequestedRun(config, {}, lambda: contents(config))


TOP = [name for name in configured() if name not in ("model", "dataset", "recipe", "loss", "optimizer", "backbone")]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TOP, "recipe.val_every", "model.backbone.output_stride", "model.head.channels"])
def test_an_option_that_a_checkpoint_lacks_has_its_default(recorded, requested, name):
    saved = dataclasses.replace(recorded, config=without(recorded.config, name))
    if name == "model.head.channels":  # its default in the class is another one
        assert requested.differences(saved) == [f"{name}=512 instead of 16"]
        return
    assert requested.differences(saved) == []
    if name == "training_crop":  # it follows from the recipe
        return
    made, lacking = completed(saved.config, recorded.config, {})
    assert (name in EXECUTION) or made == recorded.config
    assert list(lacking) == [name]


def test_an_argument_that_a_class_has_gained_keeps_its_default(monkeypatch, capsys):
    """Even if the configuration now sets another value: the run has not been trained with that."""
    monkeypatch.setattr("ccnet.engine.resuming.identity.choices", lambda: {"model": "ccnet"})
    config, name = composed(), "optimizer.algorithm.fused"
    saved = run_of(config, choices={"model": "ccnet"})
    saved.config = without(saved.config, name)
    assert differences(saved, config) == []
    assert continued(config, saved).optimizer.algorithm.fused is None
    assert f"predates some options, which take their defaults: {name}=null" in capsys.readouterr().out
    assert differences(saved, composed(f"{name}=true"), **{name: True}) == [f"{name}=null instead of true"]
    saved.training["choices"] = {"model": "another"}  # which may not set it
    assert differences(saved, config) == [f"{name}=null instead of true"]


def test_a_run_without_the_terms_of_inherited_data_continues_without_a_message(capsys):
    config = composed()
    saved = run_of(config)
    saved.config = without(saved.config, "inherited_data")
    assert continued(config, saved).inherited_data is None
    assert "predates" not in capsys.readouterr().out


def test_a_run_is_not_older_than_the_code_because_its_initial_network_is(capsys):
    config, name = composed("init=ccnet_mobilenetv2_camvid"), "model.backbone.in_channels"
    saved = run_of(config)
    saved.config = without(saved.config, name)
    assert continued(config, saved).model.backbone.in_channels == 3
    assert "predates" not in capsys.readouterr().out


def test_an_option_on_the_command_line_is_no_default():
    saved = run_of(composed())
    for name in ("accumulate", "protocol", "recipe.val_every"):
        saved.config = without(saved.config, name)
    assert differences(saved, composed("accumulate=1"), accumulate=1) == []
    assert differences(saved, composed("accumulate=2"), accumulate=2) == ["accumulate=1 instead of 2"]
    (found,) = differences(saved, composed("recipe.val_every=3"), **{"recipe.val_every": 3})
    assert found == "recipe.val_every=nothing instead of 3"
    assert "protocol._target_=nothing instead of ccnet.engine.evaluation.protocols.Slide" in differences(
        saved, composed("protocol=slide"), protocol="slide"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "others",
    [("loss=ce_ccl",), ("model=fcn",), ("seed=1",), ("optimizer=sgd",), ("+recipe.train_transform.scale=[0.5,2]",)],
)
def test_a_choice_that_adds_options_is_another_run(others):
    """The options that it adds must not be mistaken for options that the code has gained."""
    one, two = composed(), composed(*others)
    given = {name.lstrip("+"): None for name, _, _ in (text.partition("=") for text in others)}
    assert differences(run_of(one), two, **given)
    assert differences(run_of(two), one)


def test_how_a_run_is_executed_and_how_long_it_is_do_not_matter():
    saved = run_of(composed("recipe.max_iters=4"))
    assert differences(saved, composed("recipe.max_iters=9", "device=cuda", "num_workers=7", "logger=wandb")) == []
    assert differences(saved, composed("recipe.lr=1")) == ["recipe.lr=0.003 instead of 1"]


def test_differences_name_values_as_on_the_command_line():
    one, two = {"a": ["道路", None], "b": 1, "c": "x"}, {"a": ["道路"], "b": 1}
    assert differing("abc", one, two) == ['a=["道路", null] instead of ["道路"]', "c=x instead of nothing"]


def changed_in(saved, config, name, value):
    """Return the differences between a run and one in which an option has another value."""
    other = copy.deepcopy(config)
    with open_dict(other):
        OmegaConf.update(other, name, value)
    return RequestedRun(other, {name: value}, lambda: saved.training["contents"]).differences(saved)


@pytest.mark.slow
def test_the_options_that_affect_the_result_make_another_run_and_no_others_do():
    config = composed("optimizer.lr_factors={backbone: 0.1}")
    saved = run_of(config)
    for name, value in {
        "seed": 1, "ema": 0.5, "clip_norm": 1.0, "recipe.lr": 1.0, "recipe.val_every": 3, "recipe.monitor": "IoU",
        "recipe.train_transform.crop_size": [33, 33], "optimizer.algorithm.fused": False, "loss.weights.aux": 0.1,
        "loss.ramp.aux": 9, "optimizer.lr_factors.backbone": 0.5, "model.head.recurrence": 1, "model.head.channels": 8,
        "dataset.train.length": 9, "dataset.val.split": "test", "dataset.frames": 3, "dataset.class_weights": [1, 2],
    }.items():  # fmt: skip
        assert [found.partition("=")[0] for found in changed_in(saved, config, name, value)] == [name]
    for name, value in {
        "num_workers": 3, "recipe.epochs": 9, "recipe.patience": 1, "recipe.max_iters": 9, "recipe.min_size": 9,
        "dataset.labels": "fine", "num_classes": 9, "training_crop": [1, 1],
        "inherited_data": {"a": "b"}, "loss.ramp": {"aux": 0}, "loss.ramp.ccl": 0,
    }.items():  # fmt: skip
        assert changed_in(saved, config, name, value) == [], name
    config.init = saved.config["init"] = "/gone/weights.pth"  # this checkpoint determines the network
    saved.training["contents"] |= {"init": "a hash"}
    assert changed_in(saved, config, "model.head.recurrence", 1) == []
    assert changed_in(saved, config, "init", "/other.pth") == [
        "other init (a hash instead of the missing file /other.pth)"
    ]


def camvid(root, *others):
    return configured("dataset=camvid", f"dataset.root={root}", *others)


def test_data_that_has_moved_is_the_same_and_data_that_has_changed_is_not(camvid_root, tmp_path):
    saved = run_of(camvid(camvid_root))
    moved_to = shutil.move(camvid_root, tmp_path / "scratch")
    assert differences(saved, camvid(moved_to)) == []
    label = tmp_path / "scratch" / "trainannot" / "0001TP_000001.png"
    label.write_bytes(label.read_bytes() + b"x")
    (found,) = differences(saved, camvid(moved_to))
    assert found.startswith("other training data (4 images, ") and " instead of 4 images, " in found
    lines = (tmp_path / "scratch" / "val.txt").read_text().splitlines()
    (tmp_path / "scratch" / "val.txt").write_text(lines[0] + "\n")
    assert differences(saved, camvid(moved_to))[1].startswith("other validation data (2 images, ")
    assert "instead of 1 images" in differences(saved, camvid(moved_to))[1]


def test_without_recorded_contents_the_locations_decide(camvid_root, monkeypatch):
    """Earlier versions stored neither the contents nor absolute paths."""
    saved = run_of(camvid(camvid_root), contents=None)
    saved.config["dataset"]["root"] = camvid_root.name
    monkeypatch.chdir(camvid_root.parent)
    assert differences(saved, camvid(camvid_root)) == []
    other = shutil.copytree(camvid_root, "other")
    (found,) = differences(saved, camvid(other))
    assert found.startswith("dataset.root=/") and found.endswith("/other")


def test_initial_weights_are_compared_by_content(tmp_path):
    for name, content in (("a.pth", b"1"), ("b.pth", b"2"), ("same.pth", b"1")):
        (tmp_path / name).write_bytes(content)

    def config(name):
        return composed(*([f"backbone.weights={tmp_path / name}"] if name else []))

    saved = run_of(config("a.pth"))
    assert differences(saved, config("same.pth")) == []
    assert differences(saved, config("b.pth"))[0].startswith("other backbone.weights (")
    assert differences(saved, config("gone.pth"))[0].startswith("other backbone.weights (")
    assert differences(saved, config(None))[0].endswith("instead of nothing)")
    assert differences(run_of(config(None)), config("a.pth"))[0].startswith("other backbone.weights (nothing")
    earlier = run_of(config("a.pth"), contents=contents(config("a.pth")))  # earlier code did not hash weights
    assert differences(earlier, config("a.pth")) == []
    assert differences(earlier, config("b.pth"))[0].startswith("other backbone.weights (nothing")
    (tmp_path / "a.pth").unlink()  # the run does not need it any more
    assert differences(saved, config("a.pth")) == []


def test_locations_are_stored_as_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = located(configured("dataset=folder", "dataset.images=i", "dataset.masks='~/m'", "backbone.weights=w.pth"))
    made = plain(config)
    assert made["dataset"]["images"] == made["dataset"]["train"]["images"] == str(tmp_path / "i")
    assert made["dataset"]["masks"].endswith("/m") and "~" not in made["dataset"]["masks"]
    assert made["backbone"]["weights"] == made["model"]["backbone"]["weights"] == str(tmp_path / "w.pth")
    assert OmegaConf.is_interpolation(config.dataset.train, "images")
    new = moved(made, {"dataset.images": tmp_path / "j", "backbone.weights": "v.pth", "seed": 1})
    assert new["dataset"]["images"] == new["dataset"]["val"]["images"] == str(tmp_path / "j")
    assert new["dataset"]["masks"] == made["dataset"]["masks"]
    assert new["backbone"]["weights"] == new["model"]["backbone"]["weights"] == str(tmp_path / "v.pth")
    with pytest.raises(ValueError, match=r"dataset.root=/x does not apply .* uses dataset.images and dataset.masks"):
        moved(made, {"dataset.root": "/x"})
    with pytest.raises(ValueError, match=r"dataset.images=/x does not apply"):
        moved(plain(camvid("/data")), {"dataset.images": "/x"})
    with pytest.raises(ValueError, match=r"dataset.root=/x does not apply .* whose dataset reads no files"):
        moved({"model": {}}, {"dataset.root": "/x"})  # a published checkpoint


def split_folders(root):
    """Return the options of a data set with two folders, lists and a table of values, all relative to ``root``."""
    for part in ("train", "val"):
        for kind in ("images", "masks"):
            (root / kind / part).mkdir(parents=True)
            for name in ("a", "b"):
                Image.new("L", (9, 8)).save(root / kind / part / f"{name}.png")
        (root / f"{part}.txt").write_text("a\nb\n")
    (root / "values.txt").write_text("0 road\n7 car\n")
    folders = [f"dataset.{kind}={{train:{kind}/train,val:{kind}/val}}" for kind in ("images", "masks")]
    return ["dataset=folder", *folders, "dataset.lists={train:train.txt,val:val.txt}", "dataset.values=values.txt"]


def test_folders_and_lists_of_splits_and_the_table_of_values_do_not_depend_on_the_working_directory(
    tmp_path, monkeypatch
):
    here = tmp_path / "here"
    options = split_folders(here)
    monkeypatch.chdir(here)
    config = configured(*options)
    saved = run_of(config)
    assert saved.config["dataset"]["val"]["images"]["val"] == str(here / "images" / "val")
    assert saved.config["dataset"]["val"]["lists"]["val"] == str(here / "val.txt")
    assert saved.config["dataset"]["val"]["values"] == {0: "road", 7: "car"}
    assert differences(saved, config) == []

    monkeypatch.chdir(tmp_path)
    elsewhere = OmegaConf.create(saved.config).dataset
    assert len(build_dataset(elsewhere, "val", None)) == 2
    absolute = [option.replace(":", f":{here}/").replace(f",val{here}", ",val") for option in options[1:4]]
    assert differences(saved, configured("dataset=folder", *absolute, f"dataset.values={here}/values.txt")) == []
    (here / "values.txt").write_text("0 road\n9 car\n")
    found = differences(saved, configured("dataset=folder", *absolute, f"dataset.values={here}/values.txt"))
    assert "dataset.train.values.7=car instead of nothing" in found


def test_the_folders_of_splits_can_move(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved = run_of(configured(*split_folders(tmp_path)))
    for kind in ("images", "masks"):
        shutil.move(tmp_path / kind, tmp_path / f"new_{kind}")
    given = {f"dataset.{kind}": {"val": f"new_{kind}/val"} for kind in ("images", "masks")}
    made = moved(saved.config, given)
    assert made["dataset"]["val"]["masks"] == {
        "train": str(tmp_path / "masks" / "train"),
        "val": str(tmp_path / "new_masks" / "val"),
    }
    assert len(build_dataset(OmegaConf.create(made).dataset, "val", None)) == 2
    with pytest.raises(
        ValueError, match=r"dataset.images=/x does not apply .* uses dataset.images.train and dataset.images.val and"
    ):
        moved(saved.config, {"dataset.images": "/x"})
    made = moved(saved.config, {"dataset.images": {"test": "new_images/test"}})
    places = {name: path for name, path in saved.config["dataset"]["images"].items()}
    assert made["dataset"]["test"]["images"] == places | {"test": str(tmp_path / "new_images" / "test")}
    published = portable(saved.config)
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            published = moved(published, {f"dataset.{kind}.{split}": f"new_{kind}/{split}"})
    assert len(build_dataset(OmegaConf.create(published).dataset, "val", None)) == 2
    both = [f"dataset.{kind}={{train:new_{kind}/train,val:new_{kind}/val}}" for kind in ("images", "masks")]
    options = ["dataset=folder", *both, "dataset.lists={train:train.txt,val:val.txt}", "dataset.values=values.txt"]
    now = configured(*options, "resume=auto")
    assert differences(saved, now) == []
    assert continued(now, saved).dataset.train.images.train == str(tmp_path / "new_images" / "train")
    monkeypatch.setattr("ccnet.engine.resuming.continuation.given_options", lambda: {"dataset.lists": {"val": "v"}})
    assert continued(configured("resume=RUN"), saved).dataset.lists.val == str(tmp_path / "v")
    check_given({"dataset.images": {"val": "v"}, "dataset.masks.val": "v"})
    with pytest.raises(ValueError, match=r"remove dataset.values=\[1,2\]"):
        check_given({"dataset.values": "[1,2]"})


def made_of(saved, *given):
    """Return the configuration with which a command continues a run."""
    with as_command_line(given):
        return continued(configured(*given), saved)


def test_a_named_run_keeps_its_options_and_one_that_was_found_takes_those_of_the_execution(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    saved = run_of(composed("recipe.patience=5", "seed=3"))
    given = ("num_workers=3", "accumulate=2", "recipe.patience=7", "init=a.pth")
    names = ("num_workers", "accumulate", "recipe.patience", "init", "device", "log_every", "seed")
    for command, want in {
        ("resume=RUN", *given): [3, 2, 7, None, "cpu", 1, 3],
        ("resume=RUN",): [0, 1, 5, None, "cpu", 1, 3],
        ("resume=auto", *given): [3, 1, 7, str(tmp_path / "a.pth"), "auto", 10, 3],
        ("resume=auto",): [2, 1, None, None, "auto", 10, 3],
    }.items():
        made = made_of(saved, *command)
        assert [OmegaConf.select(made, name) for name in names] == want, command


def test_a_named_run_logs_to_the_account_of_the_user_unless_that_of_the_checkpoint_is_given(capsys):
    saved, ours = run_of(composed()), plain(configured().logger)
    assert made_of(saved, "resume=RUN").logger._target_ is None  # it did not log to W&B
    saved.config["logger"] = ours
    assert made_of(saved, "resume=RUN").logger == ours
    saved.config["logger"] = ours | {"entity": "them", "project": "theirs", "group": "g"}
    assert made_of(saved, "resume=RUN", "logger.project=mine").logger == ours | {"project": "mine"}
    assert "account" not in capsys.readouterr().out
    assert made_of(saved, "resume=RUN").logger == ours | {"group": "g"}
    assert "to use it, set it on the command line: logger.entity=them logger.project=theirs" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "argument"), [("sgd", "total_iters"), ("adamw", "total_steps"), ("sgd_steps", None)]
)
@pytest.mark.parametrize("resume", ["auto", "RUN"])
def test_the_schedule_of_a_longer_run_follows_its_length(monkeypatch, capsys, optimizer, argument, resume):
    options = [
        *TINY,
        f"optimizer={optimizer}",
        "recipe.lr=0.1",
        "+recipe.warmup=4",
        "+optimizer.schedule.last_epoch=-1",
    ]
    saved = run_of(configured(*options, "recipe.max_iters=4"))  # as long as the warm-up
    monkeypatch.setattr("ccnet.engine.resuming.continuation.given_options", lambda: {"recipe.max_iters": 6})
    now = configured(*(options if resume == "auto" else []), "recipe.max_iters=6", f"resume={resume}")
    made = continued(now, saved)
    assert made.recipe.max_iters == 6
    assert argument is None or made.optimizer.schedule[argument] == 6
    assert made.optimizer.schedule.get("warmup", 4) == 4
    assert made.optimizer.schedule.last_epoch == -1
    assert "recipe.max_iters=6 instead of 4: after iteration 2, the learning rate is that of" in capsys.readouterr().out
    assert made.optimizer.algorithm == configured(*options).optimizer.algorithm


def test_automatic_class_weights_do_not_change_the_initial_weights_of_a_seed():
    config, before = composed("dataset.class_weights=auto"), torch.get_rng_state()
    with_class_weights(config, build_dataset(config.dataset, "train", None))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("weights", ["median", "[1,2,3]", "[1,2,3,-1]", "[1,2,3,inf]", "[1,2,3,true]"])
def test_class_weights_that_no_loss_could_use_are_refused(weights):
    config = composed(f"dataset.class_weights={weights}")
    with pytest.raises(ValueError, match=r"dataset.class_weights is .*: set it to auto, or to a list of 4 numbers"):
        with_class_weights(config, build_dataset(config.dataset, "train", None))


def test_class_weights_computed_at_the_start_do_not_make_another_run():
    config = composed("dataset.class_weights=auto")
    saved = run_of(with_class_weights(config, build_dataset(config.dataset, "train", None)))
    assert len(saved.config["class_weights"]) == len(set(saved.config["class_weights"])) > 1
    assert differences(saved, config) == []
    assert differences(saved, composed()) == ["dataset.class_weights=auto instead of null"]
    given = composed("dataset.class_weights=[0,2,3.5,4]")
    assert differences(run_of(with_class_weights(given, build_dataset(given.dataset, "train", None))), given) == []
    saved = run_of(composed())
    for name in ("dataset.class_weights", "class_weights"):  # an earlier version had neither
        saved.config = without(saved.config, name)
    assert differences(saved, composed()) == []
