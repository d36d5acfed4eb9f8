"""Training steps: fused optimisers match plain ones, non-finite steps change nothing, the host never waits."""

import copy
from types import SimpleNamespace

import pytest
import torch
from conftest import composed
from hydra.utils import instantiate
from torch.utils._python_dispatch import TorchDispatchMode

from ccnet.data.loader import Loader, stack_pairs
from ccnet.engine.checkpoints import Checkpoint
from ccnet.engine.evaluation.tasks.semantic import Semantic
from ccnet.engine.resuming import Identity
from ccnet.engine.training.batches import prefetch
from ccnet.engine.training.state import TrainingState
from ccnet.engine.training.steps import torch_step
from ccnet.engine.training.steps.nonfinite import NonFiniteDetector, NonFiniteLoss, Outcome
from ccnet.engine.training.steps.torch_step import TorchStep, train_step
from ccnet.engine.training.throughput import Throughput
from ccnet.losses import CrossEntropy, WeightedSum
from ccnet.models.factory import build

LOSSES = ("ce", "ce_ohem", "ce_ccl")


def parts(*overrides, memory_format=torch.channels_last):
    """Return the task, network, criterion, optimiser, images and labels of a tiny run."""
    config = composed("num_classes=4", "model.head.dropout=0", *overrides)
    model = build(config.model).train().to(memory_format=memory_format)
    optimizer = instantiate(config.optimizer.algorithm, model.parameters())
    images = torch.rand(2, 3, 33, 41).to(memory_format=memory_format)
    labels = torch.randint(0, 4, (2, 33, 41))
    return instantiate(config.task), model, instantiate(config.loss), optimizer, images, labels


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_fused_optimiser_equals_the_plain_one_even_after_resuming(name):
    made = {}
    for fused in (True, False):
        torch.manual_seed(0)
        task, model, criterion, optimizer, *batch = parts(f"optimizer={name}", f"optimizer.algorithm.fused={fused}")
        assert optimizer.param_groups[0]["fused"] is fused
        train_step(task, model, criterion, optimizer, *batch)
        schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, 1)
        state = TrainingState(model, optimizer, schedule, Identity("", {}, {}, {}))
        kept = copy.deepcopy(optimizer.state_dict())
        for entry in kept["state"].values():  # contiguous, as in a checkpoint from JAX
            entry |= {key: value.contiguous() for key, value in entry.items() if value.ndim}
        training = {
            "optimizer": kept,
            "schedule": state.schedule.state_dict(),
            "random": [{"cpu": torch.get_rng_state()}],
        }
        training |= {"validated": 0, "skipped": 0, "best_score": 0.0, "identity": "", "wandb_id": None}
        state.restore(Checkpoint({}, {}, [], [], 0, {}, training))
        for _ in range(3):
            train_step(task, model, criterion, optimizer, *batch)
        assert any(not parameter.is_contiguous() for parameter in model.parameters())
        made[fused] = model.state_dict()
    for key, value in made[False].items():
        if not key.endswith("key_conv.bias"):  # the softmax is invariant to it: its gradient is noise around zero
            assert torch.allclose(value, made[True][key], rtol=1e-4, atol=1e-5), key


def spoil_loss(images, model):
    return images * float("nan")


def spoil_gradient(images, model):
    next(model.head.parameters()).register_hook(lambda gradient: gradient * float("inf"))
    return images


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("spoil", [spoil_loss, spoil_gradient])
def test_a_non_finite_step_changes_nothing(name, fused, spoil):
    for steps_before in (0, 2):
        parts_ = parts(f"optimizer={name}", f"optimizer.algorithm.fused={fused}")
        task, model, criterion, optimizer, images, labels = parts_
        for _ in range(steps_before):
            train_step(*parts_)
        before = copy.deepcopy([model.state_dict(), optimizer.state_dict()["state"]])
        outcome = train_step(
            task, model, criterion, optimizer, spoil(images, model), labels, clip_norm=1.0, keep_buffers=True
        )
        assert outcome.loss.isfinite() == (spoil is spoil_gradient)
        assert not outcome.grad_norm.isfinite()
        weights, state = model.state_dict(), optimizer.state_dict()["state"]
        assert all(torch.equal(value, weights[key]) for key, value in before[0].items())
        assert all(torch.equal(v, state[p][key]) for p, entry in before[1].items() for key, v in entry.items())


def test_a_step_with_an_infinite_loss_changes_nothing_although_its_gradient_is_finite():
    task, model, criterion, optimizer, *batch = parts()
    before = copy.deepcopy(model.state_dict())
    infinite = lambda *given: (criterion(*given)[0] + float("inf"), {})  # noqa: E731
    outcome = train_step(task, model, infinite, optimizer, *batch, keep_buffers=True)
    assert outcome.grad_norm.isfinite() and not outcome.loss.isfinite()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_fused_optimiser_that_skips_its_first_step_starts_without_momentum(poisoned_memory):
    made = []
    for fused in (True, False):
        torch.manual_seed(0)
        task, model, criterion, optimizer, images, labels = parts(
            "optimizer=sgd", f"optimizer.algorithm.fused={fused}", memory_format=torch.contiguous_format
        )
        for shown in (images * float("nan"), images):
            train_step(task, model, criterion, optimizer, shown, labels, keep_buffers=True)
        made.append(model.state_dict())
    for key, value in made[0].items():
        assert torch.allclose(value, made[1][key], rtol=1e-4, atol=1e-5), key


@pytest.mark.parametrize(("loss", "grad_norm"), [(float("nan"), 1.0), (float("inf"), 1.0), (1.0, float("inf"))])
def test_a_step_is_non_finite_if_its_loss_or_its_gradient_is(loss, grad_norm):
    detector = NonFiniteDetector(allowed=0, skipped=0, names=lambda iteration: ["a", "b"], say=print)
    for iteration, values in enumerate([(1.0, 1.0), (loss, grad_norm)]):
        detector.add(iteration, Outcome(torch.tensor(values[0]), {}, torch.tensor(values[1])))
    with pytest.raises(
        NonFiniteLoss, match=rf"iteration 2: the loss is {loss:g} \(grad_norm {grad_norm:g}\): .*: a, b"
    ):
        detector.check()


@pytest.mark.parametrize("bf16", [True, False])
def test_the_network_runs_in_the_precision_of_the_step(bf16):
    task, model, criterion, optimizer, *batch = parts()
    seen = []

    def looking(output, labels):
        seen.append(output["out"].dtype)
        return criterion(output, labels)

    train_step(task, model, looking, optimizer, *batch, bf16=bf16)
    assert seen == [torch.bfloat16 if bf16 else torch.float32]


def test_the_options_of_a_run_reach_its_steps(monkeypatch):
    seen = []
    monkeypatch.setattr(torch_step, "train_step", lambda *_, **options: seen.append(options))
    config = composed("num_classes=4", "clip_norm=3", "accumulate=2", "bf16=true", "skip_nonfinite=1")
    model = torch.nn.Conv2d(3, 4, 1)
    optimizer = torch.optim.SGD(model.parameters())
    TorchStep.of(config, Semantic(), model, torch.nn.Identity(), optimizer, torch.device("cpu"))(None, None, 0)
    wanted = {"clip_norm": 3, "accumulate": 2, "bf16": True, "keep_buffers": True}
    assert {name: seen[0][name] for name in wanted} == wanted


def test_parts_of_a_batch_of_objects_have_equal_weights():
    model = torch.nn.Linear(3, 1)
    task = SimpleNamespace(forward=lambda model, images, labels: {"out": torch.stack([*map(model, images)])})
    images, labels = [*torch.rand(4, 3)], [{"boxes": torch.zeros(0, 4)}] * 4
    mean = lambda output, labels: (output["out"].mean(), {"mean": output["out"].mean().detach()})  # noqa: E731
    seen = []
    for accumulate in (1, 2, 4):
        still = torch.optim.SGD(model.parameters(), lr=0.0)
        numbers = train_step(task, model, mean, still, images, labels, accumulate=accumulate).numbers()
        seen.append([*numbers.values(), *model.weight.grad[0].tolist()])
    assert seen[1] == pytest.approx(seen[0]) and seen[2] == pytest.approx(seen[0])


def test_a_ramp_follows_the_iterations():
    task, model, _, _, *batch = parts()
    criterion = WeightedSum({"main": CrossEntropy()}, {"main": 1.0}, {"main": 4})
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    step = TorchStep(task, model, criterion, still, device=torch.device("cpu"))
    outcomes = [step(*batch, iteration).numbers() for iteration in (0, 1, 4, 9)]
    assert [numbers["loss"] / numbers["loss/main"] for numbers in outcomes] == pytest.approx([0, 0.25, 1, 1])


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("loss", LOSSES)
def test_batches_without_a_labelled_pixel_are_reported_once_and_counted(loss, accumulate):
    task, model, criterion, optimizer, images, labels = parts(f"loss={loss}")
    said = []
    names = lambda iteration: [f"image {iteration}"]  # noqa: E731
    detector = NonFiniteDetector(allowed=0, skipped=0, names=names, say=said.append)
    for iteration, ignored in enumerate([False, True, True]):
        shown = torch.full_like(labels, 255) if ignored else labels
        outcome = train_step(task, model, criterion, optimizer, images, shown, accumulate=accumulate)
        detector.add(iteration, outcome)
    detector.check()
    assert detector.empty == 2
    assert len(said) == 1 and said[0].startswith(
        "warning: iteration 2: the loss and its gradient are 0, as for a batch"
    )
    assert said[0].endswith("Batch: image 1")


class NobodyWaits(TorchDispatchMode):
    """Raise AssertionError in operations that synchronise with the device."""

    ASKING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "item", "unique")

    def __torch_dispatch__(self, operation, types, arguments=(), named=None):
        name = operation.overloadpacket.__name__
        indices = arguments[1] if name in ("index", "index_put", "index_put_", "_index_put_impl_") else ()
        by_mask = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)
        if name.startswith(self.ASKING) or by_mask:
            raise AssertionError(f"{operation} waits for the device")
        return operation(*arguments, **(named or {}))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_never_synchronises_with_the_device(loss, monkeypatch):
    # On a CPU the category consistent loss checks the range of the labels, which costs no synchronisation there.
    monkeypatch.setattr("ccnet.losses.category_consistent.is_readable", lambda array: False)
    given = parts(f"loss={loss}", "model=ccnet")
    train_step(*given, clip_norm=1.0)  # the first step checks whether training may start
    with NobodyWaits():
        outcome = train_step(*given, clip_norm=1.0, accumulate=2, keep_buffers=True)
    with pytest.raises(AssertionError, match="waits for the device"), NobodyWaits():
        float(outcome.loss)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_on_a_gpu_does_not_wait_for_it(loss):
    task, model, criterion, optimizer, *batch = parts(f"loss={loss}", "model=ccnet")
    device = torch.device("cuda")
    model, criterion = model.to(device), criterion.to(device)
    batch = task.to_device(*(part.pin_memory() for part in batch), device, torch.channels_last)
    for _ in range(3):
        train_step(task, model, criterion, optimizer, *batch, bf16=True, clip_norm=1.0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        train_step(task, model, criterion, optimizer, *batch, bf16=True, clip_norm=1.0, keep_buffers=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_prefetched_batches_arrive_intact():
    device = torch.device("cuda")
    batches = [(torch.full((1, 3, 512, 512), float(number)).pin_memory(), torch.tensor(number)) for number in range(20)]
    busy = torch.rand(4096, 4096, device=device)
    sums = []
    for images, labels in prefetch(
        (batch for batch in batches),
        lambda *batch: Semantic().to_device(*batch, device, torch.channels_last),
        device,
    ):
        busy = (busy @ busy).clamp(0, 1)
        sums.append((images.mean(), labels))
    assert [(mean.item(), label.item()) for mean, label in sums] == [(number, number) for number in range(20)]


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_interleaved_images_stay_so_from_the_loader_to_the_network(layout):
    """Without rearranging them, and as uint8 until they are on the device."""
    interleaved = torch.randint(256, (2, 5, 7, 3), dtype=torch.uint8)
    labels = torch.randint(4, (2, 5, 7), dtype=torch.uint8)
    loader = Loader(
        list(zip(interleaved.permute(0, 3, 1, 2), labels, strict=True)), batch_size=2, collate_fn=stack_pairs
    )
    images, targets = next(iter(loader))
    assert (images.dtype, targets.dtype) == (torch.uint8, torch.uint8)
    assert images.is_contiguous(memory_format=torch.channels_last)
    images, targets = Semantic().to_device(images, targets, torch.device("cpu"), layout)
    assert images.is_contiguous(memory_format=layout)
    assert torch.allclose(images, interleaved.permute(0, 3, 1, 2) / 255)
    assert torch.equal(targets, labels.long())
    zeros, ones = ((make(3, 2, 4, 5), make(2, 4, 5)) for make in (torch.zeros, torch.ones))
    clips = stack_pairs([zeros, ones])
    assert [tuple(part.shape) for part in clips] == [(2, 3, 2, 4, 5), (2, 2, 4, 5)]


def test_prefetch_keeps_the_order_and_closes_its_source():
    closed = []

    def source():
        try:
            for number in range(5):
                yield number, -number
        finally:
            closed.append(True)

    placed = prefetch(source(), lambda images, labels: (images + 1, labels), torch.device("cpu"))
    assert [next(placed), next(placed)] == [(1, 0), (2, -1)]
    assert not closed
    placed.close()
    assert closed


def test_throughput_counts_images_steps_and_waiting(monkeypatch):
    clock = iter([100.0, 104.0, 104.0, 106.0, 106.0])
    monkeypatch.setattr("ccnet.engine.training.throughput.time.perf_counter", lambda: next(clock))
    loader = Loader([])
    throughput = Throughput(loader)
    for waited in (0.5, 1.5):
        loader.waited += waited
        throughput.add(8)
    assert throughput.read() == {"images_per_s": 4.0, "step_s": 2.0, "data_wait": 0.5}
    throughput.add(8)
    assert throughput.read() == {"images_per_s": 4.0, "step_s": 2.0, "data_wait": 0.0}
