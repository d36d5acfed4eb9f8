"""Compute what a point of the image attends to after each loop of criss-cross attention (the paper's Fig. 7)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels import criss_cross_attention, criss_cross_weights
from ...models.criss_cross import CrissCrossAttention


def criss_cross_of(model: nn.Module) -> CrissCrossAttention | None:
    """Return the network's criss-cross attention module; None if it has none or several.

    The modules of ``hv`` and ``hv_vh`` attend along rows or columns only, so that the map of one of them would hide
    most of what a point attends to.
    """
    modules = _modules_of(model)
    return modules[0] if len(modules) == 1 else None


def check_attention(model: Any) -> CrissCrossAttention:
    """Return the network's only criss-cross attention module.

    Raises:
        ValueError: the network has none or several, or runs in JAX.
    """
    if not isinstance(model, nn.Module):
        raise ValueError("attention=... needs a torch network: remove framework=jax, the weights are the same")
    modules = _modules_of(model)
    if len(modules) != 1:
        found = f"{len(modules)} of them" if modules else "none (it is another model, or R = 0)"
        raise ValueError(f"attention=... needs a network with one criss-cross module, such as ccnet; this has {found}")
    return modules[0]


def _modules_of(model: nn.Module) -> list[CrissCrossAttention]:
    return [module for module in model.modules() if isinstance(module, CrissCrossAttention)]


def attention_of_point(model: nn.Module, image: Tensor, point: Sequence[int], *, loops: int = 3) -> list[Tensor]:
    """Return how much each position contributes to `point` after R = 1, ..., `loops` loops.

    The map after R loops is row ``point`` of A_R A_(R-1) ... A_1, where A_r is the attention matrix of loop r. Each
    loop has its own matrix, because the features change from loop to loop; residual connections are ignored. The loops
    share their parameters, so `loops` may exceed the R that the network was trained with.

    Args:
        model: a network with a :class:`ccnet.models.criss_cross.CrissCrossAttention`, in eval mode.
        image: (1, C, H, W) in [0, 1].
        point: (y, x) in pixels of the image.
        loops: the largest R.

    Returns:
        One map (h, w) for each R, at feature resolution; its values are non-negative and sum to 1.

    Raises:
        ValueError: the point is outside the image, or the network does not have exactly one criss-cross module.
    """
    size = image.shape[-2:]
    if len(point) != 2 or not all(0 <= p < side for p, side in zip(point, size, strict=True)):
        raise ValueError(f"attention={list(point)} is outside the image: set [y,x] within {size[0]}x{size[1]} pixels")
    attention = check_attention(model)
    features = _input_of(attention, model, image)
    projected = []
    with torch.no_grad():
        for _ in range(loops):
            projected.append((attention.query_conv(features), attention.key_conv(features)))
            features = attention(features)
    sides = features.shape[-2:]
    at = [round(p / max(side - 1, 1) * (n - 1)) for p, side, n in zip(point, size, sides, strict=True)]
    return [_composed(projected[: loop + 1], at, attention.axes) for loop in range(loops)]


def _composed(projected: list[tuple[Tensor, Tensor]], point: Sequence[int], axes: Sequence[int] | None) -> Tensor:
    """Return one row of the product of the loops' attention matrices without materialising the matrices."""
    query, key = projected[-1]
    weights = criss_cross_weights(query, key, point, axes=axes)
    for query, key in reversed(projected[:-1]):
        # Attention A v is linear in the value v, so the gradient of (weights A v) with respect to v is (weights A).
        with torch.enable_grad():
            value = torch.zeros_like(weights).unsqueeze(1).requires_grad_()
            result = criss_cross_attention(query.to(value.dtype), key.to(value.dtype), value, axes=axes)
            (value_grad,) = torch.autograd.grad(result, value, weights.unsqueeze(1))
        weights = value_grad[:, 0]
    return weights[0]


def _input_of(module: nn.Module, model: nn.Module, image: Tensor) -> Tensor:
    """Run `model` on the image and return the first input that `module` receives."""
    seen = []
    handle = module.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        with torch.no_grad():
            model(image)
    finally:
        handle.remove()
    return seen[0]
