"""Where a point of the image attends after each loop of criss-cross attention (the paper's Fig. 7)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...kernels import criss_cross_attention, criss_cross_weights
from ...models.criss_cross import CrissCrossAttention


def attention_maps(model: nn.Module, image: Tensor, point: Sequence[int], *, loops: int = 3) -> list[Tensor]:
    """The share that every position has in one of them after R = 1, ..., ``loops`` loops.

        maps[R] = row ``point`` of A_R A_(R-1) ... A_1,   A_r the attention of loop r

    Each loop has its own attention, as the features change from loop to loop; the residual connections are left out.
    The loops share their weights, so that a network trained with another R can be asked too.

    Args:
        model: a network with one :class:`models.criss_cross.CrissCrossAttention`, in eval mode.
        image: (1, 3, H, W) in [0, 1].
        point: (y, x) in pixels of the image.
        loops: the largest R.

    Returns:
        For each R a map (h, w) at the features' size, non-negative, of sum 1.

    Raises:
        ValueError: a point outside the image, or a network without criss-cross attention.
    """
    size = image.shape[-2:]
    if len(point) != 2 or not all(0 <= p < side for p, side in zip(point, size, strict=True)):
        raise ValueError(
            f"attention={list(point)} is outside the picture: give [y,x] within {size[0]}x{size[1]} pixels"
        )
    modules = [module for module in model.modules() if isinstance(module, CrissCrossAttention)]
    if not modules:
        raise ValueError("this network has no criss-cross attention (another model, or R = 0): there is none to draw")
    features = _input_of(modules[0], model, image)
    projected = []
    with torch.no_grad():
        for _ in range(loops):
            projected.append((modules[0].query_conv(features), modules[0].key_conv(features)))
            features = modules[0](features)
    sides = features.shape[-2:]
    at = [round(p / max(side - 1, 1) * (n - 1)) for p, side, n in zip(point, size, sides, strict=True)]
    return [_composed(projected[: loop + 1], at, modules[0].axes) for loop in range(loops)]


def _composed(projected: list[tuple[Tensor, Tensor]], point: Sequence[int], axes: Sequence[int] | None) -> Tensor:
    """A row of the product of the loops' attention matrices, without building one of them."""
    query, key = projected[-1]
    weights = criss_cross_weights(query, key, point, axes=axes)
    for query, key in reversed(projected[:-1]):
        # The attention is linear in its values: the gradient of a weighted sum of results is the weights times A.
        with torch.enable_grad():
            value = torch.zeros_like(weights).unsqueeze(1).requires_grad_()
            result = criss_cross_attention(query.to(value.dtype), key.to(value.dtype), value, axes=axes)
            (value_grad,) = torch.autograd.grad(result, value, weights.unsqueeze(1))
        weights = value_grad[:, 0]
    return weights[0]


def _input_of(module: nn.Module, model: nn.Module, image: Tensor) -> Tensor:
    """What ``module`` is given first when ``model`` sees ``image``."""
    seen = []
    handle = module.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        with torch.no_grad():
            model(image)
    finally:
        handle.remove()
    return seen[0]
