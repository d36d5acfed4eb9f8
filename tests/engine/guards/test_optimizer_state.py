"""A run resumes only from a state that matches its optimiser and schedule."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from ccnet.engine import checkpoints, resuming
from ccnet.engine.guards.optimizer_state import alike, optimizer_state
from ccnet.engine.training.state import TrainingState


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda kept: kept["optimizer"]["state"][0].update(exp_avg=torch.zeros(2)),
            r"exp_avg of parameter 0.*\(40, 50\)",
        ),
        (lambda kept: kept["optimizer"]["state"][1].update(step=torch.zeros(50)), "step of parameter 1"),
        (lambda kept: kept["optimizer"]["state"][1].pop("exp_avg_sq"), "state belongs to different parameters"),
        (
            lambda kept: kept["optimizer"]["param_groups"][0].update(params=[1, 0]),
            "groups belong to different parameters",
        ),
        (lambda kept: kept["optimizer"]["param_groups"][0].update(amsgrad=True), "param_groups.0.amsgrad is 'True'"),
        (lambda kept: kept["schedule"].update(last_epoch=7), "schedule is at iteration 7 but its weights are from 1"),
        (lambda kept: kept["schedule"].update(_schedule_phases=[]), "schedule._schedule_phases is '\\[\\]'"),
        (lambda kept: kept.update(wandb_id=3), "identity and wandb_id must be strings"),
    ],
)
def test_a_mismatched_state_is_rejected_before_a_step_writes_into_it(tmp_path, spoil, message):
    """A fused step writes as many elements into the state as the parameter has, even if the state is smaller."""

    def begin():
        layer = torch.nn.Linear(50, 40)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=9)
        return layer, TrainingState(layer, optimizer, schedule, resuming.Identity("identity", {}, {}, {}))

    layer, state = begin()
    layer(torch.ones(3, 50)).sum().backward()
    state.optimizer.step()
    state.advance()
    state.save(tmp_path, {}, SimpleNamespace(classes=["a"], palette=[(0, 0, 0)]))
    saved = checkpoints.load(tmp_path / "last.pt")
    spoil(saved.training)
    with pytest.raises(ValueError, match=f"the training state in .*last.pt does not match this run: .*{message}"):
        begin()[1].restore(saved)
    begin()[1].restore(checkpoints.load(tmp_path / "last.pt"))


def test_a_state_may_differ_in_numbers_and_in_the_keys_of_another_torch_version():
    own = {"lr": 0.1, "betas": (0.9, 0.99), "fused": True, "name": "a", "new": None}
    saved = {"lr": 1, "betas": [0.5, 0.6], "fused": True, "name": "a", "old": 3}
    assert alike(saved, own, "state") == own | {"lr": 1, "betas": (0.5, 0.6)}
    for name, value in (
        ("lr", math.nan), ("lr", True), ("betas", [0.5]), ("betas", 0.5), ("fused", 1), ("name", "b"), ("new", 3),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"state.{name} is '.*', but this run has "):
            alike(saved | {name: value}, own, "state")


def test_a_fused_step_finds_a_state_for_a_parameter_that_had_no_gradient_so_far():
    used, unused = (torch.nn.Parameter(torch.ones(size)) for size in (2, 3))
    optimizer = torch.optim.AdamW([used, unused], fused=True)
    used.sum().backward()
    optimizer.step()
    state = optimizer_state(optimizer.state_dict(), optimizer)["state"]
    assert {key: value.tolist() for key, value in state[1].items()} == {
        "step": 0, "exp_avg": [0, 0, 0], "exp_avg_sq": [0, 0, 0]
    }  # fmt: skip
    assert state[0]["step"] == 1
    with pytest.raises(ValueError, match="state belongs to different parameters"):
        optimizer_state({**optimizer.state_dict(), "state": {2: state[1]}}, optimizer)


@pytest.mark.parametrize(
    ("algorithm", "schedule"),
    [
        (
            partial(torch.optim.SGD, lr=0.1, momentum=0.9),
            lambda optimizer, length: torch.optim.lr_scheduler.PolynomialLR(optimizer, length, power=0.9),
        ),
        (
            partial(torch.optim.AdamW, lr=0.1),
            lambda optimizer, length: torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=length),
        ),
    ],
)
def test_a_longer_run_continues_with_the_learning_rates_of_its_length(tmp_path, algorithm, schedule):
    """Also after the last iteration of the shorter one, where its learning rate is 0."""

    def begin(length):
        layer = torch.nn.Linear(3, 2)
        optimizer = algorithm(layer.parameters())
        return TrainingState(layer, optimizer, schedule(optimizer, length), resuming.Identity("", {}, {}, {}))

    def step(state):
        state.model(torch.ones(1, 3)).sum().backward()
        state.optimizer.step()
        group = state.optimizer.param_groups[0]
        used = state.learning_rate, group["lr"], group.get("momentum"), group.get("betas")
        if state.iteration + 1 < length:
            state.advance()
        return used

    length = 4
    short = begin(4)
    for _ in range(4):
        step(short)
    short.iteration = 4
    short.schedule.last_epoch = 4
    short.save(tmp_path, {"recipe": {"max_iters": 4}}, SimpleNamespace(classes=["a"], palette=[(0, 0, 0)]))
    length = 9
    longer = begin(9)
    longer.restore(checkpoints.load(tmp_path / "last.pt"), max_iters=9)
    assert longer.iteration == 4
    whole = begin(9)
    want = [step(whole) for _ in range(9)]
    assert [step(longer) for _ in range(5)] == want[4:]
    state = longer.optimizer.state[longer.model.weight]
    assert state  # the optimiser has kept its momentum
