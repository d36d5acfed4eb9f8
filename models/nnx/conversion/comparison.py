"""Comparison of a backbone's twin with timm's network, before the twin is used."""

# Some JAX functions are only partially typed.

import copy
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from ...backbone import TimmBackbone

# Relative to the largest value. Float32 rounding errors reach 3e-4 in a resnet101, and more in deeper networks.
TOLERANCE, FLOAT64_TOLERANCE = 1e-3, 1e-9
_SIZE = (33, 41)  # height, width; odd, to expose differences in padding
_compared: set[Any] = set()


def compare(backbone: TimmBackbone, convert: Callable[[torch.nn.Module], Any]) -> None:
    """Check once per architecture that the twin computes the same features as timm's network.

    Both run in evaluation mode on two small random images, in float32 and, if they differ, in float64. The weights are
    random too, because a batch norm whose weight is initialised to 0 would hide the branch before it.

    Args:
        backbone: the torch backbone, which is left unchanged.
        convert: converts a torch backbone to its twin.

    Raises:
        ValueError: the features differ.
    """
    architecture = repr(backbone), nnx.graphdef(convert(backbone))
    if architecture in _compared:
        return
    difference = largest_difference(backbone, convert)
    agrees = difference < TOLERANCE or largest_difference(backbone, convert, dtype=torch.float64) < FLOAT64_TOLERANCE
    if not agrees:
        raise ValueError(
            f"the JAX twin of this backbone differs from timm's network by {difference:.1e} of its largest feature, on "
            "random weights: train and evaluate it with framework=torch"
        )
    _compared.add(architecture)


def largest_difference(
    backbone: TimmBackbone,
    convert: Callable[[torch.nn.Module], Any],
    size: tuple[int, int] = _SIZE,
    dtype: torch.dtype = torch.float32,
) -> float:
    """Return the largest difference between both sets of features, relative to the largest value of each feature map.

    Args:
        backbone: the torch backbone, which is left unchanged.
        convert: converts a torch backbone to its twin.
        size: height and width of the two random images.
        dtype: float32, or float64 to distinguish errors from the rounding of deep networks.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((2, backbone.in_channels, *size), generator=generator, dtype=dtype)
    random = _with_random_weights(backbone, images, generator)
    with torch.no_grad():
        expected = random(images)

    @jax.jit
    def features(state: Any, images: jax.Array) -> list[jax.Array]:
        return nnx.merge(graph, state)(images)

    # By default, GPUs round the operands of float32 products to TF32.
    with jax.enable_x64(dtype == torch.float64), jax.default_matmul_precision("highest"):
        graph, state = nnx.split(convert(random))
        of_twin = [np.asarray(array) for array in features(state, jnp.asarray(images.movedim(1, -1).numpy()))]
    differences = [
        np.abs(np.moveaxis(ours, -1, 1) - theirs.numpy()).max() / theirs.abs().max().item()
        for ours, theirs in zip(of_twin, expected, strict=True)
    ]
    return float(np.max(differences))  # unlike max, it does not skip NaN


@torch.no_grad()
def _with_random_weights(backbone: TimmBackbone, images: torch.Tensor, generator: torch.Generator) -> TimmBackbone:
    """Return a copy in evaluation mode, with random weights and with the batch statistics of ``images``.

    Matching statistics keep the activations near 1, where activation functions differ most.
    """
    network = copy.deepcopy(backbone).cpu().to(images.dtype).train().requires_grad_(False)
    for name, tensor in network.named_parameters():
        if tensor.ndim > 1:
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
        elif name.endswith("bias"):
            tensor.normal_(0, 0.1, generator=generator)
        else:  # the weights of norms and layer scales
            tensor.uniform_(0.5, 1.5, generator=generator)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1
    network(images)
    return network.eval()
