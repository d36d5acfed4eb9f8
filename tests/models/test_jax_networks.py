"""The Flax NNX networks give the same results as their torch twins with the same weights."""

import copy
import pickle
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ccnet.models import CrissCrossAttention, create_model
from ccnet.models.heads.context import ContextHead
from ccnet.models.heads.fcn import FCNHead

jax = pytest.importorskip("jax", reason="JAX is not installed: pip install -e '.[jax]'")
nnx = pytest.importorskip("flax.nnx", reason="Flax is not installed: pip install -e '.[jax]'")
import jax.numpy as jnp  # noqa: E402
from jax import export  # noqa: E402
from jax.sharding import AxisType, NamedSharding, PartitionSpec  # noqa: E402

from ccnet.models.nnx import state_dict, twin  # noqa: E402
from ccnet.models.nnx.layers import dropout2d  # noqa: E402
from ccnet.models.nnx.resampling import adaptive_average, resize  # noqa: E402
from ccnet.models.nnx.segmentor import Segmentor  # noqa: E402

pytestmark = pytest.mark.slow


SMALL = {"num_classes": 5, "head__channels": 16, "aux_head__channels": 16}
NAMES = ["fcn", "ccnet", "nonlocal", "hv", "hv_vh", "pspnet", "deeplabv3", "gcn"]
NETWORKS = [*((name, "beacons", (65, 97)) for name in NAMES), ("ccnet", "resnet18", (33, 41))]  # beacons has two stages


def trained(name, backbone="beacons", **options):
    """Return a network in which every weight and statistic differs from its initial value."""
    network = create_model(name, backbone=backbone, **SMALL, **options)
    with torch.no_grad():
        for key, tensor in network.state_dict().items():
            if key.endswith("running_mean"):
                tensor.normal_(0, 0.1)
            elif key.endswith("running_var") or (key.endswith("weight") and tensor.ndim == 1):
                tensor.uniform_(0.5, 1.5)
            elif key.endswith("gamma"):
                tensor.fill_(0.7)
            elif key.endswith("bias"):
                tensor.normal_(0, 0.1)
    return network.eval()


def to_jax(images):
    return jax.device_put(images.movedim(1, -1).numpy())


def to_torch(array):
    return torch.from_numpy(np.array(array, np.float32)).movedim(-1, 1)


def relative(ours, theirs):
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.mark.parametrize(("name", "backbone", "size"), NETWORKS, ids=str)
@torch.no_grad()
def test_the_same_weights_give_the_same_logits(name, backbone, size):
    network = trained(name, backbone)
    images = torch.rand(1, 3, *size)
    got = jax.jit(twin(network))(to_jax(images))
    assert set(got) == {"out"}
    assert relative(to_torch(got["out"]), network(images)["out"]) < 1e-4


@pytest.mark.parametrize("name", ["ccnet3d", "hv", "pspnet"])
@torch.no_grad()
def test_clips_give_the_same_logits(name):
    network = trained(name)
    clip = torch.rand(2, 3, 3, 33, 41)
    assert relative(to_torch(jax.jit(twin(network))(to_jax(clip))["out"]), network(clip)["out"]) < 1e-4


@pytest.mark.parametrize("name", ["ccnet", "pspnet"])
def test_weights_survive_the_round_trip(name):
    network = trained(name, embedding_channels=4)
    weights = state_dict(twin(network))
    assert set(weights) == set(network.state_dict())
    for key, tensor in network.state_dict().items():
        assert torch.equal(weights[key], tensor), key
        assert weights[key].dtype == tensor.dtype, key
    create_model(name, backbone="beacons", embedding_channels=4, **SMALL).load_state_dict(weights, strict=True)


@torch.no_grad()
def test_a_twin_keeps_its_weights_when_the_torch_network_trains_on():
    # JAX 0.10.0 shares NumPy's memory wherever it can.
    module = torch.nn.Sequential(torch.nn.Conv2d(64, 1, 1), torch.nn.BatchNorm2d(64))
    made, before = twin(module), {key: tensor.clone() for key, tensor in module.state_dict().items()}
    for tensor in module.state_dict().values():
        tensor.fill_(7)
    assert all(torch.equal(tensor, before[key]) for key, tensor in state_dict(made).items())


def test_bfloat16_weights_survive_the_round_trip():
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).bfloat16()
    module[1].running_mean.normal_()
    weights = state_dict(twin(module))
    for key, tensor in module.state_dict().items():
        assert torch.equal(weights[key], tensor) and weights[key].dtype == tensor.dtype, key


def train_network(**options):
    network = trained("ccnet", embedding_channels=4, head__dropout=0.0, aux_head__dropout=0.0, **options).train()
    images = torch.rand(2, 3, 33, 41)
    return network, images


def loss_and_gradients(twin, images, **options):
    """Return the sum of the mean squares of all outputs, the outputs, and gradients and statistics by name."""
    graph, parameters, rest = nnx.split(twin, nnx.Param, ...)

    def loss(parameters, images):
        network = nnx.merge(graph, parameters, rest, copy=True)
        output = network(images, train=True, **options)
        return sum((array**2).mean() for array in output.values()), (output, nnx.state(network, nnx.BatchStat))

    (value, (output, statistics)), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(parameters, images)
    return value, output, state_dict(nnx.merge(graph, gradients, statistics))


def test_training_gives_the_same_outputs_gradients_and_statistics():
    """In float64, rounding does not move values across the kink of a ReLU."""
    network, images = train_network()
    network, images = network.double(), images.double()
    with jax.enable_x64(True):
        value, output, found = loss_and_gradients(twin(network), to_jax(images), dtype=jnp.float64)
    expected = network(images)
    total = sum(tensor.square().mean() for tensor in expected.values())
    total.backward()
    assert float(value) == pytest.approx(total.item(), rel=1e-9)
    assert set(output) == set(expected) == {"out", "aux", "embedding"}
    for name, tensor in expected.items():
        assert relative(to_torch(output[name]), tensor.detach()) < 1e-6, name
    for key, parameter in network.named_parameters():
        # The key's bias shifts all scores of a softmax equally: its gradient is zero up to rounding.
        assert (found[key] - parameter.grad).abs().max() < 1e-6 * parameter.grad.abs().max() + 1e-14, key
    for key, tensor in network.named_buffers():
        if "running" in key:
            assert relative(found[key], tensor) < 1e-9, key
        if key.endswith("num_batches_tracked"):
            assert found[key] == tensor == 1


def test_a_batch_sharded_over_devices_counts_as_one_batch():
    """On a mesh with explicit axes, statistics, loss and gradients are those of the whole batch, as on one device.

    Training shards over automatic axes: test_train_jax.py compares it with torch's.
    """
    network, images = train_network(head__recurrence=1)
    small, images = twin(network), to_jax(images)
    value, _, found = loss_and_gradients(small, images)
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    spread = jax.device_put(images, NamedSharding(mesh, PartitionSpec("data")))
    graph, state = nnx.split(small)
    everywhere = nnx.merge(graph, jax.device_put(state, NamedSharding(mesh, PartitionSpec())))
    with jax.set_mesh(mesh):
        value_, output_, found_ = loss_and_gradients(everywhere, spread)
    assert output_["out"].sharding.spec[0] == "data"
    assert float(value_) == pytest.approx(float(value), rel=1e-5)
    for key, tensor in found.items():
        assert (found_[key] - tensor).abs().max() < 1e-3 * max(tensor.abs().max(), 1), key


@pytest.fixture(scope="module")
def module_and_images():
    """Return a jitted function that gives output and gradients, its arguments (a state and images), and its result."""
    module = CrissCrossAttention(8)
    torch.nn.init.constant_(module.gamma, 0.7)
    graph, state = nnx.split(twin(module))
    images = jax.device_put(np.random.default_rng(0).standard_normal((4, 5, 6, 8), np.float32))

    def loss(state, images):
        out = nnx.merge(graph, state)(images)
        return (out**2).sum(), out

    both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    return both, state, images, jax.device_get(both(state, images))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("spec", [("data",), (("data", "model"),), ()], ids=["one axis", "both axes", "replicated"])
def test_the_module_on_a_users_mesh(kind, spec, module_and_images):
    both, state, images, expected = module_and_images
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(kind,) * 2)
    places = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(*spec))
    sharded = jax.device_put(state, places[0]), jax.device_put(images, places[1])
    with jax.set_mesh(mesh):
        program = both.lower(*sharded).compile()
        found = program(*sharded)
    assert "all-gather" not in program.as_text()
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.abs(np.asarray(ours) - np.asarray(theirs)).max() < 1e-4 * max(np.abs(theirs).max(), 1)


def test_one_image_on_four_devices():
    """The batch does not have to be divisible by the number of devices."""
    mesh = jax.make_mesh((4,), ("data",))
    module = CrissCrossAttention(8)
    torch.nn.init.constant_(module.gamma, 0.7)
    module = twin(module)
    image = jnp.asarray(np.random.default_rng(0).standard_normal((1, 5, 6, 8), np.float32))
    attend = nnx.jit(lambda module, x: module(x))
    expected = attend(module, image)
    with jax.set_mesh(mesh):
        assert np.allclose(attend(module, image), expected, atol=1e-6)


def test_dropout_drops_channels_only_in_training():
    network = twin(trained("fcn", head__dropout=0.5))
    images = jnp.ones((1, 33, 33, 3))
    graph, state = nnx.split(network)

    @jax.jit
    def train(state, seed):
        return nnx.merge(graph, state, copy=True)(images, train=True, key=jax.random.key(seed))["out"]

    first, second, again = (train(state, seed) for seed in (0, 1, 0))
    assert not jnp.allclose(first, second)
    assert jnp.array_equal(first, again)
    with pytest.raises(ValueError, match=r"dropout needs a random key in training: pass key=jax\.random\.key"):
        jax.eval_shape(lambda state: nnx.merge(graph, state, copy=True)(images, train=True), state)


@pytest.mark.parametrize("spatial", [(4, 5), (2, 4, 5)], ids=["images", "clips"])
def test_dropout_zeroes_whole_channels_and_scales_the_others(spatial):
    images = jnp.ones((64, *spatial, 32))
    dropped = np.asarray(dropout2d(images, 0.25, jax.random.key(0))).reshape(64, -1, 32)
    kept = dropped[:, 0] > 0
    assert np.allclose(dropped, np.broadcast_to(kept[:, None] / 0.75, dropped.shape))
    assert kept.mean() == pytest.approx(0.75, abs=0.03)
    assert kept.mean(0).min() > 0.5 and kept.mean(0).max() < 1  # each image has a mask of its own


class Stub(nnx.Module):
    """A head that drops features and returns them at a quarter of the size of the images."""

    def __init__(self, context=False):
        self.context = context

    def __call__(self, features, *arguments):
        *_, train, key = arguments
        logits = dropout2d(features, 0.5, key) if train else features
        return (logits, features) if self.context else logits


class Quarter(nnx.Module):
    """A backbone that returns the means of 4x4 pixels."""

    output_stride = 4

    def __call__(self, images, train):
        return [images.reshape(len(images), images.shape[1] // 4, 4, -1, 4, images.shape[-1]).mean((2, 4))] * 2


def stubs(channels=3, **options):
    statistics = {"mean": torch.full((1, channels, 1, 1), 0.5), "std": torch.full((1, channels, 1, 1), 0.25)}
    parts = {"backbone": Quarter(), "head": Stub(context=True), "aux_head": Stub(), "embed": None}
    network = SimpleNamespace(**statistics, **parts, align_corners=True)
    return Segmentor(SimpleNamespace(**vars(network) | options), lambda part: part)


@pytest.mark.parametrize(
    "head",
    [FCNHead(6, 3, channels=16, dropout=0.5), ContextHead(6, 3, context=None, channels=16, recurrence=0, dropout=0.5)],
    ids=lambda head: type(head).__name__,
)
def test_heads_drop_features_only_in_training(head):
    made, features = twin(head), jnp.asarray(np.random.default_rng(0).random((2, 5, 6, 6), np.float32))
    frames = {"frames": None} if isinstance(head, ContextHead) else {}

    @partial(nnx.jit, static_argnames="train")
    def logits(made, seed, *, train):
        found = made(features, train=train, key=jax.random.key(seed), **frames)
        return found[0] if frames else found

    assert np.array_equal(logits(made, 0, train=False), logits(made, 1, train=False))
    assert not np.allclose(logits(made, 0, train=True), logits(made, 1, train=True))
    assert np.allclose(logits(made, 0, train=True), logits(made, 0, train=True))


def test_heads_draw_masks_of_their_own():
    drop = jax.jit(lambda images: stubs(channels=64)(images, train=True, key=jax.random.key(0)))
    output = drop(np.ones((2, 8, 8, 64), np.float32))
    masks = [np.asarray(output[name]).any((1, 2)) for name in ("out", "aux")]
    assert all(0.3 < mask.mean() < 0.7 for mask in masks)
    assert 0.3 < (masks[0] == masks[1]).mean() < 0.7


@pytest.mark.parametrize("aligned", [True, False])
def test_logits_are_resized_like_those_of_torch(aligned):
    images = torch.rand(2, 3, 12, 20, generator=torch.Generator().manual_seed(0))
    found = stubs(align_corners=aligned)(to_jax(images))["out"]
    features = torch.nn.functional.avg_pool2d((images - 0.5) / 0.25, 4)
    expected = torch.nn.functional.interpolate(features, (12, 20), mode="bilinear", align_corners=aligned)
    assert torch.allclose(to_torch(found), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["ccnet", "nonlocal"])
def test_an_empty_batch_gives_empty_logits(name):
    images = jax.ShapeDtypeStruct((0, 16, 24, 3), jnp.float32)
    assert jax.eval_shape(twin(trained(name)), images)["out"].shape == (0, 16, 24, 5)


def test_evaluation_returns_nothing_but_the_logits():
    assert set(stubs(embed=Quarter())(jnp.ones((1, 8, 8, 3)))) == {"out"}


def test_recomputation_keeps_the_attention_but_not_the_projections():
    images = jnp.ones((1, 4, 5, 16))
    sizes = {}
    for recompute in (True, False):
        graph, state = nnx.split(twin(CrissCrossAttention(16, recompute=recompute)))
        attend = lambda state, images, graph=graph: nnx.merge(graph, state)(images)  # noqa: E731
        saved = jax.eval_shape(lambda *inputs, attend=attend: jax.vjp(attend, *inputs)[1], state, images)
        sizes[recompute] = sum(array.size for array in jax.tree.leaves(saved))
        back = jax.make_jaxpr(lambda state, images, attend=attend: jax.vjp(attend, state, images)[1](images))
        assert str(back(state, images)).count("criss_cross_forward[") == 1  # the attention is not computed again
    pixels, channels = 4 * 5, 2 + 2 + 16
    assert sizes[False] - sizes[True] > 0.9 * pixels * channels


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("size", [(5, 7), (11, 4), (1, 9), (3, 1)], ids=str)
def test_resizing_equals_torchs(size, aligned):
    images = torch.rand(1, 2, 5, 7)
    expected = torch.nn.functional.interpolate(images, size, mode="bilinear", align_corners=aligned)
    found = jax.jit(resize, static_argnums=(1, 2))(to_jax(images), size, aligned)
    assert torch.allclose(to_torch(found), expected, atol=1e-6)


def test_pooling_equals_torchs():
    images = torch.rand(1, 2, 5, 7)
    pooled = jax.jit(lambda images: [adaptive_average(images, bins) for bins in range(1, 9)])(to_jax(images))
    for bins, found in enumerate(pooled, 1):
        expected = torch.nn.functional.adaptive_avg_pool2d(images, bins)
        assert torch.allclose(to_torch(found), expected, atol=1e-6)


def test_a_dropout_of_1_has_no_gradient():
    found = jax.grad(lambda x: dropout2d(x, 1.0, jax.random.key(0)).sum())(jnp.ones((1, 2, 2, 3)))
    assert jnp.array_equal(found, jnp.zeros((1, 2, 2, 3)))


def test_train_and_eval_set_the_mode():
    network = twin(trained("fcn", head__dropout=0.0, aux_head__dropout=0.0))
    images = jnp.asarray(np.random.default_rng(0).random((2, 33, 33, 3), np.float32))
    forward = nnx.jit(lambda network, images: network(images))
    before = forward(network, images)
    network.train()
    assert set(forward(network, images)) == {"out", "aux"}
    assert network.backbone.net.bn1.num_batches_tracked[...] == 1
    network.eval()
    after = forward(network, images)
    assert set(after) == {"out"} and not jnp.array_equal(after["out"], before["out"])  # the statistics have changed
    assert network.backbone.net.bn1.num_batches_tracked[...] == 1
    view = nnx.view(network, deterministic=False)
    assert network.deterministic and not view.deterministic and not view.backbone.deterministic
    assert view.backbone.net.bn1.running_mean is network.backbone.net.bn1.running_mean


def test_batch_norm_measures_low_precision_features_in_float32():
    norm = twin(torch.nn.BatchNorm2d(1, momentum=1.0))
    features = jnp.asarray(100 + np.random.default_rng(0).standard_normal((2, 9, 9, 1)), jnp.bfloat16)
    assert norm(features, train=True).dtype == jnp.bfloat16
    exact = np.asarray(features, np.float64)
    assert norm.running_mean[...][0] == pytest.approx(exact.mean(), abs=1e-2)
    assert norm.running_var[...][0] == pytest.approx(exact.var(ddof=1), rel=1e-2)
    with pytest.raises(ValueError, match="needs more than one value per channel"):
        norm(features[:1, :1, :1], train=True)


def test_running_statistics_have_no_gradient():
    graph, state = nnx.split(twin(torch.nn.BatchNorm2d(2)))

    def statistics(features):
        norm = nnx.merge(graph, state, copy=True)
        norm(features, train=True)
        return norm.running_mean[...].sum() + norm.running_var[...].sum()

    assert not jax.grad(statistics)(jnp.asarray(np.random.default_rng(0).random((2, 3, 3, 2), np.float32))).any()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_copies_have_the_same_structure(copied):
    network = twin(trained("ccnet"))
    again = copied(network)
    assert nnx.graphdef(again) == nnx.graphdef(network)  # otherwise, nnx.jit would compile the copy again
    assert jax.tree.all(jax.tree.map(np.array_equal, nnx.state(again), nnx.state(network)))


def test_bfloat16_stays_close_to_float32_even_without_implicit_promotion():
    network = twin(trained("ccnet"))
    images = jnp.asarray(np.random.default_rng(0).random((1, 33, 41, 3), np.float32))
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        wide, half = (jax.jit(partial(network, dtype=dtype))(images)["out"] for dtype in (jnp.float32, jnp.bfloat16))
        jax.eval_shape(network.backbone, images)
    assert half.dtype == jnp.float32
    half, wide = jax.device_get((half, wide))
    assert np.abs(half - wide).max() < 0.1 * np.abs(wide).max()


def test_create_model_builds_in_jax():
    torch.manual_seed(1)
    network = create_model("ccnet", backbone="beacons", framework="jax", **SMALL)
    torch.manual_seed(1)
    images = torch.rand(1, 3, 33, 41)
    torch.manual_seed(1)
    same = create_model("ccnet", backbone="beacons", **SMALL).eval()
    with torch.no_grad():
        assert relative(to_torch(jax.jit(network)(to_jax(images))["out"]), same(images)["out"]) < 1e-4
    (batch,), (side,) = export.symbolic_shape("batch"), export.symbolic_shape("side")
    shapes = [jax.ShapeDtypeStruct((n, h, 41, 3), jnp.float32) for n, h in ((batch, 33), (2, side))]
    assert export.export(jax.jit(lambda x: network(x)["out"]))(shapes[0]).out_avals[0].shape == (batch, 33, 41, 5)
    smallest = jax.eval_shape(network, jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32))
    assert smallest["out"].shape == (1, 8, 8, 5)
    with pytest.raises(ValueError, match="only the batch may be symbolic"):
        jax.eval_shape(network, shapes[1])
    with pytest.raises(ValueError, match="'tensorflow': choose 'torch' or 'jax'"):
        create_model("ccnet", num_classes=2, framework="tensorflow")
    with pytest.raises(ValueError, match=r"timm.* has no JAX counterpart.*ResNets, EfficientNets and ConvNeXts"):
        create_model("ccnet", num_classes=2, backbone="test_nfnet", framework="jax")
    with pytest.raises(ValueError, match=r"RGB images \(N, H, W, 3\) or clips .* at least 8x8"):
        network(jnp.zeros((1, 3, 64, 64)))
    with pytest.raises(ValueError, match=r"floating-point images in \[0, 1\], got uint8: convert them first"):
        network(jnp.zeros((1, 64, 64, 3), jnp.uint8))
