"""Projections of the Flax NNX modules that a user has replaced are called, as in torch."""

import numpy as np
import pytest
import torch

from ccnet.models import CrissCrossAttention
from ccnet.models.context.non_local import NonLocal

pytest.importorskip("jax", reason="JAX is not installed: pip install -e '.[jax]'")
nnx = pytest.importorskip("flax.nnx", reason="Flax is not installed: pip install -e '.[jax]'")

from ccnet.models.nnx import twin  # noqa: E402
from ccnet.models.nnx.layers import Conv  # noqa: E402

pytestmark = pytest.mark.slow


class Doubled(Conv):
    def __call__(self, x, train=False):
        return 2 * super().__call__(x, train)


def with_neighbours(conv):
    """Return a 3x3 convolution with a 1x1 convolution's weights in its middle and zeros around them."""
    wide = torch.nn.Conv2d(conv.in_channels, conv.out_channels, 3, padding=1)
    torch.nn.init.zeros_(wide.weight)
    wide.weight.data[:, :, 1:2, 1:2], wide.bias.data = conv.weight.data, conv.bias.data
    return wide


@pytest.mark.parametrize("kind", [CrissCrossAttention, NonLocal])
@pytest.mark.parametrize(
    "replacement",
    [
        Doubled,
        lambda conv: Conv(with_neighbours(conv)),
        lambda conv: nnx.LoRA(16, 2, conv.out_channels, base_module=Conv(conv), rngs=nnx.Rngs(0)),
    ],
    ids=["subclass", "wide", "LoRA"],
)
def test_replaced_projections_are_called(replacement, kind):
    module, x = kind(16), torch.randn(2, 16, 4, 5)
    torch.nn.init.ones_(module.gamma)
    ours = twin(module)
    ours.value_conv = replacement(module.value_conv)
    if replacement is Doubled:
        module.value_conv.weight.data *= 2
        module.value_conv.bias.data *= 2
    got = torch.from_numpy(np.array(ours(x.movedim(1, -1).numpy()))).movedim(-1, 1)
    assert torch.allclose(got, module(x), atol=1e-5)
