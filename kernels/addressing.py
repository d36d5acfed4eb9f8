"""Addresses and masks of one line, for the forward and the backward kernel.

    first pixel of line i = (i // inner) * L * inner + i % inner,    i < pixels / L

Legend: pixels of all images, L the length of the axis, ``inner`` the pixels from one position of a line to the
next, which is the product of the sizes behind the axis. The batch and the axes in front fold into the line
number, so L and ``inner`` describe every axis of 1D, 2D and 3D input.

Every array is channels-last, (pixels, channels), with its channels side by side and a constant stride from
pixel to pixel. Both frameworks launch the same kernels, so this file imports neither torch nor jax.
"""

# pyright: basic
# The body of a triton.jit function is compiled by Triton: its names have other types than in Python.

import triton
import triton.language as tl


@triton.jit
def line_start(line, length, inner):
    """Return the first pixel of a line, in int64: pixels times channels pass 2^31 in a large batch."""
    return (line // inner).to(tl.int64) * length * inner + line % inner


@triton.jit
def line_rows(offs, inner, WIDE: tl.constexpr):
    """Return the pixels from the start of a line to its positions ``offs``, in int64 only if an image needs it."""
    if WIDE:
        offs = offs.to(tl.int64)
    return offs * inner


@triton.jit
def load_rows(ptr, rows, stride, offs_c, rows_valid, CHANNELS: tl.constexpr):
    """Load [rows, len(offs_c)] channels of pixels, zero outside the line and beyond the channels."""
    mask = rows_valid[:, None] & (offs_c < CHANNELS)[None, :]
    return tl.load(ptr + rows[:, None] * stride + offs_c[None, :], mask=mask, other=0.0)


@triton.jit
def is_key(offs_m, offs_n, length, MASK_SELF: tl.constexpr):
    """Return a [BLOCK_M, BLOCK_N] mask of the keys of each query on this line, itself unless MASK_SELF."""
    valid = (offs_n < length)[None, :]
    if MASK_SELF:
        valid = valid & (offs_m[:, None] != offs_n[None, :])
    return valid


@triton.jit
def finite(x):
    """Replace -inf, the maximum over no key, by 0, so that no difference is inf - inf."""
    return tl.where(x == float("-inf"), 0.0, x)
