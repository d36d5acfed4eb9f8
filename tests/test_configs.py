"""Every choice of a config group composes, and each data set selects its recipe."""

import pytest
from conftest import ROOT, configured
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ccnet.data.build import build_dataset
from ccnet.models.factory import build


def composed(*overrides):
    return configured("num_classes=5", *overrides)


def choices(group):
    return sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))


# Detection networks have their own data set and loss: tests/test_detection.py.
DATASETS, LOSSES = sorted({*choices("dataset")} - {"coco"}), sorted({*choices("loss")} - {"detection"})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dataset", "loss"),
    [*((dataset, "ce_ccl") for dataset in DATASETS), *(("cityscapes", loss) for loss in LOSSES if loss != "ce_ccl")],
)
def test_every_dataset_and_loss_composes_and_instantiates(dataset, loss):
    config = composed(f"dataset={dataset}", f"loss={loss}", "backbone=beacons", "recipe.max_iters=7")
    OmegaConf.to_container(config.optimizer, resolve=True)
    instantiate(config.recipe.train_transform)
    model = build(config.model)
    criterion = instantiate(config.loss)
    assert (model.embed is not None) == ("ccl" in criterion.terms)
    optimizer = instantiate(config.optimizer.algorithm, model.parameters())
    instantiate(config.optimizer.schedule, optimizer)


@pytest.mark.slow
@pytest.mark.parametrize("dataset", choices("dataset"))
def test_what_help_lists_for_the_default_data_set_works_with_the_others(dataset):
    listed = composed()
    own = {"train_transform", *(["head"] if dataset == "coco" else [])}  # Mask R-CNN has no such head
    options = [f"recipe.{name}={value}" for name, value in listed.recipe.items() if name not in own | {"head"}]
    options += [] if dataset == "coco" else ["recipe.head.channels=16", "recipe.head.gamma=fixed"]
    config = composed(f"dataset={dataset}", *(option.replace("=None", "=null") for option in options))
    assert set(listed.recipe) - own <= set(config.recipe)
    if dataset != "coco":
        channels = {part.channels for part in (config.model.head, config.model.get("aux_head")) if part is not None}
        assert channels == {16}


@pytest.mark.slow
@pytest.mark.parametrize("backbone", sorted(set(choices("backbone")) - {"timm"}))
def test_every_backbone_builds(backbone):
    config = composed(f"backbone={backbone}", "backbone.pretrained=false")
    assert build(config.model).backbone.output_stride == 8


def test_ade20k_selects_the_recipe_of_the_paper():
    config = composed("model=ccnet", "dataset=ade20k")
    assert config.backbone.name == "resnet101"
    assert config.backbone.pretrained
    assert config.model.head.channels == 512
    assert config.model.head.recurrence == 2
    assert config.model.embedding_channels == 16
    assert config.optimizer.algorithm._target_ == "torch.optim.SGD"
    assert config.optimizer.algorithm.lr == 0.01
    assert config.optimizer.schedule.power == 0.9
    assert config.recipe.train_transform.short_sides == [300, 375, 450, 525, 600]
    assert config.loss.weights == {"main": 1.0, "aux": 0.4, "ccl": 1.0}


@pytest.mark.parametrize(
    ("dataset", "crop", "batch", "iterations", "lr", "weight_decay"),
    [
        ("cityscapes", [769, 769], 8, 60_000, 1e-2, 1e-4),
        ("lip", [473, 473], 40, 114_000, 7e-3, 5e-4),
        ("voc", [512, 512], 16, 40_000, 1e-2, 5e-4),
        ("camvid_full", [504, 504], 8, 20_000, 1e-2, 1e-4),
        ("camvid_video", [504, 504], 8, 20_000, 1e-2, 1e-4),
    ],
)
def test_each_data_set_selects_its_recipe(dataset, crop, batch, iterations, lr, weight_decay):
    config = composed(f"dataset={dataset}")
    assert config.recipe.train_transform.crop_size == config.training_crop == crop
    assert (config.recipe.batch_size, config.recipe.max_iters) == (batch, iterations)
    assert (config.optimizer.algorithm.lr, config.optimizer.algorithm.weight_decay) == (lr, weight_decay)
    assert (
        config.protocol._target_ == f"ccnet.engine.evaluation.protocols.{'Letterbox' if dataset == 'lip' else 'Whole'}"
    )
    if dataset == "camvid_video":
        assert (config.dataset.train.frames, config.model.head.recurrence) == (5, 3)
    if dataset == "lip":
        assert config.recipe.train_transform.flip_pairs == [[14, 15], [16, 17], [18, 19]]
        assert composed("dataset=lip", "protocol=letterbox_flip").protocol.flip_pairs == [[14, 15], [16, 17], [18, 19]]


def test_the_command_line_overrides_a_recipe():
    config = composed(
        "dataset=ade20k", "backbone=mobilenetv2_100", "loss=ce", "recipe.lr=0.02", "model.head.recurrence=0"
    )
    assert config.backbone.name == "mobilenetv2_100"
    assert config.model.embedding_channels is None
    assert config.optimizer.algorithm.lr == 0.02


def test_the_poly_schedule_matches_the_paper():
    """lr * (1 - iteration / max_iters) ** 0.9"""
    config = composed("dataset=camvid", "recipe.max_iters=10", "backbone=beacons")
    optimizer = instantiate(config.optimizer.algorithm, build(config.model).parameters())
    schedule = instantiate(config.optimizer.schedule, optimizer)
    rates = []
    for _ in range(10):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.01 * (1 - i / 10) ** 0.9 for i in range(10)])


@pytest.mark.parametrize("split", ["test", ["val"], None], ids=str)
def test_an_unknown_split_is_reported_with_those_that_exist(split):
    node = OmegaConf.create({"dataset": composed().dataset, "split": split})
    with pytest.raises(ValueError, match=r"this data set has no split .*: choose one of train, val"):
        build_dataset(node.dataset, node.split, None)
