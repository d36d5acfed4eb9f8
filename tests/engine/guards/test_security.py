"""What strangers' files and lists cannot do here, and what a run does not write down."""

import struct
import subprocess
import zipfile
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, write_pair
from omegaconf import OmegaConf
from PIL import Image

from ccnet.data import image_files as pictures
from ccnet.data.image_files import UnreadableImage, read_image
from ccnet.data.label_files import LabelReader
from ccnet.data.sets.camvid import CamVid
from ccnet.data.sets.coco import Coco
from ccnet.data.sets.lip import LIP
from ccnet.data.sets.voc import VOC
from ccnet.data.size_limit import ImageTooLarge
from ccnet.data.training_samples import Seeded
from ccnet.engine import checkpoints
from ccnet.engine.checkpoints import Checkpoint
from ccnet.engine.training.state import TrainingState
from ccnet.models import import_checkpoint
from ccnet.models.backbone import TimmBackbone
from ccnet.models.factory import build

HUGE = 100_000  # pixels of a side: 10^10 in all, 30 GB as RGB


def bomb(path, *, colour=2):
    """A PNG of a few bytes that says that it has 100000 x 100000 pixels."""

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", HUGE, HUGE, 8, colour, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    return path


@pytest.fixture(params=["pywuffs", "Pillow"])
def decoder(request, monkeypatch):
    if request.param == "Pillow":
        monkeypatch.setattr(pictures, "_wuffs_decoder", lambda kind: None)
    elif pictures.png_decoder() != "pywuffs":
        pytest.skip("pywuffs is not installed: pip install -e '.[fast]'")


def test_a_picture_of_absurd_size_is_refused_with_the_limit_and_how_to_raise_it(tmp_path, decoder, recwarn):
    path = bomb(tmp_path / "bomb.png")
    told = (
        f"{path} has 100000x100000 pixels, 10000000000 in all, more than the limit of 268435456: if that is intended, "
        "raise the limit with the environment variable CCNET_MAX_IMAGE_PIXELS=10000000000"
    )
    with pytest.raises(ImageTooLarge) as refused:
        read_image(path)
    assert str(refused.value) == told
    with pytest.raises(ImageTooLarge, match="more than the limit"):
        LabelReader({0: 0})(bomb(tmp_path / "label.png", colour=0))
    assert not recwarn.list


def test_the_limit_can_be_moved_in_the_environment(tmp_path, decoder, monkeypatch, recwarn):
    Image.fromarray(np.zeros((20, 30, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    before = Image.MAX_IMAGE_PIXELS
    monkeypatch.setenv("CCNET_MAX_IMAGE_PIXELS", "600")
    assert read_image(tmp_path / "a.png").shape == (3, 20, 30)
    monkeypatch.setenv("CCNET_MAX_IMAGE_PIXELS", "599")
    with pytest.raises(ImageTooLarge, match="has 30x20 pixels, 600 in all, more than the limit of 599"):
        read_image(tmp_path / "a.png")
    monkeypatch.setenv("CCNET_MAX_IMAGE_PIXELS", "many")
    with pytest.raises(ValueError, match="CCNET_MAX_IMAGE_PIXELS=many is not a whole number"):
        read_image(tmp_path / "a.png")
    assert before == Image.MAX_IMAGE_PIXELS  # a program that uses this project keeps Pillow's own
    assert not recwarn.list


def test_aerial_pictures_pass_without_a_warning(tmp_path, recwarn):
    """10000 x 10000 pixels: Pillow alone would warn of an attack."""
    Image.new("1", (10_000, 10_000)).save(tmp_path / "aerial.png")
    assert LabelReader({0: 0})(tmp_path / "aerial.png").shape == (10_000, 10_000)
    assert not recwarn.list


def test_skipping_broken_pictures_does_not_skip_large_ones(tmp_path):
    """It is whole: to leave it out, or to raise the limit, is for the user to say."""

    class One(torch.utils.data.Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return read_image(tmp_path / "bomb.png")

    bomb(tmp_path / "bomb.png")
    with pytest.raises(ImageTooLarge):
        Seeded(One(), 0, skip_broken=2)[0, 0]


def test_only_the_formats_of_the_suffixes_are_decoded(tmp_path):
    """Pillow would start Ghostscript for an EPS, whatever it is called."""
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(UnreadableImage, match=r"a\.png cannot be read as an image"):
        read_image(tmp_path / "a.png")


def test_an_absurd_picture_ends_predict_with_one_message(run_entry, tmp_path):
    config = _config() | {"recipe": {"train_transform": {"crop_size": [64, 64]}}}
    weights = build(OmegaConf.create(config["model"])).state_dict()
    checkpoints.save(Checkpoint(weights, config, list("abcd"), [[0, 0, 0]] * 4, 1, {}), tmp_path / "last.pt")
    given = f"checkpoint={tmp_path / 'last.pt'}"
    done = run_entry("predict.py", given, f"input={bomb(tmp_path / 'in.png')}", "device=cpu", ok=False)
    assert "in.png has 100000x100000 pixels" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_list_cannot_name_files_outside_of_its_data_set(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "secret"
    write_pair(outside / "a.png", outside / "b.png", classes=3)
    for names in (f"{outside}/a.png ../b.png", "train/a.png ../secret", "/ /", "../a.png ../b.png"):
        root.mkdir(exist_ok=True)
        (root / "train.txt").write_text(f"\n{names}\n")
        with pytest.raises((ValueError, FileNotFoundError)) as refused:
            CamVid(root, split="train", transform=None)
        assert f"{root}/train.txt" in str(refused.value)
    assert f"train.txt, line 2: '../a.png' leads out of {root}: name files in that folder" in str(refused.value)

    for folder in ("train_images", "val_images"):
        (root / "TrainVal_images" / folder).mkdir(parents=True)
    (root / "TrainVal_parsing_annotations" / "train_segmentations").mkdir(parents=True)
    for name in ("../../../secret/a", f"{outside}/a"):
        (root / "TrainVal_images" / "train_id.txt").write_text(f"{name}\n")
        with pytest.raises(ValueError, match=r"train_id\.txt, line 1: '.*a\.jpg' leads out of"):
            LIP(root, split="train", transform=None)

    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / "VOC2012" / folder).mkdir(parents=True)
    (root / "VOC2012" / "ImageSets" / "Segmentation" / "train.txt").write_text("../../../secret/a\n")
    with pytest.raises(FileNotFoundError, match=r"a\.jpg"):  # of a path it takes the name alone
        VOC(root, split="train", transform=None)


def test_a_link_in_the_data_set_is_the_users_own(camvid_root, tmp_path):
    (camvid_root / "train").rename(tmp_path / "elsewhere")
    (camvid_root / "train").symlink_to(tmp_path / "elsewhere")
    dataset = CamVid(camvid_root, split="train", transform=None)
    assert dataset.read(0)[0].shape == (3, 48, 64)


def test_annotations_cannot_name_files_outside_nor_masks_of_absurd_size(tmp_path):
    import json

    write_pair(tmp_path / "secret.png", tmp_path / "x.png", classes=3)
    write_pair(tmp_path / "root" / "train" / "a.png", tmp_path / "x.png", classes=3)
    file = tmp_path / "root" / "annotations" / "instances_train.json"
    file.parent.mkdir()

    def dataset(name="a.png", segmentation=None):
        box = {"id": 7, "image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "area": 25, "iscrowd": 0}
        content = {
            "images": [{"id": 1, "file_name": name, "height": 48, "width": 64}],
            "categories": [{"id": 1, "name": "thing"}],
            "annotations": [box | {"segmentation": segmentation or [[0, 0, 5, 0, 5, 5]]}],
        }
        file.write_text(json.dumps(content))
        return Coco(tmp_path / "root", split="train", transform=lambda image, target: (image, target))

    assert dataset()[0][1]["masks"].shape == (1, 48, 64)
    for name in ("../../secret.png", str(tmp_path / "secret.png")):
        with pytest.raises(FileNotFoundError, match="which is not in"):
            dataset(name)
    for segmentation in (
        {"size": [10**9, 10**9], "counts": [10**18]},
        {"size": [48, 64], "counts": [1, 10**12]},
        {"size": [48, 64], "counts": "~~~~~~"},
        [[0, 0, 1e9, 0, 1e9, 1e9]],
        [[0, 0, 5, 0, 5, "5"]],
        [5],
    ):
        with pytest.raises(ValueError, match=r"instances_train\.json: annotation 7 has"):
            dataset(segmentation=segmentation)[0]


def stranger(path, config, **parts):
    checkpoints.save(Checkpoint({"w": torch.ones(2)}, config, ["a"], [[0, 0, 0]], 1, {}, **parts), path)
    return path


NAMED = {"_target_": "logging.FileHandler", "filename": "ran"}  # leaves a file where it is called


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model": "{backbone: {}, _target_: logging.FileHandler, filename: ran}"}, "where a mapping belongs"),
        ({"dataset": "{train: {_target_: logging.FileHandler, filename: ran}}"}, "where a mapping belongs"),
        ({"model": {"backbone": {}, "head": (NAMED,)}}, "only texts, numbers, lists and mappings"),
        ({"model": {"backbone": {}, "head": [[{"x": NAMED}]]}}, "names 'logging.FileHandler' in model"),
        ({"model": {"backbone": {}, "_args_": [NAMED]}}, "names 'logging.FileHandler' in model"),
        ({"model": {"_target_": ["logging.FileHandler"], "filename": "ran"}}, "names 'logging.FileHandler'"),
        (
            {"model": {"_target_": "ccnet.models.factory.create_model", "name": "fcn"}},
            "names 'ccnet.models.factory.create_model'",
        ),
        ({"model": {"_target_": "ccnet.models.segmentor.nn.Module"}}, "names 'ccnet.models.segmentor.nn.Module'"),
        ({"model": {"_target_": "ccnet.models.segmentor.Segmentor.forward"}}, "Segmentor.forward' in model"),
        ({"recipe": {"train_transform": {"_target_": "ccnet.check_data.main"}}}, "names 'ccnet.check_data.main'"),
        (
            {"recipe": {"x": {"_target_": "ccnet.data.transforms.v2.Compose"}}},
            "names 'ccnet.data.transforms.v2.Compose'",
        ),
        (
            {"logger": {"_target_": "ccnet.engine.drawing.scalar_file.ScalarFile", "path": "ran"}},
            "names 'ccnet.engine.drawing.scalar_file.ScalarFile'",
        ),
        ({"optimizer": {"_target_": "torch.optim.os.system", "command": "touch ran"}}, "names 'torch.optim.os.system'"),
        ({"model": {"backbone": {"name": "${oc.env:HOME}"}}}, "is not resolved"),
        ({"model": {"backbone": {"name": "${oc.decode:'1'}"}}}, "is not resolved"),
        ({"model": {3: NAMED}}, "which is no text"),
    ],
)
def test_no_config_hides_what_it_names(tmp_path, monkeypatch, config, message):
    """Each of them got past a check, or would have, and each in .pt; safetensors' JSON has fewer types."""
    monkeypatch.chdir(tmp_path)
    path = stranger(tmp_path / "last.pt", config)
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        checkpoints.network(checkpoints.load(path))
    assert not (tmp_path / "ran").exists()


def test_a_deeply_nested_config_is_refused(tmp_path):
    node = {}
    for _ in range(200):
        node = {"x": node}
    with pytest.raises(ValueError, match="nested more than 16 levels"):
        checkpoints.load(stranger(tmp_path / "last.pt", {"model": node}))
    header = b'{"__metadata__":{"ccnet":"' + b"[" * 100_000 + b'"}}'
    (tmp_path / "best.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ValueError, match="not a checkpoint of this project, or it is damaged"):
        checkpoints.load(tmp_path / "best.safetensors")


def test_an_archive_that_unpacks_to_more_than_it_is(tmp_path):
    stranger(tmp_path / "small.pt", {})
    with (
        zipfile.ZipFile(tmp_path / "small.pt") as given,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as made,
    ):
        for entry in given.infolist():
            made.writestr(entry.filename, given.read(entry))
        made.writestr("archive/data/1", bytes(10**7))
    assert (tmp_path / "bomb.pt").stat().st_size < 10**5
    for read in (checkpoints.load, import_checkpoint):
        with pytest.raises(ValueError, match="it would unpack to"):
            read(tmp_path / "bomb.pt")


def test_a_network_larger_than_its_weights_is_not_built(tmp_path):
    """A terabyte that nobody has; and one that the system would promise, and kill the process for."""
    saved = Checkpoint({"w": torch.ones(2)}, _config(channels=10**10), list("abcd"), [[0, 0, 0]] * 4, 1, {})
    with pytest.raises(ValueError, match=r"cannot be built from its config"):
        checkpoints.network(saved)
    saved.config = _config(channels=300_000)  # times 512 channels and 9 taps: 5 GB
    with pytest.raises(ValueError, match="a network far larger than its weights"):
        checkpoints.network(saved)
    view = torch.zeros(1).expand(10**12)
    torch.save({"state_dict": {"decode_head.conv_seg.weight": view}}, tmp_path / "view.pth")
    with pytest.raises(ValueError, match=r"decode_head\.conv_seg\.weight is no tensor with all its numbers"):
        import_checkpoint(tmp_path / "view.pth")


def _config(**head):
    return {
        "model": {
            "_target_": "ccnet.models.segmentor.Segmentor",
            "backbone": {"_target_": "ccnet.models.backbone.TimmBackbone", "name": "resnet10t"},
            "head": {
                "_target_": "ccnet.models.heads.context.ContextHead", "_partial_": True, "context": None,
                "recurrence": 0,
                "channels": 64, "num_classes": 4,
            } | head,
        }
    }  # fmt: skip


def test_every_entry_point_that_takes_a_checkpoint_refuses_a_strangers(run_entry, tmp_path):
    evil = stranger(tmp_path / "last.pt", {"model": {"backbone": {}, "head": NAMED}})
    write_pair(tmp_path / "in.png", tmp_path / "x.png", classes=2)
    for command in (
        ["evaluate.py", f"checkpoint={evil}"],
        ["predict.py", f"checkpoint={evil}", f"input={tmp_path}/in.png"],
        ["train.py", *TINY, f"init={evil}"],
        ["train.py", f"resume={tmp_path}"],
        ["export.py", f"checkpoint={evil}"],
    ):
        done = run_entry(*command, ok=False)
        assert "names 'logging.FileHandler' in model" in done.stdout + done.stderr, command
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "ran").exists()


def test_a_file_of_backbone_weights_runs_nothing_and_holds_tensors_alone(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    for content in ({"state_dict": Evil()}, {"conv1.weight": 3}, [1, 2]):
        torch.save(content, tmp_path / "weights.pth")
        with pytest.raises(ValueError, match="not a state dict that can be read safely"):
            TimmBackbone("resnet10t", weights=tmp_path / "weights.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda kept: kept["optimizer"]["state"][0].update(exp_avg=torch.zeros(2)),
            r"exp_avg of parameter 0.*\(40, 50\)",
        ),
        (lambda kept: kept["optimizer"]["state"][1].update(step=torch.zeros(50)), "step of parameter 1"),
        (lambda kept: kept["optimizer"]["state"][1].pop("exp_avg_sq"), "state is of other parameters"),
        (lambda kept: kept["optimizer"]["param_groups"][0].update(params=[1, 0]), "groups are of other parameters"),
        (lambda kept: kept["optimizer"]["param_groups"][0].update(amsgrad=True), "param_groups.0.amsgrad is 'True'"),
        (lambda kept: kept["schedule"].update(last_epoch=7), "schedule is at 7 and its weights at 1"),
        (lambda kept: kept["schedule"].update(_schedule_phases=[]), "schedule._schedule_phases is '\\[\\]'"),
        (lambda kept: kept.update(wandb_id=3), "identity and wandb_id are no texts"),
    ],
)
def test_the_state_of_another_training_is_refused_before_a_step_writes_into_it(tmp_path, spoil, message):
    """A fused step writes into what an optimiser keeps by the size of the parameter."""

    def begin():
        layer = torch.nn.Linear(50, 40)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=9)
        return layer, TrainingState(layer, optimizer, schedule, "identity")

    layer, state = begin()
    layer(torch.ones(3, 50)).sum().backward()
    state.optimizer.step()
    state.advance()
    state.save(tmp_path, {}, SimpleNamespace(classes=["a"], palette=[(0, 0, 0)]))
    saved = checkpoints.load(tmp_path / "last.pt")
    spoil(saved.training)
    with pytest.raises(ValueError, match=f"last.pt does not hold the state of such a training: .*{message}"):
        begin()[1].restore(saved)
    begin()[1].restore(checkpoints.load(tmp_path / "last.pt"))


def test_no_resolver_evaluates_code():
    import train  # noqa: F401, with everything that it imports

    assert not OmegaConf.has_resolver("eval")
    sources = [path.read_text() for folder in ("engine", "data", "models", "losses", "kernels") for path in
               (ROOT / folder).rglob("*.py")]  # fmt: skip
    assert not any("register_new_resolver" in source for source in sources)


SECRETS = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "AWS_SECRET_ACCESS_KEY": "zXcVbNmAsDfGhJkL/123",
    "HF_TOKEN": "hf_qWeRtYuIoP",
    "GITHUB_TOKEN": "ghp_aSdFgHjKl",
    "DB_PASSWORD": "correct horse",
}


def test_a_run_writes_down_no_secret_of_the_environment(run_entry, tmp_path, monkeypatch):
    """In a repository whose remote holds a token and whose changes hold a password; W&B's log lies on the disk."""
    for command in (["init", "-q"], ["remote", "add", "origin", "https://ghp_remote:x-oauth-basic@github.com/x/y.git"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    (tmp_path / "settings.ini").write_text("password = diffsecret")
    subprocess.run(["git", "add", "settings.ini"], cwd=tmp_path, check=True)
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    tiny = [part for part in TINY if part != "logger=none"]
    done = run_entry("train.py", *tiny, "recipe.max_iters=1", f"hydra.run.dir={tmp_path / 'run'}")
    written = {path.name: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert {"last.pt", "best.safetensors", "config.yaml", "debug.log"} <= written.keys()
    assert any(name.endswith(".wandb") and b"OneCycleLR" in content for name, content in written.items())
    for name, content in (written | {"out": done.stdout.encode(), "err": done.stderr.encode()}).items():
        for secret in (*SECRETS.values(), "ghp_remote", "diffsecret"):
            assert secret.encode() not in content, name


def test_a_sweep_writes_down_no_secret_of_its_command_line(run_entry, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRETS["HF_TOKEN"])
    done = run_entry("train.py", "-m", *TINY, "+dataset.note=x,hf_qWeRtYuIoP", ok=False)
    assert "error: the command line holds the value of the environment variable HF_TOKEN" in str(done.returncode)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("+dataset.note=${oc.env:HF_TOKEN}", "dataset.note holds the value of the environment variable HF_TOKEN"),
        ("+dataset.note=x-ghp_aSdFgHjKl-x", "dataset.note holds the value of the environment variable GITHUB_TOKEN"),
        ("+dataset.note=https://me:pass@host/x", "dataset.note holds a password in an address"),
        ("hydra.run.dir=hf_qWeRtYuIoP", "the folder holds the value of the environment variable HF_TOKEN"),
    ],
)
def test_a_secret_in_the_configuration_is_refused(run_entry, tmp_path, monkeypatch, option, message):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    done = run_entry("train.py", *TINY, option.replace("https:", "'https:") + ("'" if "https" in option else ""),
                     ok=False)  # fmt: skip
    assert message in done.stderr
    assert not any(secret in done.stdout + done.stderr for secret in SECRETS.values())
    assert not list(tmp_path.rglob("*.pt"))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("recipe.batch_size=-1", "recipe.batch_size is -1: give a whole number from 1"),
        ("recipe.batch_size=two", "recipe.batch_size is 'two': give a whole number"),
        ("recipe.lr=nan", "recipe.lr is nan: give a number from 0"),
        ("recipe.lr=-1", "recipe.lr is -1: give a number from 0"),
        ("recipe.max_iters=0", "recipe.max_iters is 0: give a whole number from 1"),
        ("recipe.val_every=0", "recipe.val_every is 0: give a whole number from 1"),
        ("log_every=0", "log_every is 0: give a whole number from 1"),
        ("num_workers=-1", "num_workers is -1: give a whole number from 0"),
        ("seed=99999999999999999999", "seed is 99999999999999999999: give a whole number"),
        ("accumulate=0", "accumulate is 0: give a whole number from 1"),
        ("save_every=0", "save_every is 0: give a whole number from 1 to 2147483647 or null"),
        ("bf16=maybe", "bf16 is 'maybe': give true or false"),
        (
            "dataset.size=1000000",
            "crop_size=[1000000, 1000000] has 1000000x1000000 pixels, 1000000000000 in all, more than the limit",
        ),
        ("dataset.size=-5", "crop_size=[-5, -5] has -5x-5 pixels: give at least one"),
        ("dataset.train.length=0", "length is 0"),
        ("recipe.train_transform.crop_size=[64]", "crop_size is [64]: give height and width"),
        ("recipe.train_transform.crop_size=64", "recipe.train_transform.crop_size is 64: give a list, each of it a"),
        ("model.head.recurrence=1.5", "model.head.recurrence is 1.5: give a whole number"),
        ("model.head.recurrence=1000000000", "recurrence is 1000000000: give the number of loops"),
        ("model.head.dropout=a", "model.head.dropout is 'a': give a number"),
        ("loss.weights.aux=[1]", "loss.weights is {'main': 1.0, 'aux': [1]}: give a mapping, each of it a number"),
    ],
)
def test_a_value_that_makes_no_sense_gets_one_message(run_entry, tmp_path, option, message):
    names = option.split("=")[0]
    done = run_entry("train.py", *(part for part in TINY if part.split("=")[0] != names), option, ok=False)
    assert f"error: {message}" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.pt"))
