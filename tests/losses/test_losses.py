"""Losses equal explicit loops over their definitions, and stay finite where naive formulas give NaN."""

import math
import re
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional
from two_processes import together

from ccnet.losses import (
    CategoryConsistent,
    CrossEntropy,
    EdgeCrossEntropy,
    OhemCrossEntropy,
    WeightedSum,
    balanced_edge_loss,
    category_consistent_loss,
    cross_entropy,
    edge_targets,
    ohem_cross_entropy,
)
from ccnet.losses.label_resizing import nearest_labels

DELTA_V, DELTA_D, GAMMA = 0.5, 1.5, 0.001


def ccl_by_loops(embedding, labels, ignore_index=255, quadratic=False):
    """Evaluate equations 3 to 8 of the paper, one class and one pixel at a time."""
    groups = {}
    for n in range(labels.shape[0]):
        for y in range(labels.shape[1]):
            for x in range(labels.shape[2]):
                if labels[n, y, x] != ignore_index:
                    groups.setdefault(int(labels[n, y, x]), []).append(embedding[n, :, y, x])
    means = {c: sum(members) / len(members) for c, members in groups.items()}
    variance = 0.0
    for c, members in groups.items():
        inner = 0.0
        for h in members:
            d = math.sqrt(sum(float(v) ** 2 for v in means[c] - h))
            if d > DELTA_D and not quadratic:
                inner += d - DELTA_D + (DELTA_D - DELTA_V) ** 2
            elif d > DELTA_V:
                inner += (d - DELTA_V) ** 2
        variance += inner / len(members)
    variance /= len(groups)
    distance = 0.0
    for a in groups:
        for b in groups:
            d = math.sqrt(sum(float(v) ** 2 for v in means[a] - means[b]))
            if a != b and d <= 2 * DELTA_D:
                distance += (2 * DELTA_D - d) ** 2
    if len(groups) > 1:
        distance /= len(groups) * (len(groups) - 1)
    size = sum(math.sqrt(sum(float(v) ** 2 for v in mean)) for mean in means.values()) / len(groups)
    return variance + distance + GAMMA * size, variance, distance, size


@pytest.mark.parametrize("distance", ["piecewise", "quadratic"])
@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0])
def test_ccl_equals_explicit_loops(spread, distance):
    embedding = spread * torch.randn(3, 4, 5, 6, dtype=torch.float64)
    labels = torch.randint(0, 4, (3, 5, 6))
    labels[torch.rand(labels.shape) < 0.2] = 255
    labels[0, 0, 0] = 77  # a class with a single pixel
    got = category_consistent_loss(embedding, labels, distance=distance)
    want = ccl_by_loops(embedding, labels, quadratic=distance == "quadratic")
    assert all(abs(ours.item() - value) < 1e-10 for ours, value in zip(got, want, strict=True))
    assert category_consistent_loss(embedding, labels.byte(), distance=distance) == got


def test_ccl_follows_every_branch_of_the_piecewise_distance():
    """Two pixels at distance d from their mean, with d below and above delta_v and delta_d; continuous at delta_d."""

    def variance(d, **options):
        embedding = torch.tensor([[[[-d, d]]]], dtype=torch.float64)
        return category_consistent_loss(embedding, torch.zeros(1, 1, 2, dtype=torch.long), **options).variance.item()

    assert variance(0.4) == 0
    assert variance(1.2) == pytest.approx(0.7**2)
    assert variance(4.0) == pytest.approx(4.0 - 1.5 + 1.0)
    assert variance(4.0, distance="quadratic") == pytest.approx(3.5**2)
    assert variance(1.5 + 1e-9) == pytest.approx(variance(1.5 - 1e-9), abs=1e-7)


def test_ccl_gradient_equals_finite_differences():
    embedding = torch.randn(2, 3, 3, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 3, (2, 3, 4))
    assert torch.autograd.gradcheck(lambda e: category_consistent_loss(e, labels).total, embedding)


DEGENERATE = {
    "one class": (torch.randn(2, 4, 3, 3), torch.zeros(2, 3, 3, dtype=torch.long)),
    "one pixel": (torch.randn(1, 4, 1, 1), torch.zeros(1, 1, 1, dtype=torch.long)),
    "one valid pixel": (torch.randn(1, 4, 1, 2), torch.tensor([[[3, 255]]])),
    "one pixel a class": (torch.randn(1, 4, 2, 2), torch.arange(4).view(1, 2, 2)),
    "nothing valid": (torch.randn(1, 4, 2, 2), torch.full((1, 2, 2), 255)),
    "all features equal": (torch.ones(1, 4, 4, 4), torch.arange(16).view(1, 4, 4) % 3),
    "all features zero": (torch.zeros(1, 4, 4, 4), torch.arange(16).view(1, 4, 4) % 3),
    "empty batch": (torch.zeros(0, 4, 4, 4), torch.zeros(0, 4, 4, dtype=torch.long)),
}


@pytest.mark.parametrize("distance", ["piecewise", "quadratic"])
@pytest.mark.parametrize("case", DEGENERATE)
def test_ccl_gradients_are_finite(case, distance):
    embedding, labels = DEGENERATE[case]
    embedding = embedding.clone().requires_grad_()
    loss = category_consistent_loss(embedding, labels, distance=distance)
    loss.total.backward()
    assert all(term.isfinite() for term in loss)
    assert embedding.grad.isfinite().all()
    if case in ("nothing valid", "empty batch"):
        assert loss.total == 0
        assert not embedding.grad.any()


def test_ccl_means_are_over_the_whole_batch():
    """Two images of one class lie at +1 and -1; with a mean per image the variance would be 0."""
    embedding = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)
    loss = category_consistent_loss(embedding, torch.zeros(2, 1, 1, dtype=torch.long))
    assert loss.variance.item() == pytest.approx(0.25)


@pytest.mark.parametrize(
    "loss", [cross_entropy, ohem_cross_entropy, lambda *pair: category_consistent_loss(*pair).total]
)
def test_half_precision_is_computed_in_float32(loss):
    output, labels = torch.randn(1, 4, 8, 9).bfloat16(), torch.randint(0, 3, (1, 8, 9))
    found = loss(output, labels)
    assert found.dtype == torch.float32
    assert found == loss(output.float(), labels)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (torch.zeros(1, 6, 6).long(), {}, "must match the size of the embedding"),
        (torch.full((1, 3, 3), 256), {}, r"range from 256 to 256: expected values in \[0, 255\]"),
        (torch.full((1, 3, 3), -1), {}, "range from -1"),
        (torch.zeros(1, 3, 3).long(), {"distance": "cubic"}, "'cubic': choose 'piecewise' or 'quadratic'"),
    ],
)
def test_ccl_errors_name_the_invalid_input(labels, options, message):
    with pytest.raises(ValueError, match=message):
        category_consistent_loss(torch.zeros(1, 2, 3, 3), labels, **options)


def test_ccl_compiles_without_a_graph_break():
    embedding, labels = torch.randn(1, 2, 3, 3), torch.randint(0, 3, (1, 3, 3))
    compiled = torch.compile(lambda *inputs: category_consistent_loss(*inputs).total, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(embedding, labels), category_consistent_loss(embedding, labels).total)


@pytest.mark.parametrize(
    "loss", [cross_entropy, ohem_cross_entropy, lambda *pair: category_consistent_loss(*pair).total]
)
def test_gradients_per_image(loss):
    logits, labels = torch.randn(2, 3, 8, 9), torch.randint(0, 3, (2, 8, 9))
    gradient = torch.func.grad(lambda image, label: loss(image[None], label[None]))
    each = torch.stack([gradient(*pair) for pair in zip(logits, labels, strict=True)])
    torch.testing.assert_close(torch.func.vmap(gradient)(logits, labels), each)


@pytest.mark.parametrize("loss", [cross_entropy, ohem_cross_entropy])
@pytest.mark.parametrize(
    ("logits", "labels", "advice"),
    [
        ((2, 4, 3, 3), (1, 3, 3), r"expected \(2, 3, 3\)"),
        ((2, 4, 3, 5), (2, 1, 3, 5), r"expected \(2, 3, 5\)"),
        ((2, 4, 3, 5), (2, 9, 15), r"resize them with ccnet\.losses\.label_resizing\.nearest_labels"),
        ((2, 3, 5, 4), (2, 3, 5), "move the channels of the logits to axis 1"),
    ],
)
def test_labels_of_another_size_are_an_error(loss, logits, labels, advice):
    sizes = re.escape(f"labels {labels} must match the size of the logits {logits}: ")
    with pytest.raises(ValueError, match=f"^{sizes}{advice}$"):
        loss(torch.zeros(logits), torch.zeros(labels).long())


@pytest.mark.parametrize("loss", [CrossEntropy(), OhemCrossEntropy(), CategoryConsistent(), EdgeCrossEntropy()])
def test_an_array_in_place_of_outputs_by_name_is_an_error(loss):
    with pytest.raises(TypeError, match=rf"by name, got an array \(1, 2, 3, 3\): pass {{'{loss.output}': array}}, "):
        loss(torch.zeros(1, 2, 3, 3), torch.zeros(1, 3, 3).long())


def test_ccl_module_resizes_labels_to_the_embedding():
    embedding = torch.randn(1, 4, 3, 5)
    labels = torch.randint(0, 3, (1, 17, 33))
    got = CategoryConsistent(delta_v=0.1)({"embedding": embedding}, labels)
    assert got == category_consistent_loss(embedding, labels[:, ::8, ::8], delta_v=0.1)


def test_nearest_labels_samples_at_the_centres_of_strided_features():
    labels = torch.arange(769).view(1, 1, 769).expand(1, 769, 769)
    assert torch.equal(nearest_labels(labels, (97, 97))[0, 0], torch.arange(0, 769, 8))
    assert nearest_labels(labels, (1, 1)).shape == (1, 1, 1)


@pytest.mark.parametrize("ignored", [10, 39])
def test_cross_entropy_divides_by_the_number_of_valid_pixels(ignored):
    logits = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    labels = torch.randint(0, 3, (2, 4, 5))
    labels.view(-1)[:ignored] = 255
    weights = torch.tensor([0.2, 1.0, 3.0])
    total, count = 0.0, 0
    for n, y, x in np.ndindex(2, 4, 5):
        c = int(labels[n, y, x])
        if c != 255:
            column = logits[n, :, y, x]
            total -= float(weights[c]) * float(column[c] - column.exp().sum().log())
            count += 1
    got = cross_entropy(logits, labels, class_weights=weights)
    assert got.item() == pytest.approx(total / count, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
@pytest.mark.parametrize(
    "loss", [cross_entropy, ohem_cross_entropy, lambda *pair: category_consistent_loss(*pair).total]
)
def test_labels_of_any_integer_dtype_give_the_same_loss(loss, dtype):
    """The data sets return uint8 labels, and a custom training loop passes them to the losses unchanged."""
    output, labels = torch.randn(1, 4, 16, 17), torch.randint(0, 4, (1, 16, 17))
    labels[:, :5] = 255
    assert loss(output, labels.to(dtype)) == loss(output, labels)


@pytest.mark.parametrize("loss", [cross_entropy, ohem_cross_entropy])
def test_no_valid_pixel_gives_a_differentiable_zero(loss):
    logits = torch.randn(1, 3, 16, 16, requires_grad=True)
    value = loss(logits, torch.full((1, 16, 16), 255))
    value.backward()
    assert value == 0
    assert not logits.grad.any()


# Of the 144 valid pixels of the downsampled map, none, 1, 100 and all are to be kept; of 100, most are above 0.05.
@pytest.mark.parametrize("min_kept", [0, 64, 6400, 9216, 10**6])
@pytest.mark.parametrize("threshold", [0.05, 0.7])
def test_ohem_follows_the_authors_rule(threshold, min_kept):
    """With 73 pixels per side, the downsampled map holds every ninth pixel, so that indexing replaces resizing."""
    logits = 2 * torch.randn(2, 3, 73, 73, dtype=torch.float64)
    labels = torch.randint(0, 3, (2, 73, 73))
    labels[:, :9] = 255
    true = logits.softmax(dim=1).gather(1, labels.clamp(max=2).unsqueeze(1))[:, 0]
    ranked = true[:, ::9, ::9][labels[:, ::9, ::9] != 255].sort().values
    k = min_kept // 64
    assert len(ranked) == 144
    limit = 1.0 if k >= len(ranked) else max(threshold, ranked[k - 1].item() if k else 0.0)
    assert (limit > threshold) == (k >= 144 or (k == 100 and threshold == 0.05))
    kept = torch.where(true <= limit, labels, 255)
    assert 0 < (kept != 255).sum() <= (labels != 255).sum()
    got = ohem_cross_entropy(logits, labels, threshold=threshold, min_kept=min_kept)
    assert got.item() == pytest.approx(functional.cross_entropy(logits, kept, ignore_index=255).item(), abs=1e-12)


def test_ohem_keeps_all_pixels_if_there_are_fewer_than_min_kept():
    logits, labels = torch.randn(1, 3, 24, 24), torch.randint(0, 3, (1, 24, 24))
    logits[:, :, :12] *= 99  # some probabilities are exactly 1
    assert ohem_cross_entropy(logits, labels, min_kept=10**6) == cross_entropy(logits, labels)


def test_the_modules_pass_their_settings_on():
    output, labels = outputs(), torch.randint(0, 3, (2, 16, 16))
    options, mining = {"ignore_index": 2, "class_weights": [0.5, 3.0, 1.0]}, {"threshold": 0.3, "min_kept": 0}
    plain = options | {"class_weights": torch.tensor(options["class_weights"])}
    assert CrossEntropy(output="aux", **options)(output, labels) == cross_entropy(output["aux"], labels, **plain)
    hard = OhemCrossEntropy(output="aux", **options, **mining)(output, labels)
    assert hard == ohem_cross_entropy(output["aux"], labels, **plain, **mining)
    kept = output["aux"].softmax(dim=1).gather(1, labels[:, None])[:, 0] <= 0.3
    assert hard == cross_entropy(output["aux"], torch.where(kept, labels, 2), **plain)


def test_the_modules_of_embeddings_and_edges_pass_their_settings_on():
    labels = torch.randint(0, 3, (2, 16, 16))
    usual = labels.where(labels != 2, 255)
    embedding = torch.randn(2, 4, 16, 16)
    options = {"delta_v": 0.1, "delta_d": 0.8, "alpha": 2.0, "beta": 3.0, "gamma": 0.5, "distance": "quadratic"}
    found = CategoryConsistent(ignore_index=2, **options)({"embedding": embedding}, labels)
    assert found == category_consistent_loss(embedding, usual, **options)
    parts = 2 * found.variance + 3 * found.distance + 0.5 * found.regularization
    assert found.total.item() == pytest.approx(parts.item())
    for name in options:
        others = {key: value for key, value in options.items() if key != name}
        assert found.total != category_consistent_loss(embedding, usual, **others).total, name
    output = {"contour": torch.randn(2, 2, 16, 16)}
    loss = EdgeCrossEntropy(output="contour", ignore_index=2)(output, labels)
    assert loss == balanced_edge_loss(output["contour"], edge_targets(usual)) != 0


def outputs():
    return {name: torch.randn(2, 3, 16, 16, requires_grad=True) for name in ("out", "aux")}


def test_weighted_sum_reports_every_term():
    output = outputs() | {"embedding": torch.randn(2, 4, 2, 2)}
    labels = torch.randint(0, 3, (2, 16, 16))
    terms = {"main": OhemCrossEntropy(), "aux": CrossEntropy(output="aux"), "ccl": CategoryConsistent()}
    total, report = WeightedSum(terms, {"main": 1.0, "aux": 0.4, "ccl": 2.0})(output, labels)
    assert set(report) == {"main", "aux", "ccl", "ccl/variance", "ccl/distance", "ccl/regularization"}
    assert total.item() == pytest.approx((report["main"] + 0.4 * report["aux"] + 2 * report["ccl"]).item())
    assert not any(term.requires_grad for term in report.values())
    total.backward()
    assert output["aux"].grad.abs().sum() > 0


def test_a_term_of_weight_zero_needs_no_output():
    loss = WeightedSum({"main": CrossEntropy(), "ccl": CategoryConsistent()}, {"main": 1.0, "ccl": 0})
    _, report = loss(outputs(), torch.randint(0, 3, (2, 16, 16)))
    assert set(report) == {"main"}


def test_errors_name_a_missing_output_and_mismatched_weights():
    loss = WeightedSum({"ccl": CategoryConsistent()}, {"ccl": 1.0})
    for check in (lambda: loss(outputs(), torch.zeros(2, 16, 16).long()), lambda: loss.check_outputs(["out", "aux"])):
        with pytest.raises(ValueError, match=r"'ccl' reads the output 'embedding'.*returns out, aux"):
            check()
    with pytest.raises(ValueError, match="need one weight each"):
        WeightedSum({"main": CrossEntropy()}, {"man": 1.0})
    for weight in (0, -1, float("nan"), float("inf")):
        with pytest.raises(
            ValueError, match=rf"loss.weights is {{'main': {weight}}}: set finite numbers of at least 0"
        ):
            WeightedSum({"main": CrossEntropy()}, {"main": weight})
    for length in (-5, float("nan")):
        with pytest.raises(ValueError, match=rf"loss.ramp is {{'main': {length}}}: set a number of iterations"):
            WeightedSum({"main": CrossEntropy()}, {"main": 1}, {"main": length})
    for weight in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=rf"class_weights is \[1, {weight}\]: set finite numbers of at least 0"):
            CrossEntropy(class_weights=[1, weight])
    for mining in ({"threshold": 70}, {"min_kept": -1}, {"min_kept": 1000.0}):  # 70 percent is 0.7
        with pytest.raises(
            ValueError, match=r"set a probability from 0 to 1, such as 0\.7, and a whole number of pixels"
        ):
            OhemCrossEntropy(**mining)
    for numbers in ({"delta_v": 2}, {"delta_v": -0.1}, {"beta": -1}, {"beta": float("nan")}):
        with pytest.raises(ValueError, match=r"at least 0, and for the piecewise distance delta_v <= delta_d"):
            CategoryConsistent(**numbers)
    with pytest.raises(ValueError, match="distance is 'linear'"):
        CategoryConsistent(distance="linear")
    CategoryConsistent(delta_v=2, distance="quadratic")
    CategoryConsistent(delta_v=0, delta_d=0)


def test_ohem_of_clips_equals_that_of_their_frames():
    logits, labels = torch.randn(2, 4, 3, 17, 25), torch.randint(0, 4, (2, 3, 17, 25))
    labels[:, :2] = 255
    options = {"threshold": 0.3, "min_kept": 64}
    frames = ohem_cross_entropy(logits.transpose(1, 2).reshape(6, 4, 17, 25), labels.view(6, 17, 25), **options)
    assert torch.equal(ohem_cross_entropy(logits, labels, **options), frames)
    assert not torch.equal(frames, ohem_cross_entropy(logits, labels, threshold=1.0))


def test_ccl_of_clips_equals_that_of_their_frames():
    embedding, labels = torch.randn(2, 4, 3, 3, 4), torch.randint(0, 4, (2, 3, 17, 25))
    labels[:, :2] = 255
    loss = CategoryConsistent()
    clips = loss({"embedding": embedding}, labels)
    frames = loss({"embedding": embedding.transpose(1, 2).reshape(6, 4, 3, 4)}, labels.view(6, 17, 25))
    assert clips.variance > 0 and all(map(torch.allclose, clips, frames))


LOSSES = {
    "cross entropy": partial(cross_entropy, class_weights=torch.tensor([1.0, 3.0])),
    "ohem": partial(ohem_cross_entropy, min_kept=64, threshold=0.3),
    "category consistent": lambda logits, labels: category_consistent_loss(logits, labels).total,
    "category consistent, apart": lambda logits, labels: category_consistent_loss(logits, labels, sync=False).total,
    "edge": balanced_edge_loss,
}


def of_part(rank=0, number=1):
    """Return each loss of a rank's part of a batch, and the gradient that the average over the ranks consists of."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(4, 2, 24, 16, generator=generator)
    labels = torch.randint(0, 2, (4, 24, 16), generator=generator)
    labels[0, :20], labels[1, :, 3:] = 255, 0  # the ranks differ in their numbers of valid pixels and of edges
    own = slice(rank * 4 // number, (rank + 1) * 4 // number)
    found = {}
    for name, loss in LOSSES.items():
        part = logits[own].requires_grad_(True)
        value = loss(part, labels[own])
        value.backward()
        found[name] = value.detach(), part.grad
    return found


@pytest.mark.slow
def test_two_processes_compute_the_losses_of_their_common_batch(tmp_path):
    together_, whole, alone = together(partial(of_part, number=2), tmp_path), of_part(), [of_part(n, 2) for n in (0, 1)]
    for name, (loss, gradient) in whole.items():
        if name.endswith("apart"):  # the mean of the losses of both parts
            loss = (alone[0][name][0] + alone[1][name][0]) / 2
            gradient = torch.cat([part[name][1] / 2 for part in alone])
        assert all(torch.allclose(part[name][0], loss) for part in together_), name
        averaged = torch.cat([part[name][1] / 2 for part in together_])
        assert torch.allclose(averaged, gradient, atol=1e-7), name
