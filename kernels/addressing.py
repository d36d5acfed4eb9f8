"""What the forward and the backward kernel share: where a line lies in memory, and its scores.

Every array is channels-last, (pixels, channels), with its channels side by side and a constant stride from
pixel to pixel. Along any axis of length L with ``inner`` pixels per step (the product of the sizes behind
that axis), line number i starts at pixel (i // inner) * L * inner + i % inner: the batch and all axes in
front fold into the line number, so that these two numbers describe every axis of 1D, 2D and 3D input.

This file imports neither torch nor jax; both frameworks launch the same kernels.
"""

import triton
import triton.language as tl


@triton.jit
def line_start(line, length, inner):
    """First pixel of a line. int64, since pixels times channels pass 2^31 in a large batch."""
    return (line // inner).to(tl.int64) * length * inner + line % inner


@triton.jit
def line_rows(offs, inner, WIDE: tl.constexpr):
    """Pixels from the start of a line to its positions ``offs``. int64 only where one image needs it."""
    if WIDE:
        offs = offs.to(tl.int64)
    return offs * inner


@triton.jit
def load_rows(ptr, rows, stride, offs_c, rows_valid, CHANNELS: tl.constexpr):
    """[rows, len(offs_c)]: some channels of some pixels, zero outside the line and outside the channels."""
    mask = rows_valid[:, None] & (offs_c < CHANNELS)[None, :]
    return tl.load(ptr + rows[:, None] * stride + offs_c[None, :], mask=mask, other=0.0)


@triton.jit
def is_key(offs_m, offs_n, length, MASK_SELF: tl.constexpr):
    """[BLOCK_M, BLOCK_N]: the keys of each query on this line; itself only where this pass counts it."""
    valid = (offs_n < length)[None, :]
    if MASK_SELF:
        valid = valid & (offs_m[:, None] != offs_n[None, :])
    return valid


@triton.jit
def finite(x):
    """-inf, the log-sum-exp of no key at all, as 0: so that no difference is inf - inf."""
    return tl.where(x == float("-inf"), 0.0, x)
