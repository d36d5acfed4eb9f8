"""Pooling and resizing of (N, H, W, C) arrays with torch's conventions at the borders."""

# Some JAX functions are only partially typed.

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax


class Pool(nnx.Module):
    """Counterpart of ``nn.MaxPool2d``, ``nn.AvgPool2d`` and timm's ``AvgPool2dSame``.

    Args:
        kind: "max", "average" (``nn.AvgPool2d`` with ceil_mode), "valid" (without) or "same".
        kernel, stride, padding: size, stride and padding of the window in pixels, each one number or (height, width);
            ``padding`` only applies to "max".
    """

    def __init__(self, kind: str, kernel: Any, stride: Any, padding: Any = 0):
        self.kind, self.kernel, self.stride, self.padding = kind, _pair(kernel), _pair(stride), _pair(padding)

    def __call__(self, x: Array, train: bool = False) -> Array:
        """Apply the pooling: (N, H, W, C) -> (N, h, w, C)."""
        window, steps = (1, *self.kernel, 1), (1, *self.stride, 1)
        if self.kind == "max":
            padding = ((0, 0), *((side, side) for side in self.padding), (0, 0))
            return lax.reduce_window(x, -jnp.inf, lax.max, window, steps, padding)
        if self.kind in ("same", "valid"):  # "same" includes the padding zeros in the average
            return lax.reduce_window(x, 0.0, lax.add, window, steps, self.kind.upper()) / math.prod(self.kernel)
        # With ceil_mode, windows may extend past the border; torch averages over the pixels inside the image.
        over = [_overhang(*sizes) for sizes in zip(x.shape[1:3], self.kernel, self.stride, strict=True)]
        padding = ((0, 0), (0, over[0]), (0, over[1]), (0, 0))
        total = lax.reduce_window(x, 0.0, lax.add, window, steps, padding)
        count = lax.reduce_window(jnp.ones((1, *x.shape[1:3], 1), x.dtype), 0.0, lax.add, window, steps, padding)
        return total / count


def resize(x: Array, size: Sequence[int], align_corners: bool = True) -> Array:
    """Resize bilinearly like torch's ``interpolate``, in float32 or wider: (N, H, W, C) -> (N, *size, C)."""
    rows, columns = (_linear(old, new, align_corners) for old, new in zip(x.shape[1:3], size, strict=True))
    return _along_both(x, rows, columns)


def adaptive_average(x: Array, bins: int) -> Array:
    """Pool like torch's ``adaptive_avg_pool2d``, in float32 or wider: (N, H, W, C) -> (N, bins, bins, C)."""
    return _along_both(x, *(_cells(side, bins) for side in x.shape[1:3]))


def _along_both(x: Array, rows: np.ndarray, columns: np.ndarray) -> Array:
    """Multiply by (new, old) matrices along height and width, which is fast in the forward and the backward pass."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    x = jnp.einsum("hi,niwc->nhwc", rows.astype(wide), x.astype(wide), precision="highest")
    return jnp.einsum("wj,nhjc->nhwc", columns.astype(wide), x, precision="highest")


def _linear(old: int, new: int, align_corners: bool) -> np.ndarray:
    """Return the (new, old) matrix of linear interpolation from ``old`` to ``new`` pixels."""
    if align_corners:
        points = np.arange(new) * ((old - 1) / max(new - 1, 1))
    else:
        points = ((np.arange(new) + 0.5) * (old / new) - 0.5).clip(min=0)
    low = np.minimum(np.floor(points).astype(int), old - 1)
    matrix = np.zeros((new, old))
    matrix[np.arange(new), low] += 1 - (points - low)
    matrix[np.arange(new), np.minimum(low + 1, old - 1)] += points - low
    return matrix


def _cells(old: int, new: int) -> np.ndarray:
    """Return the (new, old) matrix of adaptive average pooling from ``old`` pixels to ``new`` bins."""
    matrix = np.zeros((new, old))
    for cell in range(new):
        start, end = cell * old // new, -(-(cell + 1) * old // new)
        matrix[cell, start:end] = 1 / (end - start)
    return matrix


def _overhang(size: int, kernel: int, stride: int) -> int:
    """Return the number of pixels by which torch's last window extends past the border with ceil_mode."""
    windows = 1 - (kernel - size) // stride
    if (windows - 1) * stride >= size:  # torch omits a window that starts outside the image
        windows -= 1
    return max((windows - 1) * stride + kernel - size, 0)


def _pair(sides: Any) -> tuple[int, int]:
    """Return a torch setting, one number or a pair, as (height, width)."""
    return (sides, sides) if isinstance(sides, int) else tuple(sides)
