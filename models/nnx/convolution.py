"""2D convolution of (N, H, W, C) arrays with a faster formula on CPUs.

XLA's CPU convolutions and their gradients are slow for 1x1 kernels, many channels, and groups: the gradient of a
grouped kernel takes over 100 times as long as the convolution. On a CPU, these convolutions are therefore computed as a
sum of products over the taps of the kernel, which JAX differentiates into products again. Programs for other platforms
contain the plain convolution, as do those for several devices unless the kernel is 1x1.
"""

# Some JAX functions are only partially typed.

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

Pair = tuple[int, int]

# Below this product of input and output channels, XLA's dense convolution is at least as fast as the sum over the taps.
_WIDE = 2**16


def convolve(
    x: Array,
    kernel: Array,
    stride: Pair,
    padding: str | Sequence[Pair],
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> Array:
    """Convolve: (N, H, W, C) and kernel (kh, kw, C / groups, out) -> (N, h, w, out).

    All derivatives of ``lax.conv_general_dilated`` are supported.

    Args:
        x: the input.
        kernel: the weights, in the dtype of the input.
        stride, dilation: (height, width) in pixels.
        padding: "SAME", "VALID", or the (before, after) padding of height and width in pixels.
        groups: number of groups of channels.
    """
    settings: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    height, width, inside, out = kernel.shape
    narrow = groups == 1 and inside * out < _WIDE
    if height * width > 1 and (narrow or _number_of_cpus() > 1):  # XLA's CPU collectives can deadlock inside loops
        return _plain(x, kernel, **settings)
    return lax.platform_dependent(x, kernel, cpu=partial(_by_taps, **settings), default=partial(_plain, **settings))


def _number_of_cpus() -> int:
    """Return the number of JAX's CPU devices, which does not depend on the GPUs; 0 if JAX_PLATFORMS excludes them."""
    try:
        return jax.device_count("cpu")
    except RuntimeError:
        return 0


def _plain(x: Array, kernel: Array, stride: Pair, padding: Any, dilation: Pair, groups: int) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        stride,
        padding,
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _by_taps(x: Array, kernel: Array, stride: Pair, padding: Any, dilation: Pair, groups: int) -> Array:
    height, width, inside, out = kernel.shape
    if isinstance(padding, str):
        window = [(side - 1) * gap + 1 for side, gap in zip((height, width), dilation, strict=True)]
        padding = lax.padtype_to_pads(x.shape[1:3], window, stride, padding)
    settings: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation}
    if groups == 1:
        return _sum_over_taps(x, kernel, _matmul, **settings)
    if inside == 1:
        return _sum_over_taps(jnp.repeat(x, out // groups, axis=-1), kernel[:, :, 0], _multiply, **settings)
    in_groups = x.reshape(*x.shape[:3], groups, inside)
    kernels = kernel.reshape(height, width, inside, groups, out // groups)
    y = jax.vmap(partial(_sum_over_taps, product=_matmul, **settings), (3, 3), 3)(in_groups, kernels)
    return y.reshape(*y.shape[:3], out)


def _sum_over_taps(
    x: Array, kernel: Array, product: Callable[[Array, Array], Array], stride: Pair, padding: Any, dilation: Pair
) -> Array:
    """Sum ``product(pixels, weights)`` over the taps of a kernel (kh, kw, ...), one tap at a time to save memory."""
    height, width = kernel.shape[:2]
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    images, rows, columns, channels = padded.shape
    span = (images, rows - (height - 1) * dilation[0], columns - (width - 1) * dilation[1], channels)

    def tap(pixels: Array, weights: Array) -> Array:
        return product(pixels[:, :: stride[0], :: stride[1]], weights)

    if height == width == 1:
        return tap(padded, kernel[0, 0]).astype(x.dtype)

    def add(total: Array, place: tuple[Array, Array]) -> tuple[Array, None]:
        corner, weights = place
        return total + tap(lax.dynamic_slice(padded, corner, span), weights), None

    places = np.indices((height, width)).reshape(2, -1).T * dilation
    corners = np.pad(places, ((0, 0), (1, 1))).astype(np.int32)  # the first pixel of each tap in (N, H, W, C)
    weights = kernel.reshape(height * width, *kernel.shape[2:])
    zeros = jnp.zeros_like(tap(padded[:, : span[1], : span[2]], weights[0]))  # sharded like the sum
    total, _ = lax.scan(jax.checkpoint(add, prevent_cse=False), zeros, (corners, weights))
    return total.astype(x.dtype)


def _matmul(pixels: Array, weights: Array) -> Array:
    return jnp.matmul(pixels, weights, preferred_element_type=jnp.promote_types(pixels.dtype, jnp.float32))


def _multiply(pixels: Array, weights: Array) -> Array:
    wide = jnp.promote_types(pixels.dtype, jnp.float32)
    return pixels.astype(wide) * weights.astype(wide)
