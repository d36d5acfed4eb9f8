"""Parts of a network that learn differently: what each option does to weights and statistics."""

import pytest
import timm
import torch
from conftest import TINY, configured
from hydra.utils import instantiate

from ccnet import train as training
from ccnet.engine import checkpoints
from ccnet.engine.resuming import Identity
from ccnet.engine.training import TrainingState, freeze, make_optimizer, make_schedule
from ccnet.engine.training.lr_schedules import WarmupSteps
from ccnet.engine.training.setup.optimizer import lr_factor
from ccnet.engine.training.steps.torch_step import TorchStep
from ccnet.models.factory import build, create_model
from ccnet.models.stages import STAGES, first_stages

ALL = (
    "frozen_stages=1", "norm_eval=true", "optimizer.lr_factors={backbone:0.1,bias:2}", "optimizer.norm_weight_decay=0"
)  # fmt: skip


def composed(*overrides):
    return configured(*TINY, "num_classes=4", *overrides)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Return a weight file of the backbone of the embedded data set, with statistics of its own."""
    path = tmp_path_factory.mktemp("weights") / "resnet10t.pth"
    state = timm.create_model("resnet10t").state_dict()
    torch.save({key: value + 0.1 if "running" in key else value for key, value in state.items()}, path)
    return f"backbone.weights={path}"


def test_the_longest_part_that_a_name_contains_has_its_factor():
    factors = {"backbone": 0.1, "backbone.net.layer4": 0.5, "head": 10, "bias": 2}
    expected = {
        "backbone.net.layer1.0.weight": 0.1,
        "backbone.net.layer4.0.weight": 0.5,
        "backbone.net.layer4.0.bias": 0.5,
        "head.classify.weight": 10,
        "aux_head.classify.weight": 1,
        "aux_head.classify.bias": 2,
    }
    assert {name: lr_factor(name, factors) for name in expected} == expected


@pytest.mark.parametrize("name", ["sgd", "adamw", "sgd_steps"])
def test_each_group_keeps_its_factor_over_the_schedule(name):
    config = composed(f"optimizer={name}", "optimizer.lr_factors={backbone:0.1,head:2}", "recipe.lr=0.01")
    model = build(config.model)
    optimizer = make_optimizer(config, model)
    schedule = make_schedule(config, optimizer)
    plain = composed(f"optimizer={name}", "recipe.lr=0.01")
    reference = make_optimizer(plain, model)
    expected = make_schedule(plain, reference)
    rates = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    assert len(rates) == len(list(model.parameters()))
    state = TrainingState(model, optimizer, schedule, Identity("", {}, {}, {}))
    for _ in range(4):
        (rate,) = expected.get_last_lr()
        assert state.learning_rate == pytest.approx(rate)  # as logged: that of parts without a factor
        for key, parameter in model.named_parameters():
            factor = 0.1 if key.startswith("backbone") else 2 if key.startswith("head") else 1
            assert rates[parameter]["lr"] == pytest.approx(factor * rate)
        for each in (optimizer, reference):
            each.step()
        for each in (schedule, expected):
            each.step()


def test_the_logged_learning_rate_is_that_of_parts_without_a_factor():
    config = composed(
        *(
            "optimizer=sgd",
            "optimizer.lr_factors={backbone:0.1}",
            "recipe.lr=0.01",
            "+optimizer.schedule.eta_min=0.002",
        ),
        *("optimizer.schedule._target_=torch.optim.lr_scheduler.CosineAnnealingLR", "+optimizer.schedule.T_max=2"),
        *("~optimizer.schedule.total_iters", "~optimizer.schedule.power"),
    )
    optimizer = make_optimizer(config, build(config.model))
    state = TrainingState(torch.nn.Identity(), optimizer, make_schedule(config, optimizer), Identity("", {}, {}, {}))
    rates = []
    for _ in range(3):
        rates.append(state.learning_rate)
        optimizer.step()
        state.advance()
    assert rates == pytest.approx([0.01, 0.006, 0.002])


@pytest.mark.parametrize(
    "option", ["recipe.lr=0.02", "optimizer.algorithm.lr=0.02", "optimizer.schedule.max_lr=[0.02]"]
)
def test_the_one_cycle_schedule_peaks_at_the_learning_rate(option):
    """torch replaces the learning rate, and beta1, of the optimiser by those of the schedule."""
    config = composed("optimizer=adamw", "recipe.max_iters=10", option)
    optimizer = make_optimizer(config, torch.nn.Linear(1, 1))
    schedule = make_schedule(config, optimizer)
    rates, momenta = [], []
    for _ in range(10):
        rates += schedule.get_last_lr()
        momenta.append(optimizer.param_groups[0]["betas"][0])
        optimizer.step()
        schedule.step()
    assert rates.index(max(rates)) == momenta.index(min(momenta)) == 2  # the end of the first 30% of ten iterations
    assert (max(rates), min(momenta), max(momenta)) == pytest.approx((0.02, 0.85, 0.95))


def test_a_schedule_that_ends_before_the_run_is_refused_when_the_run_starts():
    config = composed("optimizer=adamw", "recipe.max_iters=5", "optimizer.schedule.total_steps=4")
    optimizer = make_optimizer(config, build(config.model))
    with pytest.raises(ValueError, match=r"ends after 4 iterations and the run after recipe\.max_iters=5, but One"):
        make_schedule(config, optimizer)
    config.optimizer.schedule.total_steps = 5
    make_schedule(config, optimizer)


def test_the_warm_up_starts_at_a_third_and_each_step_divides_by_ten():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.6)
    schedule, rates = WarmupSteps(optimizer, warmup=4, steps=[8, 6]), []
    for _ in range(10):
        rates += schedule.get_last_lr()
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.2, 0.3, 0.4, 0.5, 0.6, 0.6, 0.06, 0.06, 0.006, 0.006])
    for negative in ({"warmup": -4, "steps": []}, {"warmup": 0, "steps": [8, -6]}):
        with pytest.raises(ValueError, match="set numbers of iterations of at least 0"):
            WarmupSteps(optimizer, **negative)


def test_norms_and_biases_do_not_decay():
    config = composed("optimizer=sgd", "optimizer.norm_weight_decay=0", "recipe.weight_decay=0.1", "recipe.lr=1")
    model = build(config.model)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizer = make_optimizer(config, model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 1 if parameter.ndim <= 1 else 0.9
        assert torch.allclose(parameter, factor * before[name]), name


def test_a_factor_of_no_part_is_refused():
    config = composed("optimizer.lr_factors={neck:2}")
    with pytest.raises(ValueError, match=r"names neck, .* the parts of this network are backbone, head, aux_head"):
        make_optimizer(config, build(config.model))


def test_random_weights_are_not_frozen():
    config = composed("frozen_stages=2")
    with pytest.raises(ValueError, match=r"frozen_stages=2 freezes random weights: .* init=RUN"):
        freeze(config, build(config.model))


@pytest.mark.slow
@pytest.mark.parametrize(
    "backbone", ["resnet18", "mobilenetv2_100", "convnext_tiny", "regnety_016", "xception41", "cspnext_tiny"]
)
def test_stages_are_those_whose_features_are_returned(backbone):
    """A change in a stage changes the features of that stage, and not those before it."""
    if not timm.is_model(backbone):
        pytest.skip(f"timm {timm.__version__} has no {backbone}")
    network = create_model("ce2p", num_classes=3, backbone=backbone, head__channels=8).eval()
    image = torch.rand(1, 3, 33, 33)
    seen = {}
    with torch.inference_mode():
        before = network.features(image)
        for number in range(1, STAGES + 1):
            own = {*first_stages(network, number)} - {*first_stages(network, number - 1)}
            parameters = [p for name in own for p in network.get_submodule(name).parameters(recurse=False)]
            kept = [parameter.clone() for parameter in parameters]
            for parameter in parameters:
                parameter.add_(0.1)
            changed = [not torch.equal(*pair) for pair in zip(before, network.features(image), strict=True)]
            assert changed == [level >= number for level in range(1, STAGES + 1)]
            for parameter, values in zip(parameters, kept, strict=True):
                parameter.copy_(values)
            seen |= dict.fromkeys(map(id, parameters))
    assert seen.keys() == {id(parameter) for parameter in network.backbone.parameters()}


def test_stages_that_are_not_built_add_nothing():
    network = create_model(
        "fcn", num_classes=2, backbone="resnet10t", backbone__out_indices=[1, 2], backbone__output_stride=8
    )
    assert {*first_stages(network, 3)} == {*first_stages(network, STAGES)} > {*first_stages(network, 2)}


def test_the_context_module_in_a_detector_is_not_frozen():
    network = create_model("mask_rcnn", num_classes=2, backbone="resnet10t", channels=16, frozen=False)
    names = first_stages(network, STAGES)
    assert "backbone.body.layer4.0.conv1" in names
    assert not any("context" in name for name in names) and not any("fpn" in name for name in names)


def steps(rank=0, number=1, overrides=(), count=3):
    """Return the weights before and after some training steps."""
    torch.manual_seed(1)
    config = composed(*overrides)
    model = build(config.model).train()
    freeze(config, model)
    optimizer = make_optimizer(config, model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    step = TorchStep.of(
        config, instantiate(config.task), model, instantiate(config.loss), optimizer, torch.device("cpu")
    )
    generator = torch.Generator().manual_seed(2)
    for iteration in range(count):
        model.train()  # as a validation leaves it
        images, labels = (
            torch.rand(4, 3, 33, 33, generator=generator),
            torch.randint(4, (4, 33, 33), generator=generator),
        )
        own = slice(rank * 4 // number, (rank + 1) * 4 // number)
        step(images[own], labels[own], iteration)
    return before, model.state_dict()


@pytest.mark.parametrize("number", [1, 4])
def test_frozen_stages_stay_bit_for_bit(weights, number):
    config = composed(f"frozen_stages={number}", weights)
    frozen = {*first_stages(build(config.model), number)}
    before, after = steps(overrides=[f"frozen_stages={number}", weights])
    same = {name for name, value in before.items() if torch.equal(value, after[name])}
    inside = {name for name in before if name.rpartition(".")[0] in frozen}
    assert same == {*inside, "mean", "std", "head.context.gamma"} & before.keys()
    assert any("running_var" in name for name in inside)


def test_frozen_stages_need_no_gradients(weights):
    config = composed("frozen_stages=2", weights)
    model = build(config.model)
    freeze(config, model)
    model(torch.rand(2, 3, 33, 33))["out"].sum().backward()
    frozen = {*first_stages(model, 2)}
    for name, parameter in model.backbone.named_parameters():
        assert (parameter.grad is None) == (f"backbone.{name}".rpartition(".")[0] in frozen), name


def test_batch_norm_in_evaluation_mode_keeps_its_statistics_and_learns(weights):
    before, after = steps(overrides=["norm_eval=true", weights])
    for name, value in before.items():
        if name.startswith("backbone"):
            is_statistic = "running" in name or "tracked" in name
            assert torch.equal(value, after[name]) == is_statistic, name
        elif "tracked" in name:
            assert after[name] == 3


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, weights):
    training.train(composed(*ALL, weights), tmp_path / "whole")
    saved = checkpoints.load(tmp_path / "whole" / "previous.pt")
    assert saved.iteration == 2
    (tmp_path / "again").mkdir()
    training.train(composed(*ALL, weights), tmp_path / "again", saved)
    whole, again = (checkpoints.load(tmp_path / name / "last.pt") for name in ("whole", "again"))
    assert all(torch.equal(value, again.weights[name]) for name, value in whole.weights.items())
    assert [group["lr"] for group in whole.training["optimizer"]["param_groups"]] == [
        group["lr"] for group in again.training["optimizer"]["param_groups"]
    ]
