"""Detection: COCO annotations, Mask R-CNN with context, average precision, and the entry points."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from coco_data import CATEGORIES, write_coco
from conftest import ROOT, SHARED
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from PIL import Image
from torch import nn

from ccnet import train as training
from ccnet.data.sets.coco import Coco, instances_transform
from ccnet.engine import checkpoints
from ccnet.engine.evaluation.average_precision import average_precision, coco_results
from ccnet.engine.training.lr_schedules import WarmupSteps
from ccnet.engine.training.steps.torch_step import train_step
from ccnet.models import create_model

pytest.importorskip("pycocotools", reason="the oracle of these tests: pip install -e '.[dev]'")
from pycocotools import mask as official_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

pytestmark = pytest.mark.slow


SMALL_NET = ["backbone=resnet10t", "backbone.pretrained=false", "model.frozen=false", "model.channels=16"]
TINY = [
    "model=mask_rcnn", "dataset=coco", *SMALL_NET, "recipe.max_iters=2", "recipe.val_every=1", "recipe.batch_size=2",
    "recipe.min_size=64", "recipe.max_size=96", "recipe.lr=0.001", "log_every=1", "num_workers=0", "logger=none",
    "device=cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coco")
    write_coco(folder, images=4, split="train2017")
    write_coco(folder, images=2, split="val2017", seed=1)
    return folder


def loaded(root, split="val2017", transform=None, **options):
    return Coco(root, split=split, transform=transform or instances_transform(), **options)


def test_masks_boxes_and_labels_equal_pycocotools(root):
    dataset = loaded(root)
    official = COCO(root / "annotations" / "instances_val2017.json")
    assert dataset.classes == ("bar", "disc", "wedge")
    assert dataset.category_ids == [1, 3, 90]
    for index, entry in enumerate(dataset.images):
        image, target = dataset[index]
        wanted = official.loadAnns(official.getAnnIds(entry["id"]))
        assert image.dtype == torch.float32 and 0.1 < image.max() <= 1
        assert image.shape[1:] == target["masks"].shape[1:]
        assert target["image_id"] == entry["id"]
        assert target["labels"].tolist() == [{1: 1, 3: 2, 90: 3}[annotation["category_id"]] for annotation in wanted]
        assert len(target["masks"]) == len(wanted)
        for mask, box, annotation in zip(target["masks"].numpy(), target["boxes"], wanted, strict=True):
            assert np.array_equal(mask, official.annToMask(annotation))
            x, y, width, height = annotation["bbox"]
            assert box.tolist() == pytest.approx([x, y, x + width, y + height])


def test_training_skips_crowds_and_images_without_objects(root):
    everything, training_set = loaded(root, "train2017"), loaded(root, "train2017", training=True)
    assert len(everything) == 4 + 2 and len(training_set) == 4
    counts = [
        [len(dataset[index][1]["labels"]) for index in range(len(dataset))] for dataset in (everything, training_set)
    ]
    assert counts == [[3, 2, 2, 2, 0, 1], [2, 2, 2, 2]]


def test_a_flip_transforms_image_masks_and_boxes_alike(root):
    image, target = loaded(root)[0]
    mirrored, flipped = loaded(root, transform=instances_transform(flip=1.0))[0]
    assert torch.equal(mirrored, image.flip(-1))
    assert torch.equal(flipped["masks"], target["masks"].flip(-1))
    columns = flipped["masks"].any(dim=1)
    for box, seen in zip(flipped["boxes"], columns, strict=True):
        where = seen.nonzero().flatten()
        assert box[0].item() == pytest.approx(where.min().item(), abs=1)
        assert box[2].item() == pytest.approx(where.max().item() + 1, abs=1)


def test_user_errors_produce_a_single_sentence(root, tmp_path):
    broken = shutil.copytree(root, tmp_path / "broken")
    file = broken / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    with pytest.raises(FileNotFoundError, match=r"dataset\.root is not set"):
        loaded(None)

    picture = broken / "val2017" / content["images"][1]["file_name"]
    Image.new("RGB", (5, 5)).save(picture)
    with pytest.raises(ValueError, match=r"has 5x5 pixels, but .*instances_val2017\.json says 72x64"):
        loaded(broken)[1]
    picture.unlink()
    with pytest.raises(FileNotFoundError, match=rf"lists {picture.name}, which is not in .*val2017 \(1 of 4 images"):
        loaded(broken)

    content["annotations"][0]["category_id"] = 7
    file.write_text(json.dumps(content))
    Image.new("RGB", (72, 64)).save(picture)
    with pytest.raises(ValueError, match="annotation 1 refers to category 7 and image 10, but the file does not"):
        loaded(broken)
    file.write_text(json.dumps({"images": []}))
    with pytest.raises(ValueError, match="not an annotation file in COCO's format: it needs the lists"):
        loaded(broken)
    file.write_text("{")
    with pytest.raises(ValueError, match="is not valid JSON and may be truncated"):
        loaded(broken)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks annotations/instances_val2017\.json of COCO\.\nThe layout of"):
        loaded(broken)


def made_detections(dataset, generator):
    """Return slightly perturbed ground truth with some wrong classes and false positives."""
    outputs = []
    for index in range(len(dataset)):
        _, target = dataset[index]
        masks = (
            torch.stack(
                [torch.roll(m, tuple(generator.integers(-3, 4, 2)), (0, 1)) for m in target["masks"]]
                + [torch.zeros_like(target["masks"][0])] * 2
            )
            if len(target["labels"])
            else torch.zeros(2, *target["masks"].shape[1:], dtype=torch.uint8)
        )
        masks[-2:, 10:30, 20:45] = 1
        count = len(masks)
        labels = torch.cat([target["labels"], torch.tensor([1, 3])])
        wrong = torch.from_numpy(generator.random(count) < 0.2)
        boxes = torch.cat([target["boxes"], torch.tensor([[20.0, 10, 45, 30]] * 2)])
        outputs.append({
            "boxes": boxes + torch.from_numpy(generator.normal(0, 1.5, (count, 4))).float(),
            "labels": torch.where(wrong, labels % 3 + 1, labels),
            "scores": torch.from_numpy(generator.random(count)),
            "masks": masks[:, None].float(),
        })  # fmt: skip
    return outputs


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_equals_pycocotools(root, seed):
    dataset = loaded(root, "train2017")
    generator = np.random.default_rng(seed)
    results = []
    for index, output in enumerate(made_detections(dataset, generator)):
        results += coco_results(output, dataset.images[index]["id"], dataset.category_ids)
    scores = average_precision(dataset.ground_truth(), results)
    assert 0.05 < scores.headline < 1

    truth = COCO(root / "annotations" / "instances_train2017.json")
    without_boxes = [{key: value for key, value in result.items() if key != "bbox"} for result in results]
    for kind, given, got in (("bbox", results, scores.box), ("segm", without_boxes, scores.mask)):
        evaluation = COCOeval(truth, truth.loadRes([dict(result) for result in given]), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        want = evaluation.stats[:6]
        assert np.nan_to_num(got, nan=-1) == pytest.approx(want, abs=1e-12)


def test_scores_of_perfect_and_no_detections(root):
    dataset = loaded(root)
    results = []
    for index in range(len(dataset)):
        _, target = dataset[index]
        output = target | {"scores": torch.ones(len(target["labels"])), "masks": target["masks"][:, None].float()}
        results += coco_results(output, target["image_id"].item(), dataset.category_ids)
    scores = average_precision(dataset.ground_truth(), results)
    assert scores.mask[0] == scores.box[0] == 1 and np.isnan(scores.mask[5])
    assert list(scores.summary())[:2] == ["mask_AP", "box_AP"]
    assert json.loads(json.dumps(results)) == results
    assert average_precision(dataset.ground_truth(), []).headline == 0


def small(**overrides):
    options = {"backbone": "resnet10t", "frozen": False, "channels": 16, "min_size": 48, "max_size": 80} | overrides
    return create_model("mask_rcnn", num_classes=3, **options)


def test_context_precedes_the_last_block_of_res4_and_is_initially_the_identity():
    """ResNet-50: 1024 channels at stride 16. All other tensors keep their names."""
    shapes = {}
    for context in (None, "rcca", "nonlocal"):
        with torch.device("meta"):  # only the shapes matter
            model = create_model("mask_rcnn", num_classes=80, backbone="resnet50", context=context)
        shapes[context] = {key: tensor.shape for key, tensor in model.state_dict().items()}
        blocks = [name for name, _ in model.backbone.body["layer3"].named_children()]
        assert blocks == ["0", "1", "2", "3", "4", *(["context"] if context else []), "5"]
    plain = shapes[None]
    for context, prefix in (("rcca", "context.attention"), ("nonlocal", "context")):
        own = {key: shape for key, shape in shapes[context].items() if key not in plain}
        assert plain == {key: shape for key, shape in shapes[context].items() if key in plain}
        assert {key for key in own if key.endswith("weight")} == {
            f"backbone.body.layer3.{prefix}.{name}_conv.weight" for name in ("query", "key", "value")
        }
        assert sum(shape.numel() for shape in own.values()) == 1_312_001
        assert own[f"backbone.body.layer3.{prefix}.value_conv.weight"] == (1024, 1024, 1, 1)

    torch.manual_seed(0)
    model, without = small(backbone="resnet18").eval(), small(backbone="resnet18", context=None).eval()
    without.load_state_dict({k: v for k, v in model.state_dict().items() if "context" not in k})
    image = torch.rand(1, 3, 64, 96)
    features = {}
    for name, network in (("with", model), ("without", without)):
        features[name] = network.backbone(image)
    assert [feature.shape[-2:] for feature in features["with"].values()][:4] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    for level, feature in features["without"].items():
        assert torch.allclose(features["with"][level], feature, atol=1e-5)
    x = torch.rand(1, 256, 4, 6)
    context = model.backbone.body["layer3"].context
    assert context.recurrence == 2 and torch.equal(context(x), x)
    nn.init.ones_(model.backbone.body["layer3"].context.attention.gamma)
    changed = [
        level for level, one in model.backbone(image).items() if not torch.equal(one, features["without"][level])
    ]
    assert changed == list(features["with"])  # the feature pyramid propagates it to every level


def test_paper_baseline_freezes_batch_norm_and_res2():
    model = create_model("mask_rcnn", num_classes=3, backbone="resnet18")
    body = model.backbone.body
    assert not any(isinstance(module, nn.BatchNorm2d) for module in body.modules())
    trained = {name.split(".")[0] for name, parameter in body.named_parameters() if parameter.requires_grad}
    assert trained == {"layer2", "layer3", "layer4"}
    assert all(parameter.requires_grad for parameter in model.rpn.parameters())
    assert model.transform.min_size == (800,) and model.transform.max_size == 1333
    assert model.roi_heads.mask_predictor.mask_fcn_logits.out_channels == 3 + 1


def test_every_parameter_learns_at_odd_sizes_and_without_objects():
    model = small().train()
    nn.init.ones_(model.backbone.body["layer3"].context.attention.gamma)
    masks = torch.zeros(1, 45, 61, dtype=torch.uint8)
    masks[:, 5:40, 10:50] = 1
    images = [torch.rand(3, 45, 61), torch.rand(3, 70, 33)]
    targets = [
        {"boxes": torch.tensor([[10.0, 5, 50, 40]]), "labels": torch.tensor([2]), "masks": masks},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "masks": torch.zeros(0, 70, 33)},
    ]
    losses = model(images, targets)
    assert set(losses) == {
        "loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"
    }  # fmt: skip
    sum(losses.values()).backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    found = model.eval()(images[:1])[0]
    count = len(found["scores"])
    assert found["masks"].shape == (count, 1, 45, 61) and found["boxes"].shape == (count, 4)


def test_unknown_context_and_unfit_backbone_get_one_sentence():
    with pytest.raises(ValueError, match=r"no context 'rcaa': did you mean rcca\? Available: \['none', 'nonlocal'"):
        small(context="rcaa")
    with pytest.raises(InstantiationException, match="needs the stages layer1, layer2, layer3, layer4 of a ResNet"):
        small(backbone="mobilenetv2_100")


def test_schedule_matches_mask_rcnn():
    """Linear warm-up from a third of the learning rate over 500 iterations, decay by a factor of 10 at 60k and 80k."""
    config = composed(ROOT)
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=config.recipe.lr)
    assert (config.recipe.batch_size, config.recipe.max_iters, config.recipe.lr) == (16, 90000, 0.02)
    schedule = instantiate(config.optimizer.schedule, optimizer)
    rates = {}
    for iteration in (0, 250, 500, 59_999, 60_000, 80_000, 89_999):
        schedule.last_epoch = iteration
        rates[iteration] = schedule.get_lr()[0]
    assert rates == pytest.approx({
        0: 0.02 / 3, 250: 0.02 * 2 / 3, 500: 0.02, 59_999: 0.02, 60_000: 0.002, 80_000: 0.0002, 89_999: 0.0002
    })  # fmt: skip
    assert WarmupSteps(torch.optim.SGD([parameter], lr=1.0), warmup=0, steps=[]).get_lr() == [1.0]


def composed(root, *overrides):
    with initialize_config_dir(config_dir=str(ROOT / "conf"), version_base="1.3"):
        return compose("config", overrides=["model=mask_rcnn", "dataset=coco", f"dataset.root={root}", *overrides])


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory):
    """Return the folder of a finished run of two iterations."""
    folder = tmp_path_factory.mktemp("run")
    training.train(composed(root, *TINY), folder)
    return folder


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_writes_scalars_images_and_checkpoints(finished):
    train = rows(finished / "train.csv")
    terms = ["classifier", "box_reg", "mask", "objectness", "rpn_box_reg"]
    assert float(train[0]["loss"]) == pytest.approx(sum(float(train[0][f"loss/{term}"]) for term in terms), rel=1e-5)
    assert {"mask_AP", "box_AP", "mask_AP50", "images_per_s", "mask AP/disc"} <= set(rows(finished / "val.csv")[0])
    assert [row["class"] for row in rows(finished / "val_classes.csv")] == ["bar", "disc", "wedge", "mean"]
    for picture in ("curves.png", "predictions.png"):
        assert np.array(Image.open(finished / picture)).std() > 10
    assert list(json.loads((finished / "result.json").read_text()))[1] == "mask_AP"
    assert checkpoints.load(finished / "best.safetensors").classes == ["bar", "disc", "wedge"]


def test_a_resumed_run_is_bitwise_equal_to_an_uninterrupted_one(root, finished, tmp_path, monkeypatch):
    def killed(*arguments, **named):
        monkeypatch.setattr("ccnet.engine.training.steps.torch_step.train_step", stop)
        return train_step(*arguments, **named)

    def stop(*arguments, **named):
        raise InterruptedError

    monkeypatch.setattr("ccnet.engine.training.steps.torch_step.train_step", killed)
    with pytest.raises(InterruptedError):
        training.train(composed(root, *TINY), tmp_path)
    monkeypatch.setattr("ccnet.engine.training.steps.torch_step.train_step", train_step)
    saved = checkpoints.load(tmp_path / "last.pt")
    assert saved.iteration == 1
    training.train(composed(root, *TINY), tmp_path, saved)
    whole, resumed = (checkpoints.load(folder / "last.pt") for folder in (finished, tmp_path))
    assert all(torch.equal(tensor, resumed.weights[key]) for key, tensor in whole.weights.items())
    assert json.dumps(whole.scores) == json.dumps(resumed.scores)


def test_evaluate_matches_validation_and_its_saved_results_match_pycocotools(root, finished, tmp_path, run_entry):
    last = f"checkpoint={finished / 'last.pt'}"
    done = run_entry("evaluate.py", last, f"output={tmp_path}", "device=cpu", "num_workers=0")
    scores = json.loads((tmp_path / "last_val.json").read_text())
    saved = checkpoints.load(finished / "last.pt").scores
    assert json.dumps({key: scores[key] for key in saved}) == json.dumps(saved).replace("NaN", "null")
    assert f"mask_AP {100 * scores['mask'][0]:.2f}" in done.stdout
    results = json.loads((tmp_path / "last_val_results.json").read_text())
    official = COCO(root / "annotations" / "instances_val2017.json")
    assert {result["category_id"] for result in results} <= {1, 3, 90}
    evaluation = COCOeval(official, official.loadRes(results), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert scores["box"][0] == pytest.approx(evaluation.stats[0], abs=1e-12)
    refused = run_entry("evaluate.py", f"checkpoint={finished / 'last.pt'}", "protocol=slide", "device=cpu", ok=False)
    assert "error: protocol=slide: Mask R-CNN processes whole images" in refused.stderr
    refused = run_entry("evaluate.py", last, "save_predictions=true", "device=cpu", ok=False)
    assert "error: save_predictions and submission are for networks that label pixels: remove them" in refused.stderr


def test_predict_saves_and_draws_objects(root, finished, tmp_path, run_entry):
    picture = root / "val2017" / "000000000010.png"
    run_entry("predict.py", f"checkpoint={finished / 'best'}", f"input={picture}", f"output={tmp_path}", "device=cpu")
    found = json.loads((tmp_path / "000000000010.json").read_text())
    assert all(entry["category"] in ("bar", "disc", "wedge") and 0 <= entry["score"] <= 1 for entry in found)
    assert all(official_mask.decode(entry["segmentation"]).shape == (80, 60) for entry in found)
    assert Image.open(tmp_path / "000000000010_overlay.png").size == (60, 80)
    without_effect = ("video=out.gif", "protocol=slide", "device=cpu")
    refused = run_entry("predict.py", f"checkpoint={finished}", f"input={picture}", *without_effect, ok=False)
    assert "error: this network detects objects: remove video, protocol, which only label maps have" in refused.stderr


def test_wandb_accepts_the_boxes(root):
    """``wandb.Image`` accepts what the task passes to it, even without any object."""
    import wandb

    from ccnet.engine.evaluation.tasks.detection import Detection

    image, target = loaded(root)[0]
    empty = {key: value[:0] for key, value in target.items() if key != "image_id"} | {"scores": torch.zeros(0)}
    found = target | {"scores": torch.full((len(target["labels"]),), 0.75)}
    panels = Detection().wandb_panels([(image, target, found), (image, target, empty)], ["bar", "disc", "wedge"])
    for pixels, drawn in panels:
        wandb.Image(pixels, **drawn)
    assert panels[0][1]["boxes"]["prediction"]["box_data"][0]["box_caption"].endswith("0.75")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["model.frozen=true"], "load pretrained weights with backbone.weights=FILE, or set model.frozen=false"),
        (["model=ccnet"], "this data set is for detection: set model=mask_rcnn"),
        (["dataset.train.split=nowhere"], "lacks nowhere, annotations/instances_nowhere.json of COCO"),
        (["model/context=rcaa"], "Could not find 'model/context/rcaa'"),
    ],
)
def test_user_errors_on_the_command_line(root, run_entry, options, message):
    chosen = [part for part in TINY if part.split("=")[0] not in {option.split("=")[0] for option in options}]
    if "model=ccnet" in options:
        chosen = [part for part in chosen if not part.startswith("model.")]
    done = run_entry("train.py", *chosen, f"dataset.root={root}", *options, ok=False)
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_detection_network_cannot_train_on_segmentation_data(run_entry):
    done = run_entry("train.py", "model=mask_rcnn", "device=cpu", "logger=none", ok=False)
    assert "error: model=mask_rcnn detects objects but this data set labels pixels: set dataset=coco" in done.stderr


def test_a_checkpoint_with_other_classes_is_rejected(root, finished, tmp_path, run_entry):
    other = shutil.copytree(root, tmp_path / "other")
    file = other / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"categories": [*CATEGORIES, {"id": 5, "name": "ring"}]}))
    done = run_entry("evaluate.py", f"checkpoint={finished / 'best'}", f"dataset.root={other}", "device=cpu", ok=False)
    assert "the object classes of the checkpoint (3) and of the data set (4) differ: evaluate" in done.stderr


@pytest.mark.skipif(not (SHARED / "data" / "coco_sample").is_dir(), reason="no ../shared/data/coco_sample here")
def test_real_annotations_are_read_as_by_pycocotools():
    """50 images, one of them empty, with 470 objects, 5 of which are crowds in RLE."""
    root = SHARED / "data" / "coco_sample"
    dataset = loaded(root, "train2017")
    official = COCO(root / "annotations" / "instances_train2017.json")
    assert len(dataset) == 50 and len(dataset.classes) == 80
    assert dataset.classes[0] == "person" and dataset.category_ids[-1] == 90
    assert len(loaded(root, "train2017", training=True)) == 49
    crowded = {entry["image_id"] for entry in dataset.ground_truth()["annotations"] if entry["iscrowd"]}
    for index in [i for i, entry in enumerate(dataset.images) if entry["id"] in crowded or i < 3]:
        _, target = dataset[index]
        wanted = official.loadAnns(official.getAnnIds(dataset.images[index]["id"]))
        assert len(wanted) == len(target["masks"])
        for mask, annotation in zip(target["masks"].numpy(), wanted, strict=True):
            assert np.array_equal(mask, official.annToMask(annotation))
