"""Two processes that split each batch get the same results as one process with the whole batch."""

import io
from contextlib import contextmanager, redirect_stdout
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from conftest import composed
from hydra.utils import instantiate
from two_processes import together

from ccnet.data.training_samples import Seeded, train_loader
from ccnet.engine import checkpoints
from ccnet.engine.resuming import Identity
from ccnet.engine.runtime.distributed import processes
from ccnet.engine.training import TrainingState
from ccnet.engine.training.steps.torch_step import TorchStep, train_step
from ccnet.losses import CrossEntropy, WeightedSum
from ccnet.models.factory import build
from ccnet.train import train

ITERATIONS, BATCH = 10, 4
OHEM = [
    "loss=ce_ccl", "loss.terms.main._target_=ccnet.losses.OhemCrossEntropy", "+loss.terms.main.min_kept=1500",
    "+loss.terms.main.threshold=0.2",
]  # fmt: skip


def iterations(rank=0, number=1, overrides=(), count=ITERATIONS, spoilt=()):
    """Return the loss terms of each iteration, then gradients and batch norm statistics of the last one, in float64.

    In ``spoilt`` iterations the last image of the batch is NaN.
    """
    torch.manual_seed(1)
    config = composed("num_classes=4", *OHEM, *overrides)
    task, criterion = instantiate(config.task), instantiate(config.loss)
    model = build(config.model).double().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    step = TorchStep(
        task, model, criterion, optimizer, device=torch.device("cpu"),
        accumulate=config.accumulate, clip_norm=config.clip_norm, keep_buffers=True,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(2)
    terms = []
    for iteration in range(count):
        images = torch.rand(BATCH, 3, 33, 41, generator=generator, dtype=torch.float64)
        images[-1] *= float("nan") if iteration in spoilt else 1
        labels = torch.randint(0, 4, (BATCH, 33, 41), generator=generator)
        labels[0, 5:] = 255  # the processes have different numbers of valid pixels
        own = slice(rank * BATCH // number, (rank + 1) * BATCH // number)
        loss, parts, _ = step(images[own], labels[own], iteration)
        terms.append({"loss": loss} | parts)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {"terms": terms, "gradients": gradients, "state": model.state_dict()}


def assert_close(one, two):
    assert one["terms"][0].keys() == two["terms"][0].keys() >= {"main", "aux", "ccl", "ccl/variance"}
    for parts, others in zip(one["terms"], two["terms"], strict=True):
        for name in parts:
            assert abs(parts[name] - others[name]) < 1e-6, name
    assert len({float(parts["loss"]) for parts in one["terms"]}) == ITERATIONS
    for kind in ("gradients", "state"):
        assert one[kind].keys() == two[kind].keys()
        for name, values in one[kind].items():
            assert torch.allclose(values, two[kind][name], rtol=0, atol=1e-6), name


def test_a_run_on_the_second_gpu_makes_it_current(monkeypatch):
    current = [torch.device("cuda", 0)]

    @contextmanager
    def using(device):
        before, current[0] = current[0], device
        yield
        current[0] = before

    monkeypatch.setattr("torch.cuda.device", using)
    with processes(torch.device("cuda", 1)) as device:
        assert current == [device] == [torch.device("cuda", 1)]
    assert current == [torch.device("cuda", 0)]


@pytest.mark.slow
def test_two_processes_equal_one_with_twice_the_batch(tmp_path):
    """Dropout included, as shipped."""
    one = iterations()
    first, second = together(partial(iterations, number=2), tmp_path)
    assert_close(one, first)
    assert_close(first, second)
    assert any("running_var" in name for name in one["state"])


@pytest.mark.slow
def test_all_processes_skip_a_step_that_is_non_finite_in_one(tmp_path):
    before = iterations(count=2)["state"]
    first, second = together(partial(iterations, number=2, count=3, spoilt=[2]), tmp_path)
    assert not first["terms"][2]["loss"].isfinite()
    for name, values in before.items():
        assert torch.equal(first["state"][name], second["state"][name]), name
        assert torch.allclose(values, first["state"][name], rtol=0, atol=1e-6), name


@pytest.mark.slow
def test_a_term_of_weight_zero_leaves_parameters_without_gradient(tmp_path):
    overrides = ["loss.weights.aux=0"]
    whole = iterations(count=3, overrides=overrides)["terms"][2]["loss"]
    shared, _ = together(partial(iterations, number=2, overrides=overrides, count=3), tmp_path)
    assert abs(whole - shared["terms"][2]["loss"]) < 1e-6


class Pointwise(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.classify = torch.nn.Conv2d(3, 4, 1)

    def forward(self, images):
        return {"out": self.classify(images)}


def test_accumulated_chunks_give_the_cross_entropy_of_the_batch():
    images, labels = torch.rand(4, 3, 9, 7), torch.randint(0, 4, (4, 9, 7))
    labels[:2, 1:] = 255
    task, criterion = instantiate(composed().task), WeightedSum({"main": CrossEntropy()}, {"main": 1.0})
    model = Pointwise()
    seen = []
    for accumulate in (1, 2, 4):
        still = torch.optim.SGD(model.parameters(), lr=0.0)
        loss, terms, _ = train_step(task, model, criterion, still, images, labels, accumulate=accumulate)
        seen.append([loss, terms["main"], *(parameter.grad.clone() for parameter in model.parameters())])
    for other in seen[1:]:
        for one, two in zip(seen[0], other, strict=True):
            assert torch.allclose(one, two, atol=1e-6)
    length = torch.cat([grad.flatten() for grad in seen[0][2:]]).norm()
    _, _, norm = train_step(task, model, criterion, still, images, labels, clip_norm=length / 10)
    assert torch.allclose(norm, length)
    clipped = torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).norm()
    assert clipped == pytest.approx(length.item() / 10, rel=1e-4)


def accumulated(rank=0, number=1, images=4):
    """Return the losses of three steps that split a batch, and the gradients and weights after the last one.

    A process starts with weights of its own. In the first step, it averages the gradients itself; later, DDP does.
    """
    torch.manual_seed(rank)
    model = Pointwise()
    step = TorchStep(
        instantiate(composed().task), model, WeightedSum({"main": CrossEntropy()}, {"main": 1.0}),
        torch.optim.SGD(model.parameters(), lr=0.5), device=torch.device("cpu"), accumulate=2,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(2)
    batch = torch.rand(images, 3, 9, 7, generator=generator), torch.randint(0, 4, (images, 9, 7), generator=generator)
    batch[1][0, 1:], batch[1][-1, 5:] = 255, 255  # all parts have different numbers of valid pixels
    own = slice(rank * images // number, (rank + 1) * images // number)
    losses = [step(*(part[own] for part in batch), iteration).loss for iteration in range(3)]
    parameters = [*model.parameters()]
    return losses + [parameter.grad for parameter in parameters] + [parameter.detach() for parameter in parameters]


@pytest.mark.slow
def test_two_processes_that_accumulate_equal_one(tmp_path):
    expected = accumulated()
    for found in together(partial(accumulated, number=2), tmp_path):
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-6)


def drawn_again(rank, folder):
    """Return the numbers that a process draws after it has saved a run, and after it has resumed it."""
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters())
    state = TrainingState(
        model, optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer), Identity("", {}, {}, {})
    )  # fmt: skip
    state.save(folder, {"recipe": {"max_iters": 1}}, SimpleNamespace(classes=["a"], palette=[[0, 0, 0]]))
    drawn = torch.rand(3)
    torch.distributed.barrier()
    state.restore(checkpoints.load(folder / "last.pt"))
    return drawn, torch.rand(3)


@pytest.mark.slow
def test_each_process_continues_with_its_own_random_numbers(tmp_path):
    """They differ between processes if a network draws one per object."""
    (tmp_path / "run").mkdir()
    (first, again), (second, repeated) = together(partial(drawn_again, folder=tmp_path / "run"), tmp_path)
    assert torch.equal(first, again) and torch.equal(second, repeated) and not torch.equal(first, second)


def trained(rank, folder):
    """Train in a folder of this process's own, which holds an earlier result, and return what it prints."""
    own = folder / str(rank)
    own.mkdir()
    (own / "result.json").write_text('{"iterations": 1}')
    with redirect_stdout(io.StringIO()) as printed:
        train(composed(), own)
    return printed.getvalue()


@pytest.mark.slow
def test_only_the_first_process_writes_files_and_prints(tmp_path, whole):
    """A run has one folder; two show which process writes."""
    (folder := tmp_path / "runs").mkdir()
    first, second = together(partial(trained, folder=folder), tmp_path)
    written, untouched = ({path.name for path in (folder / rank).iterdir()} for rank in "01")
    assert written == {path.name for path in whole.iterdir()} | {"result_1.json"}
    assert untouched == {"result.json"} and (folder / "1" / "result.json").read_text() == '{"iterations": 1}'
    assert "mIoU" in first and second == ""


@pytest.mark.slow
@pytest.mark.parametrize("term", ["main", "ccl"])
def test_without_sync_each_process_uses_its_own_statistics(tmp_path, term):
    whole = iterations(count=1)["terms"][0]
    work = partial(iterations, number=2, overrides=[f"+loss.terms.{term}.sync=false"], count=1)
    apart, other = (result["terms"][0] for result in together(work, tmp_path))
    assert abs(apart[term] - whole[term]) > 1e-3
    assert apart == other


def test_a_batch_size_that_processes_cannot_split_is_rejected(tmp_path):
    with pytest.raises(ValueError, match=r"recipe.batch_size=4 is shared by 3 processes.* set it to a multiple of 3"):
        train_loader(Seeded(range(9), 0), batch_size=4, iterations=1, num_workers=0, processes=3)
    with pytest.raises(ValueError, match=r"into accumulate=4 pieces: set it to a multiple of 8"):
        train_loader(Seeded(range(9), 0), batch_size=4, iterations=1, num_workers=0, processes=2, pieces=4)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_load_disjoint_parts_of_the_same_sequence(processes):
    def batches(**share):
        loader = train_loader(Seeded(torch.arange(7), 5), batch_size=4, iterations=6, start=1, num_workers=0, **share)
        assert len(loader) == 5
        return torch.stack(list(loader))

    parts = [batches(process=process, processes=processes) for process in range(processes)]
    assert torch.equal(torch.cat(parts, dim=1), batches())
