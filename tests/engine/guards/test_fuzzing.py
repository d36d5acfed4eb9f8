"""Mutated checkpoints, configurations, label files and lists: a clean error or a result, and nothing else.

``make test`` runs a few hundred that are always the same. Ten thousand, with what is found made small, in a process
whose memory is limited (see results/fuzzing.md):

    ulimit -v 24000000; python -m pytest tests/test_fuzzing.py --hypothesis-profile=thorough --hypothesis-seed=7

A clean error is one that an entry point turns into a message (``engine.entry``). Anything else fails the test: another
exception, an example that takes longer than the deadline, a process started, a file opened for writing elsewhere, a
connection. A crash of the interpreter ends pytest itself.
"""

import copy
import io
import json
import os
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from coco_data import write_coco
from conftest import ROOT, TINY, write_pair
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image
from published_states import authors_state, mmseg_state
from safetensors.torch import load_file, save_file

from ccnet import train as training
from ccnet.data.build import build_dataset
from ccnet.data.image_files import read_image
from ccnet.data.label_files import LabelReader
from ccnet.data.sets.camvid import CamVid
from ccnet.data.sets.coco import Coco, instances_transform
from ccnet.data.sets.lip import LIP
from ccnet.data.sets.voc import VOC
from ccnet.engine import checkpoints
from ccnet.engine.checkpoints.writing import CHECKSUM, HEADER, checksum
from ccnet.engine.drawing.label_images import save_mask
from ccnet.engine.evaluation.average_precision import _encoded, average_precision
from ccnet.engine.evaluation.segmentation import predict
from ccnet.engine.guards import plain
from ccnet.engine.guards.setting_types import check_settings
from ccnet.engine.sweeps.entry_point import _USER_ERRORS
from ccnet.engine.training.state import TrainingState
from ccnet.models.factory import build

CLEAN = (*_USER_ERRORS, HydraException)
THOROUGH = 25  # times the examples of ``make test``


def examples(number):
    """That many in ``make test``, and ``THOROUGH`` times as many where that profile is chosen (conftest.py)."""
    return settings(max_examples=number * (THOROUGH if settings.get_current_profile_name() == "thorough" else 1))


# ---- what no example may do

_watched: list[str] | None = None
_FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen")
_TEMPORARY = tempfile.gettempdir()


def _watch(event, arguments):
    if _watched is None:
        return
    away = event == "socket.connect" and not isinstance(arguments[1], str | bytes)  # a path: data workers'
    writes = event == "open" and isinstance(arguments[0], str) and isinstance(arguments[1], str)
    if (
        away
        or event.startswith(_FORBIDDEN)
        or (
            writes
            and set(arguments[1]) & set("wax+")
            and not os.path.abspath(arguments[0]).startswith((_TEMPORARY, "/dev/", "/proc/"))
            and not arguments[0].endswith((".pyc", ".py"))
            and "__pycache__" not in arguments[0]
        )
    ):
        _watched.append(f"{event} {arguments}")


sys.addaudithook(_watch)


def clean(work, *arguments):
    """What ``work`` gives, or None after a clean error; everything else fails."""
    global _watched
    _watched = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return work(*arguments)
    except CLEAN as error:
        assert str(error)
        return None
    finally:
        seen, _watched = _watched, None
        assert not seen, seen


# ---- how things are mutated


@st.composite
def damage(draw, content: bytes):
    """``content`` with bits flipped and bytes overwritten, cut out, cut off, put in, doubled or exchanged."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        length = len(content)
        anywhere = st.integers(0, max(length - 1, 0))
        edge = st.integers(0, min(400, max(length - 1, 0)))
        start = draw(st.one_of(edge, anywhere))
        start = max(length - 1 - start, 0) if draw(st.booleans()) else start
        span = draw(st.one_of(st.integers(1, 16), st.integers(1, 4096)))
        match draw(st.sampled_from(["flip", "set", "cut", "end", "put", "double", "exchange"])):
            case "flip" if length:
                content[start] ^= 1 << draw(st.integers(0, 7))
            case "set":
                content[start : start + 4] = draw(st.binary(min_size=4, max_size=4))
            case "cut":
                del content[start : start + span]
            case "end":
                del content[start:]
            case "put":
                content[start:start] = draw(st.binary(max_size=32))
            case "double":
                content[start:start] = content[start : start + span]
            case "exchange":
                other = draw(anywhere)
                one, two = content[start : start + span], content[other : other + span]
                content[start : start + len(one)], content[other : other + len(two)] = two, one
    return bytes(content)


_NUMBERS = (0, 1, -1, 2, 3, 7, 64, 2**31, 2**63, 10**12, 10**30, -(10**12), 0.5, -0.5, 1.5, 1e-12, 1e308)
_NONFINITE = (float("nan"), float("inf"), -float("inf"))
_TEXTS = (
    "", "a", "0", "1.5", "true", "???", "../..", "${oc.env:HOME}", "${seed}", "x" * 5000, "\0", "\ud800", "$x^{",
    "os.system", "builtins.eval", "ccnet.models.factory.build",
    "ccnet.models.segmentor.Segmentor", "ccnet.data.sets.folder.Folder",
)  # fmt: skip
_CALLS = (
    {"_target_": "os.system", "command": "touch ran"},
    {"_target_": "ccnet.models.factory.create_model", "name": "fcn", "num_classes": 3},
    {"_target_": "ccnet.models.backbone.TimmBackbone", "name": "resnet10t"},
    {"_target_": "ccnet.engine.evaluation.protocols.Whole"},
)
PLAIN = st.one_of(
    st.sampled_from(_NUMBERS + _NONFINITE),
    st.sampled_from(_TEXTS),
    st.sampled_from([None, True, False, [], [[]], {}, [None], [1, 2], [64, 64], [10**9, 10**9], {"a": 1}, [{}]]),
    st.sampled_from(_CALLS),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
)
PICKLED = st.one_of(
    PLAIN, st.sampled_from([(), (_CALLS[0],), b"x", {1: 2}, {(1, 2): 3}, 1j, torch.zeros(2), torch.zeros(0)])
)


def _places(tree, path=()):
    yield path
    if isinstance(tree, (dict, list)):
        for key in tree if isinstance(tree, dict) else range(len(tree)):
            yield from _places(tree[key], (*path, key))


@st.composite
def mutated(draw, tree, values=PLAIN):
    """``tree`` of dicts and lists with entries left out, replaced, nested, renamed, exchanged or doubled."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        places = [path for path in _places(tree) if path]
        if not places:
            break
        *way, key = draw(st.sampled_from(places))
        node = tree
        for part in way:
            node = node[part]
        match draw(st.sampled_from(["leave out", "replace", "replace", "replace", "nest", "rename", "exchange"])):
            case "leave out":
                del node[key]
            case "replace":
                node[key] = copy.deepcopy(draw(values))
            case "nest":
                for _ in range(draw(st.sampled_from([1, 2, 50]))):
                    node[key] = draw(st.sampled_from([[node[key]], {"a": node[key]}]))
            case "rename" if isinstance(node, dict):
                node[draw(st.sampled_from(["a", "_target_", "_args_", "_partial_", "_recursive_", ""]))] = node.pop(key)
            case "exchange":
                other = draw(st.sampled_from(list(node) if isinstance(node, dict) else range(len(node))))
                node[key], node[other] = node[other], node[key]
    return tree


# ---- checkpoints


def composed(*overrides):
    with initialize_config_dir(config_dir=str(ROOT / "conf"), version_base="1.3"):
        return compose("config", overrides=[*TINY, *overrides])


def place(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of one iteration."""
    folder = tmp_path_factory.mktemp("run")
    training.train(composed("recipe.max_iters=1", "dataset.val.length=1", "recipe.head.channels=8"), folder)
    return folder


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch")


def use(path):
    """What evaluate.py and predict.py do with a checkpoint, for one small picture."""
    saved = checkpoints.load(path)
    network = checkpoints.network(saved)
    crop = saved.setting("recipe.train_transform.crop_size")
    node = saved.config.get("protocol", {"_target_": "ccnet.engine.evaluation.protocols.Slide", "crop_size": crop})
    labels = predict(network, torch.rand(1, 3, 33, 33), instantiate(node), bf16=bool(saved.setting("bf16")))
    save_mask(path.with_suffix(".png"), labels[0].numpy(), saved.palette)
    return labels


@pytest.fixture(scope="module")
def contents(run):
    return {name: (run / name).read_bytes() for name in ("last.pt", "best.safetensors")}


@examples(60)
@given(data=st.data(), name=st.sampled_from(["last.pt", "best.safetensors"]))
def test_the_bytes_of_a_checkpoint(contents, scratch, data, name):
    path = place(scratch, name, data.draw(damage(contents[name])))
    labels = clean(use, path)
    assert labels is None or labels.shape == (1, 33, 33)


@examples(60)
@given(data=st.data())
def test_what_a_checkpoint_says(run, scratch, data):
    """Of the config above all, and of the rest; in both forms, with checksums that are right."""
    content = torch.load(run / "last.pt", weights_only=True)
    kept = {"weights": content.pop("weights"), "training": content.pop("training")}
    config = content["config"]
    part = data.draw(st.sampled_from(["model", "model", "protocol", "recipe", "dataset", None]))
    if part in config:
        config[part] = data.draw(mutated({part: config[part]}, PICKLED)).get(part)
    else:
        content = data.draw(mutated(content, PICKLED))
    path = scratch / "last.pt"
    if data.draw(st.booleans()):
        torch.save(kept | content, path)
    else:
        path = scratch / "best.safetensors"
        weights = {key: tensor.contiguous() for key, tensor in kept["weights"].items()}
        try:
            text = json.dumps(content)
        except (TypeError, ValueError):
            return
        save_file(weights, path, metadata={HEADER: text, CHECKSUM: checksum(text, weights)})
    labels = clean(use, path)
    assert labels is None or labels.shape == (1, 33, 33)


def go_on(path, config, folder):
    """A step from ``path`` on, or the first one if it holds no training, and its checkpoint; returns the iteration."""
    saved = checkpoints.load(path)
    network = checkpoints.network(saved)
    algorithm = instantiate(config.optimizer.algorithm, network.parameters())
    state = TrainingState(network, algorithm, instantiate(config.optimizer.schedule, algorithm), identity="")
    if saved.training:
        state.restore(saved)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    algorithm.step()
    state.advance()
    state.validation_due(1, 3)
    state.save(folder, saved.config, SimpleNamespace(classes=saved.classes, palette=saved.palette))
    return state.iteration


@pytest.fixture(scope="module")
def begun(run, tmp_path_factory):
    """Configuration of each optimiser, and what ``last.pt`` holds after a step of it."""
    found = {}
    for optimizer in ("adamw", "sgd", "sgd_steps"):
        config = composed("recipe.max_iters=3", f"optimizer={optimizer}")
        folder = tmp_path_factory.mktemp(optimizer)
        assert go_on(run / "best.safetensors", config, folder) == 1
        found[optimizer] = config, torch.load(folder / "last.pt", weights_only=True)
    return found


@examples(20)
@given(data=st.data(), optimizer=st.sampled_from(["adamw", "sgd", "sgd_steps"]))
def test_what_a_run_goes_on_from(begun, scratch, data, optimizer):
    """The state of its optimiser, schedule and random generators, with checksums that are right."""
    config, content = begun[optimizer]
    training = dict(content["training"])
    part = data.draw(st.sampled_from(["optimizer", "optimizer", "schedule", None]))
    if part:
        training[part] = data.draw(mutated({part: training[part]}, PICKLED)).get(part)
    else:
        training = data.draw(mutated(training, PICKLED))
    path = scratch / "begun.pt"
    torch.save(content | {"training": training}, path)
    assert clean(go_on, path, config, scratch) in (None, 2)


@examples(12)
@given(data=st.data())
def test_the_header_of_a_safetensors_file(contents, scratch, data):
    """Names, types, shapes and offsets of the tensors, which are JSON."""
    whole = contents["best.safetensors"]
    length = int.from_bytes(whole[:8], "little")
    header = json.dumps(data.draw(mutated(json.loads(whole[8 : 8 + length])))).encode()
    path = place(scratch, "best.safetensors", len(header).to_bytes(8, "little") + header + whole[8 + length :])
    labels = clean(use, path)
    assert labels is None or labels.shape == (1, 33, 33)


@pytest.fixture(scope="module")
def published():
    """State dicts in the published layouts."""
    return {"authors": authors_state(), "mmseg": mmseg_state("ccnet")}


@pytest.fixture(scope="module")
def published_bytes(published):
    """A .pth that is small, because its tensors are: their shapes are wrong, their names are right."""
    file = io.BytesIO()
    small = {key: tensor.flatten()[:1].clone() for key, tensor in published["mmseg"].items()}
    torch.save({"state_dict": small, "meta": {"iter": 1, "CLASSES": ["a", "b", "c"]}}, file)
    return file.getvalue()


@examples(20)
@given(data=st.data())
def test_the_bytes_of_a_published_checkpoint(published_bytes, scratch, data):
    clean(use, place(scratch, "published.pth", data.draw(damage(published_bytes))))


_TENSORS = st.sampled_from(
    [torch.zeros(0), torch.zeros(10**6, 0), torch.zeros(1).expand(10**12), torch.zeros(3, dtype=torch.int8), None, 3,
     torch.zeros(1), torch.zeros(2, 2), torch.zeros((), dtype=torch.complex64), "x", torch.eye(2).to_sparse()]
)  # fmt: skip


@examples(4)
@given(data=st.data(), layout=st.sampled_from(["authors", "mmseg"]))
def test_what_a_published_checkpoint_holds(published, scratch, data, layout):
    state = dict(published[layout])
    for _ in range(data.draw(st.integers(0, 3))):
        key = data.draw(st.sampled_from([key for key in state if "layer" not in str(key)] + list(state)[:20]))
        match data.draw(st.sampled_from(["leave out", "replace", "rename"])):
            case "leave out":
                del state[key]
            case "replace":
                state[key] = data.draw(_TENSORS)
            case "rename":
                state[data.draw(st.sampled_from(["x", "", "head.x", "decode_head.x", "decode_head", 3]))] = state.pop(
                    key
                )
    meta = {"iter": 9, "CLASSES": ["a", "b", "c"], "PALETTE": [[1, 2, 3]] * 3, "config": "crop_size=(512, 512)"}
    content = {"state_dict": state, "meta": data.draw(mutated(meta, PICKLED)) if data.draw(st.booleans()) else meta}

    path = scratch / "held.pth"
    torch.save(content, path)
    found = clean(checkpoints.load, path)
    assert found is None or len(found.classes) == 3


# ---- configurations

_OVERRIDES = {
    name: value
    for name, value in (
        ("recipe.max_iters", "1"), ("recipe.val_every", "1"), ("recipe.batch_size", "2"), ("recipe.lr", "0.001"),
        ("recipe.weight_decay", "0.0001"), ("dataset.size", "65"), ("dataset.train.length", "2"),
        ("dataset.val.length", "1"), ("log_every", "1"), ("num_workers", "0"), ("seed", "0"), ("bf16", "false"),
        ("channels_last", "true"), ("save_every", "null"), ("accumulate", "1"), ("clip_norm", "null"),
        ("skip_nonfinite", "0"), ("skip_broken", "0"), ("device", "cpu"), ("model.head.recurrence", "2"),
        ("model.head.dropout", "0.1"), ("model.head.context.gamma", "fixed"), ("model.align_corners", "true"),
        ("loss.weights.aux", "0.4"), ("optimizer.algorithm.lr", "0.001"), ("optimizer.schedule.max_lr", "0.001"),
        ("recipe.train_transform.crop_size", "[65,65]"), ("framework", "torch"),
        ("recipe.head.channels", "8"), ("backbone.output_stride", "8"), ("backbone.out_indices", "[1,2]"),
        ("model.aux_head.channels", "8"), ("backbone.name", "resnet10t"),
        ("resume", "null"), ("init", "null"), ("loss.terms.main.class_weights", "null"),
    )
}  # fmt: skip
# Not those that ask for hours or for more memory than there is: these are a user's to ask for.
_VALUES = st.one_of(
    st.sampled_from(
        ["-1", "0", "1", "3", "0.5", "-0.5", "nan", "inf", "-inf", "1e400", "true", "null", "a", "''", "[]", "[1]",
         "{}", "[[1]]",
         "[[1]]", "{a:1}", "[1,a]", "[-1,-1]", "[a,b]", "[null,null]", "${seed}", "${no.such}", "${oc.env:NO_SUCH}",
         "???", "[0,0]", "[1000000000,1000000000]", "99999999999999999999", "-99999999999999999999", "1_0", "0x10"]
    ),
    st.text("01.-e[]{},:'$a\\\"= ", max_size=6),
)  # fmt: skip


@examples(4)
@given(changed=st.dictionaries(st.sampled_from(sorted(_OVERRIDES)), _VALUES,
                               min_size=1, max_size=2))  # fmt: skip
def test_the_command_line(scratch, changed):
    """A run of one iteration, or one message."""
    options = [f"{name}={value}" for name, value in (_OVERRIDES | changed).items() if name in changed or name[0] != "o"]
    folder = scratch / "train"

    def work():
        sys.argv[1:] = []
        return training.train(composed("dataset.val.length=1", "logger=none", *options), folder)

    arguments = list(sys.argv)
    try:
        score = clean(work)
    finally:
        sys.argv[:] = arguments
        shutil.rmtree(folder, ignore_errors=True)
    assert score is None or -1 <= score <= 1 or score != score


@examples(20)
@given(data=st.data())
def test_a_composed_configuration(data):
    """Every part of it is made into what it describes, as training does before its first step."""
    node = OmegaConf.to_container(composed("backbone.name=resnet10t"), resolve=False)
    parts = ("model", "dataset", "recipe", "loss", "optimizer", "protocol", "num_classes", "accumulate", "clip_norm")
    changed = data.draw(mutated({part: node[part] for part in parts}))

    def work():
        config = OmegaConf.create(node | changed)
        check_settings(plain(config))
        for split in ("train", "val"):
            build_dataset(config.dataset, split, instantiate(config.recipe.train_transform))[0]
        config.num_classes = 4
        model = build(config.model)
        instantiate(config.task).check(config, model)
        instantiate(config.protocol)
        instantiate(config.loss)
        optimizer = instantiate(config.optimizer.algorithm, model.parameters())
        instantiate(config.optimizer.schedule, optimizer)
        return True

    clean(work)


# ---- pictures, labels, lists


def _pictures():
    generator = np.random.default_rng(0)
    colour = Image.fromarray(generator.integers(0, 255, (24, 32, 3), dtype=np.uint8))
    grey = Image.fromarray(generator.integers(0, 3, (24, 32), dtype=np.uint8))
    palette = grey.convert("P")
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    exif = Image.Exif()
    exif[0x0112] = 6
    made = {}
    deep = Image.fromarray(generator.integers(0, 3, (24, 32), dtype=np.uint16))
    for name, picture, options in (
        ("rgb.png", colour, {}),
        ("grey.png", grey, {}),
        ("palette.png", palette, {}),
        ("exif.png", colour, {"exif": exif}),
        ("deep.png", deep, {}),
        ("bit.png", grey.convert("1"), {}),
        ("a.jpg", colour, {"exif": exif}),
        ("progressive.jpg", colour, {"progressive": True}),
        ("cmyk.jpg", colour.convert("CMYK"), {}),
        ("a.bmp", colour, {}),
        ("lzw.tif", colour, {"compression": "tiff_lzw"}),
        ("deflate.tif", colour, {"compression": "tiff_adobe_deflate"}),
        ("jpeg.tif", colour, {"compression": "jpeg"}),
        ("grey.tif", grey, {}),
        ("a.webp", colour, {}),
    ):
        file = io.BytesIO()
        picture.save(file, {"jpg": "JPEG", "tif": "TIFF"}.get(name[-3:], name.split(".")[1].upper()), **options)
        made[name] = file.getvalue()
    return made


PICTURES = _pictures()


@examples(160)
@given(data=st.data(), name=st.sampled_from(sorted(PICTURES)))
def test_the_bytes_of_a_picture_and_of_labels(scratch, data, name):
    path = place(scratch, name, data.draw(damage(PICTURES[name])))
    picture = clean(read_image, path)
    assert picture is None or (picture.dtype == torch.uint8 and picture.ndim == 3 and len(picture) == 3)
    for reader in (LabelReader({0: 0, 1: 1, 2: 2, 255: 255}), LabelReader({(0, 0, 0): 0, (255, 0, 0): 1})):
        labels = clean(reader, path)
        assert labels is None or (labels.dtype == torch.uint8 and labels.ndim == 2)


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coco")
    return folder, write_coco(folder, images=2, split="val")


def _read_coco(folder):
    dataset = Coco(folder, split="val", transform=instances_transform())
    for index in range(len(dataset)):
        _, target = dataset[index]
        assert target["masks"].shape[0] == len(target["labels"])
    mask = np.zeros((40, 40), dtype=np.uint8)
    mask[1:10, 1:10] = 1
    found = [
        {
            "image_id": entry["id"],
            "category_id": dataset.category_ids[0],
            "bbox": [1.0, 1.0, 9.0, 9.0],
            "score": 0.5,
            "segmentation": _encoded(np.resize(mask, (entry["height"], entry["width"]))),
        }
        for entry in dataset.images
    ]
    return average_precision(dataset.ground_truth(), found)


@examples(40)
@given(data=st.data(), as_bytes=st.booleans())
def test_annotations(coco, data, as_bytes):
    folder, content = coco
    if as_bytes:
        written = data.draw(damage(json.dumps(content).encode()))
    else:
        written = json.dumps(data.draw(mutated(content))).encode()
    (folder / "annotations" / "instances_val.json").write_bytes(written)
    clean(_read_coco, folder)


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    """Data sets with lists: their class, folder, list and the list's right content."""
    root = tmp_path_factory.mktemp("listed")
    write_pair(root / "train" / "a.png", root / "trainannot" / "a.png", classes=11)
    images, labels = root / "TrainVal_images", root / "TrainVal_parsing_annotations"
    write_pair(images / "train_images" / "a.jpg", labels / "train_segmentations" / "a.png", classes=3)
    voc = root / "VOC2012"
    write_pair(voc / "JPEGImages" / "a.jpg", voc / "SegmentationClass" / "a.png", classes=3)
    (voc / "ImageSets" / "Segmentation").mkdir(parents=True)
    return {
        "camvid": (CamVid, root, root / "train.txt", b"/SegNet/train/a.png /SegNet/trainannot/a.png\n"),
        "lip": (LIP, root, images / "train_id.txt", b"a.jpg\na\n"),
        "voc": (VOC, root, voc / "ImageSets" / "Segmentation" / "train.txt", b"a\n/JPEGImages/a.jpg /Seg/a.png\n"),
    }


@examples(40)
@given(data=st.data(), name=st.sampled_from(["camvid", "lip", "voc"]))
def test_lists(listed, data, name):
    kind, root, path, content = listed[name]
    lines = [b"", b"../a.png ../a.png\n", b"/etc/passwd /etc/passwd\n", b"\xff\n", b"\0 \0\n"]
    inserted = data.draw(st.sampled_from(lines))
    path.write_bytes(data.draw(damage(content + inserted)) if data.draw(st.booleans()) else inserted + content)

    def work():
        dataset = kind(root, split="train", transform=None)
        for pair in dataset.pairs:
            assert all(root in part.parents and ".." not in part.parts for part in pair)
        return dataset.read(0)

    clean(work)


def test_the_unchanged_files_are_read(run, coco, listed, scratch, published):
    """Else every example might be refused for a reason of its own."""
    for name in ("last.pt", "best.safetensors"):
        assert clean(use, place(scratch, name, (run / name).read_bytes())).shape == (1, 33, 33)
    assert load_file(run / "best.safetensors")
    folder, content = coco
    (folder / "annotations" / "instances_val.json").write_text(json.dumps(content))
    assert clean(_read_coco, folder) is not None
    for kind, root, path, content in listed.values():
        path.write_bytes(content)
        assert clean(kind(root, split="train", transform=None).read, 0) is not None
    for name, content in PICTURES.items():
        assert clean(read_image, place(scratch, name, content)) is not None
    assert (
        clean(training.train, composed(*(f"{name}={value}" for name, value in _OVERRIDES.items())), scratch / "t")
        is not None
    )
