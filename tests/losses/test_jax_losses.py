"""Losses and gradients on JAX arrays equal those on torch tensors, with jax.jit and, in some cases, without.

Without it, JAX compiles every operation on its own, which takes seconds.
"""

import numpy as np
import pytest
import torch
from test_losses import DEGENERATE

from ccnet.losses import (
    CategoryConsistent,
    CrossEntropy,
    OhemCrossEntropy,
    WeightedSum,
    category_consistent_loss,
    cross_entropy,
    ohem_cross_entropy,
)
from ccnet.losses.torch_and_jax import resize_bilinear

jax = pytest.importorskip("jax", reason="JAX is not installed: pip install -e '.[jax]'")
import jax.numpy as jnp  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("jax_float64")]


def check(loss, arrays, labels, without_jit=False):
    """Compare loss terms and their gradients in JAX with those in torch."""
    tensors = {name: torch.from_numpy(array).requires_grad_() for name, array in arrays.items()}
    want = loss(tensors, torch.from_numpy(labels))
    want_gradients = torch.autograd.grad(want[0], list(tensors.values()), materialize_grads=True)

    def total(arrays):
        terms = loss(arrays, jax.device_put(labels))
        return terms[0], terms

    derivative = jax.grad(total, has_aux=True)
    derivative = derivative if without_jit else jax.jit(derivative)
    gradients, terms = derivative(jax.device_put(arrays))  # jnp.asarray would compile a program for every shape
    assert [float(term) for term in terms] == pytest.approx([term.item() for term in want], abs=1e-12, rel=1e-10)
    for name, theirs in zip(arrays, want_gradients, strict=True):
        ours = np.asarray(gradients[name])
        assert np.isfinite(ours).all()
        assert np.abs(ours - theirs.numpy()).max(initial=0) < 1e-10


@pytest.mark.parametrize("distance", ["piecewise", "quadratic"])
def test_category_consistent_loss(distance):
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 4, (3, 5, 6))
    labels[generator.random(labels.shape) < 0.2] = 255
    labels[0, 0, 0] = 77
    embedding = {"embedding": 2 * generator.standard_normal((3, 4, 5, 6))}

    def loss(out, labels):
        return category_consistent_loss(out["embedding"], labels, distance=distance)

    check(loss, embedding, labels)


# Only outside of jit are the values of the labels checked.
@pytest.mark.parametrize(
    ("case", "without_jit"), [*((case, False) for case in DEGENERATE), ("empty batch", True), ("nothing valid", True)]
)
def test_category_consistent_gradients_are_finite(case, without_jit):
    embedding, labels = DEGENERATE[case]
    arrays = {"embedding": embedding.double().numpy()}
    check(lambda out, y: category_consistent_loss(out["embedding"], y), arrays, labels.numpy(), without_jit)


def logits(size=(2, 3, 41, 49), seed=0):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, size[1], (size[0], *size[2:]))
    labels[:, :5] = 255
    arrays = {name: 2 * generator.standard_normal(size) for name in ("out", "aux")}
    return arrays | {"embedding": generator.standard_normal((size[0], 4, 6, 7))}, labels


@pytest.mark.parametrize("min_kept", [0, 640, 10**6])
def test_every_loss_in_one_sum(min_kept):
    terms = {
        "main": OhemCrossEntropy(min_kept=min_kept, threshold=0.3, class_weights=[0.5, 1.0, 2.0]),
        "aux": CrossEntropy(output="aux"),
        "ccl": CategoryConsistent(delta_v=0.1),
    }
    loss = WeightedSum(terms, {"main": 1.0, "aux": 0.4, "ccl": 2.0})

    def listed(out, labels):
        total, report = loss(out, labels)
        assert set(report) == {"main", "aux", "ccl", "ccl/variance", "ccl/distance", "ccl/regularization"}
        return [total, *report.values()]

    check(listed, *logits())


@pytest.mark.parametrize("size", [(4, 5), (1, 1), (11, 9), (16, 2)], ids=str)
def test_probabilities_are_resized_as_in_torch(size):
    images = torch.rand(2, 3, 11, 9, dtype=torch.float64)
    found = jax.jit(resize_bilinear, static_argnums=1)(images.numpy(), size)
    assert np.abs(np.asarray(found) - resize_bilinear(images, size).numpy()).max() < 1e-12


@pytest.mark.parametrize("min_kept", [64, 320, 640])
def test_the_hardest_pixels_are_those_of_torch(min_kept):
    """With a threshold of 0, only their number decides."""
    arrays, labels = logits()
    loss = OhemCrossEntropy(min_kept=min_kept, threshold=0.0)
    check(lambda out, y: [loss(out, y)], {"out": arrays["out"]}, labels)


def test_reported_terms_have_no_gradient():
    arrays, labels = logits((1, 3, 9, 5))
    loss = WeightedSum({"main": CrossEntropy()}, {"main": 0.5})
    total, reported = (
        jax.grad(lambda out, i=i: sum(jax.tree.leaves(loss({"out": out}, labels)[i])))(jnp.asarray(arrays["out"]))
        for i in (0, 1)
    )
    assert total.any() and not reported.any()


def test_without_valid_pixels_the_loss_is_zero():
    arrays, labels = logits((1, 3, 16, 16))
    for loss in (CrossEntropy(), OhemCrossEntropy()):
        check(lambda out, y, loss=loss: [loss(out, y)], {"out": arrays["out"]}, np.full_like(labels, 255))


@pytest.mark.parametrize("loss", [cross_entropy, ohem_cross_entropy])
def test_class_weights_may_be_traced(loss):
    arrays, labels = logits((2, 3, 16, 16))
    weights = [0.5, 1.0, 2.0]
    want = loss(torch.from_numpy(arrays["out"]), torch.from_numpy(labels), class_weights=torch.tensor(weights))
    out, labels = jax.device_put((arrays["out"], labels))
    got = jax.jit(lambda weights: loss(out, labels, class_weights=weights))(np.array(weights))
    assert float(got) == pytest.approx(float(want), rel=1e-12)


LOSSES = [cross_entropy, ohem_cross_entropy, lambda *pair: category_consistent_loss(*pair).total]


@pytest.mark.parametrize("dtype", ["uint8", "int16"])
@pytest.mark.parametrize("loss", LOSSES)
def test_labels_of_any_integer_dtype(loss, dtype):
    """The labels of the data sets are uint8."""
    arrays, labels = logits((2, 3, 16, 16))
    labels[:, :2] = 255
    want = loss(torch.from_numpy(arrays["out"]), torch.from_numpy(labels)).item()
    for function in (loss, jax.jit(loss)):
        got = function(jax.device_put(arrays["out"]), jax.device_put(labels.astype(dtype)))
        assert float(got) == pytest.approx(want, rel=1e-10)


@pytest.mark.parametrize("label", [-1, 3])
@pytest.mark.parametrize("loss", [cross_entropy, ohem_cross_entropy])
def test_a_label_that_is_no_class_gives_nan_where_torch_raises(loss, label):
    arrays, labels = logits((2, 3, 16, 16))
    labels[0, 0, 0] = label
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        loss(torch.from_numpy(arrays["out"]), torch.from_numpy(labels))
    assert jnp.isnan(loss(*jax.device_put((arrays["out"], labels))))


@pytest.mark.parametrize("loss", LOSSES)
def test_programs_may_disable_implicit_promotion(loss):
    arrays, labels = logits((2, 3, 16, 16))
    half, labels = jnp.asarray(arrays["out"], jnp.bfloat16), jnp.asarray(labels, jnp.uint8)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        value, gradient = jax.eval_shape(jax.value_and_grad(loss), half, labels)
    assert value.dtype == jnp.float32
    assert gradient.dtype == jnp.bfloat16


def on_device(make, *arguments):
    return jax.device_put(make(*arguments))


def test_errors_name_the_bad_input():
    with pytest.raises(ValueError, match="range from 300 to 300"):
        category_consistent_loss(on_device(np.zeros, (1, 2, 3, 3)), on_device(np.full, (1, 3, 3), 300))
    with pytest.raises(ValueError, match="must match the size of the embedding"):
        category_consistent_loss(on_device(np.zeros, (1, 2, 3, 3)), on_device(np.zeros, (1, 6, 6), int))
    for loss in (cross_entropy, ohem_cross_entropy):  # labels of one image would be broadcast over the batch
        with pytest.raises(ValueError, match="must match the size of the logits"):
            loss(on_device(np.zeros, (2, 4, 3, 3)), on_device(np.zeros, (1, 3, 3), int))
        with pytest.raises(ValueError, match="pass one weight for each of the 4 classes"):
            loss(
                on_device(np.zeros, (2, 4, 3, 3)),
                on_device(np.zeros, (2, 3, 3), int),
                class_weights=on_device(np.ones, 3),
            )
    with pytest.raises(ValueError, match="'ccl' reads the output 'embedding'"):
        WeightedSum({"ccl": CategoryConsistent()}, {"ccl": 1.0})(
            {"out": on_device(np.zeros, 1)}, on_device(np.zeros, (1, 2, 2), int)
        )
