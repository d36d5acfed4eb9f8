"""Comparison of a backbone's twin with timm's network, before anyone relies on the twin."""

# Some JAX functions are only partially typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import copy
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from ...backbone import TimmBackbone

# Relative to the largest value. Float32 rounding reaches 3e-4 in a resnet101, and more in deeper networks.
TOLERANCE, FLOAT64_TOLERANCE = 1e-3, 1e-9
_SIZE = (33, 41)  # height, width; odd, so that differences in padding show
_compared: set[Any] = set()


def compare(backbone: TimmBackbone, convert: Callable[[torch.nn.Module], Any]) -> None:
    """Raise ValueError unless the twin computes the same features as timm's network, once per architecture.

    Both run in evaluation mode on one small random image pair, in float32 and, if they differ, in float64. Weights and
    statistics are random too, because a batch norm that is initialised to zero would hide the branch before it.

    Args:
        backbone: the torch backbone, which is left unchanged.
        convert: converts it to its twin.
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
    """Return the largest difference between the features of both, relative to the largest value of each feature map.

    Args:
        backbone: the torch backbone, which is left unchanged.
        convert: converts it to its twin.
        size: height and width of the two random images.
        dtype: float32, or float64 to tell an error from the rounding of a deep network.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((2, backbone.in_channels, *size), generator=generator, dtype=dtype)
    random = _with_random_weights(backbone, images, generator)
    with torch.no_grad():
        expected = random(images)

    @jax.jit
    def features(state: Any, images: jax.Array) -> list[jax.Array]:
        return nnx.merge(graph, state)(images)

    # GPUs round float32 factors to TF32 otherwise.
    with jax.enable_x64(dtype == torch.float64), jax.default_matmul_precision("highest"):
        graph, state = nnx.split(convert(random))
        found = [np.asarray(array) for array in features(state, jnp.asarray(images.movedim(1, -1).numpy()))]
    return max(
        float(np.abs(np.moveaxis(ours, -1, 1) - theirs.numpy()).max() / theirs.abs().max())
        for ours, theirs in zip(found, expected, strict=True)
    )


@torch.no_grad()
def _with_random_weights(backbone: TimmBackbone, images: torch.Tensor, generator: torch.Generator) -> TimmBackbone:
    """Return a copy with random weights, whose running statistics are those of ``images``, in evaluation mode.

    Matching statistics keep all activations near 1, where activation functions differ most.
    """
    made = copy.deepcopy(backbone).cpu().to(images.dtype).train().requires_grad_(False)
    for name, tensor in made.named_parameters():
        if tensor.ndim > 1:
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
        elif name.endswith("bias"):
            tensor.normal_(0, 0.1, generator=generator)
        else:  # the factors of norms and of layer scale
            tensor.uniform_(0.5, 1.5, generator=generator)
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1
    made(images)
    return made.eval()
