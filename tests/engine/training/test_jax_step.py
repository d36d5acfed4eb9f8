"""A training step in JAX does what torch's does: the update, clipping, ramps, dropout and skipped steps."""

import copy

import numpy as np
import pytest
import torch
from conftest import composed

from ccnet.engine.evaluation.tasks.semantic import Semantic
from ccnet.engine.training import choose_framework, train_step
from ccnet.losses import CrossEntropy, WeightedSum

jax = pytest.importorskip("jax", reason="JAX is not installed: pip install -e '.[jax]'")
nnx = pytest.importorskip("flax.nnx", reason="Flax is not installed: pip install -e '.[jax]'")
pytest.importorskip("optax", reason="optax is not installed: pip install -e '.[jax]'")

from ccnet.engine.evaluation import jax_network  # noqa: E402
from ccnet.engine.evaluation.jax_network import local_devices  # noqa: E402
from ccnet.engine.training.steps import jax_step  # noqa: E402
from ccnet.models.nnx.layers import Conv, dropout2d  # noqa: E402
from ccnet.models.nnx.torch_arrays import statistic  # noqa: E402


class Pointwise(torch.nn.Module):
    """A network of one 1x1 convolution, which takes no time to compile."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.classify, self.dropout = torch.nn.Conv2d(3, 4, 1), dropout
        self.register_buffer("mean", torch.zeros(1, 3, 1, 1))

    def forward(self, images):
        return {"out": self.classify(images)}


class Twin(nnx.Module):
    """The counterpart of the network above; in training, its outputs have the precision that it is called with."""

    def __init__(self, network):
        self.classify, self.mean = Conv(network.classify), statistic(network.mean)
        self.dropout = network.dropout

    def __call__(self, images, *, train=False, key=None, dtype=np.float32):
        output = self.classify(images.astype(dtype))
        return {"out": dropout2d(output, self.dropout, key) if train else output.astype(np.float32)}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for module in (jax_step, jax_network):
        monkeypatch.setattr(module, "twin", Twin)


def batch():
    labels = torch.randint(0, 4, (4, 5, 6))
    labels[0] = 255
    return torch.randint(0, 256, (4, 3, 5, 6), dtype=torch.uint8), labels


def cross_entropy(ramp=None):
    return WeightedSum({"main": CrossEntropy()}, {"main": 1.0}, ramp)


def made(network, optimizer=None, criterion=None, **options):
    """Return a step on two devices."""
    optimizer = optimizer or torch.optim.SGD(network.parameters(), lr=0.0)
    return jax_step.JaxStep(
        network, criterion or cross_entropy(), optimizer, devices=jax.devices("cpu")[:2], **({"seed": 0} | options)
    )


def taken(step, images, labels, *iterations):
    return [step(*step.place(images, labels), iteration) for iteration in iterations]


OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
    "nesterov": (torch.optim.SGD, {"momentum": 0.8, "nesterov": True}),
    "adamw": (torch.optim.AdamW, {"betas": (0.7, 0.95), "eps": 1e-2, "weight_decay": 0.1}),
}


def assert_same_state(ours, theirs):
    for index, entry in theirs.state_dict()["state"].items():
        for key, value in entry.items():
            found = ours.state_dict()["state"][index][key]
            assert torch.allclose(found, value, rtol=1e-4, atol=1e-6), key


@pytest.mark.slow
@pytest.mark.parametrize(("name", "clip_norm"), [("sgd", 0.02), ("nesterov", None), ("adamw", 0.02)])
def test_every_update_is_torchs_even_after_resuming(name, clip_norm):
    kind, options = OPTIMIZERS[name]
    networks = [network := Pointwise(), copy.deepcopy(network)]
    ours, theirs = (
        kind([{"params": [net.classify.weight]}, {"params": [net.classify.bias], "lr": 0.2}], lr=0.1, **options)
        for net in networks
    )
    images, labels = batch()
    for part in ((0, 1), (2, 3)):
        step = made(networks[0], ours, clip_norm=clip_norm)  # the second time, with the state of the first
        step.evaluated()(images / 255)  # compiled here, with the weights before the step
        for found in taken(step, images, labels, *part):
            expected = train_step(
                Semantic(), networks[1], cross_entropy(), theirs, images / 255, labels, clip_norm=clip_norm
            )
            assert found.numbers() == pytest.approx(expected.numbers(), rel=1e-5)
            assert clip_norm is None or found.numbers()["grad_norm"] > 2 * clip_norm
        step.write_back()
        for key, value in networks[1].state_dict().items():
            assert torch.allclose(networks[0].state_dict()[key], value, atol=1e-6), key
        assert_same_state(ours, theirs)
        evaluated = step.evaluated()(images / 255)["out"]
        assert torch.allclose(evaluated, networks[1](images / 255)["out"], atol=1e-5)


def test_dropout_depends_on_the_seed_and_the_iteration_only():
    images, labels = batch()
    network = Pointwise(dropout=0.5)
    first, again, other = (
        [outcome.loss.item() for outcome in taken(made(network, seed=seed), images, labels, 0, 1, 0)]
        for seed in (0, 0, 1)
    )
    assert first == again and first[0] == first[2] != first[1]
    assert not {*first} & {*other}


def test_a_ramp_follows_the_iterations():
    images, labels = batch()
    step = made(Pointwise(), criterion=cross_entropy({"main": 4}))
    outcomes = [outcome.numbers() for outcome in taken(step, images, labels, 0, 1, 4, 9)]
    assert [numbers["loss"] / numbers["loss/main"] for numbers in outcomes] == pytest.approx([0, 0.25, 1, 1])


@pytest.mark.parametrize("bf16", [True, False])
def test_the_network_runs_in_the_precision_of_the_step(bf16):
    seen = []

    def criterion(output, labels):
        seen.append(str(output["out"].dtype))
        return cross_entropy()(output, labels)

    network = Pointwise()
    step = made(network, criterion=criterion, bf16=bf16)
    taken(step, *batch(), 0)
    assert {*seen} == {"bfloat16" if bf16 else "float32"}
    images = torch.rand(1, 3, 5, 6)
    expected = network(images)["out"]
    for evaluated in (step.evaluated(), choose_framework("jax", "cpu").evaluated(network, bf16=bf16)):
        difference = (evaluated(images)["out"] - expected).abs().max()
        assert 1e-4 < difference < 0.05 if bf16 else difference < 1e-5


@pytest.mark.parametrize(
    ("kind", "options"),
    [(torch.optim.SGD, {"momentum": 0.9, "dampening": 0.1}), (torch.optim.SGD, {"maximize": True}),
     (torch.optim.AdamW, {"amsgrad": True}), (torch.optim.Adam, {})],
)  # fmt: skip
def test_optimisers_that_would_compute_something_else_are_refused(kind, options):
    network = Pointwise()
    with pytest.raises(ValueError, match=rf"framework=jax does not support {kind.__name__} with these settings"):
        made(network, kind(network.parameters(), lr=0.1, **options))


@pytest.mark.parametrize("spoilt", ["loss", "gradient"])
def test_a_non_finite_step_changes_nothing(spoilt):
    def criterion(output, labels):
        total = output["out"].sum()
        return (total + float("inf") if spoilt == "loss" else (0 * total) ** 0.5), {}

    network = Pointwise()
    before = copy.deepcopy(network.state_dict())
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    step = made(network, optimizer, criterion)
    (outcome,) = taken(step, *batch(), 0)
    assert (np.isfinite(outcome.loss), np.isfinite(outcome.grad_norm)) == (spoilt == "gradient", spoilt == "loss")
    step.write_back()
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not any(entry["momentum_buffer"].any() for entry in optimizer.state_dict()["state"].values())


def test_a_batch_is_split_over_the_devices_that_divide_it():
    images, labels = batch()
    placed = made(Pointwise()).place(images, labels)
    assert [[shard.data.shape[0] for shard in array.addressable_shards] for array in placed] == [[2, 2]] * 2
    number = len(jax.devices("cpu"))
    for size in (1, 2, 3, 6, 8):
        count = len(local_devices("cpu", size))
        assert size % count == 0 and not any(size % more == 0 for more in range(count + 1, number + 1))


def test_the_options_of_a_run_reach_the_step():
    config = composed("framework=jax", "seed=7", "clip_norm=3", "bf16=true", "backbone=resnet10t")
    network = Pointwise()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    step = choose_framework("jax", "cpu").step(config, Semantic(), network, cross_entropy(), optimizer)
    assert (step.seed, step.clip_norm, step.bf16) == (7, 3, True)
