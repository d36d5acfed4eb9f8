"""A run resumes only from a state that matches its optimiser and schedule."""

from types import SimpleNamespace

import pytest
import torch

from ccnet.engine import checkpoints
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
        return layer, TrainingState(layer, optimizer, schedule, "identity")

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
