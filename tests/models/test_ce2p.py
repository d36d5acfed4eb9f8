"""CE2P: outputs, layers, edge targets, edge loss, and training."""

import json

import numpy as np
import pytest
import torch
from conftest import TINY
from hydra.utils import instantiate
from torch import nn

from ccnet.engine import checkpoints
from ccnet.losses import balanced_edge_loss, edge_targets
from ccnet.models import create_model

pytestmark = pytest.mark.slow


def small(name="ce2p", num_classes=5, **overrides):
    return create_model(name, num_classes=num_classes, backbone="resnet10t", head__channels=16, **overrides)


def test_the_head_has_the_published_layers():
    """Channels at the paper's size: pyramid 2048 -> 512, details 48, branches 256, fusion 1024."""
    head = create_model("ce2p", num_classes=20, backbone="resnet50").head
    shapes = {key: tuple(p.shape[:2]) for key, p in head.named_parameters() if p.ndim == 4}
    assert shapes == {
        **{f"context.pyramid.branches.{index}.0.weight": (512, 2048) for index in range(4)},
        "context.pyramid.fuse.0.weight": (512, 2048 + 4 * 512),
        "decoder.reduce.0.weight": (256, 512),
        "decoder.detail.0.weight": (48, 256),
        "decoder.fuse.0.0.weight": (256, 304),
        "decoder.fuse.1.0.weight": (256, 256),
        "decoder.classify.weight": (20, 256),
        "edge.reduce.0.0.weight": (256, 256),
        "edge.reduce.1.0.weight": (256, 512),
        "edge.reduce.2.0.weight": (256, 1024),
        "edge.classify.weight": (2, 256),
        "edge.fuse.weight": (2, 6),
        "fuse.0.weight": (256, 1024),
        "classify.weight": (20, 256),
    }


def test_each_output_comes_from_its_own_classifier():
    model, image = small(head__dropout=0.0).train(), torch.rand(2, 3, 33, 41)
    classifiers = {"out": model.head.classify, "aux": model.head.decoder.classify, "edge": model.head.edge.fuse}
    for name, classifier in classifiers.items():
        before = model(image)
        nn.init.constant_(classifier.bias, 3.0)
        nn.init.zeros_(classifier.weight)
        after = model(image)
        assert torch.allclose(after[name], torch.tensor(3.0))
        assert all(torch.equal(after[other], before[other]) for other in classifiers if other != name)


def test_attention_replaces_only_the_pyramid():
    """All other tensors keep their names and shapes, and the attention is initially the identity."""
    pyramid, attention = (
        {key: tensor.shape for key, tensor in small(name).state_dict().items() if "head.context" not in key}
        for name in ("ce2p", "ce2p_rcca")
    )
    assert pyramid == attention
    assert small("ce2p_rcca").head.context.recurrence == 2
    assert small("ce2p_rcca").head.context.context.gamma.item() == 0


def test_the_output_stride_is_16_by_default():
    assert small().backbone.net.feature_info.reduction() == [4, 8, 16, 16]
    assert small(backbone__output_stride=8).backbone.net.feature_info.reduction() == [4, 8, 8, 8]
    with pytest.raises(ValueError, match=r"needs four stages of the backbone, got 2: set out_indices"):
        small(backbone__out_indices=[-2, -1])


def edges_by_loop(labels, ignore_index=255):
    """Mark pixels one by one; a pixel is an edge if a marked pixel lies in the 3x3 square around it."""
    height, width = labels.shape
    marked = np.zeros_like(labels, dtype=bool)
    for y in range(height):
        for x in range(width):
            # The neighbours to which the pixel is compared.
            for other_y, other_x in ((y - 1, x), (y, x + 1), (y + 1, x + 1), (y + 1, x - 1)):
                if 0 <= other_y < height and 0 <= other_x < width:
                    pair = {int(labels[y, x]), int(labels[other_y, other_x])}
                    marked[y, x] |= len(pair) == 2 and ignore_index not in pair
    out = np.zeros_like(labels)
    for y in range(height):
        for x in range(width):
            out[y, x] = marked[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].any()
    out[labels == ignore_index] = ignore_index
    return out


@pytest.mark.parametrize("seed", range(4))
def test_edges_equal_an_explicit_loop_over_pixels(seed):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, (2, 9, 13))
    if seed:  # blocks of 4x4 pixels, and some void
        labels = np.kron(generator.integers(0, 3, (2, 5, 4)), np.ones((4, 4), dtype=int))
        labels[generator.random(labels.shape) < 0.1 * (seed - 1)] = 255
    found = edge_targets(torch.from_numpy(labels)).numpy()
    assert np.array_equal(found, np.stack([edges_by_loop(one) for one in labels]))


def test_a_straight_border_gives_an_edge_of_four_pixels_and_void_gives_none():
    labels = torch.zeros(1, 8, 10, dtype=torch.int64)
    labels[:, :, 5:] = 1
    assert (edge_targets(labels)[0] == ((columns := torch.arange(10)) >= 3) & (columns < 7)).all()
    labels[:, :, 5:] = 255
    assert set(edge_targets(labels).unique().tolist()) == {0, 255}
    assert not edge_targets(torch.full((1, 1, 1), 4)).any()


def balanced_by_numpy(logits, edges):
    """Return half the mean loss over edge pixels plus half the mean loss over the others."""
    logits = logits.astype(np.float64)
    picked = np.take_along_axis(logits, np.where(edges == 255, 0, edges)[:, None], axis=1)[:, 0]
    losses = np.log(np.exp(logits).sum(axis=1)) - picked
    return (losses[edges == 1].mean() + losses[edges == 0].mean()) / 2


@pytest.mark.parametrize("share", [0.5, 0.01])
def test_edge_loss_balances_edge_pixels_and_others(share):
    generator = np.random.default_rng(0)
    edges = (generator.random((2, 20, 30)) < share).astype(np.int64)
    edges[generator.random(edges.shape) < 0.2] = 255
    logits = generator.normal(0, 3, (2, 2, 20, 30))
    got = balanced_edge_loss(torch.from_numpy(logits), torch.from_numpy(edges))
    assert got.item() == pytest.approx(balanced_by_numpy(logits, edges), rel=1e-12)
    # The published form is torch's weighted mean with weights N- / N and N+ / N.
    counts = [(edges == kind).sum() for kind in (0, 1)]
    weight = torch.tensor([counts[1], counts[0]], dtype=torch.float64) / sum(counts)
    want = nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(edges), weight, ignore_index=255)
    assert got.item() == pytest.approx(want.item(), rel=1e-12)


@pytest.mark.parametrize("kind", [0, 1, 255])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_edge_loss_without_edges_or_without_others_is_a_differentiable_zero(kind, dtype):
    logits = torch.randn(1, 2, 5, 7, dtype=dtype, requires_grad=True)
    loss = balanced_edge_loss(logits, torch.full((1, 5, 7), kind))
    loss.backward()
    assert loss.item() == 0 and loss.dtype == torch.float32
    assert not logits.grad.any()


def test_an_empty_batch_has_no_edges():
    assert edge_targets(torch.zeros(0, 5, 7).long()).shape == (0, 5, 7)


@pytest.mark.parametrize("name", ["ce2p", "ce2p_rcca"])
def test_ce2p_overfits_a_few_synthetic_images(name):
    """Stripes of three classes at random positions that differ only in grey value."""
    torch.manual_seed(1)
    borders = torch.randint(8, 24, (2, 2)).sort(dim=1).values
    columns = torch.arange(33)
    rows = (columns >= borders[:, :1]).long() + (columns >= borders[:, 1:]).long()
    labels = rows[:, None, :].expand(-1, 33, -1).contiguous()
    labels[:, :4] = 255
    images = (labels[:, None].clamp(max=2) / 3 + 0.1 * torch.rand(2, 3, 33, 33)).clamp(0, 1)

    from test_configs import composed

    criterion = instantiate(composed("loss=parsing").loss)
    model = small(name, num_classes=3, head__dropout=0.0).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(12):
        optimizer.zero_grad()
        loss, terms = criterion(model(images), labels)
        loss.backward()
        optimizer.step()
    assert set(terms) == {"main", "aux", "edge"}
    assert terms["main"] < 0.6 and terms["edge"] < 0.35
    right = model(images)["out"].argmax(dim=1) == labels
    assert right[labels != 255].float().mean() > 0.9


def test_training_and_evaluation_from_the_command_line(tmp_path, run_entry):
    run = tmp_path / "run"
    done = run_entry(
        "train.py", "model=ce2p_rcca", "loss=parsing_ccl", *TINY, "recipe.max_iters=2", f"hydra.run.dir={run}"
    )
    assert "mIoU" in done.stdout
    header = (run / "train.csv").read_text().splitlines()[0].split(",")
    assert {"loss/main", "loss/aux", "loss/edge", "loss/ccl"} <= set(header)
    run_entry("evaluate.py", f"checkpoint={run / 'last'}", "device=cpu", "num_workers=0", f"output={tmp_path}")
    scores = json.loads((tmp_path / "last_val_whole.json").read_text())
    assert scores["miou"] == checkpoints.load(run / "last.pt").scores["miou"]


def test_the_edge_loss_needs_a_network_with_an_edge_output(run_entry, tmp_path):
    done = run_entry("train.py", "loss=parsing", *TINY, ok=False)
    assert "the loss term 'edge' reads the output 'edge', which this network does not return" in done.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_loss_that_would_not_train_the_edges_is_refused(tmp_path, run_entry):
    """``dataset=lip`` has a loss of its own, which would replace CE2P's."""
    done = run_entry("train.py", "model=ce2p", *TINY, ok=False)
    assert "error: CE2P predicts edges, which this loss would not train: set loss=parsing" in done.stderr
    without = ["loss=parsing", "loss.weights.edge=0", "recipe.max_iters=1", f"hydra.run.dir={tmp_path}"]
    run_entry("train.py", "model=ce2p", *TINY, *without)
