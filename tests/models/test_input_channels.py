"""Networks for images of any number of channels."""

import numpy as np
import pytest
import timm
import torch
from conftest import TINY
from PIL import Image

import ccnet
from ccnet.engine.drawing import blend
from ccnet.models import create_model
from ccnet.models.backbone import TimmBackbone
from ccnet.train import run


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto", "efficientnet_b0", "regnety_002"])
def test_weights_for_rgb_are_adapted_as_timm_adapts_them(tmp_path, name):
    full = timm.create_model(name)
    torch.save(full.state_dict(), tmp_path / "weights.pth")
    made = TimmBackbone(name, in_channels=5, weights=tmp_path / "weights.pth")
    first = next(iter(made.net.parameters()))
    expected = timm.models.adapt_input_conv(5, next(iter(full.parameters())))
    assert first.shape[1] == 5 and torch.equal(first, expected)
    red, green, blue = full.pretrained_cfg["mean"]
    assert made.mean == (red, green, blue, red, green)
    assert TimmBackbone(name, in_channels=1).mean == pytest.approx([(red + green + blue) / 3])


def test_statistics_are_one_number_per_channel():
    made = TimmBackbone("resnet10t", in_channels=2, mean=[0.1, 0.2], std=[0.3, 0.4])
    assert (made.mean, made.std) == ((0.1, 0.2), (0.3, 0.4))
    with pytest.raises(ValueError, match=r"backbone.mean=\[0.5\]: set one number per channel, .* in_channels=2"):
        TimmBackbone("resnet10t", in_channels=2, mean=[0.5])
    with pytest.raises(ValueError, match=r"all above 0"):
        TimmBackbone("resnet10t", in_channels=1, std=[0])


def test_statistics_may_be_whole_numbers():
    """Mean 0 and standard deviation 1 leave the images as they are."""
    settings = {"num_classes": 2, "backbone": "resnet10t", "backbone__out_indices": [1, 2], "head__channels": 8}
    network = create_model("fcn", **settings, backbone__mean=[0, 0, 0], backbone__std=[1, 1, 1]).eval()
    seen = []
    network.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    image = torch.rand(1, 3, 32, 32)
    network(image)
    assert torch.equal(seen[0], image)


def test_statistics_of_values_up_to_255_are_refused(tmp_path):
    """Other libraries state them like this; the images would be almost black after the normalisation."""
    with pytest.raises(ValueError, match=r"^backbone\.mean=\[123\.675.*have to be divided by 255"):
        run(*TINY, "backbone.mean=[123.675,116.28,103.53]", folder=tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ccnet", {"head__channels": 16}),
        ("ce2p", {"head__channels": 16}),
        ("mask_rcnn", {"channels": 16, "min_size": 48, "max_size": 80}),
    ],
    ids=["ccnet", "ce2p", "mask_rcnn"],
)
def test_every_kind_of_network_takes_more_channels(name, options):
    network = create_model(name, num_classes=2, backbone="resnet10t", backbone__in_channels=4, **options).eval()
    with torch.inference_mode():
        if name == "mask_rcnn":
            assert network([torch.rand(4, 40, 50)])[0]["masks"].shape[-2:] == (40, 50)
        else:
            assert network(torch.rand(1, 4, 33, 41))["out"].shape == (1, 2, 33, 41)
            with pytest.raises(ValueError, match=r"expected images \(N, 4, H, W\).*, got \(1, 3, 33, 41\)"):
                network(torch.rand(1, 3, 33, 41))


@pytest.mark.slow
def test_the_jax_twin_takes_more_channels():
    jax = pytest.importorskip("jax", reason="pip install 'ccnet-segmentation[jax]'")
    settings = {"num_classes": 2, "backbone": "beacons", "backbone__in_channels": 4, "head__channels": 8}
    torch.manual_seed(0)
    network = create_model("ccnet", **settings).eval()
    from ccnet.models.nnx import twin

    image = torch.rand(1, 4, 33, 41)
    with torch.inference_mode():
        expected = network(image)["out"]
    found = jax.jit(twin(network))(jax.numpy.asarray(image.movedim(1, -1).numpy()))["out"]
    assert np.allclose(np.moveaxis(np.asarray(found), -1, 1), expected.numpy(), atol=1e-3)


def in_fourth_channel(folder, number=8, size=48, side=16):
    """Write RGBA images whose squares differ from their surroundings in the fourth channel only."""
    generator = np.random.default_rng(1)
    for index in range(number):
        labels = np.zeros((size, size), dtype=np.uint8)
        for _ in range(2):
            y, x = generator.integers(0, size - side, 2)
            labels[y : y + side, x : x + side] = 1
        pixels = generator.integers(0, 256, (size, size, 4)).astype(np.uint8)
        pixels[..., 3] = 60 + 120 * labels + generator.integers(0, 40, labels.shape)
        for kind, array in (("images", pixels), ("masks", labels)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(folder / kind / f"{index}.png")
    return [f"dataset.images={folder / 'images'}", f"dataset.masks={folder / 'masks'}", "dataset.classes=[rest,square]"]


SMALL = [
    "dataset=folder", "model=fcn", "backbone=resnet10t", "backbone.pretrained=false", "backbone.out_indices=[1,2]",
    "recipe.train_transform.crop_size=[48,48]", "recipe.train_transform.scale=null", "recipe.head.channels=16",
    "recipe.batch_size=4", "recipe.val_every=100", "optimizer=adamw", "recipe.lr=0.003", "num_workers=0",
    "logger=none", "device=cpu", "recipe.train_transform.color_jitter=null",
]  # fmt: skip


@pytest.mark.slow
def test_a_class_that_only_the_fourth_channel_shows_is_learned(tmp_path):
    data = [*in_fourth_channel(tmp_path), "dataset.val_share=0.5", "recipe.max_iters=30"]
    assert run(*data, *SMALL, "backbone.in_channels=4", "dataset.rgb=[3,3,3]", folder=tmp_path / "four") > 0.7
    network = ccnet.load(tmp_path / "four", device="cpu")
    found = network.predict(tmp_path / "images" / "0.png")
    pixels = np.array(Image.open(tmp_path / "images" / "0.png"))
    assert np.array_equal(found.labels, network.predict(pixels).labels)
    assert (found.labels == np.array(Image.open(tmp_path / "masks" / "0.png"))).mean() > 0.85
    drawn = np.repeat(pixels[..., 3:], 3, axis=2)  # dataset.rgb
    assert np.array_equal(found.overlay, blend(drawn, found.labels, network.palette))
    with pytest.raises(ValueError, match=r"takes 4 channels and the images .* with 3: set backbone.in_channels=3"):
        run(*TINY, "backbone.in_channels=4", folder=tmp_path / "beacons")
