"""Scores agree with sets of pixels and with scikit-learn."""

import math

import numpy as np
import pytest
import torch

from ccnet.engine.evaluation.confusion import ConfusionMatrix
from ccnet.engine.evaluation.tasks import headline_text, score_table


def test_scores_equal_sets_of_pixels():
    prediction, labels = torch.randint(0, 5, (3, 20, 30)), torch.randint(0, 4, (3, 20, 30))
    labels[torch.rand(labels.shape) < 0.1] = 255
    matrix = ConfusionMatrix(6)
    for one, truth in zip(prediction, labels, strict=True):
        matrix.update(one, truth)
    valid = labels != 255
    iou, accuracy = [], []
    for c in range(6):
        guessed, true = (prediction == c) & valid, (labels == c) & valid
        union = (guessed | true).sum().item()
        iou.append((guessed & true).sum().item() / union if union else math.nan)
        accuracy.append((guessed & true).sum().item() / true.sum().item() if true.any() else math.nan)
    scores = matrix.scores()
    assert scores.class_iou == pytest.approx(iou, nan_ok=True)
    assert scores.class_accuracy == pytest.approx(accuracy, nan_ok=True)
    # Class 4 is predicted but never true: its IoU of 0 counts, its accuracy does not. Class 5 never occurs.
    assert scores.class_iou[4] == 0
    assert math.isnan(scores.class_iou[5])
    assert scores.miou == pytest.approx(sum(iou[:5]) / 5)
    assert scores.mean_accuracy == pytest.approx(sum(accuracy[:4]) / 4)
    assert scores.pixel_accuracy == pytest.approx(((prediction == labels) & valid).sum().item() / valid.sum().item())


@pytest.mark.slow
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


def test_labels_and_predictions_of_uint8_are_counted_without_overflow():
    """A data set without the evaluation transform may return uint8 labels."""
    prediction, labels = torch.randint(0, 150, (2, 30, 40)).byte(), torch.randint(0, 150, (2, 30, 40)).byte()
    labels[torch.rand(labels.shape) < 0.1] = 255
    small, large = ConfusionMatrix(150), ConfusionMatrix(150)
    small.update(prediction, labels)
    large.update(prediction.long(), labels.long())
    assert torch.equal(small.counts, large.counts)


@pytest.mark.parametrize(("label", "dtype"), [(3, torch.int64), (255, torch.uint8), (-1, torch.int64)])
def test_labels_of_no_class_are_named(label, dtype):
    matrix = ConfusionMatrix(3, ignore_index=254)
    with pytest.raises(ValueError, match=rf"labels contain {label}: expected classes from 0 to 2, or 254 for pixels"):
        matrix.update(torch.zeros(4, dtype=torch.int64), torch.tensor([0, 254, 2, label], dtype=dtype))
    assert not matrix.counts.any()


@pytest.mark.parametrize(("value", "dtype"), [(3, torch.uint8), (4, torch.int64), (-1, torch.int64)])
def test_predictions_of_no_class_are_named_instead_of_counted_as_another(value, dtype):
    matrix = ConfusionMatrix(3)
    with pytest.raises(ValueError, match=rf"^the prediction contains {value}: expected classes from 0 to 2$"):
        matrix.update(torch.tensor([0, 1, value], dtype=dtype), torch.tensor([0, 2, 1]))
    assert not matrix.counts.any()
    matrix.update(torch.tensor([0, 1, value], dtype=dtype), torch.tensor([0, 2, 255]))
    assert matrix.counts.tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]


def test_logits_in_place_of_classes_are_an_error():
    with pytest.raises(ValueError, match=r"shape \(1, 3, 4, 5\) and its labels \(1, 4, 5\): .*logits\.argmax\(1\)"):
        ConfusionMatrix(3).update(torch.zeros(1, 3, 4, 5), torch.zeros(1, 4, 5, dtype=torch.int64))


def test_counts_of_a_whole_data_set_are_not_rounded():
    """Cityscapes has 10^9 pixels, far above the 2^24 that float32 counts exactly."""
    matrix = ConfusionMatrix(2)
    matrix.counts += torch.tensor([[2**30 + 1, 2], [1, 2**25 + 1]])
    scores = matrix.scores()
    assert scores.class_iou == [(2**30 + 1) / (2**30 + 4), (2**25 + 1) / (2**25 + 4)]
    assert scores.class_accuracy == [(2**30 + 1) / (2**30 + 3), (2**25 + 1) / (2**25 + 2)]
    assert scores.pixel_accuracy == (2**30 + 2**25 + 2) / (2**30 + 2**25 + 5)


def test_tables_and_summaries_are_in_percent():
    matrix = ConfusionMatrix(2)
    matrix.update(torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 0, 0, 0, 1]))
    scores = matrix.scores()
    assert scores.summary() == pytest.approx({"mIoU": 62.5, "pixel_acc": 80, "mean_acc": 87.5})
    assert scores.table(["road", "car"]).rows == [("road", 75, 75), ("car", 50, 100), ("mean", 62.5, 87.5)]
    assert scores.headline == 0.625 and scores.class_scores == [0.75, 0.5]


def test_the_text_of_the_scores_says_if_classes_are_left_out():
    matrix = ConfusionMatrix(2)
    matrix.update(torch.zeros(4, 4, dtype=torch.int64), torch.zeros(4, 4, dtype=torch.int64))
    assert headline_text(matrix.scores()) == "mIoU 100.00 over 1 of 2 classes"
    assert "mIoU 100.00 over 1 of 2 classes  pixel_acc 100.00" in score_table(matrix.scores(), ["road", "car"])
    matrix.update(torch.ones(4, 4, dtype=torch.int64), torch.ones(4, 4, dtype=torch.int64))
    assert headline_text(matrix.scores()) == "mIoU 100.00"
