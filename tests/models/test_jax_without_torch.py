"""Networks, losses and the operator in JAX where torch, torchvision and timm are not installed."""

import copy
import json

import numpy as np
import pytest
import torch
from conftest import run_python
from omegaconf import OmegaConf
from safetensors.torch import save_file
from test_jax_networks import SMALL, relative, to_jax, to_torch, trained

from ccnet.models import tensor_files
from ccnet.models.backbone import TimmBackbone
from ccnet.models.checksums import CHECKSUM, HEADER
from ccnet.models.factory import build, compose_conf

jax = pytest.importorskip("jax", reason="JAX is not installed: pip install -e '.[jax]'")
nnx = pytest.importorskip("flax.nnx", reason="Flax is not installed: pip install -e '.[jax]'")

from ccnet.models.nnx import load_network, state_dict, twin  # noqa: E402
from ccnet.models.nnx.conversion import twins  # noqa: E402
from ccnet.models.nnx.native import backbones, loading, parts  # noqa: E402

pytestmark = pytest.mark.slow

# Every stem, block, kind of attention and dilation.
BACKBONES = ["resnet10t", "resnet50c", "seresnext26d_32x4d", "ecaresnet26t", "resnet18", "mobilenetv2_035"]


def node(name, backbone="beacons"):
    """Return the resolved ``model`` node of a small network."""
    config = compose_conf([f"+model={name}", f"+backbone={backbone}", f"+num_classes={SMALL['num_classes']}"])
    config.model.head.channels = config.model.aux_head.channels = 16
    return OmegaConf.to_container(config, resolve=True)["model"]


@pytest.mark.parametrize("name", ["fcn", "ccnet", "hv", "hv_vh", "nonlocal", "pspnet", "deeplabv3", "gcn"])
@torch.no_grad()
def test_a_weight_file_gives_the_torch_networks_logits(name, tmp_path):
    """The twins' logits are tested. Here, they are computed only where the padding of layers depends on the context."""
    network = trained(name)
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    made = load_network(tmp_path / "weights.safetensors", node(name))
    assert settings(made) == settings(twin(network))
    assert state_dict(made).keys() == network.state_dict().keys()
    for key, tensor in state_dict(made).items():
        assert torch.equal(tensor, network.state_dict()[key]), key
    if name in ("ccnet", "pspnet", "deeplabv3", "gcn"):
        images = torch.rand(1, 3, 33, 41)
        logits = nnx.jit(lambda network, images: network(images)["out"])(made, to_jax(images))
        assert relative(to_torch(logits), network(images)["out"]) < 1e-4


def settings(network):
    """Return the settings of every layer except the padding, which has several forms and which the logits depend on."""
    kinds = (bool, int, float, str, tuple, type(None))
    return {
        ".".join(map(str, path)): {
            name: value for name, value in vars(module).items() if isinstance(value, kinds) and name != "padding"
        }
        for path, module in nnx.iter_modules(network)
    }


COMMON = {"head.dropout": 0.3, "aux_head.dropout": 0.2, "backbone.output_stride": 16, "backbone.out_indices": [1, -1]}
OPTIONS = {
    "ccnet": {
        "align_corners": False, "embedding_channels": 4, "head.recurrence": 3, "head.negative_slope": 0.1,
        "aux_head.negative_slope": 0.2, "head.context.gamma": "fixed", "head.context.axes": [1],
        "head.context.recompute": False, "head.context.backend": "reference",
    },
    "pspnet": {"head.context.bins": [1, 4], "head.context.align_corners": False},
    "deeplabv3": {"head.context.dilations": [2, 3]},
}  # fmt: skip


@pytest.mark.parametrize("given", [False, True], ids=["defaults", "options"])
@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_is_that_of_the_torch_network(name, given, tmp_path, monkeypatch):
    """This includes options that only matter in training, such as dropout and the momentum of batch norm."""
    monkeypatch.setattr(twins, "compare", lambda *_: None)  # which takes seconds
    config = OmegaConf.create(node(name, "resnet10t"))
    config.backbone.pretrained = False
    for option, value in (COMMON | OPTIONS[name] if given else {}).items():
        OmegaConf.update(config, option, value)
    network = build(config)
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    if not given:  # the defaults of the configuration are those of the classes, too
        optional = ("dropout", "negative_slope", "recurrence", "gamma", "recompute", "backend", "bins", "dilations")
        for part in (config, config.backbone, config.head, config.aux_head, config.head.get("context") or {}):
            for option in (*optional, "align_corners", "output_stride", "out_indices", "embedding_channels"):
                if option in part and not (name == "ccnet" and option == "recurrence"):
                    del part[option]
    made = load_network(tmp_path / "weights.safetensors", OmegaConf.to_container(config))
    assert settings(made) == settings(twin(network))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_parameters_of_other_precisions_become_float32_as_in_torch(dtype, tmp_path):
    state = trained("fcn").state_dict()
    stored = {key: tensor.to(dtype) if tensor.ndim > 1 else tensor for key, tensor in state.items()}
    save_file(stored, tmp_path / "weights.safetensors")
    with jax.enable_x64(True):
        weights = state_dict(load_network(tmp_path / "weights.safetensors", node("fcn")))
    for key, tensor in stored.items():
        assert torch.equal(weights[key], tensor.float() if tensor.is_floating_point() else tensor), key
        assert weights[key].dtype in (torch.float32, torch.int64), key


@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_backbones_compute_the_same_as_timms(name):
    backbone = TimmBackbone(name).eval()
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.uniform_(0.5, 1.5)
            module.running_mean.normal_(0, 0.1)
    weights = parts.Weights({key: tensor.numpy() for key, tensor in backbone.state_dict().items()})
    made = parts.build(backbones.backbone(weights, name, 8, (-2, -1)))
    images = torch.randn(1, 3, 65, 47)
    for ours, theirs in zip(nnx.jit(lambda n, x: n(x))(made, to_jax(images)), backbone(images), strict=True):
        assert relative(to_torch(ours), theirs) < 1e-4
    assert weights.used == weights.tensors.keys()


def test_what_cannot_be_built_is_refused(tmp_path):
    network = trained("ccnet")
    path = tmp_path / "weights.safetensors"
    save_file(network.state_dict(), path)
    with pytest.raises(ValueError, match=r"records no configuration: pass the model node"):
        load_network(path)
    with pytest.raises(ValueError, match=r"'convnext_tiny' cannot be built without timm, only ResNets and"):
        load_network(path, node("ccnet", "convnext_tiny"))
    with pytest.raises(ValueError, match=r"CE2P\w* cannot be built without torch, only ContextHead"):
        load_network(path, node("ccnet") | {"head": {"_target_": "ccnet.models.heads.ce2p.CE2PHead"}})
    with pytest.raises(ValueError, match=r"does not use 3 tensors of the weight file, such as extra\.0"):
        tensors = {f"extra.{i}": torch.zeros(1) for i in range(3)}
        save_file(network.state_dict() | tensors, path)
        load_network(path, node("ccnet"))
    with pytest.raises(ValueError, match=r"has no tensor head\.reduce\.0\.weight, which its configuration requires"):
        kept = {key: tensor for key, tensor in network.state_dict().items() if not key.startswith("head.reduce")}
        save_file(kept, path)
        load_network(path, node("ccnet"))


@pytest.fixture(scope="module")
def loaded():
    """Return the arrays of a weight file by name, and its configuration."""
    weights = trained("ccnet", "resnet10t").state_dict()
    return {key: tensor.numpy() for key, tensor in weights.items()}, node("ccnet", "resnet10t")


def without(*names):
    return lambda tensors: [tensors.pop(key) for key in list(tensors) if key.startswith(names)]


def instead(key, *shape):
    return lambda tensors: tensors.update({key: np.ones(shape, np.float32)})


@pytest.mark.parametrize(
    ("change", "backbone", "message"),
    [
        (without("head.classify.bias"), {}, r"has no tensor head\.classify\.bias, which its configuration requires"),
        (without("head.context.gamma"), {}, r"has no tensor head\.context\.gamma"),
        (without("head.context.key_conv.bias"), {}, r"has no tensor head\.context\.key_conv\.bias"),
        (
            without("backbone.net.layer3", "backbone.net.layer4"),
            {},
            r"no tensor backbone\.net\.layer3\.0\.conv1\.weight",
        ),
        (instead("backbone.net.bn1.weight", 1), {}, r"backbone\.net\.bn1\.weight has shape \(1,\) instead of \(64,\)"),
        (instead("head.classify.weight", 5, 8, 1, 1), {}, "do not fit together: .* contracting dimensions"),
        (instead("head.classify.weight", 5), {}, r"head\.classify\.weight of a 2D convolution has shape \(5,\)"),
        (instead("mean", 3), {}, r"mean and std have shapes \(3,\) and \(1, 3, 1, 1\)"),
        (without(), {"name": "resnet50"}, "contains a ResNet of 10 layers, not a resnet50"),
        (
            without(),
            {"out_indices": [1, 5]},
            r"out_indices=\[1, 5\], but the backbone has only the levels act1, layer1",
        ),
        (
            without(),
            {"_target_": "ccnet.models.published.backbone.CaffeResNet"},
            r"CaffeResNet cannot be built without",
        ),
    ],
)
def test_weights_that_do_not_match_the_configuration_are_refused(loaded, change, backbone, message):
    """Loading them anyway would silently give another network."""
    tensors, config = copy.copy(loaded[0]), loaded[1]
    change(tensors)
    with pytest.raises(ValueError, match=message):
        loading._network(tensors, config | {"backbone": config["backbone"] | backbone})


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no weight file .*: a run writes best\.safetensors"):
        load_network(tmp_path, node("ccnet"))
    (tmp_path / "cut.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"cut\.safetensors is not a \.safetensors file, or it is damaged: "):
        load_network(tmp_path / "cut.safetensors", node("ccnet"))
    header, weights = json.dumps({"config": {"model": node("fcn")}}), trained("fcn").state_dict()
    metadata = {HEADER: header, CHECKSUM: tensor_files.checksum(header, weights)}
    save_file(weights, tmp_path / "best.safetensors", metadata=metadata)
    load_network(tmp_path / "best.safetensors")
    save_file(weights | {"mean": weights["mean"] + 1e-3}, tmp_path / "best.safetensors", metadata=metadata)
    with pytest.raises(ValueError, match=r"best\.safetensors is damaged: its content does not match its checksum"):
        load_network(tmp_path / "best.safetensors")
    with pytest.raises(ValueError, match="has no _target_: pass the model node"):
        loading._network({}, {"model": node("ccnet")})


_PROGRAM = """
import sys


class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "timm"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Blocked())
import jax, jax.numpy as jnp
import numpy as np
import ccnet
from ccnet import criss_cross_attention, losses
from ccnet.models.nnx import load_network
from flax import nnx

image = jnp.asarray(np.load("image.npy"))
network = load_network("best.safetensors")
np.save("logits.npy", nnx.jit(lambda network, image: network(image)["out"])(network, image))
labels = jnp.zeros(image.shape[:3], jnp.int32)
terms = {"ce": losses.CrossEntropy(), "ohem": losses.OhemCrossEntropy()}
loss = losses.WeightedSum(terms, {"ce": 1, "ohem": 1}, ramp={"ohem": 4})


def objective(logits):
    return loss({"out": logits}, labels, iteration=1)[0] + losses.category_consistent_loss(logits, labels).total


assert jnp.isfinite(jax.jit(jax.grad(objective))(jnp.moveaxis(image, -1, 1))).all()
assert criss_cross_attention(image, image, image, channel_axis=-1).shape == image.shape
assert not {"torch", "torchvision", "timm"} & sys.modules.keys()
"""


@torch.no_grad()
def test_a_program_without_torch(tmp_path):
    """The child process blocks the three packages; the weight file is that of a run, which holds its configuration."""
    network = trained("ccnet")
    header = json.dumps({"config": {"model": node("ccnet")}})
    save_file(network.state_dict(), tmp_path / "best.safetensors", metadata={"ccnet": header})
    images = torch.rand(2, 3, 33, 41)
    np.save(tmp_path / "image.npy", to_jax(images))
    run_python("-c", _PROGRAM, cwd=tmp_path)
    assert relative(to_torch(np.load(tmp_path / "logits.npy")), network(images)["out"]) < 1e-4
