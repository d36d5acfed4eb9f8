"""Losses of segmentation_models.pytorch as terms of the sum, and the ramp of a term's weight."""

from functools import partial

import pytest
import torch
from conftest import composed
from hydra.utils import instantiate
from two_processes import together

from ccnet.losses import CrossEntropy, LibraryLoss, WeightedSum

KINDS = ("dice", "focal", "lovasz")


@pytest.fixture
def library():
    return pytest.importorskip("segmentation_models_pytorch", reason="pip install 'ccnet-segmentation[losses]'")


def example(dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(4, 3, 5, 6, generator=generator, dtype=dtype)
    labels = torch.randint(0, 3, (4, 5, 6), generator=generator)
    labels[0, :3] = 255
    return logits, labels


def test_dice_and_focal_equal_their_formulas(library):
    logits, labels = example()
    valid = labels != 255
    true = torch.stack([(labels == index) & valid for index in range(3)], dim=1).float()
    shares = logits.softmax(dim=1) * valid[:, None]
    dice = [1 - 2 * (shares[:, k] * true[:, k]).sum() / (shares[:, k] + true[:, k]).sum() for k in range(3)]
    assert torch.allclose(LibraryLoss("dice")({"out": logits}, labels), sum(dice) / 3)
    right = torch.where(true > 0, logits.sigmoid(), 1 - logits.sigmoid())
    focal = -((1 - right) ** 2 * right.log() * valid[:, None]).sum() / valid.sum() / 3
    assert torch.allclose(LibraryLoss("focal", gamma=2.0)({"out": logits}, labels), focal)


@pytest.mark.parametrize("kind", KINDS)
def test_ignored_pixels_have_no_influence(library, kind):
    logits, labels = example()
    logits.requires_grad_(True)
    loss = LibraryLoss(kind)
    value = loss({"out": logits}, labels)
    (gradient,) = torch.autograd.grad(value, logits)
    assert not gradient[0, :, :3].any() and gradient.any() and gradient.isfinite().all()
    other = torch.where((labels == 255)[:, None], 7.0, logits.detach())
    assert torch.allclose(loss({"out": other}, labels), value)
    half = logits.detach().bfloat16()
    assert torch.equal(loss({"out": half}, labels), loss({"out": half.float()}, labels))
    elsewhere = LibraryLoss(kind, output="aux", ignore_index=7)
    assert torch.equal(elsewhere({"aux": logits}, labels.where(labels != 255, 7)), value)
    nothing = loss({"out": logits}, torch.full_like(labels, 255))
    (gradient,) = torch.autograd.grad(nothing, logits)
    assert nothing == 0 and not gradient.any()


@pytest.mark.parametrize("kind", KINDS)
def test_clips_count_as_one_set_of_pixels(library, kind):
    logits, labels = example()
    clip, frames = logits.view(2, 2, 3, 5, 6).transpose(1, 2), labels.view(2, 2, 5, 6)
    loss = LibraryLoss(kind)
    assert torch.allclose(loss({"out": clip}, frames), loss({"out": logits}, labels))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("label", [-1, 3])
def test_labels_that_are_no_class_are_refused(library, kind, label):
    logits, labels = example()
    labels[0, 4, 4] = label
    with pytest.raises(ValueError, match=rf"^labels range from {min(label, 0)} to {max(label, 2)}: .* in \[0, 2\]$"):
        LibraryLoss(kind)({"out": logits}, labels)
    with pytest.raises(ValueError, match=r"must match the size of the logits .*: resize them"):
        LibraryLoss(kind)({"out": logits[..., ::2]}, labels)


def test_an_unknown_option_is_refused_with_those_that_exist(library):
    with pytest.raises(ValueError, match="the dice loss has no option foo: choose from classes, log_loss, "):
        LibraryLoss("dice", foo=1)


def test_jax_arrays_are_refused(library):
    jax = pytest.importorskip("jax", reason="pip install 'ccnet-segmentation[jax]'")
    with pytest.raises(ValueError, match="support torch only: set framework=torch"):
        LibraryLoss("dice")({"out": jax.numpy.zeros((1, 3, 5, 6))}, jax.numpy.zeros((1, 5, 6), int))


def gradients(rank=0, number=1):
    """Return the loss and the gradient of each kind."""
    found = {}
    for kind in KINDS:
        logits, labels = example()
        own = slice(rank * 4 // number, (rank + 1) * 4 // number)
        logits = logits[own].requires_grad_(True)
        loss = LibraryLoss(kind)({"out": logits}, labels[own])
        loss.backward()
        found[kind] = loss.detach(), logits.grad / number  # what DistributedDataParallel averages
    return found


@pytest.mark.slow
def test_two_processes_equal_one(library, tmp_path):
    first, second = together(partial(gradients, number=2), tmp_path)
    for kind, (loss, gradient) in gradients().items():
        parts = first[kind], second[kind]
        assert all(torch.allclose(part, loss) for part, _ in parts)
        assert torch.allclose(torch.cat([part for _, part in parts]), gradient)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["loss/term=dice"], ["main", "aux", "dice"]),
        (["loss=ce_ccl", "loss/term=[lovasz,focal]", "loss.ramp.ccl=1000"], ["main", "aux", "ccl", "lovasz", "focal"]),
    ],
)
def test_terms_are_added_to_any_loss(library, options, names):
    criterion = instantiate(composed("num_classes=3", *options).loss)
    assert list(criterion.terms) == names
    assert criterion.ramp == ({"ccl": 1000} if "ccl" in names else {})


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "segmentation_models_pytorch.losses", None)
    with pytest.raises(ValueError, match=r"the dice loss needs .*: pip install 'ccnet-segmentation\[losses\]'"):
        LibraryLoss("dice")
    with pytest.raises(ValueError, match="kind is 'hinge': choose one of dice, focal, lovasz"):
        LibraryLoss("hinge")


def test_the_weight_of_a_term_rises_linearly():
    logits, labels = example()
    output = {"out": logits, "aux": 2 * logits}
    terms = {"main": CrossEntropy(), "aux": CrossEntropy(output="aux")}
    criterion = WeightedSum(terms, {"main": 1.0, "aux": 0.4}, {"main": 0, "aux": 10})
    main, aux = (terms[name](output, labels) for name in ("main", "aux"))
    for iteration, share in ((0, 0), (5, 0.5), (10, 1), (99, 1), (None, 1)):
        total, report = criterion(output, labels, iteration=iteration)
        assert torch.allclose(total, main + 0.4 * share * aux)
        assert report["aux"] == aux
    with pytest.raises(ValueError, match=r"loss.ramp names \['ccl'\], but the loss terms are"):
        WeightedSum(terms, {"main": 1.0, "aux": 0.4}, {"ccl": 10})


def test_a_ramp_can_be_traced_by_jax():
    jax = pytest.importorskip("jax", reason="pip install 'ccnet-segmentation[jax]'")
    logits, labels = (jax.numpy.asarray(part.numpy()) for part in example(torch.float32))
    criterion = WeightedSum({"main": CrossEntropy()}, {"main": 1.0}, {"main": 4})
    found = jax.jit(lambda iteration: criterion({"out": logits}, labels, iteration=iteration)[0])
    full = criterion({"out": logits}, labels)[0]
    assert [float(found(jax.numpy.float32(number)) / full) for number in (0, 1, 4, 9)] == [0, 0.25, 1, 1]
