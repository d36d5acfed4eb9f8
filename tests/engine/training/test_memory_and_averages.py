"""Gradient checkpointing changes memory and nothing else; the averaged weights are evaluated and saved."""

import copy

import pytest
import torch
from conftest import composed
from hydra.utils import instantiate

from ccnet import train as training
from ccnet.engine import checkpoints
from ccnet.engine.evaluation.tasks.semantic import Semantic
from ccnet.engine.resuming import Identity
from ccnet.engine.training import TorchStep, TrainingState
from ccnet.engine.training.averaging import AveragedWeights
from ccnet.models.factory import create_model


@pytest.mark.parametrize(
    "backbone",
    ["resnet10t", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mobilenetv2_100", "convnext_atto"))],
)
def test_checkpointing_saves_memory_and_changes_no_result(backbone):
    torch.manual_seed(0)
    first = create_model(
        "fcn", num_classes=3, backbone=backbone, head__channels=8, head__dropout=0, aux_head__dropout=0
    )
    criterion = instantiate(composed("num_classes=3").loss)
    batches = [(torch.rand(2, 3, 65, 65), torch.randint(0, 3, (2, 65, 65))) for _ in range(2)]
    results, kept = [], []
    for checkpointed in (False, True):
        model = copy.deepcopy(first).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        step = TorchStep(
            Semantic(), model, criterion, optimizer, device=torch.device("cpu"), grad_checkpointing=checkpointed
        )
        seen = {}

        def pack(tensor, seen=seen):
            seen[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(batches[0][0])
        kept.append(sum(seen.values()))
        for iteration, batch in enumerate(batches):
            step(*batch, iteration)
        results.append(model.state_dict())
    assert kept[1] < 0.85 * kept[0]
    for name, value in results[0].items():
        assert torch.allclose(value, results[1][name], rtol=1e-5, atol=1e-6), name
    assert any(name.endswith("running_var") for name in results[0])


def test_the_average_is_that_of_the_weights_and_starts_quickly():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    ema = AveragedWeights(model, 0.9)
    expected = {name: value.clone().float() for name, value in model.state_dict().items()}
    for iteration in range(100):
        with torch.no_grad():
            model[0].weight.normal_()
            model[1].num_batches_tracked.add_(1)
        ema.update(iteration)
        decay = min(0.9, (1 + iteration) / (10 + iteration))
        expected["0.weight"] = decay * expected["0.weight"] + (1 - decay) * model[0].weight.detach()
    found = ema.network.state_dict()
    assert torch.allclose(found["0.weight"], expected["0.weight"], atol=1e-5)
    assert found["1.num_batches_tracked"] == 100 and not ema.network.training
    for other in (None, {"0.bias": found["0.bias"]}):
        with pytest.raises(ValueError, match=r"averaged weights \(ema\) are missing, or belong to another network"):
            ema.load(other)
    with pytest.raises(ValueError, match=r"do not match the network in 0.bias"):
        ema.load(found | {"0.bias": torch.zeros(3)})


def test_the_first_step_leaves_a_tenth_of_the_initial_weights():
    model = torch.nn.Linear(1, 1)
    torch.nn.init.zeros_(model.weight)
    optimizer = torch.optim.SGD(model.parameters())
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    ema = AveragedWeights(model, 0.999)
    state = TrainingState(model, optimizer, schedule, Identity("", {}, {}, {}), ema=ema)
    torch.nn.init.ones_(model.weight)
    optimizer.step()
    for expected in (0.9, 1 - 0.1 * 2 / 11):  # (1 + n) / (10 + n) of the average is kept at iteration n
        state.advance()
        assert ema.network.weight.item() == pytest.approx(expected)


@pytest.mark.slow
def test_the_average_is_validated_and_saved(tmp_path, monkeypatch):
    seen = []

    def evaluate(model, *arguments, original=Semantic.evaluate, **named):
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return original(model, *arguments, **named)

    monkeypatch.setattr(Semantic, "evaluate", staticmethod(evaluate))
    training.train(composed("ema=0.5"), tmp_path)
    last, best = (checkpoints.load(tmp_path / name) for name in ("last.pt", "best.safetensors"))
    place = 0 if best.iteration == 2 else 1
    assert all(torch.equal(value, seen[place][name]) for name, value in best.weights.items())
    assert any(not torch.equal(value, last.training["ema"][name]) for name, value in last.weights.items())


def test_jax_refuses_what_it_does_not_have():
    pytest.importorskip("jax", reason="pip install 'ccnet-segmentation[jax]'")
    from ccnet.engine.training import choose_framework

    for option in ("ema=0.9", "grad_checkpointing=true"):
        with pytest.raises(ValueError, match="framework=jax supports neither ema nor grad_checkpointing"):
            choose_framework("jax", "cpu").check(composed(option))
    with pytest.raises(ValueError, match="framework=jax runs in a single process without gradient accumulation"):
        choose_framework("jax", "cpu").check(composed("accumulate=2"))
    with pytest.raises(ValueError, match=r"'dice': remove it, or set loss\.weights\.dice=0"):
        choose_framework("jax", "cpu").check(composed("loss/term=dice"))
