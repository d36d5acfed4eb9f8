"""Attention maps equal products of the attention matrices of the loops."""

import numpy as np
import pytest
import torch

from ccnet.engine.prediction.attention_maps import attention_of_point
from ccnet.kernels import criss_cross_weights
from ccnet.models import create_model


@pytest.fixture(scope="module")
def ccnet():
    torch.manual_seed(0)
    options = {"head__channels": 16, "head__context__gamma": "fixed"}
    return create_model("ccnet", num_classes=5, backbone="resnet10t", **options).eval()


def test_attention_maps_are_rows_of_the_loops_attention_matrices(ccnet):
    image = torch.rand(1, 3, 41, 57)
    maps = attention_of_point(ccnet, image, (16, 33))
    module, seen = ccnet.head.context, []
    handle = module.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        ccnet(image)
        handle.remove()
        features, product, wants = seen[0], None, []
        for _ in range(3):
            query, key = module.query_conv(features), module.key_conv(features)
            height, width = features.shape[-2:]
            matrix = torch.stack(
                [criss_cross_weights(query, key, (y, x))[0].flatten() for y in range(height) for x in range(width)]
            )
            product = matrix if product is None else matrix @ product
            features = module(features)
            row = round(16 / 40 * (height - 1)) * width + round(33 / 56 * (width - 1))
            wants.append(product[row].view(height, width))
    for got, want in zip(maps, wants, strict=True):
        assert torch.allclose(got, want, atol=1e-6)
        assert got.sum() == pytest.approx(1, abs=1e-5)
    y, x = np.unravel_index(row, maps[0].shape)
    cross = torch.zeros_like(maps[0], dtype=torch.bool)
    cross[y], cross[:, x] = True, True
    assert torch.equal(maps[0] > 0, cross)  # R = 1 sees its row and column
    assert (maps[1] > 0).all()  # R = 2 the whole image


@pytest.mark.parametrize(("point", "at"), [((0, 0), (0, 0)), ((40, 56), (5, 7)), ((21, 53), (3, 7)), ((19, 3), (2, 0))])
def test_a_point_of_the_image_is_the_nearest_one_of_the_map(ccnet, point, at):
    """The corners of the image are those of the 6x8 features, hence 8 pixels are one feature."""
    (weights,) = attention_of_point(ccnet, torch.rand(1, 3, 41, 57), point, loops=1)
    seen = weights > 0
    assert seen[at[0]].all() and seen[:, at[1]].all() and seen.sum() == 6 + 8 - 1


def test_attention_maps_reject_networks_without_attention_and_points_outside(ccnet):
    image = torch.rand(1, 3, 41, 57)
    for point in ((41, 3), (-1, 3), (3,)):
        with pytest.raises(ValueError, match=r"is outside the image: set \[y,x\] within 41x57 pixels"):
            attention_of_point(ccnet, image, point)
    # HV attends to the whole image in one pass, but each of its modules to one line.
    for name, found in (("fcn", "none"), ("hv", "2 of them")):
        other = create_model(name, num_classes=5, backbone="resnet10t", head__channels=16).eval()
        with pytest.raises(ValueError, match=f"needs a network with one criss-cross module, .*; this has {found}"):
            attention_of_point(other, image, (1, 1))
