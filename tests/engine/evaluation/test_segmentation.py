"""Validation of a network on a data set: which samples are kept, and what is handed over."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from two_processes import together

from ccnet.engine.evaluation import segmentation
from ccnet.engine.evaluation.protocols import Whole
from ccnet.engine.evaluation.segmentation import evaluate, predict


class Frames(torch.utils.data.Dataset):
    """Ten images of different heights, each of one brightness and one class."""

    classes, ignore_index = ("a", "b", "c"), 255

    def __len__(self):
        return 10

    def __getitem__(self, index):
        size = (4 + index, 6)
        return torch.full((3, *size), index / 10), torch.full(size, index % 3)


class Classify(nn.Module):
    """A network that predicts the right class, but in training mode always the first one."""

    def forward(self, image):
        kind = (10 * image[:, 0]).round() % 3 * (not self.training)
        return {"out": torch.stack([-((kind - index) ** 2) for index in range(3)], dim=1)}


def test_every_image_is_predicted_and_a_few_evenly_spaced_samples_are_kept():
    model, found = Classify(), {}
    result = evaluate(
        model, Frames(), Whole(), device=torch.device("cpu"), keep_samples=4,
        on_prediction=lambda index, prediction: found.update({index: prediction}),
    )  # fmt: skip
    assert model.training
    assert {index: tuple(labels.shape) for index, labels in found.items()} == {n: (4 + n, 6) for n in range(10)}
    assert all((labels == index % 3).all() for index, labels in found.items())
    assert [round(10 * image.mean().item()) for image, _, _ in result.samples] == [0, 2, 4, 6]
    assert all(torch.equal(labels, prediction) for _, labels, prediction in result.samples)
    pixels = [6 * sum(4 + index for index in range(kind, 10, 3)) for kind in range(3)]
    assert torch.equal(result.confusion, torch.diag(torch.tensor(pixels)))
    assert result.scores.miou == 1


def test_no_sample_is_kept_unless_asked_for():
    model = Classify().eval()
    assert evaluate(model, Frames(), Whole(), device=torch.device("cpu")).samples == []
    assert not model.training


@pytest.mark.parametrize("classes", [("a", "b", "c"), ("a",)], ids=["success", "failure"])
def test_frozen_parts_of_a_network_in_training_stay_in_eval_mode(classes):
    model, dataset = Classify(), Frames()
    model.frozen, model.trained = nn.BatchNorm2d(3).eval(), nn.BatchNorm2d(3)
    dataset.classes, dataset.name = classes, str
    with nullcontext() if len(classes) == 3 else pytest.raises(ValueError, match="the data set has 1"):
        evaluate(model, dataset, Whole(), device=torch.device("cpu"))
    assert model.training and model.trained.training and not model.frozen.training


def test_a_network_with_more_classes_than_the_data_set_is_refused():
    """Their predictions would be counted as pixels of another true class."""

    class Two(Frames):
        classes = ("a", "b")

        def name(self, index):
            return str(index)

    with pytest.raises(ValueError, match=r"^image 0: the network predicts 3 classes, but the data set has 2: "):
        evaluate(Classify(), Two(), Whole(), device=torch.device("cpu"))


def test_classes_that_a_label_map_cannot_hold_are_refused():
    """As uint8, class 256 would become class 0."""

    def protocol(model, images):
        scores = torch.zeros(1, model, *images.shape[-2:])
        scores[:, -1] = 1
        return scores

    image = torch.zeros(1, 3, 4, 5)
    assert (predict(256, image, protocol) == 255).all()
    with pytest.raises(ValueError, match="the network has 257 classes, more than the 256 of a uint8 label map"):
        predict(257, image, protocol)


def evaluated(rank):
    """Return the confusion matrix, the predicted class of each image of this process, and the speed of all in 5 s."""
    found, clock = {}, iter([0.0, 5.0])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(segmentation, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
        result = evaluate(
            Classify(), Frames(), Whole(), device=torch.device("cpu"),
            on_prediction=lambda index, prediction: found.update({index: prediction.unique().tolist()}),
        )  # fmt: skip
    return result.confusion, found, result.images_per_s


@pytest.mark.slow
def test_processes_share_the_images_and_count_each_once(tmp_path):
    whole, predicted, speed = evaluated(0)
    (first, own, own_speed), (second, others, other_speed) = together(evaluated, tmp_path)
    assert speed == own_speed == other_speed == 2
    assert torch.equal(first, whole) and torch.equal(second, whole)
    assert own | others == predicted and len(own) == len(others) == 5
